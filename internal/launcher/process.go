package launcher

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/qemu"
	"orlop.dev/orlop/internal/qmp"
	"orlop.dev/orlop/internal/wire"
)

const (
	// handshakeTimeout is for QEMU to build the machine; slow hosts need seconds.
	handshakeTimeout = 60 * time.Second
	// commandTimeout is for one monitor command. The main loop of a QEMU whose disk
	// hangs may answer late.
	commandTimeout = 30 * time.Second
	// maxStderrLine bounds a line of QEMU's stderr, in bytes.
	maxStderrLine = 16 << 10
)

// process is the one QEMU. The loop's goroutine alone uses it, but for the fields
// that say otherwise.
type process struct {
	pid     int
	machine v1alpha1.Machine
	// status is set once it has been reaped; the number may belong to another process
	// from then on.
	status *syscall.WaitStatus
	// monitor is set by the monitor's goroutine once it is connected.
	monitor atomic.Pointer[qmp.Client]
	// voices are the goroutines that still listen to it.
	voices atomic.Int32

	mu       sync.Mutex
	lastLine string
}

func (p *process) kill() {
	if p.status == nil {
		_ = syscall.Kill(p.pid, syscall.SIGKILL)
	}
}

func (p *process) reaped(status syscall.WaitStatus) {
	if status.Exited() || status.Signaled() {
		p.status = &status
	}
}

// silent is true once nothing more can be heard of the process.
func (p *process) silent() bool { return p.voices.Load() == 0 }

// exited describes the end of a reaped process.
func (p *process) exited() Exited {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := Exited{Code: int32(p.status.ExitStatus()), LastLine: p.lastLine}
	if p.status.Signaled() {
		e.Signal = p.status.Signal().String()
		e.Code = 128 + int32(p.status.Signal())
	}
	return e
}

// quiet is sent by a goroutine that has heard the last of the process; it only wakes
// the loop.
type quiet struct{}

func (quiet) event() {}

// spawn makes the process of a start request and begins to listen to it.
func (l *loop) spawn(t Token) {
	r := l.requests[t]
	var start wire.Start
	err := r.Decode(&start)
	if err == nil {
		err = l.exec(start, r.Files)
	}
	if err != nil {
		l.next(StartFailed{Reason: err.Error(), NoProcess: true})
	}
}

// exec runs QEMU. Our copies of everything it inherits are closed by then, or by the
// caller.
func (l *loop) exec(start wire.Start, received []*os.File) error {
	inputs, err := gather(start, received, l.config)
	if err != nil {
		return err
	}
	defer inputs.close()
	monitor, err := socketPair()
	if err != nil {
		return err
	}
	stderr, stderrEnd, err := os.Pipe()
	if err != nil {
		_, _ = monitor.ours.Close(), monitor.theirs.Close()
		return fmt.Errorf("make pipe: %w", err)
	}
	defer func() { _, _ = monitor.theirs.Close(), stderrEnd.Close() }()

	inputs.environment.Monitor = inputs.inherit(monitor.theirs)
	arguments, err := qemu.Command(start.Machine, inputs.environment)
	var pid int
	if err == nil {
		pid, err = fork(l.config.QEMU, arguments, stderrEnd, inputs.files)
	}
	if err != nil {
		_, _ = monitor.ours.Close(), stderr.Close()
		return err
	}
	l.config.Log.Info("started", "instance", start.InstanceUID, "pid", pid)
	p := &process{pid: pid, machine: start.Machine}
	p.voices.Store(2)
	l.process = p
	l.group.Go(func() { l.listen(p, stderr) })
	l.group.Go(func() { l.converse(p, monitor.ours, start) })
	return nil
}

// fork starts a program with the files as descriptors 3 and up.
func fork(path string, arguments []string, stderr *os.File, files []*os.File) (int, error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, fmt.Errorf("open null device: %w", err)
	}
	defer func() { _ = null.Close() }()
	descriptors := []uintptr{null.Fd(), stderr.Fd(), stderr.Fd()}
	for _, f := range files {
		descriptors = append(descriptors, f.Fd())
	}
	// Not os/exec: PID 1 reaps every child itself, and two must not wait for one.
	pid, err := syscall.ForkExec(path, append([]string{path}, arguments...), &syscall.ProcAttr{
		Env:   []string{"PATH=/usr/bin:/bin", "HOME=/"},
		Files: descriptors,
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, fmt.Errorf("run %s: %w", path, err)
	}
	return pid, nil
}

