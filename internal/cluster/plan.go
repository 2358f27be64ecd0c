package cluster

import (
	"fmt"
	"net/netip"
	"slices"
)

// Addresses is the address plan of one cluster. It is chosen once, when the cluster
// is made, so that it overlaps neither with what the host reaches nor with another
// cluster's plan.
type Addresses struct {
	// Nodes is the network of the bridge: the host is its first address, the control
	// box the second, node n is number 10+n.
	Nodes netip.Prefix `json:"nodes"`
	// Pods has one /24 for each node; node n owns the nth.
	Pods netip.Prefix `json:"pods"`
	// Services is the range of cluster IPs.
	Services netip.Prefix `json:"services"`
	// VMs is the range for virtual machines, for the platform's settings.
	VMs netip.Prefix `json:"vms"`
	// DNS is the cluster DNS service's address.
	DNS netip.Addr `json:"dns"`
}

const (
	// planSlots is how many plans there are, hence how many clusters fit on a host.
	planSlots = 40
	// maxNodes is bounded by the addresses of a node network.
	maxNodes = 200
	// firstNode is the number of node 0's address in its network.
	firstNode = 10
)

// planSlot returns the nth plan. Slot 0 has the VM range of the documentation's
// examples, so that they work as printed on the first cluster of a machine.
func planSlot(n int) Addresses {
	a := Addresses{
		Nodes:    prefix(70, byte(n), 24),
		Pods:     prefix(byte(120+n), 0, 16),
		Services: prefix(byte(180+n), 0, 16),
		VMs:      prefix(66, byte(10+n), 24),
	}
	a.DNS = nth(a.Services, 10)
	return a
}

// choosePlan returns the first plan that overlaps with nothing in use.
func choosePlan(used []netip.Prefix) (Addresses, error) {
	for n := range planSlots {
		if plan := planSlot(n); !plan.overlaps(used) {
			return plan, nil
		}
	}
	return Addresses{}, fmt.Errorf("no free address range: all %d plans overlap with routes of the host or other clusters", planSlots)
}

// inside lists the ranges whose traffic stays in the cluster, untranslated.
func (a Addresses) inside() []netip.Prefix {
	return []netip.Prefix{a.Nodes, a.Pods, a.Services, a.VMs}
}

func (a Addresses) overlaps(used []netip.Prefix) bool {
	for _, mine := range a.inside() {
		if slices.ContainsFunc(used, mine.Overlaps) {
			return true
		}
	}
	return false
}

// gateway is the host's address on the bridge.
func (a Addresses) gateway() netip.Addr { return nth(a.Nodes, 1) }

// control is the control box's address.
func (a Addresses) control() netip.Addr { return nth(a.Nodes, 2) }

// node is the address of node n, counted from 1.
func (a Addresses) node(n int) netip.Addr { return nth(a.Nodes, firstNode+n) }

// podsOf is the pod range of node n, counted from 1.
func (a Addresses) podsOf(n int) netip.Prefix {
	base := a.Pods.Addr().As4()
	base[2] = byte(n)
	return netip.PrefixFrom(netip.AddrFrom4(base), 24)
}

// apiService is the address of the service "kubernetes".
func (a Addresses) apiService() netip.Addr { return nth(a.Services, 1) }

// prefix is a range of 10.0.0.0/8.
func prefix(second, third byte, bits int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, second, third, 0}), bits)
}

// nth is the address number n of a range; n is below 256.
func nth(p netip.Prefix, n int) netip.Addr {
	base := p.Addr().As4()
	base[3] = byte(n)
	return netip.AddrFrom4(base)
}
