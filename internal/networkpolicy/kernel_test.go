package networkpolicy

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"
)

// inNamespace runs f on a thread in a network namespace; programs and sockets that
// it starts are there too.
func inNamespace(t *testing.T, n netns.NsHandle, f func() error) {
	t.Helper()
	if err := enter(n, f); err != nil {
		t.Fatal(err)
	}
}

func enter(n netns.NsHandle, f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		if err := netns.Set(n); err != nil {
			result <- err
			return
		}
		result <- f()
	}()
	return <-result
}

// newNamespace makes a network namespace that goes with the test.
func newNamespace(t testing.TB) netns.NsHandle {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	made := make(chan netns.NsHandle, 1)
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		n, err := netns.New()
		if err != nil {
			failed <- err
			return
		}
		made <- n
	}()
	select {
	case err := <-failed:
		t.Fatal(err)
	case n := <-made:
		t.Cleanup(func() { _ = n.Close() })
		return n
	}
	return netns.None()
}

func sh(t *testing.T, n netns.NsHandle, script string) string {
	t.Helper()
	var out []byte
	inNamespace(t, n, func() (err error) {
		command := exec.Command("sh", "-ec", script)
		command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if out, err = command.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", script, err, out)
		}
		return nil
	})
	return string(out)
}

// TestTablesInTheKernel gives the kernel many tables, one after the other, by
// differences, and compares with what it has when it gets the last one whole.
func TestTablesInTheKernel(t *testing.T) {
	changed, fresh := newNamespace(t), newNamespace(t)
	for seed := range uint64(3) {
		r := rand.New(rand.NewPCG(seed, 2))
		var firewall *Firewall
		var last Table
		for range 12 {
			table, err := Plan(randomCluster(r).world())
			if err != nil {
				t.Fatal(err)
			}
			inNamespace(t, changed, func() error {
				if firewall == nil {
					if firewall, err = NewFirewall(); err != nil {
						return err
					}
				}
				tx := firewall.nft.NewTransaction()
				if firewall.applied != nil {
					table.update(*firewall.applied, tx)
					if err := firewall.nft.Check(t.Context(), tx); err != nil {
						return fmt.Errorf("seed %d: update: %w\n%s", seed, err, tx)
					}
				}
				_, err := firewall.Apply(t.Context(), table)
				return err
			})
			last = table
		}
		inNamespace(t, fresh, func() error {
			whole, err := NewFirewall()
			if err != nil {
				return err
			}
			_, err = whole.Apply(t.Context(), last)
			return err
		})
		if diff := cmp.Diff(listing(t, fresh), listing(t, changed)); diff != "" {
			t.Fatalf("seed %d: the changed table differs from a fresh one:\n%s", seed, diff)
		}
	}
}

// listing is the kernel's table in an order of its own.
func listing(t *testing.T, n netns.NsHandle) []string {
	t.Helper()
	text := strings.TrimPrefix(sh(t, n, "nft -s list table ip "+TableName), "table ip "+TableName+" {\n")
	blocks := strings.Split(text, "\n\n")
	for i, b := range blocks {
		// Elements come as they lie in memory.
		words := strings.FieldsFunc(b, func(r rune) bool { return r == '\n' || r == '\t' || r == ',' || r == '{' || r == '}' })
		for j := range words {
			words[j] = strings.TrimSpace(words[j])
		}
		if strings.Contains(b, "elements") {
			slices.Sort(words)
		}
		blocks[i] = strings.Join(words, "\n")
	}
	slices.Sort(blocks)
	return blocks
}

// TestFirewallOfAnEarlierLife replaces what is there at the first call only, repairs
// what others destroyed, and does nothing when nothing changed.
func TestFirewallOfAnEarlierLife(t *testing.T) {
	n := newNamespace(t)
	sh(t, n, "nft add table ip "+TableName+"; nft add chain ip "+TableName+" old '{ type filter hook forward priority 5; policy drop; }'")
	apply := func(f *Firewall, table Table) (changed bool) {
		inNamespace(t, n, func() (err error) {
			if f.nft == nil {
				made, err := NewFirewall()
				if err != nil {
					return err
				}
				f.nft = made.nft
			}
			changed, err = f.Apply(t.Context(), table)
			return err
		})
		return changed
	}
	f := &Firewall{}
	if !apply(f, frame()) || strings.Contains(sh(t, n, "nft list ruleset"), "chain old") {
		t.Error("what an earlier process left is still there")
	}
	if apply(f, frame()) {
		t.Error("an unchanged table was applied again")
	}
	sh(t, n, "nft delete table ip "+TableName)
	other := frame()
	other.Sets["self"] = Set{Type: "ipv4_addr . ipv4_addr", Elements: []string{"10.0.0.1 . 10.0.0.1"}}
	if !apply(f, other) || !strings.Contains(sh(t, n, "nft list ruleset"), "10.0.0.1 . 10.0.0.1") {
		t.Error("a table that somebody deleted does not come back with the next change")
	}
}

