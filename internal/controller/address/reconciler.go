package address

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/plan"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/settings"
	"orlop.dev/orlop/internal/steps"
)

// fieldOwner marks what these controllers write.
const fieldOwner = "virtualization-address"

// Options are what the reconcilers need.
type Options struct {
	Client   client.Client
	Recorder events.EventRecorder
	Clock    clock.PassiveClock
	Pool     *Pool
}

// Claims reconciles VirtualMachineIPAddresses.
type Claims struct{ Options }

// Leases reconciles VirtualMachineIPAddressLeases.
type Leases struct{ Options }

// +kubebuilder:rbac:groups=deckhouse.io,resources=moduleconfigs,verbs=get;list;watch
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualmachineipaddresses,verbs=get;list;watch;patch
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualmachineipaddresses/status,verbs=patch
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualmachineipaddressleases,verbs=get;list;watch;create;patch;delete
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualmachineipaddressleases/status,verbs=patch
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualmachines,verbs=get;list;watch

// Reconcile makes one pass over a claim.
func (r *Claims) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	claim := &v1alpha2.VirtualMachineIPAddress{}
	if err := r.Client.Get(ctx, request.NamespacedName, claim); err != nil {
		r.Pool.Break(request.String())
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if claim.DeletionTimestamp != nil && !slices.Contains(claim.Finalizers, v1alpha2.FinalizerVirtualMachineIPAddressCleanup) {
		return ctrl.Result{}, nil
	}
	if added, err := steps.EnsureFinalizer(ctx, r.Client, claim, v1alpha2.FinalizerVirtualMachineIPAddressCleanup); added || err != nil {
		return steps.Result(nil, nil, err)
	}
	w, err := r.observe(ctx, claim)
	if err != nil {
		return ctrl.Result{}, err
	}
	d := steps.Decide(w, claimSteps...)
	errs := steps.Perform(ctx, r.Client, fieldOwner, d)
	after := claim.DeepCopy()
	after.Status = claimStatus(w, d, errs)
	err = steps.PatchStatus(ctx, r.Client, claim, after)
	if err == nil {
		steps.Emit(r.Recorder, claim, steps.Transitions(claim.Status.Conditions, after.Status.Conditions, d))
	}
	return steps.Result(d, errs, err)
}

func (r *Claims) observe(ctx context.Context, claim *v1alpha2.VirtualMachineIPAddress) (*claimWorld, error) {
	w := &claimWorld{now: r.Clock.Now(), claim: claim}
	s, err := settings.Load(ctx, r.Client)
	if err != nil && s == nil && !errors.Is(err, settings.ErrNotFound) {
		return nil, err
	}
	if s != nil {
		w.ranges = s.VirtualMachineCIDRs
	}
	r.Pool.SetRanges(w.ranges)
	if err := r.observeUser(ctx, w); err != nil {
		return nil, err
	}
	if err := r.observeLeases(ctx, w); err != nil {
		return nil, err
	}
	return w, nil
}

