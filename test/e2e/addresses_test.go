//go:build e2e

package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// TestStory13Addresses asks for addresses that cannot be had, loses a lease, makes a
// machine anew, and keeps an address without its machine.
func TestStory13Addresses(t *testing.T) {
	ns := namespace(t)
	cidr, err := netip.ParsePrefix(field(t, ns, "moduleconfig/virtualization", ".spec.settings.virtualMachineCIDRs[0]"))
	if err != nil || cidr.Bits() > 24 {
		t.Fatalf("range %s: %v", cidr, err)
	}
	at := func(n byte) string {
		b := cidr.Addr().As4()
		b[3] += n
		return netip.AddrFrom4(b).String()
	}
	mine := at(200)
	apply(t, ns, claim("mine", mine))
	reaches(t, soon, ns, "vmip/mine", ".status.phase", "Bound")

	t.Run("an address that cannot be had is refused at once", func(t *testing.T) {
		for wanted, words := range map[string]string{at(0): "network", at(1): "router", lastOf(cidr): "broadcast", "192.0.2.7": "not in the ranges",
			"many": "not an IPv4 address", mine: "leased to another"} {
			refused(t, ns, claim("other", wanted), words)
		}
	})
	t.Run("a lease deleted by hand comes back", func(t *testing.T) {
		lease := "vmipl/ip-" + strings.ReplaceAll(mine, ".", "-")
		former := field(t, ns, lease, ".metadata.uid")
		d8(t, "k", "delete", lease, "--wait=false")
		eventually(t, soon, "there is a new lease", func() bool {
			uid := field(t, ns, lease, ".metadata.uid")
			return uid != "" && uid != former && field(t, ns, lease, ".status.phase") == "Bound"
		})
		reaches(t, soon, ns, "vmip/mine", ".status.conditions[?(@.type=='Bound')].reason", "Bound")
	})
	t.Run("a machine made again has its address again", func(t *testing.T) {
		again := blank("scratch", "shared", "64Mi") + machine("again", "256Mi", []string{"scratch"})
		apply(t, ns, again)
		reaches(t, long, ns, "vm/again", ".status.phase", "Running")
		address := field(t, ns, "vm/again", ".status.ipAddress")
		d8(t, "k", "-n", ns, "delete", "vm/again", "--timeout=120s")
		apply(t, ns, again)
		reaches(t, long, ns, "vm/again", ".status.phase", "Running")
		pod := "pod/" + field(t, ns, "vm/again", ".status.instance.name")
		if got, ip := field(t, ns, "vm/again", ".status.ipAddress"), field(t, ns, pod, ".status.podIP"); got != address || ip != address {
			t.Errorf("machine has %s and its pod %s, the one before had %s", got, ip, address)
		}
	})
	t.Run("an address of one's own serves one machine and outlives it", func(t *testing.T) {
		named := []string{"runPolicy: AlwaysOff", "virtualMachineIPAddressName: mine"}
		apply(t, ns, machine("first", "256Mi", []string{"none"}, named...))
		reaches(t, soon, ns, "vmip/mine", ".status.virtualMachineName", "first")
		apply(t, ns, machine("second", "256Mi", []string{"none"}, named...))
		reaches(t, soon, ns, "vm/second", ".status.conditions[?(@.type=='VirtualMachineIPAddressReady')].reason", "VirtualMachineIPAddressNotAvailable")
		d8(t, "k", "-n", ns, "delete", "vm/first", "--timeout=60s")
		reaches(t, soon, ns, "vmip/mine", ".status.virtualMachineName", "second")
		d8(t, "k", "-n", ns, "delete", "vm/second", "--timeout=60s")
		reaches(t, soon, ns, "vmip/mine", ".status.phase", "Bound")
		if got := field(t, ns, "vmip/mine", ".status.address"); got != mine {
			t.Errorf("the address has become %s", got)
		}
	})
	t.Run("a range in use cannot be dropped, nor one of the nodes be added", func(t *testing.T) {
		node := field(t, ns, "node", ".items[0].status.addresses[?(@.type=='InternalIP')].address")
		for ranges, words := range map[string]string{`["198.51.100.0/24"]`: mine, fmt.Sprintf(`[%q,"%s/32"]`, cidr, node): node} {
			output, err := try(t, "k", "patch", "moduleconfig", "virtualization", "--type=merge",
				"-p", `{"spec":{"settings":{"virtualMachineCIDRs":`+ranges+`}}}`)
			if err == nil || !strings.Contains(output, words) {
				t.Errorf("ranges %s: %v, want a refusal with %q:\n%s", ranges, err, words, output)
			}
		}
	})
	t.Run("hardware addresses", func(t *testing.T) { hardwareAddresses(t, ns) })
}

func hardwareAddresses(t *testing.T, ns string) {
	apply(t, ns, hardware("generated", "")+hardware("chosen", "5E-E6-19-22-0F-D8"))
	for _, name := range []string{"generated", "chosen"} {
		reaches(t, soon, ns, "vmmac/"+name, ".status.phase", "Bound")
	}
	if got := field(t, ns, "vmmacl/mac-5e-e6-19-22-0f-d8", ".spec.virtualMachineMACAddressRef.name"); got != "chosen" {
		t.Errorf("the lease is of %q", got)
	}
	if got := field(t, ns, "vmmac/generated", ".status.address"); len(got) != 17 || !strings.ContainsRune("26ae", rune(got[1])) {
		t.Errorf("generated %q", got)
	}
	refused(t, ns, hardware("other", "5e:e6:19:22:0f:d8"), "leased to another")
	refused(t, ns, hardware("other", "01:00:5e:00:00:01"), "group address")
	refused(t, ns, hardware("chosen", "5e:e6:19:22:0f:d9"), "cannot be changed")
	d8(t, "k", "-n", ns, "delete", "vmmac", "--all", "--timeout=60s")
	eventually(t, soon, "the lease goes with its claim", func() bool { return field(t, ns, "vmmacl/mac-5e-e6-19-22-0f-d8", ".metadata.name") == "" })
}

// claim is a Static VirtualMachineIPAddress.
func claim(name, address string) string {
	return fmt.Sprintf(`---
apiVersion: virtualization.deckhouse.io/v1alpha2
kind: VirtualMachineIPAddress
metadata: {name: %s}
spec: {type: Static, staticIP: "%s"}
`, name, address)
}

// hardware is a VirtualMachineMACAddress, generated if no address is given.
func hardware(name, address string) string {
	spec := "{}"
	if address != "" {
		spec = fmt.Sprintf("{address: %q}", address)
	}
	return fmt.Sprintf(`---
apiVersion: virtualization.deckhouse.io/v1alpha2
kind: VirtualMachineMACAddress
metadata: {name: %s}
spec: %s
`, name, spec)
}

// refused applies what must be refused with these words.
func refused(t *testing.T, ns, yaml, words string) {
	t.Helper()
	output, err := feed(t, yaml, "k", "-n", ns, "apply", "-f", "-")
	if err == nil || !strings.Contains(output, words) {
		t.Errorf("%v, want a refusal with %q:\n%s\n%s", err, words, yaml, output)
	}
}

// lastOf is the broadcast address of a range of at most 24 bits.
func lastOf(cidr netip.Prefix) string {
	b := cidr.Addr().As4()
	for bit := cidr.Bits(); bit < 32; bit++ {
		b[bit/8] |= 1 << (7 - bit%8)
	}
	return netip.AddrFrom4(b).String()
}
