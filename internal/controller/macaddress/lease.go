package macaddress

import (
	"time"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/steps"
)

// leaseWorld is everything a pass over a lease knows.
type leaseWorld struct {
	now   time.Time
	lease *v1alpha2.VirtualMachineMACAddressLease
	// claim is the one the lease names, nil if it does not exist.
	claim *v1alpha2.VirtualMachineMACAddress
}

var leaseSteps = []steps.Step[*leaseWorld]{
	{Condition: v1alpha2.MACLeaseConditionBound, Decide: leaseBound},
	{Decide: leaseGone},
}

func leaseBound(w *leaseWorld) (steps.Outcome, steps.Act) {
	if w.claim == nil {
		return steps.Waiting(v1alpha2.MACLeaseReasonBound, "The claim is gone, the lease follows"), nil
	}
	return steps.Done(v1alpha2.MACLeaseReasonBound, "VirtualMachineMACAddress %s/%s holds the address", w.claim.Namespace, w.claim.Name), nil
}

// leaseGone deletes a lease whose claim vanished. One that somebody deletes goes only
// when its claim remembers the address, to make it again before anybody else.
func leaseGone(w *leaseWorld) (steps.Outcome, steps.Act) {
	if w.claim != nil && (w.lease.DeletionTimestamp == nil || !w.remembered()) {
		return steps.Outcome{}, nil
	}
	return steps.Outcome{}, steps.Delete{Object: w.lease, Finalizer: v1alpha2.FinalizerVirtualMachineMACAddressLeaseCleanup}
}

// remembered says that the claim knows that it holds this address.
func (w *leaseWorld) remembered() bool {
	a, ok := policy.LeasedMAC(w.lease.Name)
	return ok && settled(w.claim) && w.claim.Status.Address == a
}

func leaseStatus(w *leaseWorld, d steps.Decision, errs steps.Errors) v1alpha2.VirtualMachineMACAddressLeaseStatus {
	s := *w.lease.Status.DeepCopy()
	s.ObservedGeneration = w.lease.Generation
	s.Conditions = steps.Conditions(s.Conditions, d, errs, w.lease.Generation, w.now)
	s.Phase = v1alpha2.VirtualMachineMACAddressLeaseBound
	return s
}
