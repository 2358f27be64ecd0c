package address

import (
	"net/netip"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/steps"
)

// ReleasedAtAnnotation on a lease is when its claim went away, in RFC 3339; the
// retention counts from there.
const ReleasedAtAnnotation = "internal.virtualization.deckhouse.io/released-at"

// claimWorld is everything a pass over a claim knows.
type claimWorld struct {
	now   time.Time
	claim *v1alpha2.VirtualMachineIPAddress
	// wanted is the address the claim should have; invalid if there is none.
	wanted netip.Addr
	lease  *v1alpha2.VirtualMachineIPAddressLease
	// others are leases of this claim for addresses it no longer wants.
	others []*v1alpha2.VirtualMachineIPAddressLease
	ranges []netip.Prefix
	// user is the machine that uses the claim.
	user *v1alpha2.VirtualMachine
}

var claimSteps = []steps.Step[*claimWorld]{
	{Condition: v1alpha2.AddressConditionBound, Decide: bound},
	{Condition: v1alpha2.AddressConditionAttached, Decide: attached},
	{Decide: surplus},
	{Decide: release},
}

func (w *claimWorld) deleting() bool { return w.claim.DeletionTimestamp != nil }

// mine says that a lease is held by this very claim.
func (w *claimWorld) mine(lease *v1alpha2.VirtualMachineIPAddressLease) bool {
	ref := lease.Spec.VirtualMachineIPAddressRef
	return ref != nil && ref.Namespace == w.claim.Namespace && ref.Name == w.claim.Name
}

// adoptable says that a lease was released in this claim's namespace.
func (w *claimWorld) adoptable(lease *v1alpha2.VirtualMachineIPAddressLease) bool {
	ref := lease.Spec.VirtualMachineIPAddressRef
	return lease.DeletionTimestamp == nil && ref != nil && ref.Namespace == w.claim.Namespace && ref.Name == ""
}

// inUse is true while a process may be using the address.
func (w *claimWorld) inUse() bool {
	return w.user != nil && w.user.Status.Instance != nil && w.user.Status.Instance.Name != "" && w.user.Status.Instance.Exit == ""
}

// bound claims the wanted address. It acts only on an address that was remembered in
// status.address by an earlier pass, so that a crash cannot leave two leases behind.
func bound(w *claimWorld) (steps.Outcome, steps.Act) {
	remembered := w.claim.Status.Address == w.wanted.String()
	switch {
	case w.deleting() && !w.inUse():
		return steps.Waiting(v1alpha2.AddressReasonVirtualMachineIPAddressLeaseNotReady, "The address is being released"), nil
	case !w.wanted.IsValid() && len(w.ranges) == 0:
		return steps.Failed(v1alpha2.AddressReasonVirtualMachineIPAddressIsOutOfTheValidRange,
			"No address ranges are configured: set virtualMachineCIDRs in ModuleConfig virtualization"), nil
	case !w.wanted.IsValid() && w.claim.Spec.Type == v1alpha2.VirtualMachineIPAddressStatic:
		return steps.Failed(v1alpha2.AddressReasonVirtualMachineIPAddressIsOutOfTheValidRange, "%q is not an IPv4 address", w.claim.Spec.StaticIP), nil
	case !w.wanted.IsValid():
		return steps.Failed(v1alpha2.AddressReasonVirtualMachineIPAddressIsOutOfTheValidRange,
			"All addresses of the configured ranges are taken: add a range to ModuleConfig virtualization"), nil
	case w.lease != nil && w.mine(w.lease):
		return held(w)
	case !policy.UsableAddress(w.wanted, w.ranges):
		return steps.Failed(v1alpha2.AddressReasonVirtualMachineIPAddressIsOutOfTheValidRange,
			"Address %s is not in the ranges of ModuleConfig virtualization", w.wanted), nil
	case w.lease == nil && !remembered:
		return steps.Waiting(v1alpha2.AddressReasonVirtualMachineIPAddressLeaseNotFound, "Address %s is being leased", w.wanted), nil
	case w.lease == nil:
		reason := v1alpha2.AddressReasonVirtualMachineIPAddressLeaseNotFound
		if w.claim.Status.Phase == v1alpha2.VirtualMachineIPAddressAttached || w.claim.Status.Phase == v1alpha2.VirtualMachineIPAddressBound {
			reason = v1alpha2.AddressReasonVirtualMachineIPAddressLeaseLost
		}
		return steps.Waiting(reason, "Address %s is being leased", w.wanted), steps.Create{Object: newLease(w)}
	case w.adoptable(w.lease) && remembered:
		return steps.Waiting(v1alpha2.AddressReasonVirtualMachineIPAddressLeaseNotReady, "Lease %s is being taken over", w.lease.Name),
			steps.Apply{Object: adopted(w)}
	case w.adoptable(w.lease):
		return steps.Waiting(v1alpha2.AddressReasonVirtualMachineIPAddressLeaseNotReady, "Lease %s is being taken over", w.lease.Name), nil
	}
	return steps.Failed(v1alpha2.AddressReasonVirtualMachineIPAddressLeaseAlreadyExists, "Address %s is leased to %s", w.wanted, holder(w.lease)), nil
}

