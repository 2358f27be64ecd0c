package macaddress

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/steps"
)

// fieldOwner marks what these controllers write.
const fieldOwner = "virtualization-mac-address"

// Options are what the reconcilers need.
type Options struct {
	Client client.Client
	// Reader reads past the cache.
	Reader   client.Reader
	Recorder events.EventRecorder
	Clock    clock.PassiveClock
	// Random fills a slice with chance.
	Random func([]byte) error
}

// Claims reconciles VirtualMachineMACAddresses.
type Claims struct {
	Options

	mu sync.Mutex
	// clusterUID is read once, when the first address is generated.
	clusterUID string
}

// Leases reconciles VirtualMachineMACAddressLeases.
type Leases struct{ Options }

// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch
// +kubebuilder:rbac:groups="",resources=namespaces,verbs=get
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualmachinemacaddresses,verbs=get;list;watch;patch
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualmachinemacaddresses/status,verbs=patch
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualmachinemacaddressleases,verbs=get;list;watch;create;patch;delete
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualmachinemacaddressleases/status,verbs=patch
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualmachines,verbs=get;list;watch

// Reconcile makes one pass over a claim.
func (r *Claims) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	claim := &v1alpha2.VirtualMachineMACAddress{}
	if err := r.Client.Get(ctx, request.NamespacedName, claim); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if claim.DeletionTimestamp != nil && !slices.Contains(claim.Finalizers, v1alpha2.FinalizerVirtualMachineMACAddressCleanup) {
		return ctrl.Result{}, nil
	}
	if added, err := steps.EnsureFinalizer(ctx, r.Client, claim, v1alpha2.FinalizerVirtualMachineMACAddressCleanup); added || err != nil {
		return steps.Result(nil, nil, err)
	}
	w := &claimWorld{now: r.Clock.Now(), claim: claim}
	if err := r.observe(ctx, w); err != nil {
		return ctrl.Result{}, err
	}
	d := steps.Decide(w, claimSteps...)
	errs := steps.Perform(ctx, r.Client, fieldOwner, d)
	after := claim.DeepCopy()
	after.Status = claimStatus(w, d, errs)
	err := steps.PatchStatus(ctx, r.Client, claim, after)
	if err == nil {
		steps.Emit(r.Recorder, claim, steps.Transitions(claim.Status.Conditions, after.Status.Conditions, d))
	}
	return steps.Result(d, errs, err)
}

func (r *Claims) observe(ctx context.Context, w *claimWorld) error {
	if err := r.observeUser(ctx, w); err != nil {
		return err
	}
	mine := &v1alpha2.VirtualMachineMACAddressLeaseList{}
	err := r.Client.List(ctx, mine, client.MatchingFields{leasesByClaim: w.claim.Namespace + "/" + w.claim.Name})
	if err != nil {
		return fmt.Errorf("list leases of address %s: %w", w.claim.Name, err)
	}
	if w.wanted, err = r.wanted(ctx, w, mine.Items); err != nil {
		return err
	}
	for i := range mine.Items {
		if l := &mine.Items[i]; l.Name != policy.MACLeaseName(w.wanted) {
			w.others = append(w.others, l)
		}
	}
	if w.wanted == "" {
		return nil
	}
	w.lease, w.rival, err = r.look(ctx, w.claim, w.wanted)
	return err
}

// observeUser finds the machine that uses a claim: the one that already does, else
// the oldest that names it.
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

// wanted is the address a claim names, or else the one it has, or else a new one that
// nobody has.
func (r *Claims) wanted(ctx context.Context, w *claimWorld, mine []v1alpha2.VirtualMachineMACAddressLease) (string, error) {
	if w.claim.Spec.Address != "" {
		a, _ := policy.MACAddress(w.claim.Spec.Address) // the step says it to the user
		return a, nil
	}
	if a := w.claim.Status.Address; a != "" {
		lease, rival, err := r.look(ctx, w.claim, a)
		if err != nil || lease != nil && heldBy(lease, w.claim) || lease == nil && (rival == nil || settled(w.claim)) {
			return a, err
		}
	}
	for _, l := range mine {
		if a, ok := policy.LeasedMAC(l.Name); ok {
			return a, nil
		}
	}
	if w.deleting() {
		return "", nil
	}
	return r.generate(ctx, w.claim)
}

