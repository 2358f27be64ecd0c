package address

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/steps"
	"orlop.dev/orlop/internal/testkit"
)

var noon = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)

// bare is a claim in namespace "default" that wants .2 and remembers it, but has
// neither lease nor machine.
func bare(changes ...func(*claimWorld)) *claimWorld {
	claim := testkit.Address("a")
	claim.Finalizers = []string{v1alpha2.FinalizerVirtualMachineIPAddressCleanup}
	claim.Status = v1alpha2.VirtualMachineIPAddressStatus{Phase: v1alpha2.VirtualMachineIPAddressPending, Address: "10.66.10.2"}
	w := &claimWorld{now: noon, claim: claim, wanted: netip.MustParseAddr("10.66.10.2"), ranges: prefixes("10.66.10.0/24")}
	for _, change := range changes {
		change(w)
	}
	return w
}

func phase(p v1alpha2.VirtualMachineIPAddressPhase) func(*claimWorld) {
	return func(w *claimWorld) { w.claim.Status.Phase = p }
}

func leasedTo(namespace, name string) func(*claimWorld) {
	return func(w *claimWorld) {
		w.lease = newLease(w)
		w.lease.Spec.VirtualMachineIPAddressRef = &v1alpha2.VirtualMachineIPAddressLeaseIPAddressRef{Namespace: namespace, Name: name}
	}
}

func deleted(w *claimWorld)      { w.claim.DeletionTimestamp = new(metav1.NewTime(noon)) }
func deletedLease(w *claimWorld) { w.lease.DeletionTimestamp = new(metav1.NewTime(noon)) }
func guarded(w *claimWorld) {
	w.claim.Finalizers = append(w.claim.Finalizers, v1alpha2.FinalizerVirtualMachineIPAddressProtection)
}

func used(changes ...func(*v1alpha2.VirtualMachine)) func(*claimWorld) {
	return func(w *claimWorld) {
		w.user = testkit.VM("vm").Object()
		for _, change := range changes {
			change(w.user)
		}
	}
}

func static(address string) func(*claimWorld) {
	return func(w *claimWorld) {
		w.claim.Spec = v1alpha2.VirtualMachineIPAddressSpec{Type: v1alpha2.VirtualMachineIPAddressStatic, StaticIP: address}
		w.wanted, _ = netip.ParseAddr(address)
	}
}

func goingAway(vm *v1alpha2.VirtualMachine) { vm.DeletionTimestamp = new(metav1.NewTime(noon)) }
func started(vm *v1alpha2.VirtualMachine) {
	vm.Status.Instance = &v1alpha2.InstanceRecord{Counter: 1, Name: "virt-launcher-vm-1"}
}

func rival(w *claimWorld) {
	w.rival = testkit.Address("b")
	w.rival.Namespace = "elsewhere"
}

type claimCase struct {
	w      *claimWorld
	bound  string
	acts   []string
	phase  v1alpha2.VirtualMachineIPAddressPhase
	forget bool // status.address is not the wanted one
}

const (
	pending  = v1alpha2.VirtualMachineIPAddressPending
	isBound  = v1alpha2.VirtualMachineIPAddressBound
	attachd  = v1alpha2.VirtualMachineIPAddressAttached
	notFound = "VirtualMachineIPAddressLeaseNotFound"
	notReady = "VirtualMachineIPAddressLeaseNotReady"
	exists   = "VirtualMachineIPAddressLeaseAlreadyExists"
	outside  = "VirtualMachineIPAddressIsOutOfTheValidRange"
	lost     = "VirtualMachineIPAddressLeaseLost"
)

