//go:build e2e

package boxes

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/resource"
)

const (
	first  = "box-a"
	second = "box-b"
	// patience is for what takes seconds on an idle machine.
	patience = 2 * time.Minute
)

// bin is where the programs were built.
var bin = filepath.Join("..", "..", "..", "bin")

// TestBoxes is the life of embedded clusters: made, repeated, hurt in every way,
// joined by another one, and gone without a trace. The steps build on each other.
func TestBoxes(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root, because it makes network namespaces and mounts")
	}
	before := takeSnapshot(t)
	a := cluster{name: first, kubeconfig: filepath.Join(t.TempDir(), "a")}
	b := cluster{name: second, kubeconfig: filepath.Join(t.TempDir(), "b")}
	t.Cleanup(func() {
		a.quietly("down")
		b.quietly("down")
	})
	steps := []struct {
		name string
		run  func(*testing.T, cluster)
	}{
		{"three nodes come up", threeNodes},
		{"again changes nothing", again},
		{"everybody reaches the pods", reach},
		{"what is killed comes back and no pod notices", killed},
		{"a node without power comes back", powerCut},
		{"the whole machine loses power", blackout},
		{"a damaged program is replaced and nothing is restarted", replaced},
		{"a node is added", added},
	}
	for _, step := range steps {
		if !t.Run(step.name, func(t *testing.T) { step.run(t, a) }) {
			t.FailNow()
		}
	}
	t.Run("another cluster stands beside it", func(t *testing.T) { beside(t, a, b) })
	t.Run("a start that cannot work says why", func(t *testing.T) { explains(t, b) })
	t.Run("nothing is left", func(t *testing.T) {
		a.d8(t, "down")
		b.d8(t, "down")
		if diff := cmp.Diff(before, takeSnapshot(t)); diff != "" {
			t.Errorf("the host has changed (-before +after):\n%s", diff)
		}
	})
	t.Run("down of what is not there is no error", func(t *testing.T) { a.d8(t, "down") })
}

func threeNodes(t *testing.T, c cluster) {
	c.d8(t, "up", "--nodes", "3", "--kubeconfig", c.kubeconfig)
	nodes := c.kubectl(t, "get", "nodes", "-o", `jsonpath={range .items[*]}{.metadata.name}={.status.conditions[?(@.type=="Ready")].status} {end}`)
	if want := first + "-1=True " + first + "-2=True " + first + "-3=True "; nodes != want {
		t.Errorf("nodes %q, want %q", nodes, want)
	}
	role := c.kubectl(t, "get", "nodes", "-l", "node-role.kubernetes.io/control-plane", "-o", "name")
	if role != "node/"+first+"-1\n" {
		t.Errorf("the control plane's role is at %q", role)
	}
	// All nodes together offer no more than the machine has.
	var offered int64
	for text := range strings.FieldsSeq(c.kubectl(t, "get", "nodes", "-o", "jsonpath={.items[*].status.allocatable.memory}")) {
		memory, err := resource.ParseQuantity(text)
		if err != nil {
			t.Fatal(err)
		}
		offered += memory.Value() >> 10
	}
	var total int64
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscanf(string(text), "MemTotal: %d kB", &total); err != nil {
		t.Fatal(err)
	}
	if offered >= total {
		t.Errorf("nodes offer %d KiB, the machine has %d", offered, total)
	}
	c.kubectl(t, "create", "configmap", "remembered", "--from-literal=a=b")
	c.kubectl(t, "-n", "kube-system", "scale", "deployment/coredns", "--replicas=3")
	c.kubectl(t, "-n", "kube-system", "patch", "deployment/coredns", "-p",
		`{"spec":{"template":{"spec":{"topologySpreadConstraints":[{"maxSkew":1,"topologyKey":"kubernetes.io/hostname","whenUnsatisfiable":"DoNotSchedule","labelSelector":{"matchLabels":{"k8s-app":"kube-dns"}},"matchLabelKeys":["pod-template-hash"]}]}}}}`)
	c.kubectl(t, "-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=90s")
	// A rollout is complete while pods of the old template are still going away.
	eventually(t, "three DNS pods are left", func() error {
		names := strings.Fields(c.kubectl(t, "-n", "kube-system", "get", "pods", "-l", "k8s-app=kube-dns", "-o", "name"))
		if len(names) != 3 {
			return fmt.Errorf("%d pods", len(names))
		}
		return nil
	})
}

func again(t *testing.T, c cluster) {
	was := c.status(t)
	start := time.Now()
	c.d8(t, "up", "--kubeconfig", c.kubeconfig)
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("took %s", took)
	}
	if diff := cmp.Diff(was, c.status(t)); diff != "" {
		t.Errorf("something was restarted:\n%s", diff)
	}
}

