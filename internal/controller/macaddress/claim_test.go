package macaddress

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/steps"
	"orlop.dev/orlop/internal/testkit"
)

var noon = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)

const mac = "5e:e6:19:22:0f:d8"

// bare is a claim in namespace "default" that remembers its address, but has neither
// lease nor machine.
func bare(changes ...func(*claimWorld)) *claimWorld {
	claim := &v1alpha2.VirtualMachineMACAddress{ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: "default", UID: "a-uid"}}
	claim.Status = v1alpha2.VirtualMachineMACAddressStatus{Phase: v1alpha2.VirtualMachineMACAddressPending, Address: mac}
	w := &claimWorld{now: noon, claim: claim, wanted: mac}
	for _, change := range changes {
		change(w)
	}
	return w
}

func leasedTo(namespace, name string) func(*claimWorld) {
	return func(w *claimWorld) {
		w.lease = newLease(w)
		w.lease.Spec.VirtualMachineMACAddressRef = &v1alpha2.VirtualMachineMACAddressLeaseMACAddressRef{Namespace: namespace, Name: name}
	}
}

func was(p v1alpha2.VirtualMachineMACAddressPhase) func(*claimWorld) {
	return func(w *claimWorld) { w.claim.Status.Phase = p }
}

func deleted(w *claimWorld) { w.claim.DeletionTimestamp = new(metav1.NewTime(noon)) }
func used(w *claimWorld)    { w.user = testkit.VM("vm").Object() }
func rival(w *claimWorld) {
	w.rival = &v1alpha2.VirtualMachineMACAddress{ObjectMeta: metav1.ObjectMeta{Name: "b", Namespace: "elsewhere"}}
}

type claimCase struct {
	w     *claimWorld
	bound string
	acts  []string
	phase v1alpha2.VirtualMachineMACAddressPhase
}

func claimCases() map[string]claimCase {
	const (
		pending = v1alpha2.VirtualMachineMACAddressPending
		isBound = v1alpha2.VirtualMachineMACAddressBound
		attachd = v1alpha2.VirtualMachineMACAddressAttached
		name    = "mac-5e-e6-19-22-0f-d8"
	)
	return map[string]claimCase{
		"an address is remembered before it is leased":     {bare(func(w *claimWorld) { w.claim.Status.Address = "" }), "VirtualMachineMACAddressLeaseNotFound", nil, pending},
		"a remembered one is leased":                       {bare(), "VirtualMachineMACAddressLeaseNotFound", []string{"create " + name}, pending},
		"its own lease":                                    {bare(leasedTo("default", "a")), "Bound", nil, isBound},
		"its own lease, and a machine":                     {bare(leasedTo("default", "a"), used), "Bound", nil, attachd},
		"the label of the lease is put right":              {bare(leasedTo("default", "a"), func(w *claimWorld) { w.lease.Labels = nil }), "Bound", []string{"apply " + name}, isBound},
		"a namesake of another namespace is somebody else": {bare(leasedTo("other", "a")), "VirtualMachineMACAddressLeaseAlreadyExists", nil, pending},
		"who remembers the address goes first":             {bare(rival), "VirtualMachineMACAddressLeaseAlreadyExists", nil, pending},
		"a lost lease is made again":                       {bare(rival, was(attachd), used), "VirtualMachineMACAddressLeaseLost", []string{"create " + name}, attachd},
		"a lease that somebody deleted": {bare(leasedTo("default", "a"), was(isBound), func(w *claimWorld) {
			w.lease.DeletionTimestamp = new(metav1.NewTime(noon))
		}), "VirtualMachineMACAddressLeaseLost", nil, isBound},
		"no address an interface can have":              {bare(func(w *claimWorld) { w.wanted = "" }), "VirtualMachineMACAddressLeaseNotReady", nil, pending},
		"deleted: the lease goes first":                 {bare(leasedTo("default", "a"), deleted), "VirtualMachineMACAddressLeaseNotReady", []string{"delete " + name}, isBound},
		"deleted, its lease is gone":                    {bare(deleted, was(isBound)), "VirtualMachineMACAddressLeaseNotReady", []string{"release a"}, isBound},
		"deleted while a machine uses it: it stays":     {bare(leasedTo("default", "a"), deleted, used), "Bound", nil, attachd},
		"an address no longer wanted is given back":     {bare(leasedTo("default", "a"), func(w *claimWorld) { w.others = append(w.others, w.lease) }), "Bound", []string{"delete " + name}, isBound},
		"deleted by somebody who holds another's lease": {bare(leasedTo("other", "b"), deleted), "VirtualMachineMACAddressLeaseNotReady", []string{"release a"}, pending},
	}
}

func TestClaim(t *testing.T) {
	for name, c := range claimCases() {
		t.Run(name, func(t *testing.T) {
			d := steps.Decide(c.w, claimSteps...)
			if got := d.Outcome(v1alpha2.MACAddressConditionBound).Reason; got != c.bound {
				t.Errorf("reason %s, want %s", got, c.bound)
			}
			if diff := cmp.Diff(c.acts, actsOf(d)); diff != "" {
				t.Errorf("acts: %s", diff)
			}
			if s := claimStatus(c.w, d, nil); s.Phase != c.phase {
				t.Errorf("phase %s, want %s", s.Phase, c.phase)
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

func TestLease(t *testing.T) {
	world := func(claim *v1alpha2.VirtualMachineMACAddress, gone bool) *leaseWorld {
		lease := newLease(bare())
		if gone {
			lease.DeletionTimestamp = new(metav1.NewTime(noon))
		}
		return &leaseWorld{now: noon, lease: lease, claim: claim}
	}
	cases := map[string]struct {
		w    *leaseWorld
		acts []string
	}{
		"held": {world(bare(was(v1alpha2.VirtualMachineMACAddressBound)).claim, false), nil},
		"held and deleted by somebody: it goes, its claim makes it again":   {world(bare(was(v1alpha2.VirtualMachineMACAddressBound)).claim, true), []string{"delete mac-5e-e6-19-22-0f-d8"}},
		"deleted before its claim remembers the address: it waits for that": {world(bare().claim, true), nil},
		"its claim vanished": {world(nil, false), []string{"delete mac-5e-e6-19-22-0f-d8"}},
	}
	for name, c := range cases {
		if diff := cmp.Diff(c.acts, actsOf(steps.Decide(c.w, leaseSteps...))); diff != "" {
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
			all = append(all, "apply "+a.Object.GetName())
		case steps.Delete:
			all = append(all, "delete "+a.Object.GetName())
		case steps.Release:
			all = append(all, "release "+a.Object.GetName())
		}
	}
	return all
}