func claimCases() map[string]claimCase {
	noMemory := func(w *claimWorld) { w.claim.Status.Address = "" }
	return map[string]claimCase{
		"an address is remembered before it is leased":                {w: bare(noMemory), bound: notFound, phase: pending},
		"a remembered one is leased":                                  {w: bare(), bound: notFound, acts: []string{"create ip-10-66-10-2"}, phase: pending},
		"its own lease":                                               {w: bare(leasedTo("default", "a")), bound: "Bound", phase: isBound},
		"its own lease, and a machine":                                {w: bare(leasedTo("default", "a"), used()), bound: "Bound", phase: attachd},
		"the label of the lease is put right":                         {w: bare(leasedTo("default", "a"), func(w *claimWorld) { w.lease.Labels = nil }), bound: "Bound", acts: []string{"apply ip-10-66-10-2 of a"}, phase: isBound},
		"a namesake of another namespace is somebody else":            {w: bare(leasedTo("other", "a")), bound: exists, phase: pending},
		"kept for this namespace: taken over, once remembered":        {w: bare(leasedTo("default", "")), bound: notReady, acts: []string{"apply ip-10-66-10-2 of a"}, phase: pending},
		"kept for this namespace: remembered first":                   {w: bare(noMemory, leasedTo("default", "")), bound: notReady, phase: pending},
		"kept for another namespace":                                  {w: bare(leasedTo("other", "")), bound: exists, phase: pending},
		"outside of the ranges":                                       {w: bare(static("192.168.0.5")), bound: outside, phase: pending, forget: true},
		"the network's own address":                                   {w: bare(static("10.66.10.0")), bound: outside, phase: pending, forget: true},
		"the router's address":                                        {w: bare(static("10.66.10.1")), bound: outside, phase: pending, forget: true},
		"the broadcast address":                                       {w: bare(static("10.66.10.255")), bound: outside, phase: pending, forget: true},
		"no address at all":                                           {w: bare(static("sixty-six")), bound: outside, phase: pending, forget: true},
		"nothing is free":                                             {w: bare(func(w *claimWorld) { w.wanted = netip.Addr{} }), bound: outside, phase: pending, forget: true},
		"there are no ranges":                                         {w: bare(func(w *claimWorld) { w.wanted, w.ranges = netip.Addr{}, nil }), bound: outside, phase: pending, forget: true},
		"a lease that somebody deleted is lost, the address is not":   {w: bare(leasedTo("default", "a"), deletedLease, phase(attachd), used()), bound: lost, phase: attachd},
		"a lost lease is made again, and the claim stays what it is":  {w: bare(phase(attachd), used()), bound: lost, acts: []string{"create ip-10-66-10-2"}, phase: attachd},
		"who remembers the address goes first":                        {w: bare(rival), bound: exists, phase: pending},
		"of two that remember it, the name of the lease decides":      {w: bare(rival, phase(isBound)), bound: lost, acts: []string{"create ip-10-66-10-2"}, phase: isBound},
		"deleted: the lease is released":                              {w: bare(leasedTo("default", "a"), deleted, phase(isBound)), bound: notReady, acts: []string{"apply ip-10-66-10-2 of default/"}, phase: isBound},
		"deleted, the lease released: it may go":                      {w: bare(leasedTo("default", ""), deleted), bound: notReady, acts: []string{"release vmip-cleanup"}, phase: pending},
		"deleted, without a lease: it may go":                         {w: bare(deleted), bound: notReady, acts: []string{"release vmip-cleanup"}, phase: pending},
		"deleted while a machine wants it: it stays":                  {w: bare(leasedTo("default", "a"), deleted, guarded, used()), bound: "Bound", phase: attachd},
		"deleted while a process runs: it stays":                      {w: bare(leasedTo("default", "a"), deleted, guarded, used(goingAway, started)), bound: "Bound", phase: attachd},
		"deleted together with its machine, which does not run":       {w: bare(leasedTo("default", "a"), deleted, used(goingAway)), bound: notReady, acts: []string{"apply ip-10-66-10-2 of default/"}, phase: attachd},
		"deleted while a process of nobody has the address: it stays": {w: bare(leasedTo("default", "a"), deleted, func(w *claimWorld) { w.processes = []*v1alpha1.Instance{{}} }), bound: "Bound", phase: isBound},
		"the last machine is gone":                                    {w: bare(leasedTo("default", "a"), guarded), bound: "Bound", acts: []string{"release vmip-protection"}, phase: isBound},
		"deleted, the last machine is gone":                           {w: bare(leasedTo("default", "a"), guarded, deleted), bound: notReady, acts: []string{"release vmip-protection"}, phase: isBound},
		"an address no longer wanted is given back": {w: bare(leasedTo("default", "a"), func(w *claimWorld) {
			other := bare(static("10.66.10.9"))
			w.others = []*v1alpha2.VirtualMachineIPAddressLease{newLease(other)}
		}), bound: "Bound", acts: []string{"apply ip-10-66-10-9 of default/"}, phase: isBound},
	}
}