// reach asks every DNS pod for its readiness: from the host, and from a pod of
// another node. A pod of a node that has just come back is still on record with the
// address it had, so this is asked until it is true.
func reach(t *testing.T, c cluster) {
	eventually(t, "DNS pods on three nodes reach each other", func() error { return c.reachable(t) })
	// The API server's way to kubelets, and kubelet's to a container.
	name := strings.Fields(c.kubectl(t, "-n", "kube-system", "get", "pods", "-l", "k8s-app=kube-dns", "-o", "name"))[0]
	if log := c.kubectl(t, "-n", "kube-system", "logs", name); !strings.Contains(log, "CoreDNS") {
		t.Errorf("log of %s: %q", name, log)
	}
}

func (c cluster) reachable(t *testing.T) error {
	t.Helper()
	pods, nodes := c.dnsPods(t), map[string]bool{}
	for _, pod := range pods {
		nodes[pod.node] = true
		if !ready(pod.address) {
			return fmt.Errorf("the host does not reach %s", pod.address)
		}
		for _, other := range pods {
			if err := other.get(t, pod.address); err != nil {
				return fmt.Errorf("a pod of %s does not reach one of %s: %w", other.node, pod.node, err)
			}
		}
	}
	if len(pods) != 3 || len(nodes) != 3 {
		return fmt.Errorf("%d pods are on %d nodes, want 3 on 3", len(pods), len(nodes))
	}
	return nil
}

func killed(t *testing.T, c cluster) {
	was := c.dnsPods(t)
	for _, component := range []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "containerd", "kubelet", "kube-proxy"} {
		for box, pid := range c.pids(t, component) {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatalf("kill %s of %s: %v", component, box, err)
			}
		}
		eventually(t, component+" runs again", func() error {
			for _, b := range c.status(t).Boxes {
				for _, p := range b.Components {
					if p.PID == 0 {
						return fmt.Errorf("%s in %s is off: %s", p.Name, b.Name, p.LastExit)
					}
				}
			}
			return nil
		})
	}
	c.d8(t, "up", "--kubeconfig", c.kubeconfig)
	if diff := cmp.Diff(was, c.dnsPods(t), cmp.AllowUnexported(dnsPod{}, cluster{})); diff != "" {
		t.Errorf("pods have changed:\n%s", diff)
	}
	reach(t, c)
}

func powerCut(t *testing.T, c cluster) {
	victim := first + "-2"
	c.d8(t, "node", "kill", victim)
	for _, b := range c.status(t).Boxes {
		if b.Running == (b.Name == victim) {
			t.Errorf("box %s: running is %t", b.Name, b.Running)
		}
	}
	c.d8(t, "up", "--kubeconfig", c.kubeconfig)
	eventually(t, "all pods run again", func() error { return c.allReady(t, 3) })
	reach(t, c)
}

// blackout takes away everything that a machine loses with its power.
func blackout(t *testing.T, c cluster) {
	for _, b := range c.status(t).Boxes {
		c.d8(t, "node", "kill", b.Name)
	}
	run(t, "ip", "link", "delete", "orl-"+first)
	run(t, "nft", "delete", "table", "ip", "orlop-"+first)
	c.d8(t, "up", "--kubeconfig", c.kubeconfig)
	if got := c.kubectl(t, "get", "configmap", "remembered", "-o", "jsonpath={.data.a}"); got != "b" {
		t.Errorf("the object of before has %q, want b", got)
	}
	eventually(t, "all pods run again", func() error { return c.allReady(t, 3) })
	reach(t, c)
}

