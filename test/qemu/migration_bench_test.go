package qemu_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"orlop.dev/orlop/internal/qemu"
	"orlop.dev/orlop/internal/qmp"
)

// benchRounds is how often each way is gone, in turns.
const benchRounds = 5

// span is one move, as QEMU's own clocks saw it: all of it, and how long the guest
// stood still.
type span struct{ total, down time.Duration }

// TestBenchMigration compares a move through two handlers and their tunnel with QEMU
// to QEMU over one socket: the same guest, memory and dirty rate, in turns. Only `make
// bench-migrate` runs it.
func TestBenchMigration(t *testing.T) {
	if os.Getenv("ORLOP_BENCH") == "" {
		t.Skip("a benchmark")
	}
	disk := tinyDisk(t)
	here := newPod(t)
	c := here.mustStart(tinyRequest(t, disk, small))
	var downs, totals []float64
	for _, load := range []struct{ name, command string }{
		{"idle", ""},
		{"dirtying", "while :; do dd if=/dev/zero of=/dev/shm/dirty bs=1M count=16 conv=notrunc 2>/dev/null; done &"},
	} {
		if load.command != "" {
			c = here.console()
			c.run(load.command)
		}
		var raw, ours []span
		for range benchRounds {
			var s span
			here, s = moveRaw(t, here, tinyRequest(t, disk, small))
			raw = append(raw, s)
			here, s = moveThroughHandlers(t, here, tinyRequest(t, disk, small))
			ours = append(ours, s)
		}
		r, o := middle(raw), middle(ours)
		down, total := float64(o.down)/float64(r.down), float64(o.total)/float64(r.total)
		downs, totals = append(downs, down), append(totals, total)
		fmt.Printf("%s: raw total %d ms, down %d ms; through handlers total %d ms, down %d ms\n", load.name,
			r.total.Milliseconds(), r.down.Milliseconds(), o.total.Milliseconds(), o.down.Milliseconds())
	}
	fmt.Printf("downtime_ratio=%.2f total_ratio=%.2f\n", slices.Max(downs), slices.Max(totals))
}

// middle is the median of each.
func middle(all []span) span {
	totals, downs := make([]time.Duration, len(all)), make([]time.Duration, len(all))
	for i, s := range all {
		totals[i], downs[i] = s.total, s.down
	}
	slices.Sort(totals)
	slices.Sort(downs)
	return span{totals[len(totals)/2], downs[len(downs)/2]}
}

// moveRaw moves a guest as two QEMUs do it alone.
func moveRaw(t *testing.T, from *pod, r *request) (*pod, span) {
	t.Helper()
	r.Incoming = true
	to := newPod(t)
	if err := to.start(r); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	monitors := make([]*qmp.Client, 2)
	for i, p := range []*pod{from, to} {
		m, err := qmp.Dial(ctx, filepath.Join(p.dir, qemu.HandlerMonitorSocket))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = m.Close() }()
		monitors[i] = m
		capabilities := map[string]bool{qmp.CapabilityReturnPath: true, qmp.CapabilityEvents: true, qmp.CapabilityPauseBeforeSwitchover: false}
		if err := m.SetMigrationCapabilities(ctx, capabilities); err != nil {
			t.Fatal(err)
		}
	}
	source, target := monitors[0], monitors[1]
	uri := "unix:" + filepath.Join(to.dir, qemu.MigrateSocket)
	if err := target.MigrateIncoming(ctx, uri); err != nil {
		t.Fatal(err)
	}
	// Before the guest has come this only says that it may run at once.
	if err := target.Continue(ctx); err != nil {
		t.Fatal(err)
	}
	if err := source.SetMigrationParameters(ctx, qmp.MigrationParameters{MaxBandwidth: 1 << 40}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := source.Migrate(ctx, uri); err != nil {
		t.Fatal(err)
	}
	stopped, resumed := await(t, source, qmp.EventStop), await(t, target, qmp.EventResume)
	eventually(t, "the source has completed", func() error {
		m, err := source.QueryMigrate(ctx)
		if err == nil && m.Status != qmp.MigrationCompleted {
			err = fmt.Errorf("it is %s", m.Status)
		}
		return err
	})
	if err := from.client.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	// The launcher learns that its guest runs: it has been let run behind its back.
	if err := to.client.ResumeIncoming(ctx); err != nil {
		t.Fatal(err)
	}
	return to, span{resumed.Sub(began), resumed.Sub(stopped)}
}

func await(t *testing.T, m *qmp.Client, name string) time.Time {
	t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case e, ok := <-m.Events():
			if !ok {
				t.Fatalf("QEMU ended before %s", name)
			}
			if e.Name == name {
				return e.Time
			}
		case <-timeout:
			t.Fatalf("QEMU does not say %s", name)
		}
	}
}

// moveThroughHandlers moves a guest as Orlop does.
func moveThroughHandlers(t *testing.T, from *pod, r *request) (*pod, span) {
	t.Helper()
	m := newMove(t, from, r, nil)
	times := &clock{at: map[string]time.Time{}}
	m.atOrder("migrate", func() { times.note("migrate", time.Now()) })
	m.source.overhear, m.target.overhear = times.hear, times.hear
	m.begin()
	to := m.settle().pod
	if to == from {
		t.Fatal("the guest has stayed")
	}
	m.end()
	to.connect()
	return to, span{times.get("RESUME").Sub(times.get("migrate")), times.get("RESUME").Sub(times.get("STOP"))}
}

// clock notes when things were said.
type clock struct {
	mu sync.Mutex
	at map[string]time.Time
}

func (c *clock) note(name string, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, known := c.at[name]; !known {
		c.at[name] = at
	}
}

func (c *clock) get(name string) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at[name]
}

// hear reads QEMU's events with their times.
func (c *clock) hear(line []byte) {
	var e struct {
		Event     string `json:"event"`
		Timestamp struct {
			Seconds      int64 `json:"seconds"`
			Microseconds int64 `json:"microseconds"`
		} `json:"timestamp"`
	}
	if json.Unmarshal(line, &e) == nil && e.Event != "" {
		c.note(e.Event, time.Unix(e.Timestamp.Seconds, e.Timestamp.Microseconds*1000))
	}
}

// overheard lets somebody listen to what a monitor says, line by line.
type overheard struct {
	net.Conn
	hear func([]byte)
	rest []byte
}

func (o *overheard) Read(data []byte) (int, error) {
	n, err := o.Conn.Read(data)
	o.rest = append(o.rest, data[:n]...)
	for {
		line, rest, found := bytes.Cut(o.rest, []byte("\n"))
		if !found {
			return n, err
		}
		o.hear(line)
		o.rest = rest
	}
}
