//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// Ports on which the guest sends back what it is sent: one for each session.
const (
	portOfHost, portOfPod, portOfService = 9001, 9002, 9003
	// beat is how often a session sends.
	beat = 50 * time.Millisecond
)

// TestStory10Migration moves a machine to and fro while connections to it stay open.
// With ORLOP_E2E_ROUNDS it goes to and fro that often.
func TestStory10Migration(t *testing.T) {
	ns := namespace(t)
	apply(t, ns, image("tiny", "tiny.qcow2")+disk("root", "shared", "512Mi", "tiny")+machine("linux", "256Mi", []string{"root"})+`---
apiVersion: v1
kind: Service
metadata: {name: linux}
spec: {selector: {app: linux}, ports: [{port: 80, targetPort: `+strconv.Itoa(portOfService)+`}]}
`)
	nodes := strings.Fields(d8(t, "k", "get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"))
	slices.Sort(nodes)
	reaches(t, long, ns, "vm/linux", ".status.phase", "Running")
	eventually(t, long, "the machine can be moved", func() bool {
		return strings.HasPrefix(condition(t, ns, "vm/linux", "Migratable"), "True ")
	})
	console := open(t, ns, "linux")
	console.prompt(soon)
	console.send(fmt.Sprintf("for p in %d %d %d; do (while :; do nc -l -p $p -e cat; done) & done; echo listens=$?", portOfHost, portOfPod, portOfService))
	console.expect(soon, `listens=0`)

	address := field(t, ns, "vm/linux", ".status.ipAddress")
	sessions := []session{hostSession(t, net.JoinHostPort(address, strconv.Itoa(portOfHost))),
		podSession(t, ns, "by-address", nodes[0], address, portOfPod), podSession(t, ns, "by-service", nodes[1], "linux", 80)}

	t.Run("to the other node and back", func(t *testing.T) {
		for range rounds() {
			for range 2 {
				evict(t, ns)
				alive(t, sessions)
			}
		}
	})
	t.Run("to a node of choice", func(t *testing.T) {
		here := field(t, ns, "vm/linux", ".status.nodeName")
		if output, err := try(t, "v", "-n", ns, "migrate", "linux", "--yes", "--target-node-name", here); err == nil {
			t.Errorf("it was moved to where it is: %s", output)
		}
		there := nodes[1-slices.Index(nodes, here)]
		d8(t, "v", "-n", ns, "migrate", "linux", "--yes", "--wait", "--target-node-name", there)
		if node := field(t, ns, "vm/linux", ".status.nodeName"); node != there {
			t.Errorf("it is on node %s instead of %s", node, there)
		}
		alive(t, sessions)
	})
	t.Run("away from a node that is drained", func(t *testing.T) {
		node := field(t, ns, "vm/linux", ".status.nodeName")
		defer d8(t, "k", "uncordon", node)
		d8(t, "k", "drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=240s",
			"--pod-selector=vm.kubevirt.internal.virtualization.deckhouse.io/name=linux")
		reaches(t, soon, ns, "vm/linux", ".status.phase", "Running")
		if now := field(t, ns, "vm/linux", ".status.nodeName"); now == node {
			t.Errorf("it is still on node %s", node)
		}
		alive(t, sessions)
	})
	for _, s := range sessions {
		count, gap := s.stop(t)
		t.Logf("%s: %d exchanges, longest gap %s", s.what(), count, gap)
	}
	t.Run("the target's node loses its power", func(t *testing.T) { targetNodeDies(t, ns, nodes) })
}

// rounds is how often the machine goes to and fro.
func rounds() int {
	n, err := strconv.Atoi(os.Getenv("ORLOP_E2E_ROUNDS"))
	if err != nil {
		return 1
	}
	return n
}

// evict moves the machine and looks whether it has moved.
func evict(t *testing.T, ns string) {
	t.Helper()
	before := field(t, ns, "vm/linux", ".status.nodeName")
	began := time.Now()
	d8(t, "v", "-n", ns, "evict", "linux", "--yes", "--wait")
	t.Logf("moved away from %s in %s", before, time.Since(began).Truncate(time.Millisecond))
	reaches(t, soon, ns, "vm/linux", ".status.phase", "Running")
	if after := field(t, ns, "vm/linux", ".status.nodeName"); after == before {
		t.Fatalf("the machine is still on node %s", before)
	}
	eventually(t, soon, "the process it left is gone", func() bool {
		return len(strings.Fields(field(t, ns, "instances.internal.virtualization.deckhouse.io", ".items[*].metadata.name"))) == 1
	})
}

