package macaddress

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/steps"
)

// claimWorld is everything a pass over a claim knows.
type claimWorld struct {
	now   time.Time
	claim *v1alpha2.VirtualMachineMACAddress
	// wanted is the address the claim should have, "" if there is none.
	wanted string
	lease  *v1alpha2.VirtualMachineMACAddressLease
	// rival is a claim that holds the wanted address while its lease is missing.
	rival *v1alpha2.VirtualMachineMACAddress
	// others are leases of this claim for addresses it no longer wants.
	others []*v1alpha2.VirtualMachineMACAddressLease
	// user is the machine that uses the claim.
	user *v1alpha2.VirtualMachine
}

var claimSteps = []steps.Step[*claimWorld]{
	{Condition: v1alpha2.MACAddressConditionBound, Decide: bound},
	{Condition: v1alpha2.MACAddressConditionAttached, Decide: attached},
	{Decide: surplus},
	{Decide: release},
}

// heldBy says that a lease names a claim.
func heldBy(lease *v1alpha2.VirtualMachineMACAddressLease, claim *v1alpha2.VirtualMachineMACAddress) bool {
	ref := lease.Spec.VirtualMachineMACAddressRef
	return ref != nil && ref.Namespace == claim.Namespace && ref.Name == claim.Name
}

// settled says that an earlier pass found the lease held.
func settled(claim *v1alpha2.VirtualMachineMACAddress) bool {
	return claim.Status.Phase == v1alpha2.VirtualMachineMACAddressBound || claim.Status.Phase == v1alpha2.VirtualMachineMACAddressAttached
}

func (w *claimWorld) deleting() bool { return w.claim.DeletionTimestamp != nil }

func (w *claimWorld) held() bool { return w.lease != nil && heldBy(w.lease, w.claim) }

// running is true while a process of the machine that uses the claim may exist.
func (w *claimWorld) running() bool {
	return w.user != nil && w.user.Status.Instance != nil && w.user.Status.Instance.Name != "" && w.user.Status.Instance.Exit == ""
}

// needed is true while the address may not be given up.
func (w *claimWorld) needed() bool {
	return w.running() || w.user != nil && w.user.DeletionTimestamp == nil
}

// lost is true when the lease of a held address is gone: somebody deleted it.
func (w *claimWorld) lost() bool {
	return w.lease == nil && w.wanted != "" && settled(w.claim) && w.claim.Status.Address == w.wanted
}

// bound claims the wanted address, once an earlier pass has remembered it.
func bound(w *claimWorld) (steps.Outcome, steps.Act) {
	switch {
	case w.deleting() && !w.needed():
		return steps.Waiting(v1alpha2.MACAddressReasonVirtualMachineMACAddressLeaseNotReady, "The address is being released"), nil
	case w.wanted == "":
		return steps.Failed(v1alpha2.MACAddressReasonVirtualMachineMACAddressLeaseNotReady, "%q is no address that an interface can have", w.claim.Spec.Address), nil
	case w.held():
		return held(w)
	case w.lost():
		return steps.Waiting(v1alpha2.MACAddressReasonVirtualMachineMACAddressLeaseLost, "The lease of address %s was deleted and is being made again", w.wanted),
			steps.Create{Object: newLease(w)}
	case w.rival != nil:
		return steps.Failed(v1alpha2.MACAddressReasonVirtualMachineMACAddressLeaseAlreadyExists, "Address %s is held by VirtualMachineMACAddress %s/%s",
			w.wanted, w.rival.Namespace, w.rival.Name), nil
	case w.lease != nil:
		return steps.Failed(v1alpha2.MACAddressReasonVirtualMachineMACAddressLeaseAlreadyExists, "Address %s is leased to %s", w.wanted, holder(w.lease)), nil
	case w.claim.Status.Address != w.wanted:
		return steps.Waiting(v1alpha2.MACAddressReasonVirtualMachineMACAddressLeaseNotFound, "Address %s is being leased", w.wanted), nil
	}
	return steps.Waiting(v1alpha2.MACAddressReasonVirtualMachineMACAddressLeaseNotFound, "Address %s is being leased", w.wanted), steps.Create{Object: newLease(w)}
}

