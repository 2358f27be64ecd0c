package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The handler's own routing table and the priority of the rule that leads to it:
// before the table of vm-route-forge, which hears of a migration later.
const (
	steeringTable    = 1489
	steeringPriority = 1489
)

// Where is where a node sends the traffic to a guest's address, before any other
// route is looked at.
type Where struct {
	// Link is the index of the node's end of the pod's link, 0 for none.
	Link int
	// Via is the node to which the guest has gone.
	Via netip.Addr
}

// Nowhere leaves the traffic to the other routes.
var Nowhere = Where{}

// Steering are the routes of guests that have come or gone by a migration and of which
// the other tables know nothing yet. The zero value is ready.
type Steering struct {
	mu sync.Mutex
	// wishes are by address and by whose wish it is.
	wishes map[netip.Addr]map[string]Where
	rule   bool
}

// Prune removes everything that an earlier handler has left behind.
func (s *Steering) Prune() error {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: steeringTable}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return fmt.Errorf("list routes of table %d: %w", steeringTable, err)
	}
	for i := range routes {
		if err := netlink.RouteDel(&routes[i]); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove route of table %d: %w", steeringTable, err)
		}
	}
	return nil
}

// Set says where the owner wants an address to lead. A guest that is here outweighs
// another's memory of one that has gone.
func (s *Steering) Set(address netip.Addr, owner string, where Where) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.choose(address)
	if s.wishes == nil {
		s.wishes = map[netip.Addr]map[string]Where{}
	}
	if s.wishes[address] == nil {
		s.wishes[address] = map[string]Where{}
	}
	if where == Nowhere {
		delete(s.wishes[address], owner)
	} else {
		s.wishes[address][owner] = where
	}
	after := s.choose(address)
	if len(s.wishes[address]) == 0 {
		delete(s.wishes, address)
	}
	if before == after {
		return nil
	}
	return s.apply(address, after)
}

func (s *Steering) choose(address netip.Addr) Where {
	var best Where
	for _, w := range s.wishes[address] {
		if w.Link != 0 {
			return w
		}
		best = w
	}
	return best
}

// apply sets one route. The rule is made with the first of them and stays: an empty
// table costs next to nothing.
func (s *Steering) apply(address netip.Addr, where Where) error {
	if where == Nowhere {
		// Nowhere is any scope: ours have two.
		err := netlink.RouteDel(&netlink.Route{Table: steeringTable, Dst: toIPNet(address), Scope: netlink.SCOPE_NOWHERE})
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("stop steering %s: %w", address, err)
		}
		return nil
	}
	if !s.rule {
		rule := netlink.NewRule()
		rule.Family, rule.Priority, rule.Table = netlink.FAMILY_V4, steeringPriority, steeringTable
		if err := netlink.RuleAdd(rule); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add rule of table %d: %w", steeringTable, err)
		}
		s.rule = true
	}
	route := &netlink.Route{Table: steeringTable, Dst: toIPNet(address)}
	if where.Link != 0 {
		route.LinkIndex, route.Scope = where.Link, netlink.SCOPE_LINK
	} else {
		route.Gw = net.IP(where.Via.AsSlice())
	}
	if err := netlink.RouteReplace(route); err != nil {
		return fmt.Errorf("steer %s: %w", address, err)
	}
	return nil
}

// Here is where a guest in this pod is.
func (n *Namespace) Here() (Where, error) {
	link, err := n.hostLink()
	if err != nil {
		return Where{}, fmt.Errorf("find the node's side of the pod's link: %w", err)
	}
	return Where{Link: link}, nil
}
