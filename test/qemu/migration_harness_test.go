package qemu_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/handler/migration"
	"orlop.dev/orlop/internal/handler/podfs"
	"orlop.dev/orlop/internal/handler/tunnel"
	"orlop.dev/orlop/internal/pki"
	"orlop.dev/orlop/internal/qemu"
	"orlop.dev/orlop/internal/qmp"
	"orlop.dev/orlop/internal/wire"
)

// Nodes of a move.
const (
	nodeA = "node-a"
	nodeB = "node-b"
)

// move is one migration of one guest between two pods, each with the migration loop of
// a handler, a tunnel with real certificates between them, and what the API server and
// the controller would do.
type move struct {
	t              *testing.T
	id             string
	source, target *side

	mu sync.Mutex
	// carries is false for a controller that does not carry the source's word.
	carries bool
	// dial may replace a channel, to cut it; nil for none.
	dial func(h tunnel.Header, c net.Conn) (net.Conn, error)
	log  []string

	stopTunnel func()
}

// side is a node's part in a move.
type side struct {
	move *move
	pod  *pod

	mu       sync.Mutex
	order    v1alpha1.Migration
	accepted v1alpha1.MigrationStatus
	launcher wire.State
	loop     *migration.Loop
	// wake says that the loop should be told something.
	wake chan struct{}
	stop func()
	// heed sees what is written to QEMU's monitor.
	heed func([]byte)
	// overhear is told what QEMU says on it.
	overhear func(line []byte)
	// phaseDo is done once the report is in onPhase.
	onPhase v1alpha1.MigrationPhase
	phaseDo func()

	listener net.Listener
	identity *pki.Held
}

var authority = sync.OnceValues(func() (*pki.Authority, error) { return pki.NewAuthority("handlers", time.Now()) })

func identity(t *testing.T, node string) *pki.Held {
	t.Helper()
	ca, err := authority()
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.Issue(pki.Leaf{CommonName: "virt-handler:" + node, DNSNames: []string{node}, Server: true, Client: true}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	held := &pki.Held{}
	if err := errors.Join(held.SetPair(pair), held.SetRoots(ca.CertificatePEM())); err != nil {
		t.Fatal(err)
	}
	return held
}

var moves int

// newMove prepares the target of a running guest: a launcher with a QEMU that waits.
func newMove(t *testing.T, from *pod, r *request, change func(*v1alpha1.Migration)) *move {
	t.Helper()
	moves++
	m := &move{t: t, id: fmt.Sprintf("move-%d", moves), carries: true}
	r.Incoming = true
	to := newPod(t)
	if err := to.start(r); err != nil {
		t.Fatal(err)
	}
	m.source = &side{move: m, pod: from, identity: identity(t, nodeA), wake: make(chan struct{}, 1),
		order: v1alpha1.Migration{ID: m.id, Role: v1alpha1.MigrationSource, Peer: "target", PeerNode: nodeB}}
	m.target = &side{move: m, pod: to, identity: identity(t, nodeB), wake: make(chan struct{}, 1),
		order: v1alpha1.Migration{ID: m.id, Role: v1alpha1.MigrationTarget, Peer: "source", PeerNode: nodeA}}
	if change != nil {
		change(&m.source.order)
	}
	m.listen()
	return m
}

// listen serves the target node's end of the tunnel.
func (m *move) listen() {
	m.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		m.t.Fatal(err)
	}
	m.target.listener = l
	server := &tunnel.Server{
		Config: pki.ServerConfig(m.target.identity, m.target.identity),
		Admit: func(ctx context.Context, node string, h tunnel.Header) (func(net.Conn), error) {
			m.target.mu.Lock()
			loop := m.target.loop
			m.target.mu.Unlock()
			if loop == nil {
				return nil, errors.New("no handler")
			}
			return loop.Admit(ctx, node, h)
		},
		Refused: func(node string, h tunnel.Header, err error) { m.note("refused %s %s: %v", node, h.Channel, err) },
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(ctx, l)
	}()
	m.stopTunnel = sync.OnceFunc(func() { cancel(); <-done })
	m.t.Cleanup(m.end)
}

// end stops both handlers, and shows what they said if the test has failed.
func (m *move) end() {
	done.Wait()
	m.source.crash()
	m.target.crash()
	m.stopTunnel()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.t.Failed() {
		for _, line := range m.log {
			m.t.Log(line)
		}
	}
	m.log = nil
}

func (m *move) note(format string, args ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.log = append(m.log, time.Now().Format("05.000 ")+m.id+" "+fmt.Sprintf(format, args...))
}

func (m *move) begin() {
	m.target.run()
	m.source.run()
}

// control does what the controller does between two Instances.
func (m *move) control() {
	m.mu.Lock()
	carries := m.carries
	m.mu.Unlock()
	m.target.mu.Lock()
	endpoint := m.target.accepted.Endpoint
	m.target.mu.Unlock()
	m.source.mu.Lock()
	completed := m.source.accepted.Phase == v1alpha1.MigrationCompleted
	told := m.source.order.Endpoint == endpoint
	m.source.order.Endpoint = endpoint
	m.source.mu.Unlock()
	if !told {
		m.source.nudge()
	}
	if completed && carries {
		m.target.change(func(o *v1alpha1.Migration) { o.SourceCompleted = true })
	}
}

// abort calls the migration off.
func (m *move) abort() {
	for _, s := range []*side{m.source, m.target} {
		s.change(func(o *v1alpha1.Migration) { o.Abort = true })
	}
}

