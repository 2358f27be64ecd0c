package handler

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sys/unix"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/testkit"
	"orlop.dev/orlop/internal/wire"
)

// fakeGuest is an agent inside a guest, reachable over any number of connections one
// after the other, as QEMU's socket is.
type fakeGuest struct {
	t *testing.T

	mu       sync.Mutex
	hostname string
	frozen   bool
	// silent makes it read and never answer; slow holds back the answer to a freeze.
	silent, slow bool
	refuse       bool
	disks        int
	thaws, reads int
	ended        sync.WaitGroup
}

func newFakeGuest(t *testing.T) *fakeGuest {
	g := &fakeGuest{t: t, hostname: "linux", disks: 2}
	t.Cleanup(g.ended.Wait)
	return g
}

func (g *fakeGuest) set(change func(*fakeGuest)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	change(g)
}

func (g *fakeGuest) see(look func(*fakeGuest) bool) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return look(g)
}

func (g *fakeGuest) dial(context.Context) (net.Conn, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	var ends [2]net.Conn
	for i, fd := range pair {
		f := os.NewFile(uintptr(fd), "channel")
		if ends[i], err = net.FileConn(f); err != nil {
			return nil, err
		}
		_ = f.Close()
	}
	g.ended.Go(func() {
		defer ends[1].Close()
		lines := bufio.NewScanner(ends[1])
		for lines.Scan() {
			if reply := g.answer(bytes.TrimLeft(lines.Bytes(), "\xff")); reply != "" {
				_, _ = ends[1].Write([]byte(reply))
			}
		}
	})
	return ends[0], nil
}

