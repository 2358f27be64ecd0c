package address

import (
	"net/netip"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/steps"
)

// claimWorld is everything a pass over a claim knows.
type claimWorld struct {
	now   time.Time
	claim *v1alpha2.VirtualMachineIPAddress
	// wanted is the address the claim should have; invalid if there is none.
	wanted netip.Addr
	lease  *v1alpha2.VirtualMachineIPAddressLease
	// rival is a claim that holds the wanted address while its lease is missing.
	rival *v1alpha2.VirtualMachineIPAddress
	// others are leases of this claim for addresses it no longer wants.
	others []*v1alpha2.VirtualMachineIPAddressLease
	ranges []netip.Prefix
	// user is the machine that uses the claim.
	user *v1alpha2.VirtualMachine
	// processes may be running with the address; not all are of the user.
	processes []*v1alpha1.Instance
}

var claimSteps = []steps.Step[*claimWorld]{
	{Condition: v1alpha2.AddressConditionBound, Decide: bound},
	{Condition: v1alpha2.AddressConditionAttached, Decide: attached},
	{Decide: surplus},
	{Decide: unprotect},
	{Decide: release},
}

func (w *claimWorld) deleting() bool { return w.claim.DeletionTimestamp != nil }

// mine says that a lease is held by this very claim.
func (w *claimWorld) mine(lease *v1alpha2.VirtualMachineIPAddressLease) bool {
	return heldBy(lease, w.claim)
}

// heldBy says that a lease names a claim.
func heldBy(lease *v1alpha2.VirtualMachineIPAddressLease, claim *v1alpha2.VirtualMachineIPAddress) bool {
	ref := lease.Spec.VirtualMachineIPAddressRef
	return ref != nil && ref.Namespace == claim.Namespace && ref.Name == claim.Name
}

// adoptable says that a lease was released in this claim's namespace.
func (w *claimWorld) adoptable(lease *v1alpha2.VirtualMachineIPAddressLease) bool {
	return lease.DeletionTimestamp == nil && releasedIn(lease) == w.claim.Namespace
}

// releasedIn is the namespace that a lease nobody holds is kept for; empty if
// somebody holds it.
func releasedIn(lease *v1alpha2.VirtualMachineIPAddressLease) string {
	if ref := lease.Spec.VirtualMachineIPAddressRef; ref != nil && ref.Name == "" {
		return ref.Namespace
	}
	return ""
}

// running is true while a process may be using the address. The machine notes a
// process down before its Instance exists, so both are asked.
func (w *claimWorld) running() bool {
	if len(w.processes) > 0 {
		return true
	}
	return w.user != nil && w.user.Status.Instance != nil && w.user.Status.Instance.Name != "" && w.user.Status.Instance.Exit == ""
}

// needed is true while the address may not be given up: a process may be using it, or
// a machine will. A machine that is itself being deleted needs it no longer than its
// process, else the two would wait for one another in a foreground deletion.
func (w *claimWorld) needed() bool {
	return w.running() || w.user != nil && w.user.DeletionTimestamp == nil
}

// settled says that an earlier pass found the lease held. The phase is what the claim
// remembers of that: whoever wants the address must ask it first (rivals).
func settled(claim *v1alpha2.VirtualMachineIPAddress) bool {
	return claim.Status.Phase == v1alpha2.VirtualMachineIPAddressBound || claim.Status.Phase == v1alpha2.VirtualMachineIPAddressAttached
}

// lost is true when the lease of a held address is gone: somebody deleted it.
func (w *claimWorld) lost() bool {
	return w.lease == nil && settled(w.claim) && w.claim.Status.Address == w.wanted.String() && policy.UsableAddress(w.wanted, w.ranges)
}

// bound claims the wanted address. It acts only on an address that was remembered in
// status.address by an earlier pass, so that a crash cannot leave two leases behind.
func bound(w *claimWorld) (steps.Outcome, steps.Act) {
	remembered := w.claim.Status.Address == w.wanted.String()
	switch {
	case w.deleting() && !w.needed():
		return steps.Waiting(v1alpha2.AddressReasonVirtualMachineIPAddressLeaseNotReady, "The address is being released"), nil
	case !w.wanted.IsValid():
		return unknown(w), nil
	case w.lease != nil && w.mine(w.lease):
		return held(w)
	case !policy.UsableAddress(w.wanted, w.ranges):
		return steps.Failed(v1alpha2.AddressReasonVirtualMachineIPAddressIsOutOfTheValidRange,
			"Address %s is not in the ranges of ModuleConfig virtualization, or is the network, router or broadcast address of one", w.wanted), nil
	case w.rival != nil && !w.lost():
		return steps.Failed(v1alpha2.AddressReasonVirtualMachineIPAddressLeaseAlreadyExists, "Address %s is held by VirtualMachineIPAddress %s/%s",
			w.wanted, w.rival.Namespace, w.rival.Name), nil
	case w.lease == nil && !remembered:
		return steps.Waiting(v1alpha2.AddressReasonVirtualMachineIPAddressLeaseNotFound, "Address %s is being leased", w.wanted), nil
	case w.lost():
		return steps.Waiting(v1alpha2.AddressReasonVirtualMachineIPAddressLeaseLost, "The lease of address %s was deleted and is being made again", w.wanted),
			steps.Create{Object: newLease(w)}
	case w.lease == nil:
		return steps.Waiting(v1alpha2.AddressReasonVirtualMachineIPAddressLeaseNotFound, "Address %s is being leased", w.wanted),
			steps.Create{Object: newLease(w)}
	case w.adoptable(w.lease) && remembered:
		return steps.Waiting(v1alpha2.AddressReasonVirtualMachineIPAddressLeaseNotReady, "Lease %s is being taken over", w.lease.Name),
			steps.Apply{Object: adopted(w)}
	case w.adoptable(w.lease):
		return steps.Waiting(v1alpha2.AddressReasonVirtualMachineIPAddressLeaseNotReady, "Lease %s is being taken over", w.lease.Name), nil
	}
	return steps.Failed(v1alpha2.AddressReasonVirtualMachineIPAddressLeaseAlreadyExists, "Address %s is leased to %s", w.wanted, holder(w.lease)), nil
}

