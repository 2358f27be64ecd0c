package migration

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/api/equality"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/handler/tunnel"
	"orlop.dev/orlop/internal/qmp"
)

// Launcher takes the orders that are not given to QEMU directly.
type Launcher interface {
	Resume(context.Context) error
	ResumeIncoming(context.Context) error
	Kill(context.Context) error
}

// Config is what a Loop works with.
type Config struct {
	// Namespace of both Instances.
	Namespace string
	Launcher  Launcher
	// Monitor connects to the handler's monitor of QEMU.
	Monitor func(context.Context) (*qmp.Client, error)
	// Socket is the path of the memory's socket as QEMU sees it.
	Socket string
	// Listen makes that socket, at the source.
	Listen func() (net.Listener, error)
	// Check refuses connections to it that are not QEMU's.
	Check func(net.Conn) error
	// DialQEMU connects to that socket, at the target.
	DialQEMU func(context.Context) (net.Conn, error)
	// DialPeer opens a channel to the handler of a node.
	DialPeer func(ctx context.Context, endpoint, node string, h tunnel.Header) (net.Conn, error)
	// Endpoint is where other handlers reach this one.
	Endpoint string
	// Moved is called when the guest's network should lead elsewhere: here, once a
	// target has all of its memory; away, once a source has completed.
	Moved func(here bool)
	Now   func() time.Time
	Log   logr.Logger
}

// Loop is one end of a migration.
type Loop struct {
	config Config
	views  chan View
	// reports holds the newest report that has not been taken.
	reports chan v1alpha1.MigrationStatus
	inbox   chan func(*memory)
	done    chan struct{}

	// The rest belongs to Run's goroutine.
	memory   *memory
	monitor  *qmp.Client
	reported v1alpha1.MigrationStatus
	waiting  []waiter
	moved    bool
	group    sync.WaitGroup

	// mu guards what channels of the tunnel use from their own goroutines.
	mu       sync.Mutex
	order    v1alpha1.Migration
	listener net.Listener
	relays   map[*relay]bool
	shut     bool
	settled  bool
}

// waiter is a control channel that waits for an answer.
type waiter struct {
	completed bool
	answer    chan error
}

// relay is one channel of memory being copied.
type relay struct {
	a, b net.Conn
	done chan struct{}
}

// New makes a Loop for one end, beginning with what is known.
func New(c Config, v View) *Loop {
	return &Loop{
		config:  c,
		views:   make(chan View, 1),
		reports: make(chan v1alpha1.MigrationStatus, 1),
		inbox:   make(chan func(*memory)),
		done:    make(chan struct{}),
		memory:  newMemory(v, c.Endpoint),
		order:   v.Order,
		relays:  map[*relay]bool{},
	}
}

// Tell gives the Loop a newer view. One goroutine calls it.
func (l *Loop) Tell(v View) {
	select {
	case <-l.views:
	default:
	}
	l.views <- v
}

// Reports yields what should be written to the Instance, newest last.
func (l *Loop) Reports() <-chan v1alpha1.MigrationStatus { return l.reports }

// Settled says whether everything that this end owes the other has been done, so that
// its process may be forgotten.
func (l *Loop) Settled() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.settled
}

// Run works until the context ends. The migration does not survive that, unless it had
// completed: its memory goes through this process.
func (l *Loop) Run(ctx context.Context) {
	defer l.close()
	for ctx.Err() == nil {
		next, wake := decide(l.memory, l.config.Now())
		l.publish()
		if next != "" {
			l.perform(ctx, next)
			l.drain()
			continue
		}
		l.wait(ctx, wake)
	}
}

// close lets go of everything. QEMU notices the end of its connections.
func (l *Loop) close() {
	l.shutRelays()
	l.unlisten()
	if l.monitor != nil {
		_ = l.monitor.Close()
	}
	close(l.done)
	l.group.Wait()
	for _, w := range l.waiting {
		w.answer <- errClosed
	}
	l.waiting = nil
}

// publish hands out the report, and answers whom it concerns.
func (l *Loop) publish() {
	m := l.memory
	if m.report.Phase != "" && !equality.Semantic.DeepEqual(m.report, l.reported) {
		if m.report.Phase != l.reported.Phase {
			l.config.Log.Info("migration", "migration", m.report.ID, "phase", string(m.report.Phase), "reason", m.report.Reason, "message", m.report.Message)
		}
		l.reported = *m.report.DeepCopy()
		l.put(l.reported)
	}
	l.steer()
	l.answer()
	if final(m.report.Phase) {
		l.unlisten()
	}
	over := final(m.report.Phase) && (m.view.Order.Role == v1alpha1.MigrationTarget || m.told || m.view.Order.Endpoint == "" || m.goodbyes >= goodbyes)
	l.mu.Lock()
	changed := l.settled != over
	l.settled = over
	l.mu.Unlock()
	if changed {
		l.put(m.report) // for whoever waits for that
	}
}

