package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sys/unix"
)

// world is a node with one pod as ptp makes it, and a guest behind the pod's tap,
// played by this test.
type world struct {
	node, pod *Namespace
	tap       *os.File
	plan      Plan
}

// newNamespace makes an unnamed network namespace that lives until the test ends.
func newNamespace(t *testing.T) *Namespace {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	cmd := exec.Command("unshare", "--net", "sh", "-c", "ip link set lo up && echo ready && exec cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Close(); _ = cmd.Wait() })
	if _, err := out.Read(make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	proc, err := os.Open(fmt.Sprintf("/proc/%d", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Close()
	ns, err := NamespaceOfProcess(proc)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	return ns
}

func do(t *testing.T, ns *Namespace, commands ...string) string {
	t.Helper()
	var out strings.Builder
	if err := ns.Do(func() error {
		for _, c := range commands {
			b, err := exec.Command("sh", "-c", c).CombinedOutput()
			if err != nil {
				return fmt.Errorf("%s: %w\n%s", c, err, b)
			}
			out.Write(b)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{node: newNamespace(t), pod: newNamespace(t)}
	fd := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), w.pod.file.Fd())
	do(t, w.node,
		"ip link add veth1 type veth peer name eth0",
		"ip link set eth0 netns "+fd,
		"ip link set veth1 up",
		"ip addr add 10.244.1.1/32 dev veth1",
		"ip route add 10.66.10.5/32 dev veth1 scope host")
	do(t, w.pod,
		"ip addr add 10.66.10.5/31 dev eth0", "ip link set eth0 mtu 1450 up",
		"ip route add 10.244.1.1 dev eth0 scope link",
		"ip route add default via 10.244.1.1")
	w.apply(t)
	tap, err := w.pod.OpenTap(w.plan)
	if err != nil {
		t.Fatal(err)
	}
	w.tap = tap
	t.Cleanup(func() { _ = tap.Close() })
	// The kernel announces a carrier at most once a second.
	for deadline := time.Now().Add(5 * time.Second); !strings.Contains(do(t, w.pod, "ip -o link show vm0"), "state UP"); {
		if time.Now().After(deadline) {
			t.Fatal("the bridge never gets a carrier")
		}
		time.Sleep(20 * time.Millisecond)
	}
	return w
}

func (w *world) apply(t *testing.T) {
	t.Helper()
	p, err := w.pod.Apply(Request{Address: netip.MustParseAddr("10.66.10.5"), CIDR: netip.MustParsePrefix("10.66.10.0/24"), MAC: guestMAC})
	if err != nil {
		t.Fatal(err)
	}
	w.plan = p
}

// vnetHeader precedes every frame on the tap.
const vnetHeader = 10

// receive returns the next frame for the guest that match accepts, nil in time.
func (w *world) receive(t *testing.T, wait time.Duration, match func([]byte) bool) []byte {
	t.Helper()
	deadline := time.Now().Add(wait)
	for {
		if err := w.tap.SetReadDeadline(deadline); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 4096)
		n, err := w.tap.Read(b)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			t.Fatal(err)
		}
		if f := b[vnetHeader:n]; match(f) {
			return f
		}
	}
}

func (w *world) send(t *testing.T, frame []byte) {
	t.Helper()
	if _, err := w.tap.Write(append(make([]byte, vnetHeader), frame...)); err != nil {
		t.Fatal(err)
	}
}

// arp asks who has ip, in the guest's name or, for a probe, in nobody's.
func arp(sender, ip netip.Addr) []byte {
	f := append(append([]byte{}, broadcastMAC...), guestMAC...)
	f = append(f, 0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1)
	f = append(append(f, guestMAC...), sender.AsSlice()...)
	return append(append(f, make([]byte, 6)...), ip.AsSlice()...)
}

func isARPReply(ip netip.Addr) func([]byte) bool {
	return func(f []byte) bool {
		return len(f) >= 42 && f[12] == 0x08 && f[13] == 0x06 && f[21] == 2 && netip.AddrFrom4([4]byte(f[28:32])) == ip
	}
}

func TestAppliedPod(t *testing.T) {
	w := newWorld(t)
	w.apply(t) // as a restarted handler does
	local := do(t, w.pod, "ip route show table local")
	if strings.Contains(local, "10.66.10.5") {
		t.Errorf("the guest's address is still local:\n%s", local)
	}
	if addr := do(t, w.pod, "ip -o addr show dev eth0"); !strings.Contains(addr, "10.66.10.5/31") {
		t.Errorf("eth0 lost its address: %s", addr)
	}
	link := do(t, w.pod, "ip -o link show vm0")
	if !strings.Contains(link, "02:00:00:00:00:01") || !strings.Contains(link, "mtu 1450") {
		t.Errorf("bridge is wrong: %s", link)
	}
	if tap := do(t, w.pod, "ip -o link show tap0"); !strings.Contains(tap, "master vm0") || !strings.Contains(tap, "mtu 1450") {
		t.Errorf("tap is wrong: %s", tap)
	}
}

func TestProxyARP(t *testing.T) {
	w := newWorld(t)
	guest, none := netip.MustParseAddr("10.66.10.5"), netip.IPv4Unspecified()
	cases := map[string]struct {
		sender, target string
		answered       bool
	}{
		"the router answers": {guest.String(), "10.66.10.1", true},
		"a neighbour in the range is reached through the router": {guest.String(), "10.66.10.77", true},
		"the guest's duplicate detection hears nothing":          {none.String(), guest.String(), false},
		"nor does its announcement":                              {guest.String(), guest.String(), false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			target := netip.MustParseAddr(c.target)
			w.send(t, arp(netip.MustParseAddr(c.sender), target))
			start := time.Now()
			reply := w.receive(t, 300*time.Millisecond, isARPReply(target))
			if (reply != nil) != c.answered {
				t.Fatalf("answered %v, want %v", reply != nil, c.answered)
			}
			if reply == nil {
				return
			}
			if got := net.HardwareAddr(reply[22:28]); got.String() != bridgeMAC.String() {
				t.Errorf("answered with %s, want %s", got, bridgeMAC)
			}
			if took := time.Since(start); took > 100*time.Millisecond {
				t.Errorf("answered after %s: the proxy delays", took)
			}
		})
	}
}

// TestTrafficBothWays: a SYN from the node arrives at the guest untouched, and the
// guest's answer at the node.
func TestTrafficBothWays(t *testing.T) {
	w := newWorld(t)
	var conn *net.UDPConn
	if err := w.node.Do(func() (err error) {
		conn, err = net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(10, 66, 10, 5), Port: 7})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	got := w.receive(t, time.Second, func(f []byte) bool { return len(f) > 42 && f[12] == 0x08 && f[13] == 0 && f[23] == unix.IPPROTO_UDP })
	if got == nil {
		t.Fatal("the guest received nothing")
	}
	if dst := net.HardwareAddr(got[:6]); dst.String() != guestMAC.String() {
		t.Errorf("frame goes to %s, want %s", dst, guestMAC)
	}
	if from := netip.AddrFrom4([4]byte(got[26:30])); from != netip.MustParseAddr("10.244.1.1") {
		t.Errorf("source address became %s", from)
	}
	// Send it back with the ends exchanged; sums are symmetrical.
	reply := append([]byte{}, got...)
	copy(reply[0:6], bridgeMAC)
	copy(reply[6:12], guestMAC)
	copy(reply[26:30], got[30:34])
	copy(reply[30:34], got[26:30])
	copy(reply[34:36], got[36:38])
	copy(reply[36:38], got[34:36])
	reply[40], reply[41] = 0, 0 // the original sum is the (absent) card's to compute
	w.send(t, reply)
	_ = conn.SetReadDeadline(time.Now().Add(time.Second))
	b := make([]byte, 64)
	n, err := conn.Read(b)
	if err != nil || string(b[:n]) != "hello" {
		t.Errorf("node received %q, %v", b[:n], err)
	}
}

func TestServerAnswersOverTheBridge(t *testing.T) {
	w := newWorld(t)
	l := lease()
	l.Plan = w.plan
	s, err := w.pod.Serve(l, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	w.says(t, message(t, dhcpv4.MessageTypeDiscover), dhcpv4.MessageTypeOffer)
}

// says sends a client's message from the guest and expects a reply of a kind; a
// datagram may be lost while one server gives way to the next, as clients know.
func (w *world) says(t *testing.T, m *dhcpv4.DHCPv4, want dhcpv4.MessageType) {
	t.Helper()
	f := frame(netip.IPv4Unspecified(), netip.AddrFrom4([4]byte{255, 255, 255, 255}), broadcastMAC, m.ToBytes())
	copy(f[6:12], guestMAC)
	f[35], f[37] = dhcpClientPort, dhcpServerPort // exchanged ports keep the sum
	for range 5 {
		w.send(t, f)
		frame := w.receive(t, time.Second, func(f []byte) bool {
			return len(f) > 42 && f[23] == unix.IPPROTO_UDP && f[37] == dhcpClientPort
		})
		if frame == nil {
			continue
		}
		reply, err := dhcpv4.FromBytes(frame[42:])
		if err != nil {
			t.Fatal(err)
		}
		if reply.MessageType() != want || reply.TransactionID != m.TransactionID {
			t.Fatalf("got %s", reply.Summary())
		}
		if given := fromIP(reply.YourIPAddr); want != dhcpv4.MessageTypeNak && given != w.plan.Guest.Addr() {
			t.Fatalf("given %s", given)
		}
		return
	}
	t.Fatalf("no answer to %s", m.Summary())
}

// A guest goes through a lease's whole life while handlers come and go.
func TestServerOutlivesItsHandler(t *testing.T) {
	w := newWorld(t)
	l := lease()
	l.Plan = w.plan
	serve := func() *Server {
		s, err := w.pod.Serve(l, func(err error) { t.Error(err) })
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	requested := func(ip string) dhcpv4.Modifier {
		return dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.ParseIP(ip)))
	}
	s := serve()
	w.says(t, message(t, dhcpv4.MessageTypeDiscover), dhcpv4.MessageTypeOffer)
	// The next handler is there before the former one has gone.
	next := serve()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	w.says(t, message(t, dhcpv4.MessageTypeRequest, requested("10.66.10.5"), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(10, 66, 10, 1)))), dhcpv4.MessageTypeAck)
	if err := next.Close(); err != nil {
		t.Fatal(err)
	}
	s = serve()
	defer s.Close()
	w.says(t, message(t, dhcpv4.MessageTypeRequest, requested("10.66.10.5")), dhcpv4.MessageTypeAck)
	w.says(t, message(t, dhcpv4.MessageTypeRequest, requested("192.168.1.7")), dhcpv4.MessageTypeNak)
}

