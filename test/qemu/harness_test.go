package qemu_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/api/resource"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/qemu"
	"orlop.dev/orlop/internal/wire"
)

// podUser runs launcher and QEMU in a pod.
const podUser = 107

// patience is for whatever a guest under TCG does on a busy machine.
const patience = 120 * time.Second

// What the tiny guest says.
const (
	userspaceUp = "orlop-tiny: userspace up"
	prompt      = "tiny:~# "
)

// tools are the programs and images under test, found or built once.
var tools struct {
	launcher, qemu, qemuImg, tiny string
}

func TestMain(m *testing.M) {
	code, err := prepare(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func prepare(m *testing.M) (int, error) {
	root, err := filepath.Abs("../..")
	if err != nil {
		return 1, err
	}
	tools.qemu = os.Getenv("ORLOP_QEMU")
	if tools.qemu == "" {
		tools.qemu = filepath.Join(root, "bin/qemu/qemu-system-x86_64")
	}
	tools.qemuImg = filepath.Join(filepath.Dir(tools.qemu), "qemu-img")
	tools.tiny = filepath.Join(root, "bin/guests/tiny.qcow2")
	for _, f := range []string{tools.qemu, tools.tiny} {
		if _, err := os.Stat(f); err != nil {
			return 1, fmt.Errorf("%w: `make test-qemu` prepares what these tests need", err)
		}
	}
	dir, err := os.MkdirTemp("", "orlop-test-qemu-")
	if err != nil {
		return 1, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := os.Chmod(dir, 0o755); err != nil { // the pod's user runs the launcher in it
		return 1, err
	}
	tools.launcher = filepath.Join(dir, "virt-launcher")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", tools.launcher, "orlop.dev/orlop/cmd/virt-launcher")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return 1, fmt.Errorf("build launcher: %w\n%s", err, out)
	}
	return m.Run(), nil
}

// pod is a launcher in a run directory of its own, with a connected client.
type pod struct {
	t        *testing.T
	dir      string
	cmd      *exec.Cmd
	exited   chan struct{}
	client   *wire.Client
	machine  v1alpha1.Machine
	firstDir string

	mu  sync.Mutex
	log bytes.Buffer
}

// newPod starts a launcher. It is ended with the test, and its log shown if that failed.
func newPod(t *testing.T) *pod {
	t.Helper()
	// Not t.TempDir: socket paths must be short.
	dir, err := os.MkdirTemp("", "o")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	p := &pod{t: t, dir: dir, exited: make(chan struct{}), firstDir: filepath.Join(dir, "firstboot")}
	if err := os.Mkdir(p.firstDir, 0o755); err != nil {
		t.Fatal(err)
	}
	p.cmd = exec.Command(tools.launcher, "-qemu", tools.qemu, "-run-dir", dir, "-first-boot-dir", p.firstDir,
		"-termination-log", filepath.Join(dir, "termination-log"), "-handler-uid", fmt.Sprint(os.Getuid()))
	p.cmd.Stderr = p
	p.cmd.Stdout = p
	if os.Getuid() == 0 {
		p.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: podUser, Gid: podUser}}
		for _, path := range []string{dir, p.firstDir} {
			if err := os.Chown(path, podUser, podUser); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.exited)
	}()
	t.Cleanup(p.stop)
	p.connect()
	return p
}

// Write collects the log of the launcher.
func (p *pod) Write(data []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.Write(data)
}

func (p *pod) stop() {
	if p.client != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		_ = p.client.Kill(ctx)
		cancel()
		_ = p.client.Close()
	}
	// A handler of the test's own may have taken the connection over, and there is no
	// pod here whose end takes QEMU along.
	for _, pid := range p.children() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	_ = p.cmd.Process.Kill()
	<-p.exited
	if p.t.Failed() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.t.Logf("launcher:\n%s", p.log.String())
	}
}