// put makes a report the next to be taken.
func (l *Loop) put(s v1alpha1.MigrationStatus) {
	select {
	case <-l.reports:
	default:
	}
	l.reports <- *s.DeepCopy()
}

// steer tells once when the guest's network should lead elsewhere.
func (l *Loop) steer() {
	m := l.memory
	if l.moved || l.config.Moved == nil {
		return
	}
	if m.view.Order.Role == v1alpha1.MigrationTarget {
		if m.qemu != nil && m.qemu.migrate.Status == qmp.MigrationCompleted {
			l.moved = true
			l.config.Moved(true)
		}
		return
	}
	if m.report.Phase == v1alpha1.MigrationCompleted {
		l.moved = true
		l.config.Moved(false)
	}
}

// answer tells the source's handler what came of its word.
func (l *Loop) answer() {
	m := l.memory
	rest := l.waiting[:0]
	for _, w := range l.waiting {
		var err error
		switch {
		case w.completed && m.sourceFailed != "" && !m.word():
			err = fmt.Errorf("it was said before that the source has failed: %s", m.sourceFailed)
		case w.completed && m.report.Phase == v1alpha1.MigrationCompleted:
		case w.completed && m.living():
			rest = append(rest, w)
			continue
		case w.completed:
			err = fmt.Errorf("the target has ended: %s", m.report.Message)
		case m.word():
			err = fmt.Errorf("it was said before that the source has completed")
		}
		w.answer <- err
	}
	l.waiting = rest
}

// wait waits for anything to happen.
func (l *Loop) wait(ctx context.Context, wake time.Time) {
	var alarm <-chan time.Time
	if !wake.IsZero() {
		timer := time.NewTimer(wake.Sub(l.config.Now()))
		defer timer.Stop()
		alarm = timer.C
	}
	select {
	case <-ctx.Done():
	case <-alarm:
		l.memory.qemu = nil
	case v := <-l.views:
		l.see(v)
	case e, ok := <-l.events():
		l.heard(e, ok)
	case do := <-l.inbox:
		do(l.memory)
	}
}

// drain takes in what happened meanwhile, without waiting for it.
func (l *Loop) drain() {
	for {
		select {
		case v := <-l.views:
			l.see(v)
		case e, ok := <-l.events():
			l.heard(e, ok)
		case do := <-l.inbox:
			do(l.memory)
		default:
			return
		}
	}
}

// see takes in a view. A new order begins everything anew.
func (l *Loop) see(v View) {
	if v.Order.ID != l.memory.view.Order.ID || v.Order.Role != l.memory.view.Order.Role {
		l.shutRelays()
		l.unlisten()
		for _, w := range l.waiting {
			w.answer <- errClosed
		}
		l.waiting, l.moved = nil, false
		l.reported = v1alpha1.MigrationStatus{}
		l.memory = newMemory(v, l.config.Endpoint)
		l.mu.Lock()
		l.order, l.shut, l.settled = v.Order, false, false
		l.mu.Unlock()
		return
	}
	if v.Launcher.GuestStatus != l.memory.view.Launcher.GuestStatus {
		l.memory.qemu = nil
	}
	l.memory.view = v
	l.mu.Lock()
	l.order = v.Order
	l.mu.Unlock()
}

func (l *Loop) events() <-chan qmp.Event {
	if l.monitor == nil {
		return nil
	}
	return l.monitor.Events()
}

// heard makes QEMU be asked again after everything that may concern us.
func (l *Loop) heard(e qmp.Event, ok bool) {
	if !ok {
		_ = l.monitor.Close()
		l.monitor, l.memory.qemu = nil, nil
		return
	}
	switch e.Name {
	case qmp.EventMigration, qmp.EventMigrationPass, qmp.EventStop, qmp.EventResume:
		l.memory.qemu = nil
	}
}

// post lets a goroutine change the memory; it reports whether there still is one.
func (l *Loop) post(do func(*memory)) bool {
	select {
	case l.inbox <- do:
		return true
	case <-l.done:
		return false
	}
}
