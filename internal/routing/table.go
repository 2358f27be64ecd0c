package routing

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Number is our routing table, Priority that of the rules that lead to it: after
// the local table (0), before the main one (32766) and before any rule that an
// administrator is likely to have.
const (
	Number   = 1490
	Priority = 1490
)

// Table is the kernel's state, as far as it is ours. It remembers what it has set,
// so that a change of one machine costs one request.
type Table struct {
	known  bool
	routes map[netip.Addr]netip.Addr
	ranges []netip.Prefix
}

// Forget makes the next Apply compare with the kernel instead of with memory.
func (t *Table) Forget() { t.known = false }

// Apply brings about the wanted state: prune, then update, then the rules. One
// route that the kernel refuses does not keep it from the others.
func (t *Table) Apply(want State) error {
	if !t.known {
		if err := t.read(); err != nil {
			return err
		}
	}
	var errs []error
	for address := range maps.Clone(t.routes) {
		if _, wanted := want.Routes[address]; !wanted {
			errs = append(errs, t.remove(address))
		}
	}
	for address, via := range want.Routes {
		if t.routes[address] != via {
			errs = append(errs, t.set(address, via))
		}
	}
	errs = append(errs, t.rules(want.Ranges))
	if err := errors.Join(errs...); err != nil {
		t.Forget()
		return err
	}
	t.known = true
	return nil
}

// read lists what the kernel has.
func (t *Table) read() error {
	t.routes, t.ranges = map[netip.Addr]netip.Addr{}, nil
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: Number}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return fmt.Errorf("list routes of table %d: %w", Number, err)
	}
	for _, r := range routes {
		ones, bits := -1, -1
		if r.Dst != nil {
			ones, bits = r.Dst.Mask.Size()
		}
		if ones != 32 || bits != 32 || r.Gw == nil {
			// Nothing of ours looks like this.
			if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("remove a foreign route from table %d: %w", Number, err)
			}
			continue
		}
		t.routes[addr(r.Dst.IP)] = addr(r.Gw)
	}
	rules, err := netlink.RuleListFiltered(netlink.FAMILY_V4, &netlink.Rule{Priority: Priority}, netlink.RT_FILTER_PRIORITY)
	if err != nil {
		return fmt.Errorf("list rules: %w", err)
	}
	for _, r := range rules {
		if r.Table != Number || r.Dst == nil {
			continue // somebody else's of the same priority
		}
		ones, _ := r.Dst.Mask.Size()
		t.ranges = append(t.ranges, netip.PrefixFrom(addr(r.Dst.IP), ones))
	}
	return nil
}

func (t *Table) set(address, via netip.Addr) error {
	err := netlink.RouteReplace(&netlink.Route{Table: Number, Dst: host(address), Gw: via.AsSlice()})
	if err != nil {
		return fmt.Errorf("route %s via %s: %w", address, via, err)
	}
	t.routes[address] = via
	return nil
}

func (t *Table) remove(address netip.Addr) error {
	err := netlink.RouteDel(&netlink.Route{Table: Number, Dst: host(address)})
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("remove route to %s: %w", address, err)
	}
	delete(t.routes, address)
	return nil
}

// rules makes and removes rules. The routes are in place by then.
func (t *Table) rules(want []netip.Prefix) error {
	var errs []error
	for _, r := range slices.Clone(t.ranges) {
		if !slices.Contains(want, r) {
			if err := netlink.RuleDel(rule(r)); err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, fmt.Errorf("remove rule for %s: %w", r, err))
			}
		}
	}
	for _, r := range want {
		if slices.Contains(t.ranges, r) {
			continue
		}
		if err := netlink.RuleAdd(rule(r)); err != nil && !errors.Is(err, unix.EEXIST) {
			errs = append(errs, fmt.Errorf("add rule for %s: %w", r, err))
		}
	}
	t.ranges = slices.Clone(want)
	return errors.Join(errs...)
}

func rule(r netip.Prefix) *netlink.Rule {
	out := netlink.NewRule()
	out.Family = netlink.FAMILY_V4
	out.Priority, out.Table = Priority, Number
	out.Dst = &net.IPNet{IP: r.Addr().AsSlice(), Mask: net.CIDRMask(r.Bits(), 32)}
	return out
}

func host(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(32, 32)}
}

func addr(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}
