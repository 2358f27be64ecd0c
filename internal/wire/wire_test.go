package wire_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/wire"
)

// longDir is a run directory whose path alone exceeds the limit of a socket address.
func longDir(t *testing.T) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), strings.Repeat("x", 120))
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dir.Close() })
	return dir
}

// serve runs a server whose requests go to handle, until the test ends.
func serve(t *testing.T, dir *os.File, handle func(*wire.Request)) *wire.Server {
	t.Helper()
	l, err := wire.Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	s := wire.NewServer(l, func(p wire.Peer) error {
		if int(p.UID) != os.Getuid() || int(p.PID) != os.Getpid() {
			return fmt.Errorf("unexpected peer %+v", p)
		}
		return nil
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for r := range s.Requests() {
			handle(r)
		}
	}()
	t.Cleanup(func() {
		_ = s.Close()
		<-done
	})
	return s
}

func dial(t *testing.T, dir *os.File) *wire.Client {
	t.Helper()
	conn, err := wire.Dial(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	c := wire.NewClient(conn)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func openFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestRequestsAndAnswers(t *testing.T) {
	dir := longDir(t)
	state := wire.State{Phase: v1alpha1.InstanceRunning, QEMUVersion: "10.0.2"}
	got := make(chan string, 100)
	serve(t, dir, func(r *wire.Request) {
		got <- string(r.Type) + " " + string(r.Body)
		switch r.Type {
		case wire.TypeHello:
			r.Answer(wire.Hello{Version: wire.Version, State: &state}, nil)
		case wire.TypeStart:
			var s wire.Start
			if err := r.Decode(&s); err != nil {
				r.Answer(nil, err)
				return
			}
			data, err := io.ReadAll(r.Files[s.Disks[0].FDs[0]])
			wire.CloseFiles(r.Files)
			if string(data) != "disk" || err != nil {
				r.Answer(nil, fmt.Errorf("read descriptor: %q %w", data, err))
				return
			}
			r.Answer(nil, fmt.Errorf("start: %w", wire.ErrAlreadyStarted))
		default:
			r.Answer(nil, nil)
		}
	})
	c := dial(t, dir)
	ctx := t.Context()

	hello, err := c.Hello(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(wire.Hello{Version: 1, State: &state}, hello); diff != "" {
		t.Error(diff)
	}
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, []byte("disk"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	start := wire.Start{Disks: []wire.StartDisk{{ID: "vd-root", FDs: []int{1}}}}
	err = c.Start(ctx, start, []*os.File{os.Stdin, f})
	if !errors.Is(err, wire.ErrAlreadyStarted) || errors.Is(err, wire.ErrNotRunning) {
		t.Errorf("Start: got %v, want ErrAlreadyStarted", err)
	}
	for _, err := range []error{
		c.Shutdown(ctx, 60), c.Kill(ctx), c.SetRebootAction(ctx, v1alpha1.RebootShutdown),
		c.Resume(ctx), c.Resize(ctx, "vd-root", 1<<30), c.Bye(ctx),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	want := []string{
		`shutdown {"gracePeriodSeconds":60}`, "kill ", `reboot-action {"action":"Shutdown"}`,
		"resume ", `resize {"disk":"vd-root","bytes":1073741824}`, "bye ",
	}
	<-got // hello
	<-got // start
	for _, w := range want {
		if g := <-got; g != w {
			t.Errorf("got request %q, want %q", g, w)
		}
	}
}

func TestSlowReaderGetsTheLastState(t *testing.T) {
	dir := longDir(t)
	s := serve(t, dir, func(r *wire.Request) { r.Answer(wire.Hello{Version: 1, State: &wire.State{}}, nil) })
	c := dial(t, dir)
	if _, err := c.Hello(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, p := range []v1alpha1.InstancePhase{v1alpha1.InstanceStarting, v1alpha1.InstanceRunning, v1alpha1.InstanceStopped} {
		if err := s.Publish(wire.State{Phase: p}); err != nil {
			t.Fatal(err)
		}
	}
	// An answer comes after all states of the same connection, so they have been read.
	if _, err := c.Hello(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := <-c.Events(); got.Phase != v1alpha1.InstanceStopped {
		t.Errorf("got phase %q, want Stopped", got.Phase)
	}
}

func TestNewConnectionReplacesTheOld(t *testing.T) {
	dir := longDir(t)
	serve(t, dir, func(r *wire.Request) { r.Answer(wire.Hello{Version: 1, State: &wire.State{}}, nil) })
	first := dial(t, dir)
	if _, err := first.Hello(t.Context()); err != nil {
		t.Fatal(err)
	}
	second := dial(t, dir)
	if _, err := second.Hello(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range first.Events() { // drained until closed
	}
	if err := first.Kill(t.Context()); !errors.Is(err, wire.ErrClosed) && !errors.Is(err, unix.EPIPE) {
		t.Errorf("call on replaced connection: got %v", err)
	}
	if _, err := second.Hello(t.Context()); err != nil {
		t.Errorf("second connection: %v", err)
	}
}

func TestPendingCallEndsWithItsContextAndConnection(t *testing.T) {
	dir := longDir(t)
	serve(t, dir, func(*wire.Request) {}) // never answers
	c := dial(t, dir)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Kill(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled call: got %v", err)
	}
	failed := make(chan error)
	go func() { failed <- c.Kill(t.Context()) }()
	time.AfterFunc(20*time.Millisecond, func() { _ = c.Close() })
	if err := <-failed; err == nil {
		t.Error("call on closed connection succeeded")
	}
}

// A hostile peer must not be able to fill our descriptor table or memory.
func TestHostilePackets(t *testing.T) {
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = null.Close() }()
	fds := make([]int, 200)
	for i := range fds {
		fds[i] = int(null.Fd())
	}
	cases := map[string]struct {
		data []byte
		oob  []byte
		want string
	}{
		"descriptors beside rubbish are closed":   {[]byte("rubbish"), unix.UnixRights(fds[:10]...), "decode message"},
		"more descriptors than a message may":     {[]byte("{}"), unix.UnixRights(fds...), "truncated"},
		"a packet larger than the limit":          {make([]byte, wire.MaxMessage+1), nil, "exceed the limit"},
		"descriptors beside json that is cut off": {[]byte(`{"type":`), unix.UnixRights(fds[:3]...), "decode message"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = unix.Close(pair[0]) }()
			_ = unix.SetsockoptInt(pair[0], unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 4*wire.MaxMessage)
			file := os.NewFile(uintptr(pair[1]), "pair")
			nc, err := net.FileConn(file)
			_ = file.Close()
			if err != nil {
				t.Fatal(err)
			}
			c, err := wire.NewConn(nc.(*net.UnixConn))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			if err := unix.Sendmsg(pair[0], tc.data, tc.oob, nil, 0); err != nil {
				t.Skipf("this kernel lets nobody send it: %v", err)
			}
			before := openFDs(t)
			_, files, err := c.Receive()
			if err == nil || !strings.Contains(err.Error(), tc.want) || files != nil {
				t.Errorf("got %v, %v, want error with %q", files, err, tc.want)
			}
			if after := openFDs(t); after != before {
				t.Errorf("%d descriptors before, %d after", before, after)
			}
		})
	}
}

func TestSocketsOfAHostileDirectory(t *testing.T) {
	cases := map[string]func(t *testing.T, dir string){
		"a symbolic link to somebody else's socket": func(t *testing.T, dir string) {
			other := longDir(t)
			serve(t, other, func(*wire.Request) {})
			if err := os.Symlink(filepath.Join(other.Name(), "l"), filepath.Join(dir, "l")); err != nil {
				t.Fatal(err)
			}
		},
		"a regular file": func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, "l"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"nothing": func(*testing.T, string) {},
	}
	for name, make := range cases {
		t.Run(name, func(t *testing.T) {
			dir := longDir(t)
			make(t, dir.Name())
			if c, err := wire.Dial(t.Context(), dir); err == nil {
				_ = c.Close()
				t.Error("connected")
			}
		})
	}
}

func TestUnknownPeerIsDisconnected(t *testing.T) {
	dir := longDir(t)
	l, err := wire.Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	s := wire.NewServer(l, func(wire.Peer) error { return errors.New("not you") })
	defer func() { _ = s.Close() }()
	c := dial(t, dir)
	if _, err := c.Hello(t.Context()); err == nil {
		t.Error("hello of a refused peer was answered")
	}
}

func TestStateKeepsItsShape(t *testing.T) {
	// Handlers of newer releases read launchers of this one: names are forever.
	data, err := json.Marshal(wire.State{InstanceUID: "u", Phase: "Paused", PauseReason: "NoSpace", GuestStatus: "io-error"})
	if err != nil {
		t.Fatal(err)
	}
	want := `{"instanceUID":"u","phase":"Paused","pauseReason":"NoSpace","guestStatus":"io-error"}`
	if diff := cmp.Diff(want, string(data)); diff != "" {
		t.Error(diff)
	}
}
