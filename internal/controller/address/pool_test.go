package address

import (
	"net/netip"
	"strconv"
	"testing"

	"orlop.dev/orlop/internal/policy"
)

func prefixes(texts ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, t := range texts {
		all = append(all, netip.MustParsePrefix(t))
	}
	return all
}

func free(netip.Addr) Candidate { return Available }

func TestPoolPromise(t *testing.T) {
	cases := map[string]struct {
		ranges []netip.Prefix
		taken  []string
		want   string
	}{
		"the network and its router are skipped, so .2 is the lowest": {prefixes("10.66.10.0/24"), nil, "10.66.10.2"},
		"a hole is filled before the end": {
			prefixes("10.66.10.0/24"), []string{"10.66.10.2", "10.66.10.4"}, "10.66.10.3"},
		"the last address is never given, the next range is used": {
			prefixes("10.66.10.0/30", "10.66.20.0/24"), []string{"10.66.10.2"}, "10.66.20.2"},
		"a range of one address may be used":        {prefixes("10.66.10.7/32"), nil, "10.66.10.7"},
		"a range of two has router and broadcast":   {prefixes("10.66.10.6/31"), nil, ""},
		"nothing is left":                           {prefixes("10.66.10.0/30"), []string{"10.66.10.2"}, ""},
		"leases outside of the ranges do no harm":   {prefixes("10.66.10.0/24"), []string{"192.168.0.1"}, "10.66.10.2"},
		"a taken single address is not given again": {prefixes("10.66.10.7/32"), []string{"10.66.10.7"}, ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			p := NewPool()
			for _, a := range c.taken {
				p.Take(netip.MustParseAddr(a))
			}
			p.SetRanges(c.ranges)
			got, ok := p.Promise("x", free)
			if (c.want != "") != ok || (ok && got.String() != c.want) {
				t.Fatalf("got %v %v, want %q", got, ok, c.want)
			}
		})
	}
}

func TestPoolPromisesDoNotCollide(t *testing.T) {
	p := NewPool()
	p.SetRanges(prefixes("10.0.0.0/16"))
	seen := map[netip.Addr]bool{}
	for i := range 60000 {
		a, ok := p.Promise(strconv.Itoa(i), free)
		if !ok || seen[a] {
			t.Fatalf("address %v of number %d: ok %v, seen %v", a, i, ok, seen[a])
		}
		seen[a] = true
		p.Take(a)
	}
	again, _ := p.Promise("late", free)
	if same, _ := p.Promise("late", free); same != again {
		t.Fatalf("a promise changed from %v to %v", again, same)
	}
	p.Break("late")
	if other, _ := p.Promise("other", free); other != again {
		t.Fatalf("a broken promise is not free: %v, want %v", other, again)
	}
	p.Free(netip.MustParseAddr("10.0.0.9"))
	if low, _ := p.Promise("third", free); low.String() != "10.0.0.9" {
		t.Fatalf("a freed address is not lowest: %v", low)
	}
}

func TestLeaseName(t *testing.T) {
	a := netip.MustParseAddr("10.66.10.14")
	if got := policy.LeaseName(a); got != "ip-10-66-10-14" {
		t.Fatalf("lease name %q", got)
	}
	if back, ok := policy.LeasedAddress("ip-10-66-10-14"); !ok || back != a {
		t.Fatalf("address %v %v", back, ok)
	}
	for _, bad := range []string{"", "ip-10-66-10", "10-66-10-14", "ip-fd00--1", "ip-10.66.10.14", "ip-10-66-10-014"} {
		if _, ok := policy.LeasedAddress(bad); ok {
			t.Errorf("%q is taken for a lease name", bad)
		}
	}
}

func TestPoolLooksBeforeItPromises(t *testing.T) {
	p := NewPool()
	p.SetRanges(prefixes("10.66.10.0/29"))
	look := func(a netip.Addr) Candidate {
		switch a.String() {
		case "10.66.10.2":
			return Leased
		case "10.66.10.3":
			return Reserved
		}
		return Available
	}
	if a, _ := p.Promise("first", look); a.String() != "10.66.10.4" {
		t.Fatalf("got %v", a)
	}
	if a, _ := p.Promise("second", free); a.String() != "10.66.10.3" {
		t.Errorf("a reserved address is not free later, or a leased one is: %v", a)
	}
	p.Free(netip.MustParseAddr("10.66.10.2"))
	if a, _ := p.Promise("third", free); a.String() != "10.66.10.2" {
		t.Errorf("a leased address is not free after its lease: %v", a)
	}
}

func TestPoolForgetsPromisesOfDroppedRanges(t *testing.T) {
	p := NewPool()
	p.SetRanges(prefixes("10.66.10.0/24"))
	if _, ok := p.Promise("x", free); !ok {
		t.Fatal("nothing is free")
	}
	p.SetRanges(prefixes("10.66.20.0/24"))
	if a, _ := p.Promise("x", free); a.String() != "10.66.20.2" {
		t.Errorf("got %v", a)
	}
}