// site is a node with pods as ptp makes them and a stranger behind its uplink.
type site struct {
	t        *testing.T
	cluster  cluster
	node     netns.NsHandle
	places   map[string]netns.NsHandle // by address
	firewall *Firewall
}

const stranger = "192.168.77.2"

func newSite(t *testing.T, pods ...corev1.Pod) *site {
	s := &site{t: t, node: newNamespace(t), places: map[string]netns.NsHandle{}}
	s.cluster = cluster{node: "n1", pods: pods, namespaces: namespacesXY()}
	sh(t, s.node, "ip link set lo up; sysctl -qw net.ipv4.ip_forward=1")
	join := func(address, link, script string) {
		n := newNamespace(t)
		s.places[address] = n
		fd := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(n))
		sh(t, s.node, fmt.Sprintf("ip link add %s type veth peer name eth0 netns %s; ip link set %s up", link, fd, link)+"; "+script)
		sh(t, n, "ip link set lo up; ip link set eth0 up; ip addr add "+address+"/32 dev eth0; ip route add 169.254.1.1 dev eth0; ip route add default via 169.254.1.1")
	}
	for i, pod := range pods {
		link := fmt.Sprintf("veth%d", i)
		join(pod.Status.PodIPs[0].IP, link, fmt.Sprintf("ip addr add 169.254.1.1/32 dev %s; ip route add %s dev %s", link, pod.Status.PodIPs[0].IP, link))
	}
	join(stranger, "uplink", "ip addr add 169.254.1.1/32 dev uplink; ip addr add 192.168.77.1/32 dev uplink; ip route add "+stranger+" dev uplink")
	return s
}

// enforce plans and applies policies given as YAML documents.
func (s *site) enforce(policies string) {
	s.t.Helper()
	s.cluster.policies = parsePolicies(s.t, policies)
	table, err := Plan(s.cluster.world())
	if err != nil {
		s.t.Fatal(err)
	}
	inNamespace(s.t, s.node, func() error {
		if s.firewall == nil {
			if s.firewall, err = NewFirewall(); err != nil {
				return err
			}
		}
		_, err := s.firewall.Apply(s.t.Context(), table)
		return err
	})
}

// serve echoes on a TCP port of an address until the test ends.
func (s *site) serve(address string, port int) {
	s.t.Helper()
	inNamespace(s.t, s.places[address], func() error {
		listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", fmt.Sprintf("%s:%d", address, port))
		if err != nil {
			return err
		}
		s.t.Cleanup(func() { _ = listener.Close() })
		go func() {
			for {
				c, err := listener.Accept()
				if err != nil {
					return
				}
				s.t.Cleanup(func() { _ = c.Close() })
				go func() { _, _ = io.Copy(c, c) }()
			}
		}()
		return nil
	})
}

// refused is how long a dropped packet is waited for; retransmission starts at 1 s
// for a first packet and 0.2 s for later ones.
const refused = 400 * time.Millisecond

// dial opens a connection; nil if nobody answers.
func (s *site) dial(from, to string, port int) *line {
	n := s.node
	if from != "node" {
		n = s.places[from]
	}
	patience := refused
	if s.wants(from, to, port) {
		patience = 20 * time.Second
	}
	var made *line
	err := enter(n, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if c, err := (&net.Dialer{}).DialContext(ctx, "tcp4", fmt.Sprintf("%s:%d", to, port)); err == nil {
			made = &line{Conn: c}
			s.t.Cleanup(func() { _ = c.Close() })
		}
		return nil
	})
	if err != nil {
		s.t.Error(err)
	}
	return made
}

// wants asks the reference.
func (s *site) wants(from, to string, port int) bool {
	if from == "node" || to == "192.168.77.1" {
		return true
	}
	return s.cluster.allowed(connection{from: netip.MustParseAddr(from), to: netip.MustParseAddr(to), protocol: corev1.ProtocolTCP, port: int32(port), answer: 40000})
}

// line is a connection to an echo, on which older bytes may still be under way.
type line struct {
	net.Conn
	sent byte
}

// echoes says whether a byte comes back within a time.
func (l *line) echoes(patience time.Duration) bool {
	l.sent++
	_ = l.SetDeadline(time.Now().Add(patience))
	if _, err := l.Write([]byte{l.sent}); err != nil {
		return false
	}
	return l.hears(l.sent)
}