// held keeps the link from lease to claim right.
func held(w *claimWorld) (steps.Outcome, steps.Act) {
	var act steps.Act
	if w.lease.Labels[v1alpha2.LabelVirtualMachineIPAddressUID] != string(w.claim.UID) {
		act = steps.Apply{Object: adopted(w)}
	}
	if w.lease.DeletionTimestamp != nil {
		return steps.Waiting(v1alpha2.AddressReasonVirtualMachineIPAddressLeaseNotReady, "Lease %s is being deleted", w.lease.Name), act
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
	if len(w.others) == 0 || w.inUse() {
		return steps.Outcome{}, nil
	}
	return steps.Outcome{}, steps.Apply{Object: released(w.others[0], w.now)}
}

// release gives the lease of a deleted claim back and then lets the claim go.
func release(w *claimWorld) (steps.Outcome, steps.Act) {
	switch {
	case !w.deleting() || w.inUse() || len(w.others) > 0:
		return steps.Outcome{}, nil
	case w.lease != nil && w.mine(w.lease):
		return steps.Outcome{}, steps.Apply{Object: released(w.lease, w.now)}
	}
	return steps.Outcome{}, steps.Release{Object: w.claim, Finalizer: v1alpha2.FinalizerVirtualMachineIPAddressCleanup}
}

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

func adopted(w *claimWorld) *v1alpha2.VirtualMachineIPAddressLease {
	lease := w.lease.DeepCopy()
	if lease.Labels == nil {
		lease.Labels = map[string]string{}
	}
	lease.Labels[v1alpha2.LabelVirtualMachineIPAddressUID] = string(w.claim.UID)
	if lease.Annotations == nil {
		lease.Annotations = map[string]string{}
	}
	lease.Annotations[ReleasedAtAnnotation] = ""
	lease.Spec.VirtualMachineIPAddressRef = refTo(w.claim)
	return lease
}

// released is a lease that nobody holds; the namespace stays, for the retention.
func released(lease *v1alpha2.VirtualMachineIPAddressLease, now time.Time) *v1alpha2.VirtualMachineIPAddressLease {
	lease = lease.DeepCopy()
	if lease.Labels == nil {
		lease.Labels = map[string]string{}
	}
	lease.Labels[v1alpha2.LabelVirtualMachineIPAddressUID] = ""
	if lease.Annotations == nil {
		lease.Annotations = map[string]string{}
	}
	lease.Annotations[ReleasedAtAnnotation] = now.UTC().Format(time.RFC3339)
	ref := &v1alpha2.VirtualMachineIPAddressLeaseIPAddressRef{}
	if old := lease.Spec.VirtualMachineIPAddressRef; old != nil {
		ref.Namespace = old.Namespace
	}
	lease.Spec.VirtualMachineIPAddressRef = ref
	return lease
}

func refTo(claim *v1alpha2.VirtualMachineIPAddress) *v1alpha2.VirtualMachineIPAddressLeaseIPAddressRef {
	return &v1alpha2.VirtualMachineIPAddressLeaseIPAddressRef{Name: claim.Name, Namespace: claim.Namespace}
}

func holder(lease *v1alpha2.VirtualMachineIPAddressLease) string {
	ref := lease.Spec.VirtualMachineIPAddressRef
	if ref == nil || ref.Name == "" {
		return "another namespace, which may take it again for a while"
	}
	return "VirtualMachineIPAddress " + ref.Namespace + "/" + ref.Name
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
	if w.wanted.IsValid() && (held || policy.UsableAddress(w.wanted, w.ranges)) && (held || w.lease == nil || w.adoptable(w.lease)) {
		s.Address = w.wanted.String()
	}
	switch {
	case !held:
		s.Phase = v1alpha2.VirtualMachineIPAddressPending
	case w.user != nil:
		s.Phase = v1alpha2.VirtualMachineIPAddressAttached
	default:
		s.Phase = v1alpha2.VirtualMachineIPAddressBound
	}
	return s
}