// connect makes a new connection, as a restarted handler does.
func (p *pod) connect() {
	p.t.Helper()
	dir, err := os.Open(p.dir)
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = dir.Close() }()
	var conn *wire.Conn
	eventually(p.t, "connect to launcher", func() error {
		conn, err = wire.Dial(p.t.Context(), dir)
		return err
	})
	if p.client != nil {
		_ = p.client.Close()
	}
	p.client = wire.NewClient(conn)
}

// eventually repeats a check until it succeeds.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (p *pod) hello() wire.State {
	p.t.Helper()
	h, err := p.client.Hello(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	return *h.State
}

// waitFor waits for a state with a property, from what the launcher tells unasked.
func (p *pod) waitFor(what string, ok func(wire.State) bool) wire.State {
	p.t.Helper()
	if s := p.hello(); ok(s) {
		return s
	}
	timeout := time.After(patience)
	var last wire.State
	for {
		select {
		case s, open := <-p.client.Events():
			if !open {
				p.t.Fatalf("wait for %s: connection closed", what)
			}
			if ok(s) {
				return s
			}
			last = s
		case <-timeout:
			p.t.Fatalf("wait for %s: last state %+v", what, last)
		}
	}
}

// exit waits for the end of QEMU.
func (p *pod) exit() v1alpha1.Exit {
	p.t.Helper()
	return *p.waitFor("exit", func(s wire.State) bool { return s.Exit != nil }).Exit
}

// bye lets the launcher go and returns its exit code.
func (p *pod) bye() int {
	p.t.Helper()
	if err := p.client.Bye(p.t.Context()); err != nil {
		p.t.Fatal(err)
	}
	return p.code()
}

func (p *pod) code() int {
	p.t.Helper()
	select {
	case <-p.exited:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(patience):
		p.t.Fatal("launcher does not exit")
		return -1
	}
}

// terminationMessage is what the kubelet would find. The launcher writes it after it
// has told the exit and before it answers anything else.
func (p *pod) terminationMessage() v1alpha1.Exit {
	p.t.Helper()
	p.hello()
	data, err := os.ReadFile(filepath.Join(p.dir, "termination-log"))
	if err != nil {
		p.t.Fatal(err)
	}
	var x v1alpha1.Exit
	if err := json.Unmarshal(data, &x); err != nil {
		p.t.Fatal(err)
	}
	return x
}

// qemuPID is the process under the launcher.
func (p *pod) qemuPID() int {
	p.t.Helper()
	pids := p.children()
	if len(pids) == 0 {
		p.t.Fatal("launcher has no child")
	}
	return pids[0]
}

