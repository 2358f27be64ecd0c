package address

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/steps"
)

// ReleasedAtAnnotation on a lease is when its claim went away, in RFC 3339; the
// retention counts from there.
const ReleasedAtAnnotation = "internal.virtualization.deckhouse.io/released-at"

// HeirAnnotation on a released lease says who inherits the address if it comes back:
// "VirtualMachine/<name>" or "VirtualMachineIPAddress/<name>".
const HeirAnnotation = "internal.virtualization.deckhouse.io/heir"

// Retention is how long an address stays with the namespace that had it, unless the
// administrator says otherwise.
const Retention = 10 * time.Minute

// leaseWorld is everything a pass over a lease knows.
type leaseWorld struct {
	now       time.Time
	retention time.Duration
	lease     *v1alpha2.VirtualMachineIPAddressLease
	// claim is the one the lease names, nil if it does not exist.
	claim *v1alpha2.VirtualMachineIPAddress
}

var leaseSteps = []steps.Step[*leaseWorld]{
	{Condition: v1alpha2.LeaseConditionBound, Decide: leaseBound},
	{Decide: leaseGone},
}

func (w *leaseWorld) free() bool {
	ref := w.lease.Spec.VirtualMachineIPAddressRef
	return ref == nil || ref.Name == ""
}

// expired says whether the retention is over, and else how long it lasts.
func (w *leaseWorld) expired() (bool, time.Duration) {
	at, err := time.Parse(time.RFC3339, w.lease.Annotations[ReleasedAtAnnotation])
	if err != nil {
		return true, 0
	}
	left := at.Add(w.retention).Sub(w.now)
	return left <= 0, left
}

// leaseBound releases a lease whose claim vanished without giving it back.
func leaseBound(w *leaseWorld) (steps.Outcome, steps.Act) {
	switch {
	case w.free():
		o := steps.Waiting(v1alpha2.LeaseReasonReleased, "Nobody holds the address; it is kept for its namespace for a while")
		if over, left := w.expired(); !over {
			return o.Within(left), nil
		}
		return o, nil
	case w.claim == nil:
		return steps.Waiting(v1alpha2.LeaseReasonReleased, "The claim is gone"), steps.Apply{Object: released(w.lease, nil, w.now)}
	}
	return steps.Done(v1alpha2.LeaseReasonBound, "VirtualMachineIPAddress %s/%s holds the address", w.claim.Namespace, w.claim.Name), nil
}

// leaseGone deletes a free lease after the retention; one that somebody deletes goes
// at once. A held one goes only when its claim remembers the address: nobody else can
// take it then before the claim makes the lease again.
func leaseGone(w *leaseWorld) (steps.Outcome, steps.Act) {
	over, _ := w.expired()
	deleted := w.lease.DeletionTimestamp != nil
	switch {
	case w.free() && (over || deleted), deleted && w.remembered():
		return steps.Outcome{}, steps.Delete{Object: w.lease, Finalizer: v1alpha2.FinalizerVirtualMachineIPAddressLeaseCleanup}
	}
	return steps.Outcome{}, nil
}

// remembered says that the claim knows that it holds this address.
func (w *leaseWorld) remembered() bool {
	a, ok := policy.LeasedAddress(w.lease.Name)
	return ok && w.claim != nil && heldBy(w.lease, w.claim) && settled(w.claim) && w.claim.Status.Address == a.String()
}

func leaseStatus(w *leaseWorld, d steps.Decision, errs steps.Errors) v1alpha2.VirtualMachineIPAddressLeaseStatus {
	s := *w.lease.Status.DeepCopy()
	s.ObservedGeneration = w.lease.Generation
	s.Conditions = steps.Conditions(s.Conditions, d, errs, w.lease.Generation, w.now)
	s.Phase = v1alpha2.VirtualMachineIPAddressLeaseBound
	if w.free() || w.claim == nil {
		s.Phase = v1alpha2.VirtualMachineIPAddressLeaseReleased
	}
	return s
}

// newLease is the lease of the address a claim wants.
func newLease(w *claimWorld) *v1alpha2.VirtualMachineIPAddressLease {
	return &v1alpha2.VirtualMachineIPAddressLease{
		ObjectMeta: metav1.ObjectMeta{
			Name:       policy.LeaseName(w.wanted),
			Labels:     map[string]string{v1alpha2.LabelVirtualMachineIPAddressUID: string(w.claim.UID)},
			Finalizers: []string{v1alpha2.FinalizerVirtualMachineIPAddressLeaseCleanup},
		},
		Spec: v1alpha2.VirtualMachineIPAddressLeaseSpec{VirtualMachineIPAddressRef: refTo(w.claim)},
	}
}

// adopted is the lease as the claim holds it.
func adopted(w *claimWorld) *v1alpha2.VirtualMachineIPAddressLease {
	lease := marked(w.lease, string(w.claim.UID), "", "")
	lease.Spec.VirtualMachineIPAddressRef = refTo(w.claim)
	return lease
}

// released is a lease that nobody holds; the namespace stays, for the retention. The
// claim is the one that gives it back, nil if it is gone.
func released(lease *v1alpha2.VirtualMachineIPAddressLease, claim *v1alpha2.VirtualMachineIPAddress, now time.Time) *v1alpha2.VirtualMachineIPAddressLease {
	ref := &v1alpha2.VirtualMachineIPAddressLeaseIPAddressRef{}
	next := ""
	if old := lease.Spec.VirtualMachineIPAddressRef; old != nil {
		ref.Namespace = old.Namespace
		next = v1alpha2.VirtualMachineIPAddressKind + "/" + old.Name
	}
	if claim != nil {
		next = heir(claim)
	}
	lease = marked(lease, "", now.UTC().Format(time.RFC3339), next)
	lease.Spec.VirtualMachineIPAddressRef = ref
	return lease
}

// marked is a copy of a lease with other marks. They are emptied, not removed:
// server-side apply would leave one that another writer has set too.
func marked(lease *v1alpha2.VirtualMachineIPAddressLease, claimUID, at, next string) *v1alpha2.VirtualMachineIPAddressLease {
	lease = lease.DeepCopy()
	if lease.Labels == nil {
		lease.Labels = map[string]string{}
	}
	lease.Labels[v1alpha2.LabelVirtualMachineIPAddressUID] = claimUID
	if lease.Annotations == nil {
		lease.Annotations = map[string]string{}
	}
	lease.Annotations[ReleasedAtAnnotation], lease.Annotations[HeirAnnotation] = at, next
	return lease
}

func refTo(claim *v1alpha2.VirtualMachineIPAddress) *v1alpha2.VirtualMachineIPAddressLeaseIPAddressRef {
	return &v1alpha2.VirtualMachineIPAddressLeaseIPAddressRef{Name: claim.Name, Namespace: claim.Namespace}
}