// hears waits for one byte.
func (l *line) hears(wanted byte) bool {
	for got := make([]byte, 1); got[0] != wanted; {
		if _, err := io.ReadFull(l, got); err != nil {
			return false
		}
	}
	return true
}

func parsePolicies(t *testing.T, text string) []*networkingv1.NetworkPolicy {
	t.Helper()
	var out []*networkingv1.NetworkPolicy
	for i, document := range strings.Split(text, "---") {
		if strings.TrimSpace(document) == "" {
			continue
		}
		p := parsePolicy(document)
		if p == nil {
			t.Fatalf("no policy: %s", document)
		}
		if p.Name == "" {
			p.Name = fmt.Sprintf("p%d", i)
		}
		if p.Namespace == "" {
			p.Namespace = "x"
		}
		out = append(out, p)
	}
	return out
}

// parsePolicy is nil for what is none.
func parsePolicy(text string) *networkingv1.NetworkPolicy {
	p := &networkingv1.NetworkPolicy{}
	if yaml.UnmarshalStrict([]byte(text), p) != nil {
		return nil
	}
	return p
}

const (
	denyAll = `spec: {podSelector: {}, policyTypes: [Ingress, Egress]}`
	webOnly = `spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: http}]}]}`
	noBlock = `spec: {podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0, except: [192.168.77.0/24]}}]}]}`
)

// TestPackets sends real packets: every pair, for each set of policies, as the
// reference says.
func TestPackets(t *testing.T) {
	web, client, other := "10.1.1.1", "10.66.0.5", "10.1.1.3"
	s := newSite(t,
		podWith("x", "web", web, "app=web", corev1.ContainerPort{Name: "http", ContainerPort: 8080, Protocol: corev1.ProtocolTCP}),
		podWith("x", "client", client, "app=client"), podWith("y", "other", other, "app=client"))
	places := []string{web, client, other, stranger}
	for _, p := range places {
		s.serve(p, 8080)
		s.serve(p, 8081)
	}
	for name, policies := range map[string]string{
		"no policy": "", "default deny": denyAll, "one port for one peer": webOnly, "both": denyAll + "\n---\n" + webOnly, "no egress to a range": noBlock,
	} {
		s.enforce(policies)
		var all sync.WaitGroup
		for _, from := range append(places, "node") {
			for _, to := range places {
				for _, port := range []int{8080, 8081} {
					all.Go(func() {
						want := s.wants(from, to, port)
						c := s.dial(from, to, port)
						if got := c != nil && c.echoes(10*time.Second); got != want {
							t.Errorf("%s: from %s to %s:%d: got %t, want %t", name, from, to, port, got, want)
						}
					})
				}
			}
		}
		all.Wait()
	}
	if t.Failed() {
		t.Log(sh(t, s.node, "nft list ruleset; ip addr; ip route"))
	}
}

// TestConnectionsAreJudgedAgain opens connections while they are allowed.
func TestConnectionsAreJudgedAgain(t *testing.T) {
	web, client := "10.1.1.1", "10.66.0.5"
	s := newSite(t, podWith("x", "web", web, "app=web", corev1.ContainerPort{Name: "http", ContainerPort: 8080, Protocol: corev1.ProtocolTCP}),
		podWith("x", "client", client, "app=client"))
	s.serve(web, 8080)
	s.serve(stranger, 8080)
	s.enforce("")
	inside, outside, in := s.dial(client, web, 8080), s.dial(client, stranger, 8080), s.dial(stranger, web, 8080)
	for i, c := range []*line{inside, outside, in} {
		if c == nil || !c.echoes(10*time.Second) {
			t.Fatalf("connection %d was not made", i)
		}
	}
	steps := []struct {
		policies            string
		inside, outside, in bool
	}{
		{webOnly, true, true, false},
		{noBlock, true, false, true},
		{denyAll, false, false, false},
		{"", true, true, true}, // and nobody has given up meanwhile
	}
	for _, step := range steps {
		s.enforce(step.policies)
		for c, want := range map[*line]bool{inside: step.inside, outside: step.outside, in: step.in} {
			patience := refused
			if want {
				patience = 20 * time.Second
			}
			if got := c.echoes(patience); got != want {
				t.Errorf("under %q from %s to %s: echoes %t, want %t", step.policies, c.LocalAddr(), c.RemoteAddr(), got, want)
			}
		}
	}
}

