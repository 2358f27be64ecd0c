package network

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"
)

var guestMAC = net.HardwareAddr{0x02, 0, 10, 66, 10, 5}

func lease() Lease {
	return Lease{
		Plan: Plan{
			Guest: netip.MustParsePrefix("10.66.10.5/24"), Router: netip.MustParseAddr("10.66.10.1"),
			Local: netip.MustParseAddr("10.66.10.1"), MAC: guestMAC, MTU: 1450,
		},
		Hostname:      "linux-vm",
		Nameservers:   []netip.Addr{netip.MustParseAddr("10.222.0.10")},
		SearchDomains: []string{"demo.svc.cluster.local", "svc.cluster.local"},
	}
}

func message(t *testing.T, kind dhcpv4.MessageType, mods ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	t.Helper()
	m, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithMessageType(kind), dhcpv4.WithHwAddr(guestMAC)}, mods...)...)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestAnswerKinds(t *testing.T) {
	requested := func(ip string) dhcpv4.Modifier {
		return dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.ParseIP(ip)))
	}
	server := func(ip string) dhcpv4.Modifier {
		return dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.ParseIP(ip)))
	}
	cases := map[string]struct {
		request *dhcpv4.DHCPv4
		want    dhcpv4.MessageType // none for silence
	}{
		"a discovery gets an offer":                                    {message(t, dhcpv4.MessageTypeDiscover), dhcpv4.MessageTypeOffer},
		"the offered address is acknowledged":                          {message(t, dhcpv4.MessageTypeRequest, requested("10.66.10.5"), server("10.66.10.1")), dhcpv4.MessageTypeAck},
		"a renewal is acknowledged":                                    {message(t, dhcpv4.MessageTypeRequest, dhcpv4.WithClientIP(net.IPv4(10, 66, 10, 5))), dhcpv4.MessageTypeAck},
		"an address remembered from a former lease is refused":         {message(t, dhcpv4.MessageTypeRequest, requested("192.168.0.7")), dhcpv4.MessageTypeNak},
		"an address of the right kind but of somebody else is refused": {message(t, dhcpv4.MessageTypeRequest, requested("10.66.10.6")), dhcpv4.MessageTypeNak},
		"a guest that remembers its address gets it again":             {message(t, dhcpv4.MessageTypeRequest, requested("10.66.10.5")), dhcpv4.MessageTypeAck},
		"rebinding is acknowledged":                                    {message(t, dhcpv4.MessageTypeRequest, dhcpv4.WithClientIP(net.IPv4(10, 66, 10, 5)), dhcpv4.WithBroadcast(true)), dhcpv4.MessageTypeAck},
		"rebinding to a former address is refused":                     {message(t, dhcpv4.MessageTypeRequest, dhcpv4.WithClientIP(net.IPv4(10, 66, 10, 6))), dhcpv4.MessageTypeNak},
		"a refused offer needs no answer":                              {message(t, dhcpv4.MessageTypeDecline, requested("10.66.10.5"), server("10.66.10.1")), dhcpv4.MessageTypeNone},
		"a request to another server is none of our business":          {message(t, dhcpv4.MessageTypeRequest, requested("10.66.10.5"), server("192.168.0.1")), dhcpv4.MessageTypeNone},
		"an inform gets the options":                                   {message(t, dhcpv4.MessageTypeInform, dhcpv4.WithClientIP(net.IPv4(10, 66, 10, 5))), dhcpv4.MessageTypeAck},
		"a release needs no answer":                                    {message(t, dhcpv4.MessageTypeRelease), dhcpv4.MessageTypeNone},
		"nobody but the guest is answered":                             {message(t, dhcpv4.MessageTypeDiscover, dhcpv4.WithHwAddr(net.HardwareAddr{2, 1, 1, 1, 1, 1})), dhcpv4.MessageTypeNone},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			reply, err := lease().Answer(c.request)
			if err != nil {
				t.Fatal(err)
			}
			got := dhcpv4.MessageTypeNone
			if reply != nil {
				got = reply.MessageType()
			}
			if got != c.want {
				t.Errorf("answer %v, want %v", got, c.want)
			}
		})
	}
}

func TestAnswerHasEverythingTheGuestNeeds(t *testing.T) {
	reply, err := lease().Answer(message(t, dhcpv4.MessageTypeDiscover))
	if err != nil {
		t.Fatal(err)
	}
	reply, err = dhcpv4.FromBytes(reply.ToBytes())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{
		"address": reply.YourIPAddr.String(), "mask": net.IP(reply.SubnetMask()).String(),
		"router": reply.Router()[0].String(), "server": reply.ServerIdentifier().String(),
		"dns": reply.DNS()[0].String(), "hostname": reply.HostName(), "domain": reply.DomainName(),
		"search": reply.DomainSearch().Labels[1],
		"lease":  reply.IPAddressLeaseTime(0).String(),
	}
	want := map[string]string{
		"address": "10.66.10.5", "mask": "255.255.255.0", "router": "10.66.10.1", "server": "10.66.10.1",
		"dns": "10.222.0.10", "hostname": "linux-vm", "domain": "demo.svc.cluster.local",
		"search": "svc.cluster.local", "lease": (time.Duration(0xffffffff) * time.Second).String(),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if mtu := binary.BigEndian.Uint16(reply.Options.Get(dhcpv4.OptionInterfaceMTU)); mtu != 1450 {
		t.Errorf("MTU %d, want 1450", mtu)
	}
}

func TestFrameChecksums(t *testing.T) {
	for _, payload := range [][]byte{[]byte("even"), []byte("odd")} {
		f := frame(netip.MustParseAddr("10.66.10.1"), netip.MustParseAddr("10.66.10.5"), guestMAC, payload)
		ip, udp := f[14:34], f[34:]
		if sum := checksum(ip); sum != 0 {
			t.Errorf("IP header sums up to %#x", sum)
		}
		pseudo := append(append([]byte{}, ip[12:20]...), 0, 17, udp[4], udp[5])
		if sum := checksum(append(pseudo, udp...)); sum != 0 {
			t.Errorf("UDP with %q sums up to %#x", payload, sum)
		}
	}
}

// Where a reply goes is RFC 2131, section 4.1: clients without an address cannot be
// spoken to by ARP, and one that is refused has none any longer.
func TestDestination(t *testing.T) {
	everybody, guest := netip.AddrFrom4([4]byte{255, 255, 255, 255}), netip.MustParseAddr("10.66.10.5")
	cases := map[string]struct {
		request *dhcpv4.DHCPv4
		want    netip.Addr
		hw      net.HardwareAddr
	}{
		"an offer goes to the address it offers":       {message(t, dhcpv4.MessageTypeDiscover), guest, guestMAC},
		"or to everybody, if asked so":                 {message(t, dhcpv4.MessageTypeDiscover, dhcpv4.WithBroadcast(true)), everybody, broadcastMAC},
		"a renewal goes to the address the client has": {message(t, dhcpv4.MessageTypeRequest, dhcpv4.WithClientIP(net.IPv4(10, 66, 10, 5))), guest, guestMAC},
		"a refusal goes to everybody":                  {message(t, dhcpv4.MessageTypeRequest, dhcpv4.WithClientIP(net.IPv4(10, 66, 10, 6))), everybody, broadcastMAC},
	}
	for name, c := range cases {
		reply, err := lease().Answer(c.request)
		if err != nil || reply == nil {
			t.Fatalf("%s: no answer: %v", name, err)
		}
		to, hw := destination(c.request, reply)
		if to != c.want || hw.String() != c.hw.String() {
			t.Errorf("%s: goes to %s %s", name, to, hw)
		}
	}
}