// unknown says why there is no address to want.
func unknown(w *claimWorld) steps.Outcome {
	const reason = v1alpha2.AddressReasonVirtualMachineIPAddressIsOutOfTheValidRange
	switch {
	case len(w.ranges) == 0:
		return steps.Failed(reason, "No address ranges are configured: set virtualMachineCIDRs in ModuleConfig virtualization")
	case w.claim.Spec.Type == v1alpha2.VirtualMachineIPAddressStatic:
		return steps.Failed(reason, "%q is not an IPv4 address", w.claim.Spec.StaticIP)
	}
	return steps.Failed(reason, "All addresses of the configured ranges are taken: add a range to ModuleConfig virtualization")
}

// held keeps the link from lease to claim right. A lease that somebody deletes cannot
// be kept; its controller lets it go and the claim makes it again.
func held(w *claimWorld) (steps.Outcome, steps.Act) {
	if w.lease.DeletionTimestamp != nil {
		return steps.Waiting(v1alpha2.AddressReasonVirtualMachineIPAddressLeaseLost, "The lease of address %s was deleted and is being made again", w.wanted), nil
	}
	var act steps.Act
	if w.lease.Labels[v1alpha2.LabelVirtualMachineIPAddressUID] != string(w.claim.UID) {
		act = steps.Apply{Object: adopted(w)}
	}
	return steps.Done(v1alpha2.AddressReasonBound, "Address %s is leased", w.wanted), act
}

func attached(w *claimWorld) (steps.Outcome, steps.Act) {
	if w.user == nil {
		return steps.Waiting(v1alpha2.AddressReasonVirtualMachineNotFound, "No machine uses the address"), nil
	}
	return steps.Done(v1alpha2.AddressReasonAttached, "VirtualMachine %s uses the address", w.user.Name), nil
}

// surplus lets go of addresses that a changed claim no longer wants.
func surplus(w *claimWorld) (steps.Outcome, steps.Act) {
	if len(w.others) == 0 || w.running() {
		return steps.Outcome{}, nil
	}
	return steps.Outcome{}, steps.Apply{Object: released(w.others[0], w.claim, w.now)}
}

// unprotect lets everybody see that nothing uses the claim any longer.
func unprotect(w *claimWorld) (steps.Outcome, steps.Act) {
	if w.needed() || !w.protected() {
		return steps.Outcome{}, nil
	}
	return steps.Outcome{}, steps.Release{Object: w.claim, Finalizer: v1alpha2.FinalizerVirtualMachineIPAddressProtection}
}

func (w *claimWorld) protected() bool {
	return slices.Contains(w.claim.Finalizers, v1alpha2.FinalizerVirtualMachineIPAddressProtection)
}

// release gives the lease of a deleted claim back and then lets the claim go.
func release(w *claimWorld) (steps.Outcome, steps.Act) {
	switch {
	case !w.deleting() || w.needed() || w.protected() || len(w.others) > 0:
		return steps.Outcome{}, nil
	case w.lease != nil && w.mine(w.lease):
		return steps.Outcome{}, steps.Apply{Object: released(w.lease, w.claim, w.now)}
	}
	return steps.Outcome{}, steps.Release{Object: w.claim, Finalizer: v1alpha2.FinalizerVirtualMachineIPAddressCleanup}
}

// holder tells a user who has an address.
func holder(lease *v1alpha2.VirtualMachineIPAddressLease) string {
	ref := lease.Spec.VirtualMachineIPAddressRef
	if ref == nil || ref.Name == "" {
		return "another namespace, which may take it again for a while"
	}
	return "VirtualMachineIPAddress " + ref.Namespace + "/" + ref.Name
}

// heir is who may inherit the address of a claim: the next machine of the same name
// if a machine owns the claim, else the next claim of the same name.
func heir(claim *v1alpha2.VirtualMachineIPAddress) string {
	if owner := metav1.GetControllerOf(claim); owner != nil {
		return owner.Kind + "/" + owner.Name
	}
	return v1alpha2.VirtualMachineIPAddressKind + "/" + claim.Name
}

// claimStatus is the only writer of a claim's status.
func claimStatus(w *claimWorld, d steps.Decision, errs steps.Errors) v1alpha2.VirtualMachineIPAddressStatus {
	s := *w.claim.Status.DeepCopy()
	s.ObservedGeneration = w.claim.Generation
	s.Conditions = steps.Conditions(s.Conditions, d, errs, w.claim.Generation, w.now)
	s.VirtualMachineName = ""
	if w.user != nil {
		s.VirtualMachineName = w.user.Name
	}
	held := w.lease != nil && w.mine(w.lease)
	mayHave := held || policy.UsableAddress(w.wanted, w.ranges) && (w.lease == nil && (w.rival == nil || w.lost()) || w.lease != nil && w.adoptable(w.lease))
	if w.wanted.IsValid() && mayHave {
		s.Address = w.wanted.String()
	}
	switch {
	case !held && !w.lost():
		s.Phase = v1alpha2.VirtualMachineIPAddressPending
	case w.user != nil:
		s.Phase = v1alpha2.VirtualMachineIPAddressAttached
	default:
		s.Phase = v1alpha2.VirtualMachineIPAddressBound
	}
	return s
}