// targetNodeDies cuts the power of the second node while the machine is on its way
// to it: the guest must go on where it is, and nowhere else.
func targetNodeDies(t *testing.T, ns string, nodes []string) {
	// The first node has the platform's own parts, so it must be the source.
	if field(t, ns, "vm/linux", ".status.nodeName") != nodes[0] {
		evict(t, ns)
	}
	address := field(t, ns, "vm/linux", ".status.ipAddress")
	open := hostSession(t, net.JoinHostPort(address, strconv.Itoa(portOfHost)))
	slow := "virtualization.deckhouse.io/bandwidth-per-migration"
	d8(t, "k", "annotate", "moduleconfig/virtualization", "--overwrite", slow+"=1Mi")
	defer d8(t, "k", "annotate", "moduleconfig/virtualization", slow+"-")
	d8(t, "v", "-n", ns, "evict", "linux", "--yes")
	operation := "vmop/" + strings.TrimSpace(lastOperation(t, ns))
	eventually(t, long, "the guest is on its way", func() bool {
		return strings.Contains(condition(t, ns, operation, "Completed"), "Syncing")
	})
	d8(t, "cluster", "node", "kill", nodes[1], "--name", *name)
	defer func() {
		if output, err := try(t, "cluster", "up", "--name", *name, "--nodes", "2", "--kubeconfig", kubeconfig); err != nil {
			t.Errorf("bring the node back: %v\n%s", err, output)
		}
	}()
	reaches(t, long, ns, operation, ".status.phase", "Failed")
	t.Log(condition(t, ns, operation, "Completed"))
	reaches(t, soon, ns, "vm/linux", ".status.phase", "Running")
	if node := field(t, ns, "vm/linux", ".status.nodeName"); node != nodes[0] {
		t.Errorf("the machine is on node %s", node)
	}
	alive(t, []session{open})
	if n := len(processes(t, "qemu-system-x86_64")); n != 1 {
		t.Errorf("%d processes of QEMU run", n)
	}
	open.stop(t)
}

func lastOperation(t *testing.T, ns string) string {
	t.Helper()
	return d8(t, "k", "-n", ns, "get", "vmop", "--sort-by=.metadata.creationTimestamp", "-o", "jsonpath={.items[-1:].metadata.name}")
}

// session is a connection to the guest over which something is said all the time.
type session interface {
	what() string
	// beats is how often the guest has answered so far.
	beats(t *testing.T) int
	// stop ends it and returns how often the guest has answered and the longest silence.
	stop(t *testing.T) (int, time.Duration)
}

// alive waits until every session has gone on.
func alive(t *testing.T, sessions []session) {
	t.Helper()
	for _, s := range sessions {
		before := s.beats(t)
		eventually(t, soon, s.what()+" goes on", func() bool { return s.beats(t) > before+2 })
	}
}

// fromHost is a session of this process.
type fromHost struct {
	conn    net.Conn
	count   atomic.Int64
	longest atomic.Int64
	broken  atomic.Pointer[string]
	ended   chan struct{}
}

func hostSession(t *testing.T, address string) session {
	t.Helper()
	s := &fromHost{ended: make(chan struct{})}
	eventually(t, soon, "the guest takes a connection", func() bool {
		conn, err := net.DialTimeout("tcp", address, 2*time.Second)
		s.conn = conn
		return err == nil
	})
	t.Cleanup(func() { _ = s.conn.Close() })
	go s.send()
	go s.receive()
	return s
}

// send says one byte after another, whether or not the last was answered.
func (s *fromHost) send() {
	for n := byte(0); ; n++ {
		if _, err := s.conn.Write([]byte{n}); err != nil {
			return
		}
		time.Sleep(beat)
	}
}

