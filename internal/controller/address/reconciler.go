package address

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/plan"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/settings"
	"orlop.dev/orlop/internal/steps"
)

// fieldOwner marks what these controllers write.
const fieldOwner = "virtualization-address"

// Options are what the reconcilers need.
type Options struct {
	Client client.Client
	// Reader reads past the cache.
	Reader   client.Reader
	Recorder events.EventRecorder
	Clock    clock.PassiveClock
	Pool     *Pool
	// Retention is how long a released address stays with its namespace.
	Retention time.Duration
}

// Claims reconciles VirtualMachineIPAddresses.
type Claims struct{ Options }

// Leases reconciles VirtualMachineIPAddressLeases.
type Leases struct{ Options }

// +kubebuilder:rbac:groups=deckhouse.io,resources=moduleconfigs,verbs=get;list;watch
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch
// +kubebuilder:rbac:groups=internal.virtualization.deckhouse.io,resources=instances,verbs=get;list;watch
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
	if w.user != nil {
		if added, err := steps.EnsureFinalizer(ctx, r.Client, claim, v1alpha2.FinalizerVirtualMachineIPAddressProtection); added || err != nil {
			return steps.Result(nil, nil, err)
		}
	}
	d := steps.Decide(w, claimSteps...)
	errs := steps.Perform(ctx, r.Client, fieldOwner, d)
	after := claim.DeepCopy()
	after.Status = claimStatus(w, d, errs)
	err = steps.PatchStatus(ctx, r.Client, claim, after)
	if err == nil {
		steps.Emit(r.Recorder, claim, claimEvents(claim, after, d))
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

// observeUser finds the machine that uses a claim: the one whose process may have the
// address, else the one that already does, else the oldest that names it or that it
// was made for.
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
	if w.claim.Status.Address == "" {
		return nil
	}
	instances := &v1alpha1.InstanceList{}
	err = r.Client.List(ctx, instances, client.InNamespace(w.claim.Namespace), client.MatchingFields{processesByAddress: w.claim.Status.Address})
	if err != nil {
		return fmt.Errorf("list processes with address %s: %w", w.claim.Status.Address, err)
	}
	for i := range instances.Items {
		w.processes = append(w.processes, &instances.Items[i])
		vm := &v1alpha2.VirtualMachine{}
		err := r.Client.Get(ctx, client.ObjectKey{Namespace: w.claim.Namespace, Name: instances.Items[i].Spec.VirtualMachine.Name}, vm)
		if client.IgnoreNotFound(err) != nil {
			return err
		}
		if err == nil {
			w.user = vm
		}
	}
	return nil
}

// observeLeases finds the wanted address and its lease. An Auto claim keeps the
// address it has; one without, or whose candidate somebody else was faster to lease,
// inherits one or gets the lowest free one.
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
	if w.lease, err = r.leaseOf(ctx, w.wanted); err != nil || w.lease != nil {
		return err
	}
	w.rival, err = r.rivalOf(ctx, w.claim, w.wanted)
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
		if kept, err := r.keeps(ctx, w, a); err != nil || kept {
			return a, err
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
	if a, err := r.inherited(ctx, w, leasesByHeir, w.claim.Namespace+"/"+heir(w.claim)); err != nil || a.IsValid() {
		return a, err
	}
	var failed error
	a, ok := r.Pool.Promise(client.ObjectKeyFromObject(w.claim).String(), func(a netip.Addr) Candidate {
		candidate, err := r.look(ctx, w.claim, a)
		if err != nil {
			failed = err
		}
		return candidate
	})
	if failed != nil || ok {
		return a, failed
	}
	// Nothing is free, but something may be kept for this very namespace.
	return r.inherited(ctx, w, leasesByNamespace, w.claim.Namespace)
}

// keeps says whether an Auto claim goes on wanting the address it has in its status.
func (r *Claims) keeps(ctx context.Context, w *claimWorld, a netip.Addr) (bool, error) {
	lease, err := r.leaseOf(ctx, a)
	if err != nil {
		return false, err
	}
	if lease != nil {
		return w.mine(lease) || w.adoptable(lease), nil
	}
	if !policy.UsableAddress(a, w.ranges) {
		return false, nil
	}
	rival, err := r.rivalOf(ctx, w.claim, a)
	return rival == nil || settled(w.claim), err
}

