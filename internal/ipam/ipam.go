// Package ipam is the CNI address plugin of the embedded cluster: it gives the pod
// of a virtual machine the machine's leased address, and lets another plugin
// (host-local) serve every other pod.
//
// It is not an allocator: who owns an address is decided by the lease objects, and
// arrives here as a pod annotation. The plugin only remembers which attachment got
// such an address, so that a repeated ADD answers the same and a DEL never asks the
// delegate for something it did not give.
//
// Invariant: the result must satisfy the `ptp` plugin, which deletes the subnet
// route of the address it is given and then needs the gateway to be reachable; see
// result.
package ipam

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// Functions are the plugin's answers to the commands of the CNI specification.
func Functions() skel.CNIFuncs {
	return skel.CNIFuncs{Add: add, Del: del, Check: check, GC: gc, Status: status}
}

func add(args *skel.CmdArgs) error {
	conf, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	addr, err := conf.annotated()
	if err != nil {
		return err
	}
	if !addr.IsValid() {
		return delegateAdd(args, conf)
	}
	return withStore(conf, func(s *store) error {
		given, err := s.claim(attachment{args.ContainerID, args.IfName}, addr)
		if err != nil {
			return err
		}
		return types.PrintResult(result(conf, given), conf.CNIVersion)
	})
}

func del(args *skel.CmdArgs) error {
	conf, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	known := false
	if err := withStore(conf, func(s *store) error {
		known, err = s.release(attachment{args.ContainerID, args.IfName})
		return err
	}); err != nil || known {
		return err
	}
	// Not ours: the delegate's, or nobody's, which the delegate accepts too.
	stdin, err := delegateStdin(args.StdinData, conf)
	if err != nil {
		return err
	}
	return invoke.DelegateDel(context.Background(), conf.delegate.Type, stdin, nil)
}

func check(args *skel.CmdArgs) error {
	conf, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	known := false
	if err := withStore(conf, func(s *store) error {
		_, known, err = s.lookup(attachment{args.ContainerID, args.IfName})
		return err
	}); err != nil || known {
		return err
	}
	stdin, err := delegateStdin(args.StdinData, conf)
	if err != nil {
		return err
	}
	return invoke.DelegateCheck(context.Background(), conf.delegate.Type, stdin, nil)
}

func gc(args *skel.CmdArgs) error {
	conf, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	valid := map[attachment]bool{}
	for _, a := range conf.ValidAttachments {
		valid[attachment{a.ContainerID, a.IfName}] = true
	}
	if err := withStore(conf, func(s *store) error { return s.prune(valid) }); err != nil {
		return err
	}
	stdin, err := delegateStdin(args.StdinData, conf)
	if err != nil {
		return err
	}
	return invoke.DelegateGC(context.Background(), conf.delegate.Type, stdin, nil)
}

func status(args *skel.CmdArgs) error {
	conf, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	if err := withStore(conf, func(*store) error { return nil }); err != nil {
		return types.NewError(types.ErrPluginNotAvailable, "data directory is not usable", err.Error())
	}
	stdin, err := delegateStdin(args.StdinData, conf)
	if err != nil {
		return err
	}
	return invoke.DelegateStatus(context.Background(), conf.delegate.Type, stdin, nil)
}

// delegateAdd lets the delegate choose the address of an ordinary pod.
func delegateAdd(args *skel.CmdArgs, conf *config) error {
	stdin, err := delegateStdin(args.StdinData, conf)
	if err != nil {
		return err
	}
	r, err := invoke.DelegateAdd(context.Background(), conf.delegate.Type, stdin, nil)
	if err != nil {
		return err
	}
	return types.PrintResult(r, conf.CNIVersion)
}

// result describes the pod's side of the link in the way `ptp` can carry out.
//
// ptp adds the address, then our routes, then deletes the subnet route the kernel
// made for the address, and then adds "gateway dev eth0" and "subnet via gateway":
//
//   - a /32 makes no subnet route, so the deletion fails: the prefix is /31, the
//     smallest that has one. Its other half is reached through the gateway, as
//     every other address is;
//   - the gateway is the node's, outside the subnet, so the routes through it need
//     one to itself before ptp adds its own. Ours has a metric, else the two would
//     collide. (The CHECK of ptp compares next hops as text and does not recognise
//     this route; no CRI runtime we run under calls CHECK);
//   - the gateway is never the first address of the machine's CIDR: that one is
//     the guest's router inside the pod.
func result(conf *config, addr netip.Addr) *types100.Result {
	link := 253 // RT_SCOPE_LINK: only such a route may lead to a next hop.
	gateway := net.IP(conf.IPAM.Gateway.AsSlice())
	routes := []*types.Route{{
		Dst:      net.IPNet{IP: gateway, Mask: net.CIDRMask(32, 32)},
		GW:       net.IPv4zero,
		Priority: 1024,
		Scope:    &link,
	}}
	for _, r := range conf.delegate.Routes {
		if r.Dst.IP.To4() != nil {
			routes = append(routes, r.Copy())
		}
	}
	if len(routes) == 1 {
		routes = append(routes, &types.Route{Dst: net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, GW: gateway})
	}
	return &types100.Result{
		CNIVersion: types100.ImplementedSpecVersion,
		IPs: []*types100.IPConfig{{
			Address: net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(31, 32)},
			Gateway: gateway,
		}},
		Routes: routes,
		DNS:    conf.DNS,
	}
}

// record is the content of a state file.
type record struct {
	ContainerID string     `json:"containerID"`
	IfName      string     `json:"ifname"`
	Address     netip.Addr `json:"address"`
}

func (r record) marshal() ([]byte, error) {
	data, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode address record: %w", err)
	}
	return append(data, '\n'), nil
}