// listen forwards QEMU's stderr line by line and remembers the last one.
func (l *loop) listen(p *process, stderr io.ReadCloser) {
	defer l.quiet(p)
	defer func() { _ = stderr.Close() }()
	reader := bufio.NewReaderSize(stderr, maxStderrLine)
	for {
		line, err := reader.ReadSlice('\n')
		if text := strings.TrimSpace(strings.ToValidUTF8(string(line), "?")); text != "" {
			l.config.Log.Info("qemu", "line", text)
			p.mu.Lock()
			p.lastLine = text
			p.mu.Unlock()
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

func (l *loop) quiet(p *process) {
	p.voices.Add(-1)
	l.send(quiet{})
}

// converse starts the guest over the monitor and then reports what QEMU says, in order.
func (l *loop) converse(p *process, conn net.Conn, start wire.Start) {
	defer l.quiet(p)
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
	client, started, err := l.greet(ctx, p, conn, start)
	cancel()
	if client != nil {
		defer func() { _ = client.Close() }()
	}
	if err != nil {
		l.send(StartFailed{Reason: err.Error()})
		return
	}
	p.monitor.Store(client)
	l.send(started)
	for e := range client.Events() {
		for _, e := range translate(e) {
			l.send(e)
		}
	}
	l.send(MonitorClosed{})
}

// greet brings a new process to the point where its guest runs, or may arrive.
func (l *loop) greet(ctx context.Context, p *process, conn net.Conn, start wire.Start) (*qmp.Client, Event, error) {
	client, err := qmp.New(ctx, conn)
	if err != nil {
		return nil, nil, fmt.Errorf("connect to QEMU: %w", err)
	}
	// A migration does not carry this over: it belongs to the process.
	if start.RebootAction == v1alpha1.RebootShutdown {
		if err := client.SetAction(ctx, qmp.Action{Reboot: "shutdown"}); err != nil {
			return client, nil, err
		}
	}
	devices, err := listDevices(ctx, client)
	if err != nil {
		return client, nil, err
	}
	if start.Incoming {
		return client, GuestAwaited{Version: client.Version(), Devices: devices}, nil
	}
	l.grow(ctx, client, p.machine, devices)
	if err := client.Continue(ctx); err != nil {
		return client, nil, err
	}
	return client, GuestStarted{Version: client.Version(), Devices: devices}, nil
}

// translate reads a QMP event; most are nobody's business here.
func translate(e qmp.Event) []Event {
	switch e.Name {
	case qmp.EventShutdown:
		var s qmp.ShutdownEvent
		if e.Decode(&s) != nil {
			return nil
		}
		return []Event{ShutdownAnnounced{Reason: s.Reason}}
	case qmp.EventBlockIOError:
		var b qmp.BlockIOErrorEvent
		if e.Decode(&b) != nil || b.Action != "stop" {
			return nil
		}
		return []Event{IOError{NoSpace: b.NoSpace}}
	case qmp.EventMigration:
		var m qmp.MigrationEvent
		if e.Decode(&m) != nil {
			return nil
		}
		return []Event{MigrationChanged{Status: m.Status}, GuestStateChanged{}}
	case qmp.EventStop, qmp.EventResume, qmp.EventSuspend, qmp.EventWakeup, qmp.EventGuestPanicked, qmp.EventPortChange:
		return []Event{GuestStateChanged{}}
	case qmp.EventDeviceDeleted, qmp.EventUnplugGuestError:
		return translatePlug(e)
	default:
		return nil
	}
}

// command runs a monitor command beside the loop.
func (l *loop) command(c Command) {
	client := l.monitor()
	l.beside(func(ctx context.Context) Event { return CommandDone{Command: c, Err: execute(ctx, client, c)} })
}

// monitor is the connected monitor, or nil.
func (l *loop) monitor() *qmp.Client {
	if l.process == nil {
		return nil
	}
	return l.process.monitor.Load()
}

func execute(ctx context.Context, client *qmp.Client, c Command) error {
	if client == nil {
		return wire.ErrNotRunning
	}
	switch c.Kind {
	case CommandPowerDown:
		return client.PowerDown(ctx)
	case CommandContinue:
		return client.Continue(ctx)
	case CommandResumeIncoming:
		return resumeIncoming(ctx, client)
	case CommandRebootAction:
		return client.SetAction(ctx, qmp.Action{Reboot: strings.ToLower(string(c.RebootAction))})
	case CommandResize:
		return client.BlockResize(ctx, c.Node, c.Bytes)
	}
	return fmt.Errorf("bug: no way to %s", c.Kind)
}

// resumeIncoming lets an arrived guest run. QEMU itself would take `cont` at any time,
// and run what has arrived so far.
func resumeIncoming(ctx context.Context, client *qmp.Client) error {
	m, err := client.QueryMigrate(ctx)
	if err != nil {
		return err
	}
	if m.Status != qmp.MigrationCompleted {
		return fmt.Errorf("the guest has not arrived: its migration is %q", m.Status)
	}
	return client.Continue(ctx)
}

func (l *loop) queryStatus() {
	client := l.monitor()
	l.beside(func(ctx context.Context) Event {
		if client == nil {
			return StatusRead{Err: wire.ErrNotRunning}
		}
		// The agent's channel is asked for every time: QEMU holds its events back to one
		// a second, and a guest that comes by a migration has had it open all along.
		if devices, err := client.QueryCharDevices(ctx); err == nil {
			l.send(AgentRead{slices.Contains(devices, qmp.CharDevice{Label: qemu.GuestAgentDevice, FrontendOpen: true})})
		}
		s, err := client.QueryStatus(ctx)
		return StatusRead{Status: s.Status, Err: err}
	})
}

// pair is a stream socket with both its ends.
type pair struct {
	ours   net.Conn
	theirs *os.File
}

// socketPair is the launcher's monitor: connected before QEMU exists, so there is no
// socket file that somebody else could take, and its end is QEMU's end.
func socketPair() (pair, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return pair{}, fmt.Errorf("make monitor socket: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "monitor"), os.NewFile(uintptr(fds[1]), "monitor")
	defer func() { _ = ours.Close() }()
	conn, err := net.FileConn(ours)
	if err != nil {
		_ = theirs.Close()
		return pair{}, fmt.Errorf("use monitor socket: %w", err)
	}
	return pair{ours: conn, theirs: theirs}, nil
}