// held keeps the link from lease to claim right.
func held(w *claimWorld) (steps.Outcome, steps.Act) {
	if w.lease.DeletionTimestamp != nil {
		return steps.Waiting(v1alpha2.MACAddressReasonVirtualMachineMACAddressLeaseLost, "The lease of address %s was deleted and is being made again", w.wanted), nil
	}
	var act steps.Act
	if w.lease.Labels[v1alpha2.LabelVirtualMachineMACAddressUID] != string(w.claim.UID) {
		lease := w.lease.DeepCopy()
		if lease.Labels == nil {
			lease.Labels = map[string]string{}
		}
		lease.Labels[v1alpha2.LabelVirtualMachineMACAddressUID] = string(w.claim.UID)
		act = steps.Apply{Object: lease}
	}
	return steps.Done(v1alpha2.MACAddressReasonBound, "Address %s is leased", w.wanted), act
}

func attached(w *claimWorld) (steps.Outcome, steps.Act) {
	if w.user == nil {
		return steps.Waiting(v1alpha2.MACAddressReasonVirtualMachineNotFound, "No machine uses the address"), nil
	}
	return steps.Done(v1alpha2.MACAddressReasonAttached, "VirtualMachine %s uses the address", w.user.Name), nil
}

// surplus lets go of addresses that a changed claim no longer wants.
func surplus(w *claimWorld) (steps.Outcome, steps.Act) {
	if len(w.others) == 0 || w.running() {
		return steps.Outcome{}, nil
	}
	return steps.Outcome{}, steps.Delete{Object: w.others[0], Finalizer: v1alpha2.FinalizerVirtualMachineMACAddressLeaseCleanup}
}

// release removes the lease of a deleted claim and then lets the claim go.
func release(w *claimWorld) (steps.Outcome, steps.Act) {
	switch {
	case !w.deleting() || w.needed() || len(w.others) > 0:
		return steps.Outcome{}, nil
	case w.held():
		return steps.Outcome{}, steps.Delete{Object: w.lease, Finalizer: v1alpha2.FinalizerVirtualMachineMACAddressLeaseCleanup}
	}
	return steps.Outcome{}, steps.Release{Object: w.claim, Finalizer: v1alpha2.FinalizerVirtualMachineMACAddressCleanup}
}

// holder tells a user who has an address.
func holder(lease *v1alpha2.VirtualMachineMACAddressLease) string {
	if ref := lease.Spec.VirtualMachineMACAddressRef; ref != nil {
		return "VirtualMachineMACAddress " + ref.Namespace + "/" + ref.Name
	}
	return "nobody"
}

func newLease(w *claimWorld) *v1alpha2.VirtualMachineMACAddressLease {
	return &v1alpha2.VirtualMachineMACAddressLease{
		ObjectMeta: metav1.ObjectMeta{
			Name:       policy.MACLeaseName(w.wanted),
			Labels:     map[string]string{v1alpha2.LabelVirtualMachineMACAddressUID: string(w.claim.UID)},
			Finalizers: []string{v1alpha2.FinalizerVirtualMachineMACAddressLeaseCleanup},
		},
		Spec: v1alpha2.VirtualMachineMACAddressLeaseSpec{VirtualMachineMACAddressRef: &v1alpha2.VirtualMachineMACAddressLeaseMACAddressRef{
			Name: w.claim.Name, Namespace: w.claim.Namespace}},
	}
}

// claimStatus is the only writer of a claim's status.
func claimStatus(w *claimWorld, d steps.Decision, errs steps.Errors) v1alpha2.VirtualMachineMACAddressStatus {
	s := *w.claim.Status.DeepCopy()
	s.ObservedGeneration = w.claim.Generation
	s.Conditions = steps.Conditions(s.Conditions, d, errs, w.claim.Generation, w.now)
	s.VirtualMachineName = ""
	if w.user != nil {
		s.VirtualMachineName = w.user.Name
	}
	if w.wanted != "" && (w.held() || w.lease == nil && (w.rival == nil || w.lost())) {
		s.Address = w.wanted
	}
	switch {
	case !w.held() && !w.lost():
		s.Phase = v1alpha2.VirtualMachineMACAddressPending
	case w.user != nil:
		s.Phase = v1alpha2.VirtualMachineMACAddressAttached
	default:
		s.Phase = v1alpha2.VirtualMachineMACAddressBound
	}
	return s
}
