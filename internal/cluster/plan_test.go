package cluster

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func prefixes(texts ...string) []netip.Prefix {
	var list []netip.Prefix
	for _, text := range texts {
		list = append(list, netip.MustParsePrefix(text))
	}
	return list
}

func TestChoosePlan(t *testing.T) {
	cases := map[string]struct {
		used    []netip.Prefix
		wantVMs string
	}{
		"a bare machine gets the range that the documentation's examples use": {
			used: prefixes("192.168.1.0/24"), wantVMs: "10.66.10.0/24",
		},
		"a second cluster gets the next one": {
			used: planSlot(0).inside(), wantVMs: "10.66.11.0/24",
		},
		"one overlapping range is enough to refuse a plan": {
			used: prefixes("10.120.7.0/24", "10.181.0.0/20"), wantVMs: "10.66.12.0/24",
		},
		"a route to a single address counts too": {
			used: prefixes("10.70.0.9/32"), wantVMs: "10.66.11.0/24",
		},
	}
	for name, test := range cases {
		t.Run(name, func(t *testing.T) {
			plan, err := choosePlan(test.used)
			if err != nil {
				t.Fatal(err)
			}
			if got := plan.VMs.String(); got != test.wantVMs {
				t.Errorf("virtual machines get %s, want %s", got, test.wantVMs)
			}
		})
	}
	t.Run("a host that routes all of 10/8 is told so", func(t *testing.T) {
		if plan, err := choosePlan(prefixes("10.0.0.0/8")); err == nil {
			t.Errorf("got %v, want an error", plan)
		}
	})
}

func TestPlansDoNotOverlap(t *testing.T) {
	var used []netip.Prefix
	for n := range planSlots {
		plan := planSlot(n)
		if plan.overlaps(used) {
			t.Errorf("plan %d overlaps with an earlier one: %v", n, plan)
		}
		if own := plan.inside(); own[0].Overlaps(own[1]) || own[0].Overlaps(own[2]) || own[1].Overlaps(own[2]) || own[3].Overlaps(own[1]) {
			t.Errorf("plan %d overlaps with itself: %v", n, plan)
		}
		used = append(used, plan.inside()...)
	}
	last := planSlot(0)
	if !last.Nodes.Contains(last.node(maxNodes)) || !last.Pods.Contains(last.podsOf(maxNodes).Addr()) {
		t.Error("the last node has no address")
	}
}

func TestRoutes(t *testing.T) {
	plan := planSlot(0)
	format := func(routes []route) []string {
		var list []string
		for _, r := range routes {
			text := r.to.String() + " unreachable"
			if r.via.IsValid() {
				text = r.to.String() + " via " + r.via.String()
			}
			list = append(list, text)
		}
		return list
	}
	cases := map[string]struct {
		routes []route
		want   []string
	}{
		"the host reaches pods on their nodes, the rest through the first": {
			routes: hostRoutes(plan, 2),
			want: []string{
				"10.120.1.0/24 via 10.70.0.11", "10.120.2.0/24 via 10.70.0.12",
				"10.180.0.0/16 via 10.70.0.11", "10.66.10.0/24 via 10.70.0.11",
			},
		},
		"a node has no route to itself, and none for unknown virtual machines": {
			routes: nodeRoutes(plan, 3, 2),
			want:   []string{"10.120.1.0/24 via 10.70.0.11", "10.120.3.0/24 via 10.70.0.13", "10.66.10.0/24 unreachable"},
		},
	}
	for name, test := range cases {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, format(test.routes)); diff != "" {
				t.Error(diff)
			}
		})
	}
}
