package launcher_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/launcher"
	"orlop.dev/orlop/internal/qemu"
	"orlop.dev/orlop/internal/qmp"
	"orlop.dev/orlop/internal/qmp/qmptest"
	"orlop.dev/orlop/internal/wire"
)

func statusOf(s string) qmp.RunState { return qmp.RunState(s) }

// The launcher reaps every child of its process, so it runs in a process of its own:
// this test binary, which is also the QEMU it starts.
func TestMain(m *testing.M) {
	switch os.Getenv("ORLOP_TEST_ROLE") {
	case "launcher":
		os.Exit(beLauncher())
	case "":
	}
	if len(os.Args) > 1 && os.Args[1] == "-name" { // QEMU's first option
		os.Exit(beQEMU())
	}
	os.Exit(m.Run())
}

func beLauncher() int {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGCHLD)
	dir := os.Getenv("ORLOP_TEST_DIR")
	code, err := launcher.Run(context.Background(), launcher.Config{
		QEMU:           os.Args[0],
		RunDir:         dir,
		FirstBootDir:   dir,
		TerminationLog: filepath.Join(dir, "termination-log"),
		Allow:          func(wire.Peer) error { return nil },
		Signals:        signals,
		Now:            time.Now,
		Log:            slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	return code
}

// beQEMU plays QEMU. The guest's name says what it does.
func beQEMU() int {
	role, _, _ := strings.Cut(strings.TrimPrefix(os.Args[2], "guest="), ",")
	if role == "refuses" {
		fmt.Fprintln(os.Stderr, "first line")
		fmt.Fprintln(os.Stderr, "qemu: no such thing")
		return 1
	}
	monitor := os.NewFile(monitorFD(), "monitor")
	conn, err := net.FileConn(monitor)
	_ = monitor.Close()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	finish := make(chan int, 1)
	qmptest.Serve(conn, func(s *qmptest.Server) { behave(role, s, finish) })
	return <-finish
}

// behave answers what a launcher asks.
func behave(role string, s *qmptest.Server, finish chan<- int) {
	nothing := func(json.RawMessage) (any, error) { return nil, nil }
	s.Handle("set-action", nothing)
	s.Handle("query-block", func(json.RawMessage) (any, error) { return []any{}, nil })
	s.Handle("query-status", func(json.RawMessage) (any, error) {
		return map[string]any{"running": false, "status": "io-error"}, nil
	})
	s.Handle("query-chardev", func(json.RawMessage) (any, error) {
		return []any{map[string]any{"label": "qga", "frontend-open": true, "filename": "x"}}, nil
	})
	s.Handle("cont", func(json.RawMessage) (any, error) {
		go act(role, s, finish)
		return nil, nil
	})
	s.Handle("system_powerdown", nothing)
	if role != "deaf" {
		s.Handle("system_powerdown", func(json.RawMessage) (any, error) {
			s.Emit("SHUTDOWN", map[string]any{"guest": true, "reason": "guest-shutdown"})
			finish <- 0
			return nil, nil
		})
	}
}

// act is what the guest does by itself once it runs.
func act(role string, s *qmptest.Server, finish chan<- int) {
	time.Sleep(50 * time.Millisecond) // a guest does nothing before `cont` has been answered
	switch role {
	case "resets":
		s.Emit("SHUTDOWN", map[string]any{"guest": true, "reason": "guest-reset"})
		finish <- 0
	case "full":
		s.Emit("BLOCK_IO_ERROR", map[string]any{"action": "stop", "nospace": true, "operation": "write"})
		s.Emit("STOP", nil)
	case "agent":
		s.Emit("VSERPORT_CHANGE", map[string]any{"id": "agent", "open": true})
	case "hangs-up":
		s.Close()
	case "aborts":
		fmt.Fprintln(os.Stderr, "assertion failed")
		finish <- 134
	}
}

// monitorFD is the descriptor in "-chardev socket,id=qmp,fd=N".
func monitorFD() uintptr {
	for _, a := range os.Args {
		if rest, ok := strings.CutPrefix(a, "socket,id=qmp,fd="); ok {
			var n uintptr
			if _, err := fmt.Sscan(rest, &n); err == nil {
				return n
			}
		}
	}
	return 0
}

// fixture is a running launcher and a client of it.
type fixture struct {
	cmd    *exec.Cmd
	dir    string
	client *wire.Client
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{dir: t.TempDir()}
	f.cmd = exec.Command(os.Args[0])
	f.cmd.Env = append(os.Environ(), "ORLOP_TEST_ROLE=launcher", "ORLOP_TEST_DIR="+f.dir)
	log := &strings.Builder{}
	f.cmd.Stderr = log
	if err := f.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if f.client != nil {
			_ = f.client.Kill(context.Background())
			_ = f.client.Close()
		}
		_ = f.cmd.Process.Kill()
		_ = f.cmd.Wait()
		if t.Failed() {
			t.Log(log.String())
		}
	})
	dir, err := os.Open(f.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dir.Close() }()
	for range 500 {
		conn, dialErr := wire.Dial(t.Context(), dir)
		if err = dialErr; err == nil {
			f.client = wire.NewClient(conn)
			return f
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal(err)
	return nil
}

func (f *fixture) start(ctx context.Context, role string) error {
	return f.client.Start(ctx, wire.Start{
		InstanceUID: "u",
		Machine: v1alpha1.Machine{
			Type: qemu.DefaultMachineType, Accelerator: v1alpha1.AcceleratorTCG, Hostname: role,
			CPU:    v1alpha1.CPU{Model: "max", Sockets: 1, CoresPerSocket: 1},
			Memory: v1alpha1.Memory{Size: resource.MustParse("64Mi")},
		},
		GracePeriodSeconds: 30,
	}, nil)
}

// await waits for a state.
func (f *fixture) await(t *testing.T, ok func(wire.State) bool) wire.State {
	t.Helper()
	h, err := f.client.Hello(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if ok(*h.State) {
		return *h.State
	}
	timeout := time.After(20 * time.Second)
	for {
		select {
		case s := <-f.client.Events():
			if ok(s) {
				return s
			}
		case <-timeout:
			t.Fatal("state does not come")
		}
	}
}

func stopped(s wire.State) bool { return s.Exit != nil }

func TestProcessEnds(t *testing.T) {
	cases := map[string]struct {
		role      string
		do        func(context.Context, *fixture) error
		wantStart string
		want      v1alpha1.ExitCause
		wantText  string
		wantCode  int
	}{
		"it follows the power button": {
			role: "obeys", want: v1alpha1.ExitHostShutdown,
			do: func(ctx context.Context, f *fixture) error { return f.client.Shutdown(ctx, 30) },
		},
		"it is deaf and killed": {
			role: "deaf", want: v1alpha1.ExitKilled,
			do: func(ctx context.Context, f *fixture) error { return f.client.Shutdown(ctx, 1) },
		},
		"it is killed at once": {
			role: "deaf", want: v1alpha1.ExitKilled,
			do: func(ctx context.Context, f *fixture) error { return f.client.Kill(ctx) },
		},
		"the pod is deleted": {
			role: "obeys", want: v1alpha1.ExitHostShutdown,
			do: func(_ context.Context, f *fixture) error { return f.cmd.Process.Signal(syscall.SIGTERM) },
		},
		"it resets":           {role: "resets", want: v1alpha1.ExitGuestReset},
		"it aborts":           {role: "aborts", want: v1alpha1.ExitCrashed, wantText: "assertion failed", wantCode: 1},
		"it refuses to run":   {role: "refuses", want: v1alpha1.ExitStartFailed, wantStart: "no such thing", wantText: "no such thing", wantCode: 1},
		"it lives on unheard": {role: "hangs-up", want: v1alpha1.ExitCrashed, wantText: "monitor", wantCode: 1},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			err := f.start(t.Context(), tc.role)
			if tc.wantStart == "" && err != nil || tc.wantStart != "" && (err == nil || !strings.Contains(err.Error(), tc.wantStart)) {
				t.Fatalf("start: got %v, want %q", err, tc.wantStart)
			}
			if tc.do != nil {
				if err := tc.do(t.Context(), f); err != nil {
					t.Fatal(err)
				}
			}
			x := f.await(t, stopped).Exit
			if x.Cause != tc.want || !strings.Contains(x.Message, tc.wantText) {
				t.Errorf("got exit %+v, want %s %q", x, tc.want, tc.wantText)
			}
			if err := f.start(t.Context(), "obeys"); !errors.Is(err, wire.ErrAlreadyStarted) {
				t.Errorf("second start: got %v", err)
			}
			var message v1alpha1.Exit
			data, err := os.ReadFile(filepath.Join(f.dir, "termination-log"))
			if err != nil || json.Unmarshal(data, &message) != nil || message.Cause != tc.want {
				t.Errorf("got termination message %q, %v", data, err)
			}
			if err := f.client.Bye(t.Context()); err != nil {
				t.Error(err)
			}
			_ = f.cmd.Wait()
			if code := f.cmd.ProcessState.ExitCode(); code != tc.wantCode {
				t.Errorf("launcher exits with %d, want %d", code, tc.wantCode)
			}
		})
	}
}

func TestPause(t *testing.T) {
	f := newFixture(t)
	if err := f.start(t.Context(), "full"); err != nil {
		t.Fatal(err)
	}
	s := f.await(t, func(s wire.State) bool { return s.Phase == v1alpha1.InstancePaused })
	if s.PauseReason != "NoSpace" {
		t.Errorf("got %+v", s)
	}
}

func TestAgentOpensItsChannel(t *testing.T) {
	f := newFixture(t)
	if err := f.start(t.Context(), "agent"); err != nil {
		t.Fatal(err)
	}
	f.await(t, func(s wire.State) bool { return s.AgentConnected })
}

func TestUnknownRequestIsRefused(t *testing.T) {
	f := newFixture(t)
	if err := f.client.SetRebootAction(t.Context(), "Explode"); err == nil {
		t.Error("an unknown reboot action was accepted")
	}
	if err := f.client.Resume(t.Context()); !errors.Is(err, wire.ErrNotRunning) {
		t.Errorf("resume without a guest: got %v", err)
	}
}
