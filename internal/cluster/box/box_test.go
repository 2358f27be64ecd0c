package box

import (
	"context"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// run starts a supervisor on the components and returns its directory and a function
// that stops it in order. It reaps every child of the test process, as an init does,
// so these tests must not run in parallel with others that have children.
func run(t *testing.T, components ...Component) (dir string, stop func()) {
	t.Helper()
	dir = t.TempDir()
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGCHLD)
	t.Cleanup(func() { signal.Stop(signals) })
	ctx, cancel := context.WithCancel(t.Context())
	s := &supervisor{
		log: slog.New(slog.DiscardHandler), dir: dir, byPID: map[int]*process{}, refresh: func(*Spec) error { return nil },
		ready: make(chan *process), requests: make(chan controlCall), signals: signals,
	}
	if err := (&Spec{Name: "test", Dir: dir, Components: components}).Write(); err != nil {
		t.Fatal(err)
	}
	if err := serve(ctx, filepath.Join(dir, controlName), s.requests); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.loop(ctx, components, func() {})
	}()
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			signals <- unix.SIGTERM
			<-done
		}
	}
	t.Cleanup(func() { stop(); cancel() })
	return dir, stop
}

// status waits until the component is as wanted.
func status(t *testing.T, dir, component string, want func(ComponentStatus) bool) ComponentStatus {
	t.Helper()
	var last ComponentStatus
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		s, err := GetStatus(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		last = ComponentStatus{}
		for _, c := range s.Components {
			if c.Name == component {
				last = c
			}
		}
		if want(last) {
			return last
		}
	}
	t.Fatalf("%s stays %+v", component, last)
	return last
}

func running(c ComponentStatus) bool { return c.PID != 0 }

func sleeper(name string, more ...string) Component {
	return Component{Name: name, Argv: append([]string{"/bin/sh", "-c", "echo " + name + " runs; exec sleep 1000"}, more...), Revision: "1"}
}

func TestWhatDiesIsStartedAgain(t *testing.T) {
	dir, _ := run(t, sleeper("a"), sleeper("b"))
	first := status(t, dir, "a", running)
	other := status(t, dir, "b", running)
	logged(t, dir, 1) // started is not the same as having spoken
	if err := unix.Kill(first.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	again := status(t, dir, "a", func(c ComponentStatus) bool { return running(c) && c.PID != first.PID })
	if again.Restarts != 1 || again.LastExit != "signal SIGKILL" {
		t.Errorf("restarts %d, last exit %q; want 1, signal SIGKILL", again.Restarts, again.LastExit)
	}
	if now := status(t, dir, "b", running); now.PID != other.PID {
		t.Error("the other component was restarted too")
	}
	logged(t, dir, 2)
}

// logged waits until the log of component a has the words of so many starts.
func logged(t *testing.T, dir string, want int) {
	t.Helper()
	var got int
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		text, err := os.ReadFile(LogFile(dir, "a"))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		if got = strings.Count(string(text), "a runs\n"); got == want {
			return
		}
	}
	t.Fatalf("the log has the output of %d starts, want %d", got, want)
}

func TestBackOff(t *testing.T) {
	dir, _ := run(t, Component{Name: "a", Argv: []string{"/bin/sh", "-c", "exit 3"}})
	time.Sleep(2 * time.Second)
	// 0, 0.2, 0.6, 1.4 s: three restarts; many more would be a busy loop.
	got := status(t, dir, "a", func(c ComponentStatus) bool { return c.Restarts > 1 })
	if got.Restarts > 5 || got.LastExit != "exit code 3" {
		t.Errorf("restarts %d, last exit %q; want about 3, exit code 3", got.Restarts, got.LastExit)
	}
}

func TestReload(t *testing.T) {
	dir, _ := run(t, sleeper("kept"), sleeper("changed"), sleeper("gone"))
	kept, changed := status(t, dir, "kept", running), status(t, dir, "changed", running)
	gone := status(t, dir, "gone", running)
	next := sleeper("changed")
	next.Revision = "2"
	if err := (&Spec{Name: "test", Dir: dir, Components: []Component{sleeper("kept"), next, sleeper("new")}}).Write(); err != nil {
		t.Fatal(err)
	}
	if err := Reload(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	status(t, dir, "new", running)
	status(t, dir, "changed", func(c ComponentStatus) bool { return running(c) && c.PID != changed.PID })
	status(t, dir, "gone", func(c ComponentStatus) bool { return c.PID == 0 })
	if now := status(t, dir, "kept", running); now.PID != kept.PID {
		t.Error("a component whose revision is the same was restarted")
	}
	if unix.Kill(gone.PID, 0) == nil {
		t.Error("a component that is no longer wanted still runs")
	}
}

func TestAComponentWaitsForAnother(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	waiting := sleeper("a")
	waiting.After = "unix:" + socket
	dir, _ := run(t, waiting)
	status(t, dir, "a", func(c ComponentStatus) bool { return c.PID == 0 && c.WaitsFor == waiting.After })
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	status(t, dir, "a", running)
}

func TestRestart(t *testing.T) {
	dir, _ := run(t, sleeper("a"))
	first := status(t, dir, "a", running)
	if err := Restart(t.Context(), dir, "a"); err != nil {
		t.Fatal(err)
	}
	status(t, dir, "a", func(c ComponentStatus) bool { return running(c) && c.PID != first.PID })
	if err := Restart(t.Context(), dir, "b"); err == nil {
		t.Error("a component that does not exist was restarted")
	}
}

func TestLogIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.log")
	log, err := openLog(path, 100)
	if err != nil {
		t.Fatal(err)
	}
	line := []byte(strings.Repeat("x", 39) + "\n")
	for range 20 {
		if _, err := log.Write(line); err != nil {
			t.Fatal(err)
		}
	}
	files, err := filepath.Glob(path + "*")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != 1+logKept {
		t.Errorf("files %v, want the current one and %d put aside", files, logKept)
	}
	for _, file := range files {
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() > 100 || info.Size()%40 != 0 {
			t.Errorf("%s has %d bytes, want whole lines and at most 100 bytes", file, info.Size())
		}
	}
}
