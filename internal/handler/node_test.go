package handler

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-logr/logr/testr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/handler/podfs"
	"orlop.dev/orlop/internal/stream"
	"orlop.dev/orlop/internal/testkit"
)

// pod is a pod as kubelet and CNI leave it: directories, a cgroup, a network
// namespace with eth0, and a launcher in all of them.
type pod struct {
	uid     types.UID
	dir     string
	address string
	netns   *exec.Cmd

	launcher *exec.Cmd
	stdin    io.WriteCloser
	done     chan error
}

// testNode is a node with the API server's view of it.
type testNode struct {
	t         *testing.T
	client    client.Client
	namespace string
	fs        podfs.Node
	images    Images
	next      int
}

func newTestNode(t *testing.T) *testNode {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root for network namespaces, cgroups and users")
	}
	s := testkit.API(t)
	c, err := client.New(s.Config(), client.Options{Scheme: testkit.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	// A directory that the launcher's user can enter, other than the test's own.
	root, err := os.MkdirTemp("", "orlop-handler-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	return &testNode{t: t, client: c, namespace: s.Namespace(t), fs: podfs.Node{Root: root, KubeletDir: "/var/lib/kubelet"}}
}

// run starts a handler and returns how to stop it.
func (n *testNode) run() (node *Node, stop func()) {
	n.t.Helper()
	config := testkit.API(n.t).Config()
	ch, err := cache.New(config, cache.Options{Scheme: testkit.Scheme(), ByObject: map[client.Object]cache.ByObject{
		&v1alpha1.Instance{}: {Field: fields.OneTermEqualSelector("spec.nodeName", "node-1"), Namespaces: map[string]cache.Config{n.namespace: {}}},
		&corev1.Node{}:       {Field: fields.OneTermEqualSelector("metadata.name", "node-1")},
	}})
	if err != nil {
		n.t.Fatal(err)
	}
	node = &Node{Name: "node-1", FS: n.fs, Accelerator: v1alpha1.AcceleratorTCG, Images: n.images, Cache: ch, Client: n.client, Reader: n.client, Now: time.Now, Log: testr.New(n.t)}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = ch.Start(ctx) })
	wg.Go(func() {
		if err := node.Start(ctx); err != nil {
			n.t.Error(err)
		}
	})
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	n.t.Cleanup(stop)
	return node, stop
}

// pod makes a pod on the node; wiring it is the handler's.
func (n *testNode) pod() *pod {
	t := n.t
	t.Helper()
	n.next++
	p := &pod{uid: uuid.NewUUID(), address: fmt.Sprintf("10.66.10.%d", 4+n.next)}
	p.dir = filepath.Join(n.fs.Root, n.fs.KubeletDir, "pods", string(p.uid))
	run := filepath.Join(p.dir, "volumes/kubernetes.io~empty-dir/run")
	disk := filepath.Join(p.dir, "volumes/kubernetes.io~csi/pv-1/mount")
	for _, d := range []string{run, disk} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Chown(run, launcherUID, launcherUID), os.WriteFile(filepath.Join(disk, podfs.DiskFile), make([]byte, 4096), 0o600)); err != nil {
		t.Fatal(err)
	}
	p.netns = exec.Command("unshare", "--net", "sh", "-c", "echo ready; exec cat")
	stdin, err := p.netns.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	begin(t, p.netns)
	t.Cleanup(func() { _ = stdin.Close(); _ = p.netns.Wait() })
	veth := fmt.Sprintf("veth%d", n.next)
	sh(t, fmt.Sprintf(`ip link add %[1]s type veth peer name eth0 netns %[2]d && ip link set %[1]s up &&
		ip addr add 10.244.1.1/32 dev %[1]s && ip route add %[3]s/32 dev %[1]s scope host`, veth, p.netns.Process.Pid, p.address))
	t.Cleanup(func() { _ = exec.Command("ip", "link", "del", veth).Run() })
	sh(t, fmt.Sprintf(`nsenter --net=/proc/%d/ns/net sh -c "ip link set lo up; ip addr add %s/31 dev eth0; ip link set eth0 up;
		ip route add 10.244.1.1 dev eth0 scope link && ip route add default via 10.244.1.1"`, p.netns.Process.Pid, p.address))
	return p
}

// launch starts a fake launcher as a user, in the pod's cgroup or outside of it.
func (p *pod) launch(t *testing.T, uid int, inCgroup bool) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The directory of the test binary is closed to the launcher's user.
	binary := filepath.Join(os.TempDir(), "orlop-fake-launcher-"+string(p.uid))
	sh(t, fmt.Sprintf("cp %s %s && chmod 755 %s", self, binary, binary))
	t.Cleanup(func() { _ = os.Remove(binary) })
	p.exec(t, uid, inCgroup, binary+" "+fakeLauncher)
}