// generate draws until it finds an address that nobody has. There are sixteen
// million, so that more than a few attempts mean that something else is wrong.
func (r *Claims) generate(ctx context.Context, claim *v1alpha2.VirtualMachineMACAddress) (string, error) {
	uid, err := r.cluster(ctx)
	if err != nil {
		return "", err
	}
	for range 100 {
		var chance [3]byte
		if err := r.Random(chance[:]); err != nil {
			return "", fmt.Errorf("draw an address: %w", err)
		}
		a := policy.GeneratedMAC(uid, chance)
		lease, rival, err := r.look(ctx, claim, a)
		if err != nil {
			return "", err
		}
		if lease == nil && rival == nil {
			return a, nil
		}
	}
	return "", fmt.Errorf("find a free address for %s: 100 drawn ones are leased", claim.Name)
}

// cluster is the identity of the cluster: the UID of the namespace that every cluster
// has and nobody can make anew.
func (r *Claims) cluster(ctx context.Context) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.clusterUID == "" {
		namespace := &corev1.Namespace{}
		if err := r.Reader.Get(ctx, client.ObjectKey{Name: metav1.NamespaceSystem}, namespace); err != nil {
			return "", fmt.Errorf("read the identity of the cluster: %w", err)
		}
		r.clusterUID = string(namespace.UID)
	}
	return r.clusterUID, nil
}

// look finds the lease of an address or, if it is missing, another claim that
// remembers to hold it.
func (r *Claims) look(ctx context.Context, claim *v1alpha2.VirtualMachineMACAddress, a string) (*v1alpha2.VirtualMachineMACAddressLease, *v1alpha2.VirtualMachineMACAddress, error) {
	lease := &v1alpha2.VirtualMachineMACAddressLease{}
	err := r.Client.Get(ctx, client.ObjectKey{Name: policy.MACLeaseName(a)}, lease)
	if err == nil {
		return lease, nil, nil
	}
	if !apierrors.IsNotFound(err) {
		return nil, nil, fmt.Errorf("get lease of %s: %w", a, err)
	}
	list := &v1alpha2.VirtualMachineMACAddressList{}
	if err := r.Client.List(ctx, list, client.MatchingFields{claimsByAddress: a}); err != nil {
		return nil, nil, fmt.Errorf("list claims of address %s: %w", a, err)
	}
	for i := range list.Items {
		other := &list.Items[i]
		if other.UID != claim.UID && settled(other) && other.Status.Address == a {
			return nil, other, nil
		}
	}
	return nil, nil, nil
}

// Reconcile makes one pass over a lease.
func (r *Leases) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	lease := &v1alpha2.VirtualMachineMACAddressLease{}
	if err := r.Client.Get(ctx, request.NamespacedName, lease); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if lease.DeletionTimestamp != nil && !slices.Contains(lease.Finalizers, v1alpha2.FinalizerVirtualMachineMACAddressLeaseCleanup) {
		return ctrl.Result{}, nil
	}
	if added, err := steps.EnsureFinalizer(ctx, r.Client, lease, v1alpha2.FinalizerVirtualMachineMACAddressLeaseCleanup); added || err != nil {
		return steps.Result(nil, nil, err)
	}
	w := &leaseWorld{now: r.Clock.Now(), lease: lease}
	var err error
	if w.claim, err = r.claimOf(ctx, lease); err != nil {
		return ctrl.Result{}, err
	}
	d := steps.Decide(w, leaseSteps...)
	errs := steps.Perform(ctx, r.Client, fieldOwner, d)
	after := lease.DeepCopy()
	after.Status = leaseStatus(w, d, errs)
	return steps.Result(d, errs, steps.PatchStatus(ctx, r.Client, lease, after))
}

// claimOf reads the claim a lease names, nil if there is none. That it is gone is
// asked of the API server itself: after a start, the cache of leases may be ahead of
// the cache of claims.
func (r *Leases) claimOf(ctx context.Context, lease *v1alpha2.VirtualMachineMACAddressLease) (*v1alpha2.VirtualMachineMACAddress, error) {
	ref := lease.Spec.VirtualMachineMACAddressRef
	if ref == nil {
		return nil, nil
	}
	key := client.ObjectKey{Namespace: ref.Namespace, Name: ref.Name}
	for _, reader := range []client.Reader{r.Client, r.Reader} {
		claim := &v1alpha2.VirtualMachineMACAddress{}
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
