package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Apply wires the pod's namespace for the guest and returns what was planned. It
// may be called at any time and any number of times, also under a running guest.
func (n *Namespace) Apply(r Request) (Plan, error) {
	var p Plan
	err := n.Do(func() error {
		eth, address, gateway, err := inspect()
		if err != nil {
			return err
		}
		if p, err = plan(r, address, gateway, eth.Attrs().MTU); err != nil {
			return err
		}
		return p.apply(eth)
	})
	if err != nil {
		return Plan{}, fmt.Errorf("wire the pod's network: %w", err)
	}
	return p, nil
}

// inspect reads eth0's address and default next hop.
func inspect() (eth netlink.Link, address, gateway netip.Addr, err error) {
	eth, err = netlink.LinkByName(PodLink)
	if err != nil {
		return nil, address, gateway, fmt.Errorf("find %s: %w", PodLink, err)
	}
	addrs, err := netlink.AddrList(eth, netlink.FAMILY_V4)
	if err != nil {
		return nil, address, gateway, fmt.Errorf("list addresses of %s: %w", PodLink, err)
	}
	if len(addrs) == 0 {
		return nil, address, gateway, fmt.Errorf("%s has no IPv4 address", PodLink)
	}
	address = fromIP(addrs[0].IP)
	routes, err := netlink.RouteList(eth, netlink.FAMILY_V4)
	if err != nil {
		return nil, address, gateway, fmt.Errorf("list routes of %s: %w", PodLink, err)
	}
	for _, r := range routes {
		if (r.Dst == nil || r.Dst.IP.IsUnspecified()) && r.Gw != nil {
			gateway = fromIP(r.Gw)
		}
	}
	return eth, address, gateway, nil
}

// apply brings about the plan, in an order that never leaves the address both
// local and routed, nor the guest reachable by a half-configured path.
func (p Plan) apply(eth netlink.Link) error {
	bridge, err := p.bridge()
	if err != nil {
		return err
	}
	if err := attachTap(bridge, p.MTU); err != nil {
		return err
	}
	if err := applySysctls(); err != nil {
		return err
	}
	if err := netlink.AddrReplace(bridge, &netlink.Addr{IPNet: toIPNet(p.Local)}); err != nil {
		return fmt.Errorf("set address of %s: %w", BridgeLink, err)
	}
	if err := p.surrenderAddress(eth); err != nil {
		return err
	}
	route := &netlink.Route{LinkIndex: bridge.Attrs().Index, Dst: toIPNet(p.Guest.Addr()), Scope: netlink.SCOPE_LINK}
	if err := netlink.RouteReplace(route); err != nil {
		return fmt.Errorf("route %s to %s: %w", p.Guest.Addr(), BridgeLink, err)
	}
	// The pod would otherwise ask for the guest in the name of an address that may
	// be the guest's own, which a guest takes for a duplicate.
	neighbour := &netlink.Neigh{LinkIndex: bridge.Attrs().Index, State: netlink.NUD_PERMANENT,
		IP: p.Guest.Addr().AsSlice(), HardwareAddr: p.MAC}
	if err := netlink.NeighSet(neighbour); err != nil {
		return fmt.Errorf("set neighbour %s: %w", p.Guest.Addr(), err)
	}
	return nil
}

