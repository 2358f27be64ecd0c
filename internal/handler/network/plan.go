package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// Names and addresses inside every machine's pod.
const (
	PodLink    = "eth0"
	BridgeLink = "vm0"
	TapLink    = "tap0"
)

// bridgeMAC is what the guest's neighbour cache holds for its router, everywhere
// and for ever.
var bridgeMAC = net.HardwareAddr{0x02, 0, 0, 0, 0, 0x01}

// linkLocal is the bridge's own address where the guest's router is a real one outside
// the pod: something must be ours there for DHCP to answer from.
var linkLocal = netip.AddrFrom4([4]byte{169, 254, 101, 1})

// Request is what the Instance says about the guest's main interface.
type Request struct {
	// Address is the guest's address; invalid means the one the pod has.
	Address netip.Addr
	// CIDR gives the guest's mask and, by its first address, the router; invalid
	// means that the pod's own network decides.
	CIDR netip.Prefix
	// MAC is the guest's hardware address.
	MAC net.HardwareAddr
}

// Plan is a Request together with what the pod's namespace was found to have.
type Plan struct {
	// Guest is the guest's address with the mask it is told.
	Guest netip.Prefix
	// Router is the guest's default router.
	Router netip.Addr
	// Local is the bridge's own address, with a full mask.
	Local netip.Addr
	// MAC is the guest's hardware address.
	MAC net.HardwareAddr
	// MTU of eth0 and so of the whole path, in bytes.
	MTU int
}

// podMask is the mask a guest is told when only the pod's address is known.
const podMask = 24

// plan decides the guest's view. pod is eth0's address, gateway eth0's default
// next hop (invalid if it has none).
func plan(r Request, pod, gateway netip.Addr, mtu int) (Plan, error) {
	address := r.Address
	if !address.IsValid() {
		address = pod
	}
	if address != pod {
		return Plan{}, fmt.Errorf("the pod has address %s instead of %s", pod, address)
	}
	p := Plan{MAC: r.MAC, MTU: mtu}
	if r.CIDR.IsValid() && r.CIDR.Bits() < 31 {
		if !r.CIDR.Contains(address) {
			return Plan{}, fmt.Errorf("address %s is not in %s", address, r.CIDR)
		}
		p.Guest = netip.PrefixFrom(address, r.CIDR.Bits())
		p.Router = r.CIDR.Masked().Addr().Next()
		p.Local = p.Router
		if p.Router == address {
			return Plan{}, fmt.Errorf("address %s is the router of %s", address, r.CIDR)
		}
		if p.Router == gateway {
			return Plan{}, fmt.Errorf("the first address of %s is the pod's gateway as well", r.CIDR)
		}
		return p, nil
	}
	if r.Address.IsValid() && !r.CIDR.IsValid() {
		return Plan{}, errors.New("a leased address without its range")
	}
	p = podPlan(p, address, gateway)
	if r.CIDR.IsValid() {
		// A range of one address has no router of its own. The one the guest is told
		// of may be a real host that the guest wants to reach: it must not become ours.
		if r.CIDR.Addr() != address {
			return Plan{}, fmt.Errorf("address %s is not %s", address, r.CIDR)
		}
		p.Local = linkLocal
	}
	return p, nil
}

// podPlan serves a machine on a plain pod address. The router must lie in the
// guest's subnet (several DHCP clients insist) and must not become local while it
// is the pod's own next hop: then it is reached by proxy ARP alone.
func podPlan(p Plan, address, gateway netip.Addr) Plan {
	p.Guest = netip.PrefixFrom(address, podMask)
	p.Local = linkLocal
	if p.Guest.Masked().Contains(gateway) {
		p.Router = gateway
		return p
	}
	p.Router = p.Guest.Masked().Addr().Next()
	if p.Router == address {
		p.Router = p.Router.Next()
	}
	p.Local = p.Router
	return p
}

// toIPNet is the network of one address.
func toIPNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

func fromIP(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}
