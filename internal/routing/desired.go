package routing

import (
	"net/netip"
	"slices"
	"time"

	"orlop.dev/orlop/api/instance/v1alpha1"
)

// State is what the node's routing should be.
type State struct {
	// Routes leads from a machine's address to the node it runs on.
	Routes map[netip.Addr]netip.Addr
	// Ranges are looked up in our table.
	Ranges []netip.Prefix
}

// place is where a machine's address is, according to one Instance.
type place struct {
	address netip.Addr
	node    string
	phase   v1alpha1.InstancePhase
	created time.Time
	// left is true once the guest has gone to another Instance by a migration.
	left bool
}

// desired decides everything. nodes has the internal address of every node.
func desired(self string, nodes map[string]netip.Addr, places []place, ranges []netip.Prefix) State {
	s := State{Routes: map[netip.Addr]netip.Addr{}, Ranges: masked(ranges)}
	for address, p := range winners(places) {
		via, known := nodes[p.node]
		if p.node != self && known && contains(s.Ranges, address) {
			s.Routes[address] = via
		}
	}
	return s
}

// winners chooses between two Instances with one address, the halves of a
// migration: the guest is where its processors run. Between equals the elder has it.
func winners(places []place) map[netip.Addr]place {
	best := map[netip.Addr]place{}
	for _, p := range places {
		old, taken := best[p.address]
		if rank(p.phase) == 0 || p.node == "" || p.left {
			continue
		}
		if !taken || rank(p.phase) > rank(old.phase) || rank(p.phase) == rank(old.phase) && p.created.Before(old.created) {
			best[p.address] = p
		}
	}
	return best
}

// rank orders phases by how surely the guest is there; zero means it is not.
func rank(phase v1alpha1.InstancePhase) int {
	switch phase {
	case v1alpha1.InstanceRunning, v1alpha1.InstanceStopping:
		return 3
	case v1alpha1.InstancePaused:
		return 2
	case v1alpha1.InstanceStarting:
		return 1
	default:
		return 0
	}
}

func masked(ranges []netip.Prefix) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(ranges))
	for _, r := range ranges {
		if r.Addr().Is4() {
			out = append(out, r.Masked())
		}
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int { return a.Compare(b) })
	return slices.Compact(out)
}

func contains(ranges []netip.Prefix, address netip.Addr) bool {
	return slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Contains(address) })
}
