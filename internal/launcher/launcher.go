package launcher

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"sync"
	"syscall"
	"time"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/wire"
)

// Config is what the launcher finds in its pod.
type Config struct {
	// QEMU is the program to run.
	QEMU string
	// RunDir gets the sockets: the launcher's own and QEMU's.
	RunDir string
	// FirstBootDir is where the Secret with first-boot data is mounted.
	FirstBootDir string
	// TerminationLog is the container's termination message file; it may be missing.
	TerminationLog string
	// Allow refuses peers that are not the handler.
	Allow func(wire.Peer) error
	// Signals delivers SIGTERM and SIGCHLD.
	Signals <-chan os.Signal
	// Now is the clock.
	Now func() time.Time
	Log *slog.Logger
}

// loop owns everything: only its goroutine reads or writes these fields.
type loop struct {
	config Config
	state  State
	server *wire.Server

	requests  map[Token]*wire.Request
	lastToken Token

	process *process
	// inbox carries events from the goroutines below; stopped ends their waiting.
	inbox   chan Event
	stopped chan struct{}
	group   sync.WaitGroup

	leave bool
	code  int
}

// Run serves until the launcher may leave and returns its exit code.
func Run(ctx context.Context, c Config) (int, error) {
	dir, err := os.Open(c.RunDir)
	if err != nil {
		return 1, fmt.Errorf("open run directory: %w", err)
	}
	defer func() { _ = dir.Close() }()
	listener, err := wire.Listen(dir)
	if err != nil {
		return 1, err
	}
	l := &loop{
		config:   c,
		server:   wire.NewServer(listener, c.Allow),
		requests: map[Token]*wire.Request{},
		inbox:    make(chan Event),
		stopped:  make(chan struct{}),
	}
	l.serve(ctx)
	l.close()
	return l.code, nil
}

// serve takes one event after another until the machine says Leave.
func (l *loop) serve(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for !l.leave {
		l.arm(timer)
		select {
		case <-ctx.Done():
			return
		case r := <-l.server.Requests():
			l.request(r)
		case e := <-l.inbox:
			l.next(e)
		case s := <-l.config.Signals:
			l.signal(s)
		case <-timer.C:
			l.next(Tick{})
		}
		l.reportExit()
	}
}

// arm sets the timer to the machine's deadline; an hour stands for never.
func (l *loop) arm(timer *time.Timer) {
	wait := time.Hour
	if d := l.state.Deadline(); !d.IsZero() {
		wait = max(0, d.Sub(l.config.Now()))
	}
	timer.Reset(wait)
}

// close ends what still runs: a process only if the context was cancelled.
func (l *loop) close() {
	if l.process != nil {
		l.process.kill()
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for r := range l.server.Requests() {
			wire.CloseFiles(r.Files)
			r.Answer(nil, wire.ErrNotRunning)
		}
	}()
	_ = l.server.Close()
	<-done
	close(l.stopped)
	l.group.Wait()
}

// send is how goroutines report to the loop.
func (l *loop) send(e Event) {
	select {
	case l.inbox <- e:
	case <-l.stopped:
	}
}

// next feeds one event to the machine, does what it says, and tells the handler what
// has changed.
func (l *loop) next(e Event) {
	before := l.state.Public()
	var actions []Action
	l.state, actions = l.state.Next(l.config.Now(), e)
	after := l.state.Public()
	if after.Phase != before.Phase {
		l.config.Log.Info("phase", "instance", after.InstanceUID, "phase", after.Phase, "reason", after.PauseReason)
	}
	if !reflect.DeepEqual(before, after) {
		if err := l.server.Publish(after); err != nil {
			l.config.Log.Error("publish state", "err", err)
		}
	}
	for _, a := range actions {
		l.do(a)
	}
}