// runDir is the pod's run directory.
func (p *pod) runDir() string { return filepath.Join(p.dir, "volumes/kubernetes.io~empty-dir/run") }

// exec starts a program as the pod's launcher.
func (p *pod) exec(t *testing.T, uid int, inCgroup bool, program string) {
	t.Helper()
	run, err := os.Open(p.runDir())
	if err != nil {
		t.Fatal(err)
	}
	defer run.Close()
	enter := ":"
	if inCgroup {
		enter = "echo $$ > " + cgroup(t, p.uid) + "/cgroup.procs"
	}
	p.launcher = exec.Command("sh", "-c", fmt.Sprintf(`%s; exec nsenter --net=/proc/%d/ns/net setpriv --reuid %d --regid %d --clear-groups %s`,
		enter, p.netns.Process.Pid, uid, uid, program))
	p.launcher.ExtraFiles = []*os.File{run}
	p.launcher.Stderr = os.Stderr
	if p.stdin, err = p.launcher.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	begin(t, p.launcher)
	p.done = make(chan error, 1)
	go func() { p.done <- p.launcher.Wait() }()
	t.Cleanup(func() {
		_ = p.launcher.Process.Signal(syscall.SIGKILL)
		select {
		case err := <-p.done:
			t.Logf("the launcher was killed: %v", err)
		case <-time.After(5 * time.Second):
		}
	})
}

// begin starts a command and waits for its first line.
func begin(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("%s said %q: %v", cmd.Path, line, err)
	}
}

// cgroup makes the pod's cgroup in whatever hierarchy this host has.
func cgroup(t *testing.T, uid types.UID) string {
	t.Helper()
	parent := "/sys/fs/cgroup"
	if _, err := os.Stat(parent + "/cgroup.procs"); err != nil {
		parent += "/pids"
	}
	dir := parent + "/pod" + string(uid)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skipf("needs cgroups: %v", err)
	}
	t.Cleanup(func() {
		testkit.Eventually(t, 5*time.Second, "remove cgroup", func() error { return os.Remove(dir) })
	})
	return dir
}

func sh(t *testing.T, script string) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

// create makes an Instance for the pod, with a disk and an interface.
func (n *testNode) create(p *pod, name string) *v1alpha1.Instance {
	n.t.Helper()
	n.bind("vd-"+name, "pv-1")
	in := &v1alpha1.Instance{
		ObjectMeta: metav1.ObjectMeta{Namespace: n.namespace, Name: name},
		Spec: v1alpha1.InstanceSpec{
			VirtualMachine: v1alpha1.VirtualMachineReference{Name: "linux", UID: "vm-1"},
			NodeName:       "node-1", PodUID: p.uid, Power: v1alpha1.PowerOn, GracePeriodSeconds: 5, RebootAction: v1alpha1.RebootReset,
			Machine: v1alpha1.Machine{
				Type: "pc-q35-10.0", Accelerator: v1alpha1.AcceleratorTCG, UUID: "5d1c6c4e-0000-4000-8000-000000000001", Hostname: "linux", Firmware: "BIOS",
				CPU: v1alpha1.CPU{Model: "max", Sockets: 1, CoresPerSocket: 1}, Memory: v1alpha1.Memory{Size: resource.MustParse("256Mi")},
				Disks: []v1alpha1.Disk{{ID: "vd-root", Bus: "scsi", Source: v1alpha1.VolumeSource{
					PersistentVolumeClaim: &v1alpha1.PersistentVolumeClaimSource{ClaimName: "vd-" + name, Mode: "Filesystem"}}}},
				Interfaces: []v1alpha1.Interface{{ID: "net0", Model: "virtio", MAC: "02:00:0a:42:0a:05"}},
			},
			Network: &v1alpha1.Network{AddressSource: v1alpha1.AddressFromLease, Address: p.address, CIDR: "10.66.10.0/24", Nameservers: []string{"10.222.0.10"}},
		},
	}
	if err := n.client.Create(n.t.Context(), in); err != nil {
		n.t.Fatal(err)
	}
	return in
}

// bind makes a claim that is bound to a volume.
func (n *testNode) bind(claim, volume string) {
	n.t.Helper()
	c := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: n.namespace, Name: claim},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}, VolumeName: volume,
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
		},
	}
	if err := n.client.Create(n.t.Context(), c); err != nil {
		n.t.Fatal(err)
	}
}

// await waits until the Instance's status satisfies check.
func (n *testNode) await(in *v1alpha1.Instance, what string, check func(v1alpha1.InstanceStatus) bool) v1alpha1.InstanceStatus {
	n.t.Helper()
	var now v1alpha1.Instance
	testkit.Eventually(n.t, 15*time.Second, what, func() error {
		if err := n.client.Get(n.t.Context(), client.ObjectKeyFromObject(in), &now); err != nil {
			return err
		}
		if !check(now.Status) {
			return fmt.Errorf("status is %+v", now.Status)
		}
		return nil
	})
	return now.Status
}

