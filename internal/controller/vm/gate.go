package vm

import (
	"fmt"
	"sync"

	"k8s.io/apimachinery/pkg/types"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/settings"
)

// gate lets migrations through as far as the limits allow. What counts is what the
// records of the machines say; claims stand for those that were let through and
// whose record the cache does not show yet. Forgetting them, as a new leader does,
// costs a limit exceeded for a moment and nothing else.
type gate struct {
	mu     sync.Mutex
	claims map[types.NamespacedName]passage
}

// passage is one migration under way, or about to be.
type passage struct {
	operation types.UID
	from, to  string
	syncing   bool
}

// passageOf reads what a machine's record says, false if it is not being moved.
func passageOf(vm *v1alpha2.VirtualMachine) (passage, bool) {
	r := vm.Status.Instance
	if r == nil || r.Target == nil {
		return passage{}, false
	}
	return passage{operation: r.Target.Operation, from: r.NodeName, to: r.Target.NodeName, syncing: r.Target.Syncing}, true
}

// shown drops a machine's claim when its record says as much, or when it wants nothing.
func (g *gate) shown(key types.NamespacedName, wants bool, recorded passage) {
	g.mu.Lock()
	defer g.mu.Unlock()
	claim, found := g.claims[key]
	if !found {
		return
	}
	if !wants || claim.operation == recorded.operation && (recorded.syncing || !claim.syncing) {
		delete(g.claims, key)
	}
}

// enter asks to go on as p. others are the recorded passages of the other machines.
func (g *gate) enter(key types.NamespacedName, p passage, others map[types.NamespacedName]passage, limits settings.Migration, nodes int) (bool, string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for k, claim := range g.claims {
		if k != key {
			others[k] = claim
		}
	}
	var all, outbound, syncing, inbound int
	for _, o := range others {
		all++
		if o.from == p.from {
			outbound++
			if o.syncing {
				syncing++
			}
		}
		if o.syncing && o.to == p.to {
			inbound++
		}
	}
	switch {
	case p.syncing && syncing >= limits.SyncPerNode:
		return false, fmt.Sprintf("%d other machines are being transferred from node %s", syncing, p.from)
	case p.syncing && inbound >= limits.InboundPerNode:
		return false, fmt.Sprintf("%d other machines are being received by node %s", inbound, p.to)
	case !p.syncing && outbound >= limits.OutboundPerNode:
		return false, fmt.Sprintf("%d other machines are leaving node %s", outbound, p.from)
	case !p.syncing && all >= limits.ClusterLimit(nodes):
		return false, fmt.Sprintf("%d other migrations run in the cluster", all)
	}
	if g.claims == nil {
		g.claims = map[types.NamespacedName]passage{}
	}
	g.claims[key] = p
	return true, ""
}