func TestHostRouteIsRepaired(t *testing.T) {
	w := newWorld(t)
	address := netip.MustParseAddr("10.66.10.5")
	ctx, cancel := context.WithCancel(t.Context())
	removed, done := make(chan netip.Addr, 1), make(chan error, 1)
	ready := make(chan struct{})
	go func() {
		done <- w.node.Do(func() error {
			close(ready)
			return WatchHostRoutes(ctx, func(a netip.Addr) { removed <- a })
		})
	}()
	<-ready
	time.Sleep(50 * time.Millisecond)
	ensure := func(want bool) {
		t.Helper()
		if err := w.node.Do(func() error {
			repaired, err := w.pod.EnsureHostRoute(address)
			if repaired != want {
				t.Errorf("repaired %v, want %v", repaired, want)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	ensure(false)
	do(t, w.node, "ip route del 10.66.10.5/32")
	select {
	case got := <-removed:
		if got != address {
			t.Errorf("told of %s, want %s", got, address)
		}
	case <-time.After(2 * time.Second):
		t.Error("nobody told that the route has gone")
	}
	ensure(true)
	ensure(false)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A pod that makes itself an eth0 of its own must not move routes of the node.
func TestForeignLinkIsRefused(t *testing.T) {
	w := newWorld(t)
	hostile := newNamespace(t)
	do(t, hostile, "ip link add eth0 type veth peer name other")
	err := w.node.Do(func() error {
		_, err := hostile.EnsureHostRoute(netip.MustParseAddr("10.66.10.5"))
		return err
	})
	if !errors.Is(err, errForeignLink) {
		t.Errorf("error %v, want %v", err, errForeignLink)
	}
}

func TestOwnNamespaceIsRefused(t *testing.T) {
	proc, err := os.Open("/proc/self")
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Close()
	if ns, err := NamespaceOfProcess(proc); err == nil {
		_ = ns.Close()
		t.Error("the node's own namespace passed for a pod's")
	}
}