// bridge makes vm0, or makes an existing one right.
func (p Plan) bridge() (netlink.Link, error) {
	snooping := false
	wanted := &netlink.Bridge{
		LinkAttrs:         netlink.LinkAttrs{Name: BridgeLink, HardwareAddr: bridgeMAC, MTU: p.MTU, TxQLen: -1},
		MulticastSnooping: &snooping,
	}
	if err := netlink.LinkAdd(wanted); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("make %s: %w", BridgeLink, err)
	}
	link, err := netlink.LinkByName(BridgeLink)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", BridgeLink, err)
	}
	if link.Type() != "bridge" {
		return nil, fmt.Errorf("%s is a %s instead of a bridge", BridgeLink, link.Type())
	}
	if link.Attrs().HardwareAddr.String() != bridgeMAC.String() {
		if err := netlink.LinkSetHardwareAddr(link, bridgeMAC); err != nil {
			return nil, fmt.Errorf("set hardware address of %s: %w", BridgeLink, err)
		}
	}
	if link.Attrs().MTU != p.MTU {
		if err := netlink.LinkSetMTU(link, p.MTU); err != nil {
			return nil, fmt.Errorf("set MTU of %s: %w", BridgeLink, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("set %s up: %w", BridgeLink, err)
	}
	return link, nil
}

// attachTap puts the tap, if the pod has one already, on the bridge.
func attachTap(bridge netlink.Link, mtu int) error {
	tap, err := netlink.LinkByName(TapLink)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find %s: %w", TapLink, err)
	}
	if tap.Attrs().MTU != mtu {
		if err := netlink.LinkSetMTU(tap, mtu); err != nil {
			return fmt.Errorf("set MTU of %s: %w", TapLink, err)
		}
	}
	if tap.Attrs().MasterIndex != bridge.Attrs().Index {
		if err := netlink.LinkSetMaster(tap, bridge); err != nil {
			return fmt.Errorf("put %s on %s: %w", TapLink, BridgeLink, err)
		}
	}
	if err := netlink.LinkSetUp(tap); err != nil {
		return fmt.Errorf("set %s up: %w", TapLink, err)
	}
	return nil
}

// surrenderAddress makes the kernel forget that eth0's address is its own. The
// address itself stays: without it its routes vanish and the CNI's checks fail.
func (p Plan) surrenderAddress(eth netlink.Link) error {
	err := netlink.RouteDel(&netlink.Route{
		LinkIndex: eth.Attrs().Index,
		Dst:       toIPNet(p.Guest.Addr()),
		Table:     unix.RT_TABLE_LOCAL,
		Type:      unix.RTN_LOCAL,
		Scope:     netlink.SCOPE_HOST,
	})
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("remove %s from the local table: %w", p.Guest.Addr(), err)
	}
	return nil
}

// sysctls of the pod's namespace. Reverse-path filtering stays as the node has it.
var sysctls = []struct{ name, value string }{
	{"ipv4/ip_forward", "1"},
	{"ipv4/conf/" + BridgeLink + "/accept_local", "1"},
	{"ipv4/conf/" + BridgeLink + "/send_redirects", "0"},
	{"ipv4/conf/" + BridgeLink + "/proxy_arp", "1"},
	{"ipv4/conf/" + PodLink + "/proxy_arp", "1"},
	// The default lets every first packet wait for up to 0.8 s.
	{"ipv4/neigh/" + BridgeLink + "/proxy_delay", "0"},
	{"ipv4/neigh/" + PodLink + "/proxy_delay", "0"},
}

func applySysctls() error {
	for _, s := range sysctls {
		if err := os.WriteFile("/proc/sys/net/"+s.name, []byte(s.value), 0o644); err != nil {
			return fmt.Errorf("set %s: %w", s.name, err)
		}
	}
	return nil
}

// OpenTap makes the guest's tap on the bridge that Apply has made and returns its
// descriptor, which goes to QEMU. The link lives as long as a descriptor does.
func (n *Namespace) OpenTap(p Plan) (*os.File, error) {
	var tap *os.File
	err := n.Do(func() (err error) {
		if tap, err = newTap(); err != nil {
			return err
		}
		bridge, err := netlink.LinkByName(BridgeLink)
		if err != nil {
			return fmt.Errorf("find %s: %w", BridgeLink, err)
		}
		return attachTap(bridge, p.MTU)
	})
	if err != nil {
		if tap != nil {
			_ = tap.Close()
		}
		return nil, fmt.Errorf("open the guest's tap: %w", err)
	}
	return tap, nil
}

// newTap makes the link in the thread's namespace. The descriptor becomes a file
// only afterwards: a poller that meets it without a link takes it for broken.
func newTap() (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	req, err := unix.NewIfreq(TapLink)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("make %s: %w", TapLink, err)
	}
	return os.NewFile(uintptr(fd), TapLink), nil
}
