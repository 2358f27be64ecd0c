package policy

import (
	"crypto/sha256"
	"fmt"
	"net"
	"strings"
)

// MACAddress reads a hardware address as users write it, with colons or dashes and in
// any case; the result has colons and lower case. ok is false for what no interface
// can have: a group address or nothing but zeros.
func MACAddress(text string) (address string, ok bool) {
	hw, err := net.ParseMAC(text)
	if err != nil || len(hw) != 6 || hw[0]&1 != 0 || [6]byte(hw) == [6]byte{} {
		return "", false
	}
	return hw.String(), true
}

// MACLeaseName is the name of the lease of an address: mac-5e-e6-19-22-0f-d8.
func MACLeaseName(address string) string {
	return "mac-" + strings.ReplaceAll(address, ":", "-")
}

// LeasedMAC reads the address from a lease's name, which must be the one that
// MACLeaseName gives it.
func LeasedMAC(name string) (address string, ok bool) {
	text, found := strings.CutPrefix(name, "mac-")
	if !found {
		return "", false
	}
	address, ok = MACAddress(text)
	return address, ok && MACLeaseName(address) == name
}

// GeneratedMAC is an address for a machine of a cluster: its first half is the same
// throughout the cluster and most likely another one in the next, its second half is
// chance. The second digit is 2, 6, A or E: administered locally, and of one station.
// Addresses of Main networks begin with 02:00 and are never generated.
func GeneratedMAC(clusterUID string, chance [3]byte) string {
	sum := sha256.Sum256([]byte(clusterUID))
	prefix := [3]byte{sum[0]&^3 | 2, sum[1], sum[2]}
	if prefix[0] == 2 && prefix[1] == 0 {
		prefix[0] = 6
	}
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", prefix[0], prefix[1], prefix[2], chance[0], chance[1], chance[2])
}
