package box

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// firstDelay and lastDelay bound the back-off between restarts of a component.
	firstDelay = 200 * time.Millisecond
	lastDelay  = 10 * time.Second
	// steady is how long a component must have run for its back-off to be forgotten.
	steady = 30 * time.Second
	// patience is how long a component waits for what it is started after.
	patience = time.Minute
	// grace is what one component, and then everything else together, gets between
	// SIGTERM and SIGKILL in an orderly stop.
	grace = 5 * time.Second
)

// supervisor owns every process of the box. All its fields belong to the goroutine
// that runs loop; others only send to it. Starting and reaping happen in that one
// goroutine, so no child can end before its number is known.
type supervisor struct {
	log       *slog.Logger
	dir       string
	processes []*process
	byPID     map[int]*process

	// refresh brings the files of the running box up to date with a changed specification.
	refresh func(*Spec) error

	ready    chan *process    // what a component waited for is there
	requests chan controlCall // from the control socket
	signals  <-chan os.Signal
}

// process is one component and its present incarnation.
type process struct {
	Component

	pid      int // 0: not running
	started  time.Time
	restarts int
	exit     string // how it last ended
	delay    time.Duration
	due      time.Time // when to start again; zero while running or waiting
	waiting  bool
	removed  bool // no longer wanted: do not start again
	output   *logFile
}

// loop runs until it is told to stop and every component has ended. Then sweep ends
// whatever else there is.
func (s *supervisor) loop(ctx context.Context, components []Component, sweep func()) {
	s.apply(ctx, components)
	for {
		timer := time.NewTimer(s.startDue(ctx))
		select {
		case sig := <-s.signals:
			if sig == unix.SIGCHLD {
				s.reap()
			} else {
				s.log.Info("stopping", "signal", sig.String())
				s.stop()
				sweep()
				return
			}
		case p := <-s.ready:
			p.waiting = false
			p.due = time.Now()
		case call := <-s.requests:
			s.answer(ctx, call)
		case <-timer.C:
		}
		timer.Stop()
	}
}

// apply makes the running set equal to the wanted one: new components start, those
// whose revision changed restart, others go.
func (s *supervisor) apply(ctx context.Context, components []Component) {
	wanted := map[string]bool{}
	for _, c := range components {
		wanted[c.Name] = true
		p := s.find(c.Name)
		if p == nil {
			output, err := openLog(LogFile(s.dir, c.Name), logLimit)
			if err != nil {
				s.log.Error("component has no log", "component", c.Name, "error", err)
				continue
			}
			p = &process{output: output}
			s.processes = append(s.processes, p)
		}
		changed := p.Revision != c.Revision
		p.Component, p.removed = c, false
		switch {
		case p.pid != 0 && changed:
			s.log.Info("restarting", "component", p.Name, "because", "its configuration changed")
			s.restart(p)
		case p.pid == 0 && !p.waiting:
			s.await(ctx, p)
		}
	}
	for _, p := range s.processes {
		if !wanted[p.Name] {
			p.removed, p.due = true, time.Time{}
			if p.pid != 0 {
				s.signal(p, unix.SIGTERM)
			}
		}
	}
}

func (s *supervisor) find(name string) *process {
	for _, p := range s.processes {
		if p.Name == name {
			return p
		}
	}
	return nil
}

// restart ends a process that will be started again without back-off. It is killed
// when it does not follow the first signal.
func (s *supervisor) restart(p *process) {
	p.delay = 0
	s.signal(p, unix.SIGTERM)
	pid, requests := p.pid, s.requests
	time.AfterFunc(2*grace, func() { requests <- controlCall{kill: pid} })
}

func (s *supervisor) signal(p *process, sig unix.Signal) {
	if err := unix.Kill(p.pid, sig); err != nil {
		s.log.Error("signal not sent", "component", p.Name, "error", err)
	}
}

// await starts the component once what it needs answers.
func (s *supervisor) await(ctx context.Context, p *process) {
	p.due = time.Time{}
	if p.After == "" {
		p.due = time.Now()
		return
	}
	p.waiting = true
	after, ready := p.After, s.ready
	go func() {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		for ctx.Err() == nil && !answers(ctx, after) {
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
		ready <- p
	}()
}

// answers says whether the thing a component starts after is there.
func answers(ctx context.Context, after string) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	network, address, _ := strings.Cut(after, ":")
	if network != "https" {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		if err != nil {
			return false
		}
		return conn.Close() == nil
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+address, http.NoBody)
	if err != nil {
		return false
	}
	// Nothing is believed but that somebody is there; the component checks who.
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // see above
	defer transport.CloseIdleConnections()
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return false
	}
	_ = response.Body.Close()
	return response.StatusCode == http.StatusOK
}

