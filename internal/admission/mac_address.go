package admission

import (
	"context"

	"k8s.io/apimachinery/pkg/api/equality"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/settings"
)

type macAddress struct{ client client.Reader }

func macAddresses(m ctrl.Manager, _ settings.Platform) error {
	return ctrl.NewWebhookManagedBy(m, &v1alpha2.VirtualMachineMACAddress{}).WithValidator(&macAddress{client: m.GetClient()}).Complete()
}

// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualmachinemacaddressleases,verbs=get;list;watch

// ValidateCreate checks a new claim.
func (w *macAddress) ValidateCreate(ctx context.Context, a *v1alpha2.VirtualMachineMACAddress) (admission.Warnings, error) {
	var p problems
	if err := w.wanted(ctx, &p, a); err != nil {
		return nil, err
	}
	return nil, p.err()
}

// ValidateUpdate checks a changed claim: a bound one keeps its address.
func (w *macAddress) ValidateUpdate(ctx context.Context, before, a *v1alpha2.VirtualMachineMACAddress) (admission.Warnings, error) {
	if deleting(a) || equality.Semantic.DeepEqual(before.Spec, a.Spec) {
		return nil, nil
	}
	var p problems
	bound := before.Status.Phase == v1alpha2.VirtualMachineMACAddressBound || before.Status.Phase == v1alpha2.VirtualMachineMACAddressAttached
	if wanted, _ := policy.MACAddress(a.Spec.Address); bound && wanted != before.Status.Address {
		p.add("spec.address: %s is leased and cannot be changed", before.Status.Address)
		return nil, p.err()
	}
	if err := w.wanted(ctx, &p, a); err != nil {
		return nil, err
	}
	return nil, p.err()
}

// ValidateDelete allows everything: the finalizer waits for the machine.
func (w *macAddress) ValidateDelete(context.Context, *v1alpha2.VirtualMachineMACAddress) (admission.Warnings, error) {
	return nil, nil
}

// wanted refuses an address that no interface can have and one that another claim holds.
func (w *macAddress) wanted(ctx context.Context, p *problems, a *v1alpha2.VirtualMachineMACAddress) error {
	if a.Spec.Address == "" {
		return nil
	}
	wanted, ok := policy.MACAddress(a.Spec.Address)
	if !ok {
		p.add("spec.address: %s is a group address or none at all: an interface needs one of its own, with an even first byte", a.Spec.Address)
		return nil
	}
	lease := &v1alpha2.VirtualMachineMACAddressLease{}
	err := w.client.Get(ctx, client.ObjectKey{Name: policy.MACLeaseName(wanted)}, lease)
	if err != nil {
		return client.IgnoreNotFound(err)
	}
	if ref := lease.Spec.VirtualMachineMACAddressRef; ref == nil || ref.Name != a.Name || ref.Namespace != a.Namespace {
		p.add("spec.address: %s is leased to another VirtualMachineMACAddress", wanted)
	}
	return nil
}

type macLease struct{}

func macLeases(m ctrl.Manager, _ settings.Platform) error {
	return ctrl.NewWebhookManagedBy(m, &v1alpha2.VirtualMachineMACAddressLease{}).WithValidator(macLease{}).Complete()
}

// ValidateCreate checks that the name is an address.
func (macLease) ValidateCreate(_ context.Context, l *v1alpha2.VirtualMachineMACAddressLease) (admission.Warnings, error) {
	var p problems
	if _, ok := policy.LeasedMAC(l.Name); !ok {
		p.add("metadata.name: %q is not mac-a-b-c-d-e-f", l.Name)
	}
	return nil, p.err()
}

// ValidateUpdate allows everything.
func (macLease) ValidateUpdate(context.Context, *v1alpha2.VirtualMachineMACAddressLease, *v1alpha2.VirtualMachineMACAddressLease) (admission.Warnings, error) {
	return nil, nil
}

// ValidateDelete allows everything.
func (macLease) ValidateDelete(context.Context, *v1alpha2.VirtualMachineMACAddressLease) (admission.Warnings, error) {
	return nil, nil
}