func (s *side) change(do func(*v1alpha1.Migration)) {
	s.mu.Lock()
	do(&s.order)
	s.mu.Unlock()
	s.nudge()
}

func (s *side) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *side) name() string { return string(s.order.Role) }

func (s *side) phase() v1alpha1.MigrationPhase {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.accepted.Phase
}

func (s *side) status() v1alpha1.MigrationStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return *s.accepted.DeepCopy()
}

// run begins a handler's loop, as a handler does that has just been started.
func (s *side) run() {
	client, state, err := s.adopt()
	if err != nil {
		s.move.t.Errorf("%s: %v", s.name(), err)
		return
	}
	s.mu.Lock()
	s.launcher = state
	view := migration.View{Order: s.order, Accepted: s.accepted, Launcher: s.launcher}
	loop := migration.New(s.config(client), view)
	s.loop = loop
	s.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() { loop.Run(ctx) })
	group.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case state, ok := <-client.Events():
				if !ok {
					return
				}
				s.mu.Lock()
				s.launcher = state
				s.mu.Unlock()
				s.move.note("%s launcher: %s %s %s", s.name(), state.Phase, state.PauseReason, state.GuestStatus)
			case report := <-loop.Reports():
				s.mu.Lock()
				s.accepted = report
				var do func()
				if s.phaseDo != nil && report.Phase == s.onPhase {
					do, s.phaseDo = s.phaseDo, nil
				}
				s.mu.Unlock()
				if do != nil {
					done.Go(do) // it may end this very goroutine
				}
				s.move.control()
			case <-s.wake:
			}
			s.mu.Lock()
			view := migration.View{Order: s.order, Accepted: s.accepted, Launcher: s.launcher}
			s.mu.Unlock()
			loop.Tell(view)
		}
	})
	s.mu.Lock()
	s.stop = func() {
		cancel()
		group.Wait()
		_ = client.Close()
	}
	s.mu.Unlock()
}

// done are the things that go wrong by themselves.
var done sync.WaitGroup

// adopt connects to the launcher, as a restarted handler does.
func (s *side) adopt() (*wire.Client, wire.State, error) {
	dir, err := os.Open(s.pod.dir)
	if err != nil {
		return nil, wire.State{}, err
	}
	defer func() { _ = dir.Close() }()
	conn, err := wire.Dial(context.Background(), dir)
	if err != nil {
		return nil, wire.State{}, err
	}
	client := wire.NewClient(conn)
	hello, err := client.Hello(context.Background())
	if err != nil {
		_ = client.Close()
		return nil, wire.State{}, err
	}
	return client, *hello.State, nil
}

// state is the launcher's newest.
func (s *side) state() wire.State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.launcher
}

// crash ends a handler's loop; what it knew is lost.
func (s *side) crash() {
	s.mu.Lock()
	stop := s.stop
	s.stop, s.loop = nil, nil
	s.mu.Unlock()
	if stop != nil {
		stop()
	}
}

func (s *side) config(client *wire.Client) migration.Config {
	return migration.Config{
		Namespace: "test",
		Launcher:  guarded{client, s.move},
		Monitor: func(ctx context.Context) (*qmp.Client, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(s.pod.dir, qemu.HandlerMonitorSocket))
			if err != nil {
				return nil, err
			}
			if s.heed != nil {
				conn = orders{conn, s.heed}
			}
			if s.overhear != nil {
				conn = &overheard{Conn: conn, hear: s.overhear}
			}
			return qmp.New(ctx, conn)
		},
		Socket: filepath.Join(s.pod.dir, qemu.MigrateSocket),
		Listen: func() (net.Listener, error) {
			dir, err := os.Open(s.pod.dir)
			if err != nil {
				return nil, err
			}
			return podfs.ListenIn(dir, qemu.MigrateSocket, podUser)
		},
		Check: func(net.Conn) error { return nil },
		DialQEMU: func(ctx context.Context) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(s.pod.dir, qemu.MigrateSocket))
		},
		DialPeer: func(ctx context.Context, endpoint, node string, h tunnel.Header) (net.Conn, error) {
			config, err := pki.ClientConfig(s.identity, s.identity, node)
			if err != nil {
				return nil, err
			}
			return s.move.reach(ctx, endpoint, node, config, h)
		},
		Endpoint: s.endpoint(),
		Now:      time.Now,
		Log:      s.logger(),
	}
}

func (s *side) endpoint() string {
	if s.listener == nil {
		return ""
	}
	return s.listener.Addr().String()
}

func (s *side) logger() logr.Logger {
	return funcr.New(func(_, args string) { s.move.note("%s %s", s.name(), args) }, funcr.Options{})
}

// reach opens a channel, unless the test cuts it.
func (m *move) reach(ctx context.Context, endpoint, node string, config *tls.Config, h tunnel.Header) (net.Conn, error) {
	m.mu.Lock()
	dial := m.dial
	m.mu.Unlock()
	c, err := tunnel.Dial(ctx, endpoint, node, config, h)
	if err != nil || dial == nil {
		return c, err
	}
	cut, err := dial(h, c)
	if err != nil {
		_ = c.Close()
	}
	return cut, err
}

// await waits until both ends have said their last word.
func (m *move) await(source, target v1alpha1.MigrationPhase) {
	m.t.Helper()
	eventually(m.t, fmt.Sprintf("source %s, target %s", source, target), func() error {
		if s, t := m.source.phase(), m.target.phase(); s != source || t != target {
			return fmt.Errorf("source is %s, target %s", s, t)
		}
		return nil
	})
}

func errNot(want string, got any) error { return fmt.Errorf("want %s, got %+v", want, got) }