// startDue starts what is due and returns how long until the next start.
func (s *supervisor) startDue(ctx context.Context) time.Duration {
	next := time.Hour
	for _, p := range s.processes {
		if p.pid != 0 || p.due.IsZero() {
			continue
		}
		if wait := time.Until(p.due); wait > 0 {
			next = min(next, wait)
			continue
		}
		p.due = time.Time{}
		if err := s.start(ctx, p); err != nil {
			s.log.Error("not started", "component", p.Name, "error", err)
			p.exit = err.Error()
			s.later(p)
			next = min(next, p.delay)
		}
	}
	return next
}

// later plans the next start, with back-off.
func (s *supervisor) later(p *process) {
	p.delay = min(max(2*p.delay, firstDelay), lastDelay)
	p.due = time.Now().Add(p.delay)
}

// start runs the component in a session of its own.
func (s *supervisor) start(_ context.Context, p *process) error {
	path, err := exec.LookPath(p.Argv[0])
	if err != nil {
		return err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	reader, writer, err := os.Pipe()
	if err != nil {
		return err
	}
	defer writer.Close()
	child, err := os.StartProcess(path, p.Argv, &os.ProcAttr{
		Dir:   "/",
		Env:   environment(),
		Files: []*os.File{null, writer, writer},
		Sys:   &unix.SysProcAttr{Setsid: true},
	})
	if err != nil {
		_ = reader.Close()
		return err
	}
	p.pid, p.started = child.Pid, time.Now()
	s.byPID[p.pid] = p
	_ = child.Release() // reaped by number, like every orphan
	output := p.output
	go func() {
		defer reader.Close()
		_, _ = io.Copy(output, reader)
	}()
	s.log.Info("started", "component", p.Name, "pid", p.pid)
	return nil
}

// environment is the same for all components.
func environment() []string {
	return []string{
		"PATH=" + BinDir + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "LANG=C.UTF-8",
	}
}

// reap collects every child that ended, component or orphan.
func (s *supervisor) reap() {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if p := s.byPID[pid]; p != nil {
			s.ended(p, status)
		}
	}
}

// ended records the end of a component and plans its next start.
func (s *supervisor) ended(p *process, status unix.WaitStatus) {
	delete(s.byPID, p.pid)
	ran := time.Since(p.started)
	p.pid, p.exit = 0, describe(status)
	s.log.Info("ended", "component", p.Name, "exit", p.exit, "after", ran.Round(time.Millisecond).String())
	if p.removed {
		s.processes = slices.DeleteFunc(s.processes, func(other *process) bool { return other == p })
		return
	}
	if ran >= steady {
		p.delay = 0
	}
	p.restarts++
	s.later(p)
}

// describe says how a process ended.
func describe(status unix.WaitStatus) string {
	if status.Signaled() {
		return "signal " + unix.SignalName(status.Signal())
	}
	return fmt.Sprintf("exit code %d", status.ExitStatus())
}

// stop ends the components in reverse order.
func (s *supervisor) stop() {
	for _, p := range s.processes {
		p.removed = true
	}
	for _, p := range slices.Backward(slices.Clone(s.processes)) {
		if p.pid == 0 {
			continue
		}
		s.signal(p, unix.SIGTERM)
		if !s.reapUntil(func() bool { return p.pid == 0 }) {
			s.signal(p, unix.SIGKILL)
			s.reapUntil(func() bool { return p.pid == 0 })
		}
	}
}

// sweep ends everything in the box but the init: what is left are containers.
func (s *supervisor) sweep() {
	// -1 means everybody but the caller.
	if unix.Kill(-1, unix.SIGTERM) == nil {
		s.reapUntil(alone)
	}
	_ = unix.Kill(-1, unix.SIGKILL)
	s.reapUntil(alone)
	unix.Sync()
}

// alone says whether the init has no process beside it.
func alone() bool { return unix.Kill(-1, 0) != nil }

// reapUntil reaps until done, for the grace period at most, and says whether it was.
func (s *supervisor) reapUntil(done func() bool) bool {
	deadline := time.Now().Add(grace)
	for {
		s.reap()
		if done() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
		<-time.After(10 * time.Millisecond) // SIGCHLD is not ours alone in a stop: the box is full of orphans
	}
}