func (n *testNode) patch(in *v1alpha1.Instance, change func(*v1alpha1.InstanceSpec)) {
	n.t.Helper()
	testkit.Eventually(n.t, 5*time.Second, "change the spec", func() error {
		var now v1alpha1.Instance
		if err := n.client.Get(n.t.Context(), client.ObjectKeyFromObject(in), &now); err != nil {
			return err
		}
		change(&now.Spec)
		return n.client.Update(n.t.Context(), &now)
	})
}

func inPhase(p v1alpha1.InstancePhase) func(v1alpha1.InstanceStatus) bool {
	return func(s v1alpha1.InstanceStatus) bool { return s.Phase == p }
}

// TestLifeOfAnInstance goes from the pod's binding to the end, with a handler that
// is replaced in between.
func TestLifeOfAnInstance(t *testing.T) {
	n := newTestNode(t)
	p := n.pod()
	in := n.create(p, "virt-launcher-linux-1")
	_, stop := n.run()
	p.launch(t, launcherUID, true) // later than the handler, as in life

	s := n.await(in, "run", inPhase(v1alpha1.InstanceRunning))
	if s.PodUID != p.uid || s.StartTime == nil || s.QEMUVersion != "disk of 4096" {
		t.Errorf("status %+v", s)
	}
	ns := fmt.Sprintf("nsenter --net=/proc/%d/ns/net ", p.netns.Process.Pid)
	if out := sh(t, ns+"ip -o link show"); !strings.Contains(out, "tap0") || !strings.Contains(out, "vm0") {
		t.Errorf("the pod's network is not wired:\n%s", out)
	}

	stop() // the machine must not notice
	sh(t, ns+"ip route del "+p.address+" dev vm0; ip route del "+p.address+"/32")
	n.patch(in, func(s *v1alpha1.InstanceSpec) { s.RebootAction = v1alpha1.RebootShutdown })
	_, _ = n.run()
	testkit.Eventually(t, 10*time.Second, "repair the network", func() error {
		out := sh(t, ns+"ip route get "+p.address+"; ip route show "+p.address)
		if !strings.Contains(out, "dev vm0") || !strings.Contains(out, "dev veth1") {
			return errors.New(out)
		}
		return nil
	})

	// A late clean-up of an older pod takes the route away under a running handler.
	sh(t, "ip route del "+p.address+"/32")
	testkit.Eventually(t, 5*time.Second, "repair the route at once", func() error {
		if out := sh(t, "ip route show "+p.address); !strings.Contains(out, "dev veth1") {
			return errors.New("no route")
		}
		return nil
	})

	_, _ = io.WriteString(p.stdin, "pause NoSpace\n")
	n.await(in, "pause and say why", func(s v1alpha1.InstanceStatus) bool {
		return s.Phase == v1alpha1.InstancePaused && s.PauseReason == "NoSpace"
	})
	n.await(in, "resume by itself", inPhase(v1alpha1.InstanceRunning))

	n.patch(in, func(s *v1alpha1.InstanceSpec) { s.Power = v1alpha1.PowerOff })
	s = n.await(in, "stop", inPhase(v1alpha1.InstanceStopped))
	if s.Exit == nil || s.Exit.Cause != v1alpha1.ExitHostShutdown {
		t.Errorf("exit %+v", s.Exit)
	}
	select {
	case err := <-p.done:
		p.done <- err
		if err != nil {
			t.Errorf("launcher: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the launcher was not let go")
	}
}

func TestConsoleHasOneHolder(t *testing.T) {
	n := newTestNode(t)
	p := n.pod()
	in := n.create(p, "virt-launcher-linux-1")
	p.launch(t, launcherUID, true)
	node, _ := n.run()
	n.await(in, "run", inPhase(v1alpha1.InstanceRunning))
	web := httptest.NewServer(node.Streams())
	defer web.Close()
	url := func(name, what string) string {
		return web.URL + "/v1/namespaces/" + n.namespace + "/instances/" + name + "/" + what
	}
	echo := func(c *stream.Conn, text string) {
		t.Helper()
		got := make([]byte, len(text))
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
			t.Fatalf("console says %q, %v", got, err)
		}
	}
	first, err := stream.Dial(t.Context(), web.Client(), url(in.Name, "console"), nil)
	if err != nil {
		t.Fatal(err)
	}
	echo(first, "first")
	second, err := stream.Dial(t.Context(), web.Client(), url(in.Name, "console"), nil)
	if err != nil {
		t.Fatal(err)
	}
	echo(second, "second")
	if _, err := first.Read(make([]byte, 1)); !errors.Is(err, stream.ErrTakenOver) {
		t.Errorf("the first holder reads %v, want %v", err, stream.ErrTakenOver)
	}
	_ = second.Close()
	var refused *stream.HandshakeError
	for what, want := range map[string]int{
		url("nobody", "console"):              404,
		url(in.Name, "vnc"):                   409, // this launcher has none
		url(in.Name, "portforward/0/tcp"):     400,
		url(in.Name, "portforward/22/sctp"):   400,
		url(in.Name, "portforward/70000/tcp"): 400,
	} {
		if _, err := stream.Dial(t.Context(), web.Client(), what, nil); !errors.As(err, &refused) || refused.StatusCode != want {
			t.Errorf("%s: %v, want status %d", what, err, want)
		}
	}
}