// TestAnswersOfAMachineThatMoved: a node that never saw a connection being opened
// meets an answer first. The connection is judged as what it is all the same.
func TestAnswersOfAMachineThatMoved(t *testing.T) {
	web := "10.66.0.5"
	s := newSite(t, podWith("x", "web", web, "app=client"))
	s.serve(web, 8080)
	s.enforce("")
	c := s.dial(stranger, web, 8080)
	if c == nil || !c.echoes(10*time.Second) {
		t.Fatal("no connection")
	}
	// The node that the machine moved to knows nothing of it. First an answer is made
	// that nobody hears; then only the machine is heard, until it was.
	blind := func(source string) {
		sh(t, s.node, "nft add table ip blind; nft flush table ip blind; nft add chain ip blind early '{ type filter hook prerouting priority -300; }';"+
			"nft add rule ip blind early ip saddr "+source+" counter drop")
	}
	blind(web)
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	for strings.Contains(sh(t, s.node, "nft list table ip blind"), "packets 0 ") {
		time.Sleep(10 * time.Millisecond)
	}
	blind(stranger)
	forget(t, s.node)
	s.enforce(`spec: {podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{ports: [{port: 8080}]}]}`)
	if !c.hears('x') {
		t.Fatal("the answer is lost")
	}
	sh(t, s.node, "nft delete table ip blind")
	if !c.echoes(10 * time.Second) {
		t.Error("the connection does not go on")
	}
	s.enforce(denyAll)
	if c.echoes(refused) {
		t.Error("a policy does not cut it")
	}
}

// TestForeignSourcesInTheKernel sends from an address that is not the pod's; what is
// heard of it tells which packets passed.
func TestForeignSourcesInTheKernel(t *testing.T) {
	client := "10.66.0.5"
	s := newSite(t, podWith("x", "client", client, "app=client"))
	sh(t, s.places[client], "ip addr add 10.9.9.9/32 dev lo")
	heard := make(chan string, 16)
	inNamespace(t, s.places[stranger], func() error {
		c, err := (&net.ListenConfig{}).ListenPacket(context.Background(), "udp4", stranger+":5000")
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = c.Close() })
		go func() {
			for buffer := make([]byte, 64); ; {
				n, _, err := c.ReadFrom(buffer)
				if err != nil {
					return
				}
				heard <- string(buffer[:n])
			}
		}()
		return nil
	})
	send := func(from, text string) {
		inNamespace(t, s.places[client], func() error {
			c, err := (&net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(from)}}).DialContext(context.Background(), "udp4", stranger+":5000")
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write([]byte(text))
			return err
		})
	}
	s.enforce("")
	send("10.9.9.9", "no policy")
	if got := <-heard; got != "no policy" {
		t.Errorf("heard %q", got)
	}
	s.enforce(webOnly)
	send("10.9.9.9", "foreign")
	send(client, "own")
	if got := <-heard; got != "own" {
		t.Errorf("heard %q, want nothing but the pod's own", got)
	}
	// A pod that is not known yet has its route from the first moment.
	s.cluster.pods = nil
	s.enforce(webOnly)
	send("10.9.9.9", "foreign")
	send(client, "unknown")
	if got := <-heard; got != "unknown" {
		t.Errorf("heard %q, want what the new pod sent", got)
	}
}

// forget empties a node's memory of connections.
func forget(t *testing.T, n netns.NsHandle) {
	t.Helper()
	handle, err := netlink.NewHandleAt(n, unix.NETLINK_NETFILTER)
	if err != nil {
		t.Fatal(err)
	}
	defer handle.Close()
	if err := handle.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
		t.Fatal(err)
	}
}

// BenchmarkApply gives the kernel the table of a large cluster: whole, and the
// difference that one pod makes.
func BenchmarkApply(b *testing.B) {
	c := largeCluster(1000, 1000)
	before, err := Plan(c.world())
	if err != nil {
		b.Fatal(err)
	}
	pod := podWith("x", "p1000", "10.1.9.9", "group=g1,name=p1000")
	pod.Spec.NodeName = "n0"
	c.pods = append(c.pods, pod)
	after, err := Plan(c.world())
	if err != nil {
		b.Fatal(err)
	}
	n := newNamespace(b)
	for name, prepare := range map[string]func(*Firewall){"whole": func(f *Firewall) { f.applied = nil }, "one pod": func(*Firewall) {}} {
		b.Run(name, func(b *testing.B) {
			err := enter(n, func() error {
				firewall, err := NewFirewall()
				if err != nil {
					return err
				}
				if _, err := firewall.Apply(context.Background(), after); err != nil {
					return err
				}
				for i := range b.N {
					prepare(firewall)
					if _, err := firewall.Apply(context.Background(), []Table{before, after}[i%2]); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				b.Fatal(err)
			}
		})
	}
}
