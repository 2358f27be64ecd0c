package box

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"
)

// controlName is the control socket in the box's directory. Only root reaches it.
const controlName = "control"

// Operations of the control socket.
const (
	opStatus  = "status"
	opReload  = "reload"
	opRestart = "restart"
)

// controlRequest and Status travel as one JSON value each way on a connection.
type controlRequest struct {
	Op        string `json:"op"`
	Component string `json:"component,omitempty"`
}

// Status is what the init says about its box.
type Status struct {
	Components []ComponentStatus `json:"components"`
	Error      string            `json:"error,omitempty"`
}

// ComponentStatus is one component now.
type ComponentStatus struct {
	Name string `json:"name"`
	// PID is the process number inside the box, 0 while it does not run.
	PID int `json:"pid"`
	// Started is when the present process started.
	Started time.Time `json:"started,omitzero"`
	// Restarts counts the starts after the first one since the box was switched on.
	Restarts int `json:"restarts"`
	// LastExit says how the former process ended, empty if there was none.
	LastExit string `json:"lastExit,omitempty"`
	// WaitsFor is what the component is not started before, while it waits.
	WaitsFor string `json:"waitsFor,omitempty"`
}

// controlCall is a request on its way to the supervisor.
type controlCall struct {
	controlRequest

	kill  int // not from the socket: kill this process if it still is a component
	reply chan<- Status
}

// serve listens on the control socket and hands every request to the supervisor.
func serve(ctx context.Context, path string, calls chan<- controlCall) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove old control socket: %w", err)
	}
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "unix", path)
	if err != nil {
		return fmt.Errorf("listen for control: %w", err)
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go handle(conn, calls)
		}
	}()
	return nil
}

func handle(conn net.Conn, calls chan<- controlCall) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	call := controlCall{}
	if err := json.NewDecoder(conn).Decode(&call.controlRequest); err != nil {
		return
	}
	reply := make(chan Status, 1)
	call.reply = reply
	calls <- call
	_ = json.NewEncoder(conn).Encode(<-reply)
}

// answer does what a request asks for.
func (s *supervisor) answer(ctx context.Context, call controlCall) {
	if call.kill != 0 {
		if p := s.byPID[call.kill]; p != nil && !p.removed && time.Since(p.started) > grace {
			s.log.Info("killing", "component", p.Name, "because", "it did not stop in time")
			s.signal(p, 9)
		}
		return
	}
	var err error
	switch call.Op {
	case opStatus:
	case opReload:
		var spec *Spec
		if spec, err = readSpec(SpecFile(s.dir)); err == nil {
			err = s.refresh(spec)
			s.apply(ctx, spec.Components)
		}
	case opRestart:
		if p := s.find(call.Component); p == nil {
			err = fmt.Errorf("no component %q", call.Component)
		} else if p.pid != 0 {
			s.restart(p)
		}
	default:
		err = fmt.Errorf("unknown operation %q", call.Op)
	}
	call.reply <- s.status(err)
}

func (s *supervisor) status(err error) Status {
	status := Status{}
	if err != nil {
		status.Error = err.Error()
	}
	for _, p := range s.processes {
		c := ComponentStatus{Name: p.Name, PID: p.pid, Restarts: p.restarts, LastExit: p.exit}
		if p.pid != 0 {
			c.Started = p.started
		}
		if p.waiting {
			c.WaitsFor = p.After
		}
		status.Components = append(status.Components, c)
	}
	return status
}

// GetStatus asks the init of the box in dir how its components are.
func GetStatus(ctx context.Context, dir string) (Status, error) {
	return call(ctx, dir, controlRequest{Op: opStatus})
}

// Reload makes the init of the box in dir read its specification again.
func Reload(ctx context.Context, dir string) error {
	_, err := call(ctx, dir, controlRequest{Op: opReload})
	return err
}

// Restart makes the init of the box in dir restart one component.
func Restart(ctx context.Context, dir, component string) error {
	_, err := call(ctx, dir, controlRequest{Op: opRestart, Component: component})
	return err
}

func call(ctx context.Context, dir string, request controlRequest) (Status, error) {
	// A socket's address has at most 108 bytes, a state directory may be longer.
	handle, err := os.Open(dir)
	if err != nil {
		return Status{}, fmt.Errorf("open box directory: %w", err)
	}
	defer handle.Close()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", filepath.Join(fmt.Sprintf("/proc/self/fd/%d", handle.Fd()), controlName))
	if err != nil {
		return Status{}, fmt.Errorf("connect to box: %w", err)
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	} else {
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	}
	if err := json.NewEncoder(conn).Encode(request); err != nil {
		return Status{}, fmt.Errorf("ask box: %w", err)
	}
	var status Status
	if err := json.NewDecoder(conn).Decode(&status); err != nil {
		return Status{}, fmt.Errorf("read answer of box: %w", err)
	}
	if status.Error != "" {
		return status, fmt.Errorf("box: %s", status.Error)
	}
	return status, nil
}