// children are the processes that the launcher has made.
func (p *pod) children() []int {
	// A child belongs to the thread that made it.
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	var pids []int
	for _, list := range lists {
		data, _ := os.ReadFile(list)
		for field := range strings.FieldsSeq(string(data)) {
			if pid, err := strconv.Atoi(field); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// request is a start request and its descriptors, closed with the test.
type request struct {
	wire.Start
	files []*os.File
}

// tinyRequest is a machine that boots a copy of the tiny guest.
func tinyRequest(t *testing.T, disk string, change ...func(*v1alpha1.Machine)) *request {
	t.Helper()
	r := &request{Start: wire.Start{
		InstanceUID: "11111111-2222-3333-4444-555555555555",
		Machine: v1alpha1.Machine{
			Type:        qemu.DefaultMachineType,
			Accelerator: v1alpha1.AcceleratorTCG,
			UUID:        "3a4b1c55-9a53-4ee8-9d7b-8d1f40bb2b47",
			Hostname:    "tiny",
			CPU:         v1alpha1.CPU{Model: "Nehalem", Sockets: 1, CoresPerSocket: 1},
			Memory:      v1alpha1.Memory{Size: resource.MustParse("256Mi")},
			Disks: []v1alpha1.Disk{{ID: "vd-root", Bus: "scsi", Slot: 0, Serial: "b6589fc6ab0dc82cf12099d1c2d40ab9", BootIndex: 1, Source: v1alpha1.VolumeSource{
				PersistentVolumeClaim: &v1alpha1.PersistentVolumeClaimSource{ClaimName: "root", Mode: "Filesystem"},
			}}},
		},
		GracePeriodSeconds: 60,
	}}
	for _, c := range change {
		c(&r.Machine)
	}
	r.disk(t, "vd-root", disk, os.O_RDWR|unix.O_DIRECT)
	if os.Getuid() == 0 {
		r.tap(t)
	}
	return r
}

func (r *request) add(t *testing.T, f *os.File) int {
	t.Helper()
	t.Cleanup(func() { _ = f.Close() })
	r.files = append(r.files, f)
	return len(r.files) - 1
}

func (r *request) disk(t *testing.T, id, path string, flags int) {
	t.Helper()
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		t.Fatal(err)
	}
	r.Disks = append(r.Disks, wire.StartDisk{ID: id, FDs: []int{r.add(t, f)}})
}

// tap gives the machine an interface whose other end nobody uses.
func (r *request) tap(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		t.Logf("no interface: %v", err)
		return
	}
	request, err := unix.NewIfreq("otest%d")
	if err != nil {
		t.Fatal(err)
	}
	request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(int(f.Fd()), unix.TUNSETIFF, request); err != nil {
		_ = f.Close()
		t.Logf("no interface: %v", err)
		return
	}
	r.Machine.Interfaces = append(r.Machine.Interfaces, v1alpha1.Interface{ID: "net0", Model: "virtio", MAC: "02:00:0a:42:0a:02", Slot: 0})
	r.Interfaces = append(r.Interfaces, wire.StartInterface{ID: "net0", FD: r.add(t, f), MTU: 1450})
}

func (p *pod) start(r *request) error {
	p.machine = r.Machine
	return p.client.Start(p.t.Context(), r.Start, r.files)
}

// mustStart starts a guest and returns its console once userspace is up.
func (p *pod) mustStart(r *request) *console {
	p.t.Helper()
	if err := p.start(r); err != nil {
		p.t.Fatal(err)
	}
	c := p.console()
	c.expect(userspaceUp)
	return c
}

// tinyDisk is a writable copy of the tiny guest's image.
func tinyDisk(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	in, err := os.Open(tools.tiny)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// run runs a tool of the host.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// console is the guest's serial line.
type console struct {
	t    *testing.T
	conn net.Conn
	wake chan struct{}

	mu   sync.Mutex
	seen bytes.Buffer
	from int
}

func (p *pod) console() *console {
	p.t.Helper()
	conn, err := net.Dial("unix", filepath.Join(p.dir, qemu.SerialSocket))
	if err != nil {
		p.t.Fatal(err)
	}
	c := &console{t: p.t, conn: conn, wake: make(chan struct{}, 1)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(c, conn)
	}()
	p.t.Cleanup(func() {
		_ = conn.Close()
		<-done
		if p.t.Failed() {
			p.t.Logf("console:\n%s", c.seen.String())
		}
	})
	return c
}

// Write collects what the guest says.
func (c *console) Write(data []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
	return c.seen.Write(data)
}

// expect waits until the guest has said something, after what was expected before.
func (c *console) expect(text string) {
	c.t.Helper()
	timeout := time.After(patience)
	for {
		c.mu.Lock()
		i := bytes.Index(c.seen.Bytes()[c.from:], []byte(text))
		if i >= 0 {
			c.from += i + len(text)
		}
		c.mu.Unlock()
		if i >= 0 {
			return
		}
		select {
		case <-c.wake:
		case <-timeout:
			c.t.Fatalf("the guest does not say %q", text)
		}
	}
}

// run types a command at the prompt.
func (c *console) run(command string) {
	c.t.Helper()
	// An empty line brings up a new prompt, whatever was said in between.
	c.typeLine("")
	c.expect(prompt)
	c.typeLine(command)
}

func (c *console) typeLine(line string) {
	c.t.Helper()
	if _, err := c.conn.Write([]byte(line + "\n")); err != nil && !errors.Is(err, net.ErrClosed) {
		c.t.Fatal(err)
	}
}