// look tells the pool what the cluster says about an address.
func (r *Claims) look(ctx context.Context, claim *v1alpha2.VirtualMachineIPAddress, a netip.Addr) (Candidate, error) {
	lease, err := r.leaseOf(ctx, a)
	if err != nil {
		return Reserved, err
	}
	if lease != nil {
		return Leased, nil
	}
	rival, err := r.rivalOf(ctx, claim, a)
	if err != nil || rival != nil {
		return Reserved, err
	}
	return Available, nil
}

// inherited is the address of a released lease found by an index, invalid if there
// is none.
func (r *Claims) inherited(ctx context.Context, w *claimWorld, index, key string) (netip.Addr, error) {
	list := &v1alpha2.VirtualMachineIPAddressLeaseList{}
	if err := r.Client.List(ctx, list, client.MatchingFields{index: key}); err != nil {
		return netip.Addr{}, fmt.Errorf("list released leases: %w", err)
	}
	var found netip.Addr
	for i := range list.Items {
		a, ok := policy.LeasedAddress(list.Items[i].Name)
		if ok && w.adoptable(&list.Items[i]) && policy.UsableAddress(a, w.ranges) && (!found.IsValid() || a.Less(found)) {
			found = a
		}
	}
	return found, nil
}

// rivalOf is another claim that remembers to hold an address whose lease is missing.
func (r *Claims) rivalOf(ctx context.Context, claim *v1alpha2.VirtualMachineIPAddress, a netip.Addr) (*v1alpha2.VirtualMachineIPAddress, error) {
	list := &v1alpha2.VirtualMachineIPAddressList{}
	if err := r.Client.List(ctx, list, client.MatchingFields{claimsByAddress: a.String()}); err != nil {
		return nil, fmt.Errorf("list claims of address %s: %w", a, err)
	}
	for i := range list.Items {
		other := &list.Items[i]
		if other.UID != claim.UID && settled(other) && other.Status.Address == a.String() {
			return other, nil
		}
	}
	return nil, nil
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
	w := &leaseWorld{now: r.Clock.Now(), retention: r.Retention, lease: lease}
	var err error
	if ref := lease.Spec.VirtualMachineIPAddressRef; ref != nil && ref.Name != "" {
		if w.claim, err = r.claimOf(ctx, ref); err != nil {
			return ctrl.Result{}, err
		}
	}
	d := steps.Decide(w, leaseSteps...)
	errs := steps.Perform(ctx, r.Client, fieldOwner, d)
	after := lease.DeepCopy()
	after.Status = leaseStatus(w, d, errs)
	err = steps.PatchStatus(ctx, r.Client, lease, after)
	if err == nil {
		steps.Emit(r.Recorder, lease, leaseEvents(lease, after, d, errs))
	}
	return steps.Result(d, errs, err)
}

// claimOf reads the claim a lease names, nil if there is none. That it is gone is
// asked of the API server itself: after a start, the cache of leases may be ahead of
// the cache of claims.
func (r *Leases) claimOf(ctx context.Context, ref *v1alpha2.VirtualMachineIPAddressLeaseIPAddressRef) (*v1alpha2.VirtualMachineIPAddress, error) {
	key := client.ObjectKey{Namespace: ref.Namespace, Name: ref.Name}
	for _, reader := range []client.Reader{r.Client, r.Reader} {
		claim := &v1alpha2.VirtualMachineIPAddress{}
		err := reader.Get(ctx, key, claim)
		if err == nil {
			return claim, nil
		}
		if !apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("get claim %s: %w", key, err)
		}
	}
	return nil, nil
}

// claimNames are the claims a machine uses: the one it names or the one made for it.
func claimNames(vm *v1alpha2.VirtualMachine) []string {
	if name := vm.Spec.VirtualMachineIPAddressName; name != "" {
		return []string{name}
	}
	return []string{plan.AddressName(vm.Name, vm.UID)}
}
