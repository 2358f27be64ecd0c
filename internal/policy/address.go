package policy

import (
	"encoding/binary"
	"net/netip"
	"strings"
)

// UsableAddress says whether an address may be given to a VM under these ranges: not
// the network's own address, not the guests' router after it, not the broadcast
// address. A range of a single address has none of these.
func UsableAddress(address netip.Addr, prefixes []netip.Prefix) bool {
	for _, prefix := range prefixes {
		prefix = prefix.Masked()
		if !prefix.Contains(address) || !address.Is4() {
			continue
		}
		if prefix.Bits() == 32 {
			return true
		}
		size := uint32(1) << (32 - prefix.Bits())
		n := number(address) - number(prefix.Addr())
		return n > 1 && n != size-1
	}
	return false
}

// LeaseName is the name of the lease of an address: ip-10-66-10-14.
func LeaseName(address netip.Addr) string {
	return "ip-" + strings.ReplaceAll(address.String(), ".", "-")
}

// LeasedAddress reads the address from a lease's name. Only the one name that
// LeaseName gives an address counts: a second one would be a second lock.
func LeasedAddress(name string) (netip.Addr, bool) {
	text, found := strings.CutPrefix(name, "ip-")
	if !found {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(strings.ReplaceAll(text, "-", "."))
	return a, err == nil && a.Is4() && LeaseName(a) == name
}

func number(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}
