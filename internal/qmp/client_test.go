package qmp_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"orlop.dev/orlop/internal/qmp"
	"orlop.dev/orlop/internal/qmp/qmptest"
)

func connect(t *testing.T) (*qmptest.Server, *qmp.Client) {
	t.Helper()
	s, conn := qmptest.New(t)
	c, err := qmp.New(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return s, c
}

func TestCommands(t *testing.T) {
	s, c := connect(t)
	if c.Version() != "10.0.2" {
		t.Errorf("got version %s", c.Version())
	}
	s.Handle("query-status", func(json.RawMessage) (any, error) {
		return map[string]any{"running": true, "status": "running"}, nil
	})
	var resized string
	s.Handle("block_resize", func(arguments json.RawMessage) (any, error) {
		resized = string(arguments)
		return nil, nil
	})
	s.Handle("stop", func(json.RawMessage) (any, error) { return nil, errors.New("not now") })

	status, err := c.QueryStatus(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(qmp.Status{Running: true, Status: qmp.StateRunning}, status); diff != "" {
		t.Error(diff)
	}
	if err := c.BlockResize(t.Context(), "node-scsi-0", 1<<30); err != nil {
		t.Error(err)
	}
	if resized != `{"node-name":"node-scsi-0","size":1073741824}` {
		t.Errorf("got arguments %s", resized)
	}
	var refusal *qmp.Error
	if err := c.Stop(t.Context()); !errors.As(err, &refusal) || refusal.Description != "not now" {
		t.Errorf("stop: got %v", err)
	}
	if err := c.Quit(t.Context()); !errors.As(err, &refusal) || refusal.Class != "CommandNotFound" {
		t.Errorf("quit: got %v", err)
	}
}

// Nobody reads events while a command is in flight: its answer must come all the same,
// and no event may be lost or out of order.
func TestEventsDoNotHoldUpAnswers(t *testing.T) {
	s, c := connect(t)
	s.Handle("cont", func(json.RawMessage) (any, error) {
		for range 500 {
			s.Emit(qmp.EventResume, nil)
		}
		s.Emit(qmp.EventShutdown, map[string]any{"guest": true, "reason": "guest-shutdown"})
		return nil, nil
	})
	if err := c.Continue(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.Close()
	var names []string
	var last qmp.Event
	for e := range c.Events() {
		names, last = append(names, e.Name), e
	}
	if len(names) != 501 {
		t.Errorf("got %d events, want 501", len(names))
	}
	var shutdown qmp.ShutdownEvent
	if err := last.Decode(&shutdown); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(qmp.ShutdownEvent{Guest: true, Reason: "guest-shutdown"}, shutdown); diff != "" {
		t.Error(diff)
	}
	if !last.Time.Equal(time.Unix(1, 2000)) {
		t.Errorf("got time %s", last.Time)
	}
}

func TestConnectionEnds(t *testing.T) {
	cases := map[string]func(*qmptest.Server){
		"QEMU is gone":               func(s *qmptest.Server) { go s.Close() },
		"it talks nonsense":          func(s *qmptest.Server) { s.Raw([]byte("{nonsense\n")) },
		"it never ends its line":     func(s *qmptest.Server) { go s.Raw(bytes.Repeat([]byte("x"), 5<<20)) },
		"it sends a list not a dict": func(s *qmptest.Server) { s.Raw([]byte("[]\n")) },
	}
	for name, end := range cases {
		t.Run(name, func(t *testing.T) {
			s, c := connect(t)
			s.Handle("stop", func(json.RawMessage) (any, error) {
				end(s)
				<-c.Done()
				return nil, nil
			})
			if err := c.Stop(t.Context()); !errors.Is(err, qmp.ErrClosed) {
				t.Errorf("pending command: got %v, want ErrClosed", err)
			}
			if err := c.Continue(t.Context()); !errors.Is(err, qmp.ErrClosed) {
				t.Errorf("later command: got %v, want ErrClosed", err)
			}
			for range c.Events() { // must be closed
			}
		})
	}
}

func TestCommandEndsWithItsContext(t *testing.T) {
	s, c := connect(t)
	release := make(chan struct{})
	s.Handle("stop", func(json.RawMessage) (any, error) { <-release; return nil, nil })
	s.Handle("cont", func(json.RawMessage) (any, error) { return nil, nil })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := c.Stop(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	close(release)
	// The late answer belongs to nobody and must not be taken for the next one's.
	if err := c.Continue(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestNoGreeting(t *testing.T) {
	s, conn := qmptest.New(t)
	s.Close()
	buffer := make([]byte, 4096)
	_, _ = conn.Read(buffer) // takes the greeting
	if _, err := qmp.New(t.Context(), conn); !errors.Is(err, qmp.ErrClosed) {
		t.Errorf("got %v, want ErrClosed", err)
	}
}
