package qemu_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/handler/migration"
	"orlop.dev/orlop/internal/handler/tunnel"
	"orlop.dev/orlop/internal/wire"
)

// errCut is what a test's scissors leave.
var errCut = errors.New("cut by the test")

// scissors sit on one channel. Each hook is called before its bytes pass, and cuts the
// channel by returning false; nil lets everything pass.
type scissors struct {
	net.Conn
	// sent counts the bytes towards the target. send is told how many there have been
	// before, and what is about to follow; it says how many of them pass.
	sent int64
	send func(before int64, data []byte) int
	// hear is told what is about to reach the source.
	hear func(data []byte) bool
	cut  atomic.Bool
}

func (s *scissors) Write(data []byte) (int, error) {
	if s.cut.Load() {
		return 0, errCut
	}
	if s.send != nil {
		if n := s.send(s.sent, data); n < len(data) {
			if n > 0 {
				_, _ = s.Conn.Write(data[:n])
			}
			return n, s.snip()
		}
	}
	n, err := s.Conn.Write(data)
	s.sent += int64(n)
	return n, err
}

func (s *scissors) Read(data []byte) (int, error) {
	n, err := s.Conn.Read(data)
	if s.cut.Load() {
		return 0, errCut
	}
	if n > 0 && s.hear != nil && !s.hear(data[:n]) {
		return 0, s.snip()
	}
	return n, err
}

// snip ends the channel in both directions, as a vanished network does.
func (s *scissors) snip() error {
	s.cut.Store(true)
	_ = s.Conn.Close()
	return errCut
}

// CloseWrite is what the relay asks for at the end of one direction.
func (s *scissors) CloseWrite() error {
	if h, ok := s.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return nil
}

// returnPath reads QEMU's messages towards the source: a type and a length of two
// bytes each, then the data. The last is the acknowledgement.
type returnPath struct{ rest []byte }

const acknowledgement = 1

// acknowledges says whether the data contain the target's acknowledgement.
func (r *returnPath) acknowledges(data []byte) bool {
	r.rest = append(r.rest, data...)
	for len(r.rest) >= 4 {
		kind, length := binary.BigEndian.Uint16(r.rest), int(binary.BigEndian.Uint16(r.rest[2:]))
		if len(r.rest) < 4+length {
			return false
		}
		if kind == acknowledgement {
			return true
		}
		r.rest = r.rest[4+length:]
	}
	return false
}

// onMemory puts scissors on the channel of the memory.
func (m *move) onMemory(make func(*scissors)) {
	m.on(tunnel.Memory, func(s *scissors) error { make(s); return nil })
}

// on puts scissors on each new channel of a kind, or refuses it.
func (m *move) on(channel string, make func(*scissors) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	before := m.dial
	m.dial = func(h tunnel.Header, c net.Conn) (net.Conn, error) {
		if before != nil {
			var err error
			if c, err = before(h, c); err != nil {
				return nil, err
			}
		}
		if h.Channel != channel {
			return c, nil
		}
		s := &scissors{Conn: c}
		return s, make(s)
	}
}

// inBulk calls do once while the memory is being copied.
func (m *move) inBulk(do func()) {
	m.onMemory(func(s *scissors) {
		var once sync.Once
		s.send = func(before int64, data []byte) int {
			if before > 2<<20 {
				once.Do(func() { done.Go(do) })
			}
			return len(data)
		}
	})
}

// atOrder calls do before the loop gives QEMU at the source an order.
func (m *move) atOrder(name string, do func()) {
	needle := []byte(`"execute":"` + name + `"`)
	var once sync.Once
	m.source.heed = func(line []byte) {
		if bytes.Contains(line, needle) {
			once.Do(do)
		}
	}
}

// orders watches what is written to a monitor.
type orders struct {
	net.Conn
	see func([]byte)
}

func (o orders) Write(line []byte) (int, error) {
	o.see(line)
	return o.Conn.Write(line)
}

// guarded is the target's launcher: it checks the one rule.
type guarded struct {
	migration.Launcher
	move *move
}

// ResumeIncoming is asked for only when the source's end is on record.
func (g guarded) ResumeIncoming(ctx context.Context) error {
	if p := g.move.source.phase(); p != v1alpha1.MigrationCompleted {
		g.move.t.Errorf("the target is let run while the source is %q", p)
	}
	return g.Launcher.ResumeIncoming(ctx)
}

// outcome is where the guest may be in the end.
type outcome int

const (
	stays outcome = iota
	goes
	either
)

// fault is one thing that goes wrong in a hand-over.
type fault struct {
	name string
	want outcome
	// slow limits the bandwidth, so that the fault comes in the middle of the copy.
	slow  bool
	cause func(*move)
}