func (l *loop) do(a Action) {
	switch a := a.(type) {
	case Spawn:
		l.spawn(a.Token)
	case Command:
		l.command(a)
	case QueryStatus:
		l.queryStatus()
	case KillProcess:
		if l.process != nil {
			l.process.kill()
		}
	case Answer:
		if r := l.requests[a.Token]; r != nil {
			delete(l.requests, a.Token)
			if a.Err != nil {
				r.Answer(nil, a.Err)
			} else {
				r.Answer(nil, nil)
			}
		}
	case RecordExit:
		l.recordExit(a.Exit)
	case Leave:
		l.leave, l.code = true, a.Code
	default:
		l.doPlug(a)
	}
}

// request turns a packet into an event. What cannot be one is answered at once.
func (l *loop) request(r *wire.Request) {
	l.lastToken++
	token := l.lastToken
	e, err := event(token, r)
	if err != nil {
		wire.CloseFiles(r.Files)
		r.Answer(nil, err)
		return
	}
	if e == nil { // hello
		state := l.state.Public()
		r.Answer(wire.Hello{Version: wire.Version, State: &state}, nil)
		return
	}
	l.requests[token] = r
	l.next(e)
	wire.CloseFiles(r.Files) // QEMU has its own copies, if it was to get any
}

// event decodes a request; nil stands for hello.
func event(t Token, r *wire.Request) (Event, error) {
	switch r.Type {
	case wire.TypeHello:
		return nil, nil
	case wire.TypeStart:
		var s wire.Start
		if err := r.Decode(&s); err != nil {
			return nil, err
		}
		grace := time.Duration(s.GracePeriodSeconds) * time.Second
		return StartRequested{Token: t, UID: s.InstanceUID, RebootAction: s.RebootAction, Grace: grace}, nil
	case wire.TypeShutdown:
		var s wire.Shutdown
		err := r.Decode(&s)
		return ShutdownRequested{Token: t, Grace: time.Duration(s.GracePeriodSeconds) * time.Second}, err
	case wire.TypeKill:
		return KillRequested{Token: t}, nil
	case wire.TypeRebootAction:
		var s wire.SetRebootAction
		if err := r.Decode(&s); err != nil {
			return nil, err
		}
		if s.Action != v1alpha1.RebootReset && s.Action != v1alpha1.RebootShutdown {
			return nil, wire.Errorf(wire.CodeInvalid, "there is no reboot action %q", s.Action)
		}
		return RebootActionRequested{Token: t, Action: s.Action}, nil
	case wire.TypeResume:
		return ResumeRequested{Token: t}, nil
	case wire.TypeResumeIncoming:
		return ResumeIncomingRequested{Token: t}, nil
	case wire.TypeResize:
		var s wire.Resize
		err := r.Decode(&s)
		return ResizeRequested{Token: t, Disk: s.Disk, Bytes: s.Bytes}, err
	case wire.TypeAttach, wire.TypeDetach:
		return decodePlug(t, r)
	case wire.TypeBye:
		return ByeRequested{Token: t}, nil
	default:
		return nil, wire.Errorf(wire.CodeUnsupported, "request %q is not known here", r.Type)
	}
}

func (l *loop) signal(s os.Signal) {
	switch s {
	case syscall.SIGTERM, syscall.SIGINT:
		l.next(TerminationRequested{})
	case syscall.SIGCHLD:
		l.reap()
	}
}

// reap collects every dead child: as PID 1 also the orphans of `kubectl exec`.
func (l *loop) reap() {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if l.process != nil && l.process.pid == pid {
			l.process.reaped(status)
		}
	}
}

// reportExit tells the machine of the death once QEMU's last words have been read:
// they come over other channels and say why.
func (l *loop) reportExit() {
	if l.process == nil || l.process.status == nil || !l.process.silent() {
		return
	}
	p := l.process
	l.process = nil
	l.next(p.exited())
}

// recordExit writes the exit where the kubelet finds it.
func (l *loop) recordExit(x v1alpha1.Exit) {
	l.config.Log.Info("exit", "cause", x.Cause, "code", x.Code, "message", x.Message)
	data, err := json.Marshal(x)
	if err == nil {
		err = os.WriteFile(l.config.TerminationLog, data, 0o644) // for the kubelet to read
	}
	if err != nil {
		l.config.Log.Error("write termination message", "err", err)
	}
}