func (g *fakeGuest) answer(line []byte) string {
	var r struct {
		Execute   string `json:"execute"`
		Arguments struct {
			ID int64 `json:"id"`
		} `json:"arguments"`
	}
	if err := json.Unmarshal(line, &r); err != nil {
		g.t.Errorf("request %q: %v", line, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.silent {
		return ""
	}
	switch r.Execute {
	case "guest-sync-delimited":
		return fmt.Sprintf("\xff{\"return\": %d}\n", r.Arguments.ID)
	case "guest-fsfreeze-status":
		return fmt.Sprintf("{\"return\": %q}\n", map[bool]string{true: "frozen", false: "thawed"}[g.frozen])
	case "guest-fsfreeze-freeze":
		if g.refuse {
			return `{"error": {"class": "GenericError", "desc": "hook failed"}}` + "\n"
		}
		g.frozen = g.disks > 0
		if g.slow {
			g.silent = true
			return ""
		}
		return fmt.Sprintf("{\"return\": %d}\n", g.disks)
	case "guest-fsfreeze-thaw":
		g.thaws++
		g.frozen = false
		return fmt.Sprintf("{\"return\": %d}\n", g.disks)
	case "guest-get-host-name":
		g.reads++
		return fmt.Sprintf("{\"return\": {\"host-name\": %q}}\n", g.hostname)
	default:
		return `{"error": {"class": "CommandNotFound", "desc": "not here"}}` + "\n"
	}
}

// talk starts an agent that asks often.
func talk(t *testing.T, g *fakeGuest) *agent {
	a := newAgent(g.dial, time.Now, logr.Discard())
	a.pace = pace{
		soon: 20 * time.Millisecond, often: 30 * time.Millisecond, first: 20 * time.Millisecond, most: 50 * time.Millisecond,
		round: 200 * time.Millisecond, freeze: 500 * time.Millisecond, thaw: 500 * time.Millisecond, last: 5 * time.Second,
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.run(ctx)
	}()
	t.Cleanup(func() {
		stop()
		<-done
	})
	return a
}

const patient = 30 * time.Second

// await reads news until one has a property.
func await(t *testing.T, a *agent, what string, ok func(*v1alpha1.Guest) bool) {
	t.Helper()
	late := time.After(patient)
	for {
		select {
		case r := <-a.news:
			if ok(r.guest) {
				return
			}
		case <-late:
			t.Fatalf("the agent never tells: %s", what)
		}
	}
}

func named(name string) func(*v1alpha1.Guest) bool {
	return func(g *v1alpha1.Guest) bool { return g != nil && g.Hostname == name && !g.Frozen }
}

func isFrozen(g *v1alpha1.Guest) bool { return g != nil && g.Frozen }

func TestAgentFacts(t *testing.T) {
	guest := newFakeGuest(t)
	a := talk(t, guest)
	if err := a.command(t.Context(), time.Minute); !errors.Is(err, errNoAgent) {
		t.Errorf("freeze without an agent: %v", err)
	}
	a.attend(t.Context(), nil)
	await(t, a, "its name", named("linux"))
	guest.set(func(g *fakeGuest) { g.hostname = "other" })
	await(t, a, "its new name", named("other"))
	guest.set(func(g *fakeGuest) { g.reads = 0 })
	testkit.Eventually(t, patient, "some readings", func() error {
		if guest.see(func(g *fakeGuest) bool { return g.reads < 5 }) {
			return errors.New("too few")
		}
		return nil
	})
	select {
	case r := <-a.news:
		t.Errorf("told %+v although nothing has changed", r.guest)
	default:
	}
	guest.set(func(g *fakeGuest) { g.silent = true })
	await(t, a, "its silence", func(g *v1alpha1.Guest) bool { return g == nil })
	guest.set(func(g *fakeGuest) { g.silent = false })
	await(t, a, "its return", named("other"))
	a.leave()
	if err := a.command(t.Context(), 0); !errors.Is(err, errNoAgent) {
		t.Errorf("unfreeze without an agent: %v", err)
	}
	a.attend(t.Context(), nil)
	await(t, a, "its second life", named("other"))
}

func TestFreezeEndsByItself(t *testing.T) {
	guest := newFakeGuest(t)
	a := talk(t, guest)
	a.attend(t.Context(), nil)
	await(t, a, "its name", named("linux"))
	if err := a.command(t.Context(), time.Hour); err != nil {
		t.Fatal(err)
	}
	await(t, a, "that it is frozen", isFrozen)
	if err := a.command(t.Context(), time.Minute); !errors.Is(err, errFrozen) {
		t.Errorf("a second freeze: %v", err)
	}
	for range 2 {
		if err := a.command(t.Context(), 0); err != nil {
			t.Errorf("unfreeze: %v", err)
		}
	}
	await(t, a, "that it is thawed", named("linux"))
	if err := a.command(t.Context(), 10*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, patient, "thaw when the time is over", func() error {
		if guest.see(func(g *fakeGuest) bool { return g.frozen }) {
			return errors.New("still frozen")
		}
		return nil
	})
	if n := 0; guest.see(func(g *fakeGuest) bool { n = g.thaws; return n != 2 }) {
		t.Errorf("thawed %d times", n)
	}
}

// TestFreezeThatGoesWrong: whatever happens, the guest does not stay frozen.
func TestFreezeThatGoesWrong(t *testing.T) {
	cases := map[string]struct {
		change func(*fakeGuest)
		want   func(error) bool
	}{
		"the agent refuses": {func(g *fakeGuest) { g.refuse = true }, refused},
		"the agent does not answer in time": {func(g *fakeGuest) { g.slow = true }, func(err error) bool {
			return errors.Is(err, context.DeadlineExceeded)
		}},
		"there is nothing to freeze": {func(g *fakeGuest) { g.disks = 0 }, func(err error) bool { return errors.Is(err, errNothing) }},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			guest := newFakeGuest(t)
			a := talk(t, guest)
			a.attend(t.Context(), nil)
			await(t, a, "its name", named("linux"))
			guest.set(c.change)
			if err := a.command(t.Context(), time.Hour); !c.want(err) {
				t.Errorf("error %v", err)
			}
			guest.set(func(g *fakeGuest) { g.silent, g.slow, g.refuse, g.disks = false, false, false, 2 })
			testkit.Eventually(t, patient, "a guest that can be frozen again", func() error {
				return a.command(t.Context(), time.Hour)
			})
			if guest.see(func(g *fakeGuest) bool { return g.thaws > 1 }) {
				t.Error("thawed more than once")
			}
		})
	}
}