// faults are the hand-over, message by message: cut before, in and after each.
func faults(tail int64) []fault {
	after := func(name string, n int64, want outcome) fault {
		return fault{name: name, want: want, cause: func(m *move) {
			var standing atomic.Bool
			m.atOrder("migrate-continue", func() { standing.Store(true) })
			m.onMemory(func(s *scissors) {
				from := int64(-1)
				s.send = func(before int64, data []byte) int {
					if !standing.Load() {
						return len(data)
					}
					if from < 0 {
						from = before
					}
					return int(min(int64(len(data)), max(0, from+n-before)))
				}
			})
		}}
	}
	sent := func(n int64) func(*move) {
		return func(m *move) {
			m.onMemory(func(s *scissors) {
				s.send = func(before int64, data []byte) int { return int(min(int64(len(data)), max(0, n-before))) }
			})
		}
	}
	word := func(make func(attempt int32, s *scissors) error) func(*move) {
		return func(m *move) {
			var attempts atomic.Int32
			m.on(tunnel.Control, func(s *scissors) error { return make(attempts.Add(1), s) })
		}
	}
	return []fault{
		{"the memory's channel is refused", stays, false, func(m *move) {
			m.on(tunnel.Memory, func(*scissors) error { return errCut })
		}},
		{"the memory's channel is cut before its first byte", stays, false, sent(0)},
		{"the memory's channel is cut after its first byte", stays, false, sent(1)},
		{"the memory's channel is cut in the bulk", stays, false, sent(4 << 20)},
		{"the target's first answer is lost", stays, false, func(m *move) {
			m.onMemory(func(s *scissors) { s.hear = func([]byte) bool { return false } })
		}},
		after("cut before the first byte of the switch-over", 0, stays),
		after("cut after the first byte of the switch-over", 1, stays),
		after("cut in the middle of the switch-over", tail/2, either),
		after("cut near the end of the switch-over", tail-64, either),
		{"the acknowledgement is lost", stays, false, func(m *move) {
			m.onMemory(func(s *scissors) {
				var path returnPath
				s.hear = func(data []byte) bool { return !path.acknowledges(data) }
			})
		}},
		{"the memory's channel is cut behind the acknowledgement", either, false, func(m *move) {
			m.onMemory(func(s *scissors) {
				var path returnPath
				passed := false
				s.hear = func(data []byte) bool {
					if passed {
						return false
					}
					passed = path.acknowledges(data)
					return true
				}
			})
		}},
		{"the word's channel is refused, and nobody else carries the word at first", goes, false, func(m *move) {
			m.carries = false
			word(func(attempt int32, _ *scissors) error {
				if attempt < 3 {
					return errCut
				}
				return nil
			})(m)
		}},
		{"the controller's word comes first", goes, false, word(func(attempt int32, _ *scissors) error {
			if attempt < 5 {
				return errCut
			}
			return nil
		})},
		{"the word is cut in two", goes, false, func(m *move) {
			m.carries = false
			word(func(attempt int32, s *scissors) error {
				if attempt == 1 {
					s.send = func(int64, []byte) int { return 5 }
				}
				return nil
			})(m)
		}},
		{"the answer to the word is lost", goes, false, func(m *move) {
			m.carries = false
			word(func(attempt int32, s *scissors) error {
				if attempt == 1 {
					s.hear = func([]byte) bool { return false }
				}
				return nil
			})(m)
		}},
		{"the word of a failure is lost at first", stays, false, func(m *move) {
			sent(1 << 20)(m)
			word(func(attempt int32, _ *scissors) error {
				if attempt == 1 {
					return errCut
				}
				return nil
			})(m)
		}},
		{"called off in the bulk", stays, true, func(m *move) {
			m.inBulk(m.abort)
		}},
		{"called off before the switch-over goes on", either, false, func(m *move) { m.atOrder("migrate-continue", m.abort) }},
		{"called off when it is too late", goes, false, func(m *move) { m.source.when(v1alpha1.MigrationCompleted, m.abort) }},
		{"the source's handler is restarted in the bulk", stays, true, func(m *move) {
			m.inBulk(m.source.restart)
		}},
		{"the target's handler is restarted before the transfer", either, false, func(m *move) {
			m.target.when(v1alpha1.MigrationReady, m.target.restart)
		}},
		{"the target's handler is restarted in the bulk", stays, true, func(m *move) {
			m.inBulk(m.target.restart)
		}},
		{"the source's handler is restarted while the guest stands still", either, false, func(m *move) {
			m.atOrder("migrate-continue", func() { done.Go(m.source.restart) })
		}},
		{"the target's handler is restarted while the guest stands still", either, false, func(m *move) {
			m.atOrder("migrate-continue", func() { done.Go(m.target.restart) })
		}},
		{"the source's handler is restarted before its word", goes, false, func(m *move) {
			m.carries = false
			m.source.when(v1alpha1.MigrationCompleted, m.source.restart)
		}},
		{"the target's handler is restarted before the word", goes, false, func(m *move) {
			m.carries = false
			m.source.when(v1alpha1.MigrationCompleted, m.target.restart)
		}},
		{"the target's QEMU dies before the transfer", stays, false, func(m *move) {
			m.target.when(v1alpha1.MigrationReady, m.target.kill)
		}},
		{"the target's QEMU dies in the bulk", stays, true, func(m *move) {
			m.inBulk(m.target.kill)
		}},
		{"the target's QEMU dies before the switch-over goes on", stays, false, func(m *move) { m.atOrder("migrate-continue", m.target.kill) }},
	}
}