// observeUser finds the machine that uses a claim: the one that already does, else
// the oldest that names it or that it was made for.
func (r *Claims) observeUser(ctx context.Context, w *claimWorld) error {
	list := &v1alpha2.VirtualMachineList{}
	err := r.Client.List(ctx, list, client.InNamespace(w.claim.Namespace), client.MatchingFields{machinesByClaim: w.claim.Name})
	if err != nil {
		return fmt.Errorf("list machines of address %s: %w", w.claim.Name, err)
	}
	slices.SortFunc(list.Items, func(a, b v1alpha2.VirtualMachine) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	for i := range list.Items {
		vm := &list.Items[i]
		if w.user == nil || vm.Name == w.claim.Status.VirtualMachineName {
			w.user = vm
		}
	}
	return nil
}

// observeLeases finds the wanted address and its lease. An Auto claim keeps the
// address it has; one without, or whose candidate somebody else was faster to lease,
// gets the lowest free one.
func (r *Claims) observeLeases(ctx context.Context, w *claimWorld) error {
	mine := &v1alpha2.VirtualMachineIPAddressLeaseList{}
	err := r.Client.List(ctx, mine, client.MatchingFields{leasesByClaim: w.claim.Namespace + "/" + w.claim.Name})
	if err != nil {
		return fmt.Errorf("list leases of address %s: %w", w.claim.Name, err)
	}
	w.wanted, err = r.wanted(ctx, w, mine.Items)
	if err != nil {
		return err
	}
	for i := range mine.Items {
		if l := &mine.Items[i]; !w.wanted.IsValid() || l.Name != policy.LeaseName(w.wanted) {
			w.others = append(w.others, l)
		}
	}
	if !w.wanted.IsValid() {
		return nil
	}
	w.lease, err = r.leaseOf(ctx, w.wanted)
	return err
}

func (r *Claims) wanted(ctx context.Context, w *claimWorld, mine []v1alpha2.VirtualMachineIPAddressLease) (netip.Addr, error) {
	if w.claim.Spec.Type == v1alpha2.VirtualMachineIPAddressStatic {
		a, err := netip.ParseAddr(w.claim.Spec.StaticIP)
		if err != nil || !a.Is4() {
			return netip.Addr{}, nil // the step says it to the user
		}
		return a, nil
	}
	if a, err := netip.ParseAddr(w.claim.Status.Address); err == nil {
		lease, err := r.leaseOf(ctx, a)
		switch {
		case err != nil:
			return netip.Addr{}, err
		case lease == nil && policy.UsableAddress(a, w.ranges), lease != nil && (w.mine(lease) || w.adoptable(lease)):
			return a, nil
		case lease != nil:
			r.Pool.Take(a)
		}
	}
	for _, l := range mine {
		if a, ok := policy.LeasedAddress(l.Name); ok {
			return a, nil
		}
	}
	if w.deleting() {
		return netip.Addr{}, nil
	}
	a, ok := r.Pool.Promise(client.ObjectKeyFromObject(w.claim).String())
	if !ok {
		return netip.Addr{}, nil
	}
	return a, nil
}

func (r *Claims) leaseOf(ctx context.Context, a netip.Addr) (*v1alpha2.VirtualMachineIPAddressLease, error) {
	lease := &v1alpha2.VirtualMachineIPAddressLease{}
	err := r.Client.Get(ctx, client.ObjectKey{Name: policy.LeaseName(a)}, lease)
	if apierrors.IsNotFound(err) {
		return nil, nil // absence is an answer here
	}
	if err != nil {
		return nil, fmt.Errorf("get lease of %s: %w", a, err)
	}
	return lease, nil
}

// Reconcile makes one pass over a lease.
func (r *Leases) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	lease := &v1alpha2.VirtualMachineIPAddressLease{}
	if err := r.Client.Get(ctx, request.NamespacedName, lease); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if lease.DeletionTimestamp != nil && !slices.Contains(lease.Finalizers, v1alpha2.FinalizerVirtualMachineIPAddressLeaseCleanup) {
		return ctrl.Result{}, nil
	}
	if added, err := steps.EnsureFinalizer(ctx, r.Client, lease, v1alpha2.FinalizerVirtualMachineIPAddressLeaseCleanup); added || err != nil {
		return steps.Result(nil, nil, err)
	}
	w := &leaseWorld{now: r.Clock.Now(), lease: lease}
	if ref := lease.Spec.VirtualMachineIPAddressRef; ref != nil && ref.Name != "" {
		claim := &v1alpha2.VirtualMachineIPAddress{}
		err := r.Client.Get(ctx, client.ObjectKey{Namespace: ref.Namespace, Name: ref.Name}, claim)
		if client.IgnoreNotFound(err) != nil {
			return ctrl.Result{}, err
		}
		if err == nil {
			w.claim = claim
		}
	}
	d := steps.Decide(w, leaseSteps...)
	errs := steps.Perform(ctx, r.Client, fieldOwner, d)
	after := lease.DeepCopy()
	after.Status = leaseStatus(w, d, errs)
	return steps.Result(d, errs, steps.PatchStatus(ctx, r.Client, lease, after))
}

// claimNames are the claims a machine uses: the one it names or the one made for it.
func claimNames(vm *v1alpha2.VirtualMachine) []string {
	if name := vm.Spec.VirtualMachineIPAddressName; name != "" {
		return []string{name}
	}
	return []string{plan.AddressName(vm.Name, vm.UID)}
}