func replaced(t *testing.T, c cluster) {
	was := c.status(t)
	copied := filepath.Join("/var/lib/orlop", first, "bin", "runc")
	good, err := os.ReadFile(copied)
	if err != nil {
		t.Fatal(err)
	}
	old := filepath.Join("/var/lib/orlop", first, "bin", "containerd")
	if err := os.Rename(copied, copied+".kept"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(copied, []byte("old"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(copied + ".kept"); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(old); err != nil {
		t.Fatal(err)
	}
	c.d8(t, "up", "--kubeconfig", c.kubeconfig)
	if now, err := os.ReadFile(copied); err != nil || !bytes.Equal(now, good) {
		t.Errorf("the old program is still there (%v)", err)
	}
	// The same program as before: nobody had to be restarted for it.
	if diff := cmp.Diff(was, c.status(t)); diff != "" {
		t.Errorf("something was restarted:\n%s", diff)
	}
}

func added(t *testing.T, c cluster) {
	pods := c.dnsPods(t)
	c.d8(t, "node", "add")
	if got := strings.Fields(c.kubectl(t, "get", "nodes", "-o", "name")); len(got) != 4 {
		t.Errorf("nodes %v, want 4", got)
	}
	c.kubectl(t, "-n", "kube-system", "scale", "deployment/coredns", "--replicas=4")
	eventually(t, "the new node runs a pod", func() error { return c.allReady(t, 4) })
	reachNew := c.dnsPods(t)
	for _, pod := range reachNew {
		if pod.node != first+"-4" {
			continue
		}
		for _, old := range pods {
			if err := old.get(t, pod.address); err != nil {
				t.Errorf("a pod of %s does not reach the new node: %v", old.node, err)
			}
		}
	}
}

func beside(t *testing.T, a, b cluster) {
	b.d8(t, "up", "--kubeconfig", b.kubeconfig)
	if one, other := a.status(t).Addresses, b.status(t).Addresses; one == other {
		t.Errorf("both have addresses %v", one)
	}
	if got := b.kubectl(t, "get", "nodes", "-o", "name"); got != "node/"+second+"-1\n" {
		t.Errorf("nodes of the second cluster: %q", got)
	}
	eventually(t, "all pods of the second run", func() error { return b.allReady(t, 1) })
	for _, pod := range b.dnsPods(t) {
		if !ready(pod.address) {
			t.Errorf("the host does not reach %s", pod.address)
		}
	}
	b.d8(t, "down")
	if _, err := os.Stat(b.kubeconfig); err == nil {
		t.Error("down leaves the context in the kubeconfig")
	}
	if forward, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward"); err != nil || strings.TrimSpace(string(forward)) != "1" {
		t.Errorf("down of one cluster took forwarding from the other (%s, %v)", forward, err)
	}
	if got := a.kubectl(t, "get", "configmap", "remembered", "-o", "jsonpath={.data.a}"); got != "b" {
		t.Errorf("the first cluster's object has %q, want b", got)
	}
}

// explains starts a cluster whose API server cannot run.
func explains(t *testing.T, c cluster) {
	source := t.TempDir()
	if err := os.Mkdir(filepath.Join(source, "embedded"), 0o755); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(filepath.Join(bin, "embedded"))
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		path, err := filepath.Abs(filepath.Join(bin, "embedded", entry.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, filepath.Join(source, "embedded", entry.Name())); err != nil {
			t.Fatal(err)
		}
	}
	broken := filepath.Join(source, "embedded", "orlop-kube")
	if err := os.Remove(broken); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(broken, []byte("#!/bin/sh\necho this one is broken\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	output, err := c.try("up", "--kubeconfig", c.kubeconfig, "--bin-dir", source)
	if err == nil {
		t.Fatal("a broken cluster came up")
	}
	for _, want := range []string{"wait for the API server", "this one is broken", "d8 cluster logs --name " + second} {
		if !strings.Contains(output, want) {
			t.Errorf("no %q in the output:\n%s", want, output)
		}
	}
}

// cluster is one embedded cluster seen through the command.
type cluster struct{ name, kubeconfig string }

func (c cluster) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	output, err := exec.CommandContext(ctx, filepath.Join(bin, "d8"), append([]string{"cluster", "--name", c.name}, args...)...).CombinedOutput()
	return string(output), err
}

func (c cluster) quietly(args ...string) { _, _ = c.try(args...) }

func (c cluster) d8(t *testing.T, args ...string) string {
	t.Helper()
	output, err := c.try(args...)
	if err != nil {
		t.Fatalf("d8 cluster %s: %v\n%s", strings.Join(args, " "), err, output)
	}
	return output
}

func (c cluster) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	command := exec.CommandContext(t.Context(), filepath.Join(bin, "d8"), append([]string{"k"}, args...)...)
	command.Env = append(os.Environ(), "KUBECONFIG="+c.kubeconfig)
	output, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("d8 k %s: %v\n%s", strings.Join(args, " "), err, output)
	}
	return string(output)
}

// clusterStatus is what the steps use of the status.
type clusterStatus struct {
	Addresses struct{ Nodes, Pods, Services, VMs, DNS string }
	Boxes     []struct {
		Name       string
		Running    bool
		PID        int
		Components []struct {
			Name     string
			PID      int
			Restarts int
			LastExit string
		}
	}
}

func (c cluster) status(t *testing.T) clusterStatus {
	t.Helper()
	output, err := exec.CommandContext(t.Context(), filepath.Join(bin, "d8"), "cluster", "status", "--name", c.name, "-o", "json").Output()
	if err != nil {
		t.Fatal(err)
	}
	var s clusterStatus
	if err := json.Unmarshal(output, &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// pids finds the processes of a component on the host, by box.
func (c cluster) pids(t *testing.T, component string) map[string]int {
	t.Helper()
	found := map[string]int{}
	for _, b := range c.status(t).Boxes {
		for _, p := range b.Components {
			if p.Name == component && p.PID != 0 {
				found[b.Name] = hostPID(t, b.PID, p.PID)
			}
		}
	}
	if len(found) == 0 {
		t.Fatalf("no process of %s", component)
	}
	return found
}

// hostPID finds the child of a box's init that has that number in the box.
func hostPID(t *testing.T, init, inside int) int {
	t.Helper()
	// A child belongs to the thread that made it.
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", init))
	if err != nil {
		t.Fatal(err)
	}
	var children []byte
	for _, thread := range threads {
		text, _ := os.ReadFile(thread)
		children = append(children, text...)
	}
	for child := range strings.FieldsSeq(string(children)) {
		status, err := os.ReadFile("/proc/" + child + "/status")
		if err != nil {
			continue
		}
		for line := range strings.SplitSeq(string(status), "\n") {
			numbers, ok := strings.CutPrefix(line, "NSpid:")
			if fields := strings.Fields(numbers); ok && fields[len(fields)-1] == strconv.Itoa(inside) {
				pid, err := strconv.Atoi(child)
				if err != nil {
					t.Fatal(err)
				}
				return pid
			}
		}
	}
	t.Fatalf("no process %d in the box of %d", inside, init)
	return 0
}

// dnsPod is a pod of the cluster's DNS, which answers HTTP and is always there.
type dnsPod struct {
	node, address, restarts string

	cluster cluster
}

func (c cluster) dnsPods(t *testing.T) []dnsPod {
	t.Helper()
	text := c.kubectl(t, "-n", "kube-system", "get", "pods", "-l", "k8s-app=kube-dns", "--sort-by=.spec.nodeName", "-o",
		"jsonpath={range .items[*]}{.spec.nodeName} {.status.podIP} {.status.containerStatuses[0].restartCount} {.metadata.deletionTimestamp}\n{end}")
	var pods []dnsPod
	for line := range strings.SplitSeq(strings.TrimSpace(text), "\n") {
		fields := strings.Fields(line)
		if len(fields) == 3 { // none that is being deleted
			pods = append(pods, dnsPod{fields[0], fields[1], fields[2], c})
		}
	}
	return pods
}

// get asks another DNS pod for its readiness from inside this pod's network.
func (p dnsPod) get(t *testing.T, address string) error {
	t.Helper()
	var init int
	for _, b := range p.cluster.status(t).Boxes {
		if b.Name == p.node {
			init = b.PID
		}
	}
	// The pod is found by its address among the network namespaces of its box.
	script := fmt.Sprintf(`for ns in /run/netns/*; do
	if nsenter --net="$ns" ip -o -4 address show dev eth0 | grep -q ' %s/'; then
		exec nsenter --net="$ns" bash -c 'exec 3<>/dev/tcp/%s/8181 && printf "GET /ready HTTP/1.0\r\n\r\n" >&3 && grep -q "200 OK" <&3'
	fi
done
echo no such pod; exit 1`, p.address, address)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	output, err := exec.CommandContext(ctx, "nsenter", "--target", strconv.Itoa(init), "--mount", "--net", "--pid", "bash", "-c", script).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, output)
	}
	return nil
}

// allReady says whether so many DNS pods are there and all pods are ready.
func (c cluster) allReady(t *testing.T, dns int) error {
	t.Helper()
	if got := len(c.dnsPods(t)); got != dns {
		return fmt.Errorf("%d DNS pods, want %d", got, dns)
	}
	text := c.kubectl(t, "get", "pods", "-A", "-o",
		`jsonpath={range .items[*]}{.metadata.name}={.status.conditions[?(@.type=="Ready")].status} {end}`)
	for pod := range strings.FieldsSeq(text) {
		if !strings.HasSuffix(pod, "=True") {
			return fmt.Errorf("not ready: %s", pod)
		}
	}
	return nil
}

func ready(address string) bool {
	client := http.Client{Timeout: 5 * time.Second}
	response, err := client.Get("http://" + address + ":8181/ready")
	if err != nil {
		return false
	}
	_ = response.Body.Close()
	return response.StatusCode == http.StatusOK
}

func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(300 * time.Millisecond) {
		if err = check(); err == nil {
			return
		}
	}
	t.Fatalf("after %s it is not true that %s: %v", patience, what, err)
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	output, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, output)
	}
	return string(output)
}

// lines are the sorted, non-empty lines of a text.
func lines(text string) []string {
	var list []string
	for line := range strings.SplitSeq(text, "\n") {
		if line = strings.TrimSpace(line); line != "" {
			list = append(list, line)
		}
	}
	slices.Sort(list)
	return list
}