// when does something once, when this side's report has been recorded.
func (s *side) when(p v1alpha1.MigrationPhase, do func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onPhase, s.phaseDo = p, do
}

// restart ends a handler's loop and begins another.
func (s *side) restart() {
	s.crash()
	s.run()
}

// kill ends QEMU as the kernel does when it runs out of memory.
func (s *side) kill() {
	for _, pid := range s.pod.children() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// runs says whether the guest runs on this side.
func (s *side) runs() bool {
	state := s.state()
	return state.Phase == v1alpha1.InstanceRunning && state.GuestStatus == "running"
}

// settle waits until the guest runs on one side, and the other is dead or has never run.
func (m *move) settle() *side {
	m.t.Helper()
	var where *side
	eventually(m.t, "the guest runs on exactly one side", func() error {
		s, t := m.source.phase(), m.target.phase()
		switch {
		case s == v1alpha1.MigrationCompleted && t == v1alpha1.MigrationCompleted:
			if !m.target.runs() {
				return errors.New("it is at the target and stands still")
			}
			if x := m.source.state().Exit; x == nil || x.Cause != v1alpha1.ExitMigrated {
				return fmt.Errorf("the source has not ended as migrated: %+v", x)
			}
			where = m.target
		case s == v1alpha1.MigrationFailed && t == v1alpha1.MigrationFailed:
			if !m.source.runs() {
				return errors.New("it is at the source and stands still")
			}
			if state := m.target.state(); state.Exit == nil || state.StartTime != nil {
				return fmt.Errorf("the target has not ended without having run: %+v", state)
			}
			where = m.source
		default:
			return fmt.Errorf("the source is %q, the target %q", s, t)
		}
		return nil
	})
	return where
}

// TestHandOver moves one guest again and again, while everything that can go wrong
// does, one thing at a time.
func TestHandOver(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to give sockets to the pod's user")
	}
	disk := tinyDisk(t)
	here := newPod(t)
	here.mustStart(tinyRequest(t, disk, small))

	// A move without a fault measures how much is sent while the guest stands still.
	var tail atomic.Int64
	m := newMove(t, here, tinyRequest(t, disk, small), nil)
	var standing atomic.Bool
	m.atOrder("migrate-continue", func() { standing.Store(true) })
	m.onMemory(func(s *scissors) {
		s.send = func(_ int64, data []byte) int {
			if standing.Load() {
				tail.Add(int64(len(data)))
			}
			return len(data)
		}
	})
	m.begin()
	here = m.settle().pod
	m.end()
	t.Logf("%d bytes while the guest stands still", tail.Load())

	for _, f := range faults(tail.Load()) {
		passed := t.Run(f.name, func(t *testing.T) {
			m := newMove(here.t, here, tinyRequest(here.t, disk, small), func(o *v1alpha1.Migration) {
				if f.slow {
					o.BandwidthBytes = 24 << 20
				}
			})
			m.t = t
			f.cause(m)
			m.begin()
			at := m.settle()
			t.Logf("%s: %s; %s", at.name(), m.source.status().Message, m.target.status().Message)
			if f.want == stays && at != m.source || f.want == goes && at != m.target {
				t.Errorf("the guest is at the %s", at.name())
			}
			m.end()
			here = at.pod
		})
		if !passed {
			return // where the guest is nobody knows
		}
	}
	c := here.console()
	c.run("echo $((6 * 7)) is the answer")
	c.expect("42 is the answer")
}

// TestLostGuests are the moves that cost the guest, as the death of its QEMU always
// does: no side may run, and both must say so.
func TestLostGuests(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to give sockets to the pod's user")
	}
	for name, cause := range map[string]func(*move){
		"the source's QEMU dies in the switch-over": func(m *move) { m.atOrder("migrate-continue", m.source.kill) },
		"the target's QEMU dies before it was let run": func(m *move) {
			m.carries = false
			m.on(tunnel.Control, func(*scissors) error {
				m.target.kill()
				return nil
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			disk := tinyDisk(t)
			from := newPod(t)
			from.mustStart(tinyRequest(t, disk, small))
			m := newMove(t, from, tinyRequest(t, disk, small), nil)
			cause(m)
			m.begin()
			eventually(t, "both sides know", func() error {
				s, d := m.source.state(), m.target.state()
				if d.Exit == nil || d.StartTime != nil || m.target.phase() != v1alpha1.MigrationFailed {
					return fmt.Errorf("target: %s", text(d))
				}
				if s.Exit == nil && s.PauseReason != "Migrated" {
					return fmt.Errorf("source: %s", text(s))
				}
				return nil
			})
		})
	}
}

func text(s wire.State) string {
	data, _ := json.Marshal(s)
	return string(data)
}