// receive expects them back in their order.
func (s *fromHost) receive() {
	defer close(s.ended)
	last, next, buffer := time.Now(), byte(0), make([]byte, 256)
	for {
		n, err := s.conn.Read(buffer)
		if err != nil {
			s.breaks(err.Error())
			return
		}
		for _, b := range buffer[:n] {
			if b != next {
				s.breaks(fmt.Sprintf("byte %d came instead of %d", b, next))
				return
			}
			next++
		}
		if gap := time.Since(last); int64(gap) > s.longest.Load() {
			s.longest.Store(int64(gap))
		}
		last = time.Now()
		s.count.Add(int64(n))
	}
}

func (s *fromHost) breaks(why string) { s.broken.CompareAndSwap(nil, &why) }

func (s *fromHost) what() string { return "the session from the host" }

func (s *fromHost) beats(t *testing.T) int {
	t.Helper()
	if why := s.broken.Load(); why != nil {
		t.Fatalf("%s broke: %s", s.what(), *why)
	}
	return int(s.count.Load())
}

func (s *fromHost) stop(t *testing.T) (int, time.Duration) {
	t.Helper()
	n := s.beats(t)
	_ = s.conn.Close()
	<-s.ended
	return n, time.Duration(s.longest.Load())
}

// fromPod is a session of a shell in a pod, that writes down each answer.
type fromPod struct {
	ns, pod string
	output  *bytes.Buffer
	command *exec.Cmd
}

func podSession(t *testing.T, ns, pod, node, address string, port int) session {
	t.Helper()
	apply(t, ns, `---
apiVersion: v1
kind: Pod
metadata: {name: `+pod+`}
spec:
  nodeName: `+node+`
  terminationGracePeriodSeconds: 0
  containers:
  - {name: shell, image: "`+clientImage(t)+`", command: [/usr/bin/sleep, infinity]}
`)
	reaches(t, soon, ns, "pod/"+pod, ".status.phase", "Running")
	script := fmt.Sprintf(`exec 3<>/dev/tcp/%s/%d || exit 1
i=0; most=0
while [ ! -e /tmp/stop ]; do
  began=${EPOCHREALTIME/./}
  echo $i >&3
  read -r -t 60 answer <&3 || { echo "no answer to $i"; exit 1; }
  [ "$answer" = $i ] || { echo "$answer came instead of $i"; exit 1; }
  took=$((${EPOCHREALTIME/./} - began)); [ $took -gt $most ] && most=$took
  i=$((i+1)); echo "$i $most" > /tmp/beats
  /usr/bin/sleep 0.05
done
echo over`, address, port)
	s := &fromPod{ns: ns, pod: pod, output: &bytes.Buffer{}}
	s.command = d8Command(t.Context(), "k", "-n", ns, "exec", pod, "--", "/usr/bin/bash", "-c", script)
	s.command.Stdout, s.command.Stderr = s.output, s.output
	if err := s.command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.command.Process.Kill(); _ = s.command.Wait() })
	eventually(t, soon, s.what()+" begins", func() bool { return s.count(t) > 2 })
	return s
}

func (s *fromPod) what() string { return "the session of pod " + s.pod }

func (s *fromPod) read(t *testing.T) (int, time.Duration) {
	t.Helper()
	text, err := try(t, "k", "-n", s.ns, "exec", s.pod, "--", "/usr/bin/bash", "-c", "read -r a b < /tmp/beats; echo $a $b")
	var n, most int
	if _, scanErr := fmt.Sscan(text, &n, &most); err != nil || scanErr != nil {
		return 0, 0
	}
	return n, time.Duration(most) * time.Microsecond
}

func (s *fromPod) count(t *testing.T) int {
	t.Helper()
	n, _ := s.read(t)
	return n
}

func (s *fromPod) beats(t *testing.T) int { return s.count(t) }

func (s *fromPod) stop(t *testing.T) (int, time.Duration) {
	t.Helper()
	n, most := s.read(t)
	d8(t, "k", "-n", s.ns, "exec", s.pod, "--", "/usr/bin/bash", "-c", ": > /tmp/stop")
	if err := s.command.Wait(); err != nil || !strings.Contains(s.output.String(), "over") {
		t.Errorf("%s broke: %v %s", s.what(), err, s.output)
	}
	return n, most
}