// TestForgottenFreeze: a handler that comes anew thaws what it finds frozen, and one
// that goes thaws what it froze.
func TestForgottenFreeze(t *testing.T) {
	guest := newFakeGuest(t)
	guest.frozen = true
	a := newAgent(guest.dial, time.Now, logr.Discard())
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.run(ctx)
	}()
	a.attend(ctx, &v1alpha1.Guest{Hostname: "linux", Frozen: true})
	await(t, a, "that it is thawed", named("linux"))
	if err := a.command(t.Context(), time.Hour); err != nil {
		t.Fatal(err)
	}
	stop()
	<-done
	if guest.see(func(g *fakeGuest) bool { return g.frozen }) {
		t.Error("a handler that ended in good order left it frozen")
	}
}

func TestFreezeOverHTTP(t *testing.T) {
	guest := newFakeGuest(t)
	a := talk(t, guest)
	w := &worker{agent: a, log: logr.Discard()}
	mux := http.NewServeMux()
	mux.HandleFunc("/freeze", w.serveFreeze)
	mux.HandleFunc("/unfreeze", w.serveUnfreeze)
	put := func(target string) (int, string) {
		answer := httptest.NewRecorder()
		mux.ServeHTTP(answer, httptest.NewRequest(http.MethodPut, target, nil))
		return answer.Code, answer.Body.String()
	}
	steps := []struct {
		target string
		code   int
		says   string
	}{
		{"/freeze", http.StatusBadRequest, "time-out"},
		{"/freeze?timeout=0", http.StatusBadRequest, "time-out"},
		{"/freeze?timeout=3601", http.StatusBadRequest, "time-out"},
		{"/freeze?timeout=60", http.StatusConflict, "install and start qemu-guest-agent"},
		{"attend", 0, ""},
		{"/freeze?timeout=60", http.StatusOK, ""},
		{"/freeze?timeout=60", http.StatusConflict, "frozen already"},
		{"/unfreeze", http.StatusOK, ""},
		{"/unfreeze", http.StatusOK, ""},
		{"refuse", 0, ""},
		{"/freeze?timeout=60", http.StatusBadGateway, "hook failed"},
	}
	for _, s := range steps {
		switch s.target {
		case "attend":
			a.attend(t.Context(), nil)
		case "refuse":
			guest.set(func(g *fakeGuest) { g.refuse = true })
		default:
			if code, text := put(s.target); code != s.code || !strings.Contains(text, s.says) {
				t.Errorf("%s: %d %s, want %d %s", s.target, code, text, s.code, s.says)
			}
		}
	}
}

// TestGuestStatus: what the status says depends on the launcher's word and the agent's.
func TestGuestStatus(t *testing.T) {
	old, fresh := &v1alpha1.Guest{Hostname: "old"}, &v1alpha1.Guest{Hostname: "fresh"}
	cases := map[string]struct {
		launcher wire.State
		guest    *v1alpha1.Guest
		heard    bool
		want     string
	}{
		"an agent that has answered":            {wire.State{AgentConnected: true}, fresh, true, "fresh"},
		"one that does not answer":              {wire.State{AgentConnected: true}, nil, true, ""},
		"one that another handler has asked":    {wire.State{AgentConnected: true}, nil, false, "old"},
		"one that has hung up":                  {wire.State{}, fresh, true, ""},
		"a process that has ended":              {wire.State{AgentConnected: true, Exit: &v1alpha1.Exit{}}, fresh, true, ""},
		"a guest that stands still for a while": {wire.State{AgentConnected: true, Phase: v1alpha1.InstancePaused}, fresh, true, "fresh"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			m := &memory{launcher: &c.launcher, guest: c.guest, guestHeard: c.heard}
			m.status.Guest = old
			got := ""
			if g := guestStatus(m); g != nil {
				got = g.Hostname
			}
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}