// TestHostileLaunchers: whatever listens in the pod's directory, unless it is a
// process of the launcher's user in this very pod it is not trusted with a disk.
func TestHostileLaunchers(t *testing.T) {
	cases := map[string]struct {
		prepare func(t *testing.T, n *testNode, p *pod)
		want    string
	}{
		"another user": {func(t *testing.T, _ *testNode, p *pod) {
			run := filepath.Join(p.dir, "volumes/kubernetes.io~empty-dir/run")
			if err := os.Chown(run, 1000, 1000); err != nil {
				t.Fatal(err)
			}
			p.launch(t, 1000, true)
		}, "user is 1000"},
		"a process outside the pod": {func(t *testing.T, _ *testNode, p *pod) { p.launch(t, launcherUID, false) }, "is not in pod"},
		"a link to another pod's sockets": {func(t *testing.T, n *testNode, p *pod) {
			other := n.pod()
			other.launch(t, launcherUID, true)
			run := "volumes/kubernetes.io~empty-dir/run"
			if err := errors.Join(os.Remove(filepath.Join(p.dir, run)), os.Symlink(filepath.Join(other.dir, run), filepath.Join(p.dir, run))); err != nil {
				t.Fatal(err)
			}
		}, "too many levels of symbolic links"},
		"another pod's socket by a hard link": {func(t *testing.T, n *testNode, p *pod) {
			other := n.pod()
			other.launch(t, launcherUID, true)
			run := "volumes/kubernetes.io~empty-dir/run/l"
			if err := os.Link(filepath.Join(other.dir, run), filepath.Join(p.dir, run)); err != nil {
				t.Fatal(err)
			}
		}, "is not in pod"},
		"a regular file for a socket": {func(t *testing.T, _ *testNode, p *pod) {
			if err := os.WriteFile(filepath.Join(p.dir, "volumes/kubernetes.io~empty-dir/run/l"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "not a socket"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			n := newTestNode(t)
			p := n.pod()
			c.prepare(t, n, p)
			in := n.create(p, "virt-launcher-linux-1")
			_, stop := n.run()
			s := n.await(in, "refuse and say why", func(s v1alpha1.InstanceStatus) bool { return strings.Contains(s.Message, c.want) })
			if s.Phase != v1alpha1.InstancePending {
				t.Errorf("phase %s", s.Phase)
			}
			stop()
		})
	}
}

// TestLostLauncher: without its launcher's word nothing is known, so nothing changes.
func TestLostLauncher(t *testing.T) {
	n := newTestNode(t)
	p := n.pod()
	in := n.create(p, "virt-launcher-linux-1")
	p.launch(t, launcherUID, true)
	n.run()
	n.await(in, "run", inPhase(v1alpha1.InstanceRunning))
	_ = p.launcher.Process.Kill()
	s := n.await(in, "say that the launcher cannot be reached", func(s v1alpha1.InstanceStatus) bool { return s.Message != "" })
	if s.Phase != v1alpha1.InstanceRunning || s.Exit != nil {
		t.Errorf("status %+v", s)
	}
}

func TestNodeIsLabelled(t *testing.T) {
	n := newTestNode(t)
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1", Labels: map[string]string{labelKVM: "true"}}}
	if err := n.client.Create(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = n.client.Delete(context.Background(), node) }()
	n.run()
	labelled := func() error {
		var now corev1.Node
		if err := n.client.Get(t.Context(), client.ObjectKeyFromObject(node), &now); err != nil {
			return err
		}
		if _, kvm := now.Labels[labelKVM]; kvm || now.Labels[labelSchedulable] != "true" || now.Labels[labelAccelerator] != "tcg" {
			return fmt.Errorf("labels %v", now.Labels)
		}
		return nil
	}
	testkit.Eventually(t, 5*time.Second, "label the node", labelled)
	if err := n.client.Patch(t.Context(), node, client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"labels":{"`+labelSchedulable+`":null}}}`))); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 5*time.Second, "label it again", labelled)
}
