package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// errForeignLink says that eth0's other end is not what the node sees.
var errForeignLink = errors.New("the pod's link does not end on this node")

// EnsureHostRoute makes the node route the guest's address into this pod. The CNI
// has done so when the pod was made, but its late clean-up of an older pod with
// the same address removes the route. It reports whether it had to be repaired.
func (n *Namespace) EnsureHostRoute(address netip.Addr) (bool, error) {
	veth, err := n.hostLink()
	if err != nil {
		return false, fmt.Errorf("find the node's side of the pod's link: %w", err)
	}
	dst := toIPNet(address)
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Dst: dst, Table: unix.RT_TABLE_MAIN},
		netlink.RT_FILTER_DST|netlink.RT_FILTER_TABLE)
	if err != nil {
		return false, fmt.Errorf("list routes to %s: %w", address, err)
	}
	for _, r := range routes {
		if r.LinkIndex == veth {
			return false, nil
		}
	}
	if err := netlink.RouteReplace(&netlink.Route{LinkIndex: veth, Dst: dst, Scope: netlink.SCOPE_LINK}); err != nil {
		return false, fmt.Errorf("route %s into its pod: %w", address, err)
	}
	return true, nil
}

// hostLink returns the index of the node's end of eth0. The pod's word for it is
// only a hint: the node's own link must name the same peer in the same namespace.
func (n *Namespace) hostLink() (int, error) {
	var inner, outer int
	if err := n.Do(func() error {
		eth, err := netlink.LinkByName(PodLink)
		if err != nil {
			return fmt.Errorf("find %s: %w", PodLink, err)
		}
		inner, outer = eth.Attrs().Index, eth.Attrs().ParentIndex
		return nil
	}); err != nil {
		return 0, err
	}
	link, err := netlink.LinkByIndex(outer)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errForeignLink, err)
	}
	id, err := netlink.GetNetNsIdByFd(int(n.file.Fd()))
	if err != nil {
		return 0, fmt.Errorf("identify network namespace: %w", err)
	}
	if id < 0 || link.Attrs().NetNsID != id || link.Attrs().ParentIndex != inner {
		return 0, errForeignLink
	}
	return outer, nil
}

// WatchHostRoutes calls removed with every address whose own route has left the
// node's main table, until the context ends.
func WatchHostRoutes(ctx context.Context, removed func(netip.Addr)) error {
	updates := make(chan netlink.RouteUpdate, 64)
	failed := make(chan error, 1)
	err := netlink.RouteSubscribeWithOptions(updates, ctx.Done(), netlink.RouteSubscribeOptions{
		ErrorCallback: func(err error) {
			select {
			case failed <- err:
			default:
			}
		},
	})
	if err != nil {
		return fmt.Errorf("watch routes: %w", err)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("watch routes: %w", err)
		case u, ok := <-updates:
			if !ok {
				if ctx.Err() != nil {
					return nil
				}
				return errors.New("watch routes: subscription ended")
			}
			if u.Type != unix.RTM_DELROUTE || u.Table != unix.RT_TABLE_MAIN || u.Dst == nil {
				continue
			}
			if ones, bits := u.Dst.Mask.Size(); bits == 32 && ones == 32 {
				removed(fromIP(u.Dst.IP))
			}
		}
	}
}

// NamespaceOfProcess opens the network namespace of a process through its open
// directory in /proc, which cannot come to mean another process.
func NamespaceOfProcess(proc *os.File) (*Namespace, error) {
	// A magic link: what it points to is decided by the kernel.
	fd, err := unix.Openat(int(proc.Fd()), "ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	return NewNamespace(os.NewFile(uintptr(fd), "net"))
}
