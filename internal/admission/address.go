package admission

import (
	"context"
	"errors"
	"net/netip"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/settings"
)

type address struct{ client client.Reader }

func addresses(m ctrl.Manager, _ settings.Platform) error {
	return ctrl.NewWebhookManagedBy(m, &v1alpha2.VirtualMachineIPAddress{}).WithValidator(&address{client: m.GetClient()}).Complete()
}

// ValidateCreate checks a new claim.
func (w *address) ValidateCreate(ctx context.Context, a *v1alpha2.VirtualMachineIPAddress) (admission.Warnings, error) {
	var p problems
	ranges, err := w.ranges(ctx)
	if err != nil {
		return nil, err
	}
	if len(ranges) == 0 {
		p.add("there are no address ranges: set virtualMachineCIDRs in ModuleConfig virtualization")
	}
	wanted, ok := static(&p, a)
	if !ok || len(ranges) == 0 {
		return nil, p.err()
	}
	if !policy.UsableAddress(wanted, ranges) {
		p.add("spec.staticIP: %s is not in the ranges of ModuleConfig virtualization, or is the network, router or broadcast address of one", wanted)
	}
	if err := w.free(ctx, &p, a, wanted); err != nil {
		return nil, err
	}
	return nil, p.err()
}

// ValidateUpdate checks a changed claim: a bound one may only become Static with the
// address it has.
func (w *address) ValidateUpdate(ctx context.Context, before, a *v1alpha2.VirtualMachineIPAddress) (admission.Warnings, error) {
	if deleting(a) || equality.Semantic.DeepEqual(before.Spec, a.Spec) {
		return nil, nil
	}
	var p problems
	var warnings admission.Warnings
	wanted, ok := static(&p, a)
	bound := before.Status.Phase == v1alpha2.VirtualMachineIPAddressBound || before.Status.Phase == v1alpha2.VirtualMachineIPAddressAttached
	if bound && (!ok || wanted.String() != before.Status.Address) {
		p.add("spec: address %s is leased; it can only be made Static with this address", before.Status.Address)
	}
	if ok && !bound {
		ranges, err := w.ranges(ctx)
		if err != nil {
			return nil, err
		}
		if !policy.UsableAddress(wanted, ranges) {
			warnings = append(warnings, "spec.staticIP: "+wanted.String()+" is not in the ranges of ModuleConfig virtualization")
		}
		if err := w.free(ctx, &p, a, wanted); err != nil {
			return nil, err
		}
	}
	return warnings, p.err()
}

// ValidateDelete allows everything: the finalizer waits for the machine.
func (w *address) ValidateDelete(context.Context, *v1alpha2.VirtualMachineIPAddress) (admission.Warnings, error) {
	return nil, nil
}

// static reads the wanted address of a Static claim.
func static(p *problems, a *v1alpha2.VirtualMachineIPAddress) (netip.Addr, bool) {
	if a.Spec.Type == v1alpha2.VirtualMachineIPAddressAuto {
		if a.Spec.StaticIP != "" {
			p.add("spec.staticIP: must be empty with type Auto")
		}
		return netip.Addr{}, false
	}
	wanted, err := netip.ParseAddr(a.Spec.StaticIP)
	if err != nil || !wanted.Is4() {
		p.add("spec.staticIP: %q is not an IPv4 address", a.Spec.StaticIP)
		return netip.Addr{}, false
	}
	return wanted, true
}

func (w *address) ranges(ctx context.Context) ([]netip.Prefix, error) {
	s, err := settings.Load(ctx, w.client)
	if s != nil {
		return s.VirtualMachineCIDRs, nil
	}
	if errors.Is(err, settings.ErrNotFound) {
		return nil, nil
	}
	return nil, err
}

// free refuses an address that another claim holds. Whether a released lease belongs
// to the right namespace is the controller's question, since it may expire any moment.
func (w *address) free(ctx context.Context, p *problems, a *v1alpha2.VirtualMachineIPAddress, wanted netip.Addr) error {
	lease := &v1alpha2.VirtualMachineIPAddressLease{}
	err := w.client.Get(ctx, client.ObjectKey{Name: policy.LeaseName(wanted)}, lease)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if ref := lease.Spec.VirtualMachineIPAddressRef; ref != nil && ref.Name != "" && (ref.Name != a.Name || ref.Namespace != a.Namespace) {
		p.add("spec.staticIP: %s is leased to another VirtualMachineIPAddress", wanted)
	}
	return nil
}

type lease struct{}

func leases(m ctrl.Manager, _ settings.Platform) error {
	return ctrl.NewWebhookManagedBy(m, &v1alpha2.VirtualMachineIPAddressLease{}).WithValidator(lease{}).Complete()
}

// ValidateCreate checks that the name is an address.
func (lease) ValidateCreate(_ context.Context, l *v1alpha2.VirtualMachineIPAddressLease) (admission.Warnings, error) {
	var p problems
	if _, ok := policy.LeasedAddress(l.Name); !ok {
		p.add("metadata.name: %q is not ip-a-b-c-d", l.Name)
	}
	return nil, p.err()
}

// ValidateUpdate allows everything.
func (lease) ValidateUpdate(context.Context, *v1alpha2.VirtualMachineIPAddressLease, *v1alpha2.VirtualMachineIPAddressLease) (admission.Warnings, error) {
	return nil, nil
}

// ValidateDelete allows everything.
func (lease) ValidateDelete(context.Context, *v1alpha2.VirtualMachineIPAddressLease) (admission.Warnings, error) {
	return nil, nil
}
