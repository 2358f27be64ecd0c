package address

import (
	"time"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/steps"
)

// retention is how long an address stays with the namespace that had it.
const retention = 10 * time.Minute

// leaseWorld is everything a pass over a lease knows.
type leaseWorld struct {
	now   time.Time
	lease *v1alpha2.VirtualMachineIPAddressLease
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
	left := at.Add(retention).Sub(w.now)
	return left <= 0, left
}

// leaseBound releases a lease whose claim vanished without giving it back.
func leaseBound(w *leaseWorld) (steps.Outcome, steps.Act) {
	switch {
	case w.free():
		o := steps.Waiting(v1alpha2.LeaseReasonReleased, "Nobody holds the address; its namespace may take it again for ten minutes")
		if over, left := w.expired(); !over {
			return o.Within(left), nil
		}
		return o, nil
	case w.claim == nil:
		return steps.Waiting(v1alpha2.LeaseReasonReleased, "The claim is gone"), steps.Apply{Object: released(w.lease, w.now)}
	}
	return steps.Done(v1alpha2.LeaseReasonBound, "VirtualMachineIPAddress %s/%s holds the address", w.claim.Namespace, w.claim.Name), nil
}

// leaseGone deletes a free lease after the retention; one that somebody deletes
// earlier goes at once, but never while a claim holds it.
func leaseGone(w *leaseWorld) (steps.Outcome, steps.Act) {
	over, _ := w.expired()
	if !w.free() || (!over && w.lease.DeletionTimestamp == nil) {
		return steps.Outcome{}, nil
	}
	return steps.Outcome{}, steps.Delete{Object: w.lease, Finalizer: v1alpha2.FinalizerVirtualMachineIPAddressLeaseCleanup}
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