func TestClaim(t *testing.T) {
	for name, c := range claimCases() {
		t.Run(name, func(t *testing.T) {
			d := steps.Decide(c.w, claimSteps...)
			s := claimStatus(c.w, d, nil)
			if got := d.Outcome(v1alpha2.AddressConditionBound).Reason; got != c.bound {
				t.Errorf("reason %s, want %s", got, c.bound)
			}
			if diff := cmp.Diff(c.acts, actsOf(d)); diff != "" {
				t.Errorf("acts: %s", diff)
			}
			if s.Phase != c.phase {
				t.Errorf("phase %s, want %s", s.Phase, c.phase)
			}
			if remembers := c.w.wanted.IsValid() && s.Address == c.w.wanted.String(); remembers == c.forget && c.bound != exists {
				t.Errorf("remembers %q of %v", s.Address, c.w.wanted)
			}
		})
	}
}

// The order of the steps must never matter.
func TestClaimStepsInAnyOrder(t *testing.T) {
	for name, c := range claimCases() {
		want := actsOf(steps.Decide(c.w, claimSteps...))
		shuffled := slices.Clone(claimSteps)
		rand.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		got := actsOf(steps.Decide(c.w, shuffled...))
		slices.Sort(want)
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func actsOf(d steps.Decision) []string {
	var all []string
	for _, f := range d {
		switch a := f.Act.(type) {
		case steps.Create:
			all = append(all, "create "+a.Object.GetName())
		case steps.Apply:
			ref := a.Object.(*v1alpha2.VirtualMachineIPAddressLease).Spec.VirtualMachineIPAddressRef
			of := ref.Name
			if of == "" {
				of = ref.Namespace + "/"
			}
			all = append(all, "apply "+a.Object.GetName()+" of "+of)
		case steps.Release:
			all = append(all, "release "+a.Finalizer[len("virtualization.deckhouse.io/"):])
		case steps.Delete:
			all = append(all, "delete "+a.Object.GetName())
		}
	}
	return all
}

func TestHeir(t *testing.T) {
	named := testkit.Address("web")
	if got := heir(named); got != "VirtualMachineIPAddress/web" {
		t.Errorf("a claim by itself leaves its address to %s", got)
	}
	vm := testkit.VM("linux").Object()
	named.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(vm, v1alpha2.GroupVersion.WithKind(v1alpha2.VirtualMachineKind))}
	if got := heir(named); got != "VirtualMachine/linux" {
		t.Errorf("a machine's claim leaves its address to %s", got)
	}
	w := bare(leasedTo("default", "a"))
	gone := released(w.lease, nil, noon)
	if gone.Annotations[HeirAnnotation] != "VirtualMachineIPAddress/a" || gone.Spec.VirtualMachineIPAddressRef.Namespace != "default" {
		t.Errorf("a lease whose claim vanished: %+v", gone)
	}
}

func TestClaimEvents(t *testing.T) {
	cases := map[string]struct {
		before *claimWorld
		after  *claimWorld
		want   []string
	}{
		"the first lease": {bare(), bare(leasedTo("default", "a"), used()), []string{
			"Normal Bound: Address 10.66.10.2 is leased", "Normal IPAddressHasBeenAllocated: Address 10.66.10.2 has been allocated",
			"Normal Attached: VirtualMachine vm uses the address"}},
		"a machine leaves": {bare(leasedTo("default", "a"), used()), bare(leasedTo("default", "a")), []string{
			"Normal NotAttached: VirtualMachine vm no longer uses the address"}},
		"nothing": {bare(leasedTo("default", "a"), used()), bare(leasedTo("default", "a"), used()), nil},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			before, after := testkit.Address("a"), testkit.Address("a")
			before.Status = claimStatus(c.before, steps.Decide(c.before, claimSteps...), nil)
			d := steps.Decide(c.after, claimSteps...)
			after.Status = claimStatus(c.after, d, nil)
			var got []string
			for _, e := range claimEvents(before, after, d) {
				got = append(got, fmt.Sprintf("%s %s: %s", e.Type, e.Reason, e.Message))
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// What the pool gives out and what one claim may have are one rule in two places.
func TestPoolAndPolicyAgree(t *testing.T) {
	for _, text := range []string{"10.66.10.0/24", "10.66.10.0/29", "10.66.10.4/30", "10.66.10.7/32"} {
		ranges := prefixes(text)
		p := NewPool()
		p.SetRanges(ranges)
		given := map[netip.Addr]bool{}
		for {
			a, ok := p.Promise(fmt.Sprint(len(given)), free)
			if !ok {
				break
			}
			given[a] = true
		}
		for a := ranges[0].Addr(); ranges[0].Contains(a); a = a.Next() {
			if given[a] != policy.UsableAddress(a, ranges) {
				t.Errorf("%s of %s: given %v", a, text, given[a])
			}
		}
	}
}
