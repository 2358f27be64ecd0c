package launcher_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/launcher"
	"orlop.dev/orlop/internal/qmp"
	"orlop.dev/orlop/internal/wire"
)

// zero is the moment of the first event; each further one comes a second later.
var zero = time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)

// play feeds events, a second apart, and returns the end and what was done.
func play(events ...launcher.Event) (launcher.State, []launcher.Action) {
	var s launcher.State
	var all []launcher.Action
	for i, e := range events {
		var actions []launcher.Action
		s, actions = s.Next(zero.Add(time.Duration(i)*time.Second), e)
		all = append(all, actions...)
	}
	return s, all
}

var (
	start   = launcher.StartRequested{Token: 1, UID: "u", Grace: 30 * time.Second}
	started = launcher.GuestStarted{Version: "10.0.2", Devices: []launcher.Device{{ID: "vd-root", Node: "node-scsi-0", Size: 1024}}}
	awaited = launcher.GuestAwaited{Version: "10.0.2"}
	arrived = launcher.CommandDone{Command: launcher.Command{Token: 5, Kind: launcher.CommandResumeIncoming}}
	term    = launcher.TerminationRequested{}
	clean   = launcher.Exited{}
	sigkill = launcher.Exited{Code: 137, Signal: "killed"}
)

func stop(grace time.Duration) launcher.Event {
	return launcher.ShutdownRequested{Token: 2, Grace: grace}
}

func moved(status string) launcher.Event {
	return launcher.MigrationChanged{Status: qmp.MigrationStatus(status)}
}

func word(reason string) launcher.Event { return launcher.ShutdownAnnounced{Reason: reason} }

// The exit cause decides whether the controller starts the VM again.
func TestExitCause(t *testing.T) {
	cases := map[string]struct {
		events []launcher.Event
		want   v1alpha1.ExitCause
		text   string
	}{
		"guest powers off":                       {[]launcher.Event{start, started, word("guest-shutdown"), clean}, v1alpha1.ExitGuestShutdown, ""},
		"guest powers off and its word is lost":  {[]launcher.Event{start, started, clean}, v1alpha1.ExitGuestShutdown, ""},
		"guest follows our request":              {[]launcher.Event{start, started, stop(time.Minute), word("guest-shutdown"), clean}, v1alpha1.ExitHostShutdown, ""},
		"guest resets":                           {[]launcher.Event{start, started, word("guest-reset"), clean}, v1alpha1.ExitGuestReset, ""},
		"guest resets instead of following":      {[]launcher.Event{start, started, stop(time.Minute), word("guest-reset"), clean}, v1alpha1.ExitHostShutdown, ""},
		"guest panics":                           {[]launcher.Event{start, started, word("guest-panic"), clean}, v1alpha1.ExitCrashed, "the guest panicked"},
		"killed on request":                      {[]launcher.Event{start, started, launcher.KillRequested{Token: 3}, sigkill}, v1alpha1.ExitKilled, ""},
		"killed after the grace period":          {[]launcher.Event{start, started, stop(0), sigkill}, v1alpha1.ExitKilled, ""},
		"powered off just before we killed it":   {[]launcher.Event{start, started, word("guest-shutdown"), launcher.KillRequested{Token: 3}, clean}, v1alpha1.ExitGuestShutdown, ""},
		"killed by somebody else":                {[]launcher.Event{start, started, sigkill}, v1alpha1.ExitCrashed, "QEMU was ended by signal: killed"},
		"killed by somebody else while stopping": {[]launcher.Event{start, started, stop(time.Minute), sigkill}, v1alpha1.ExitCrashed, "QEMU was ended by signal: killed"},
		"somebody else said quit":                {[]launcher.Event{start, started, word("host-qmp-quit"), clean}, v1alpha1.ExitKilled, ""},
		"aborted":                                {[]launcher.Event{start, started, launcher.Exited{Code: 134, Signal: "aborted", LastLine: "assertion"}}, v1alpha1.ExitCrashed, "assertion"},
		"refused its command line":               {[]launcher.Event{start, launcher.StartFailed{Reason: "hung up"}, launcher.Exited{Code: 1, LastLine: "bad option"}}, v1alpha1.ExitStartFailed, "bad option"},
		"never answered":                         {[]launcher.Event{start, launcher.StartFailed{Reason: "timeout"}, sigkill}, v1alpha1.ExitStartFailed, "timeout"},
		"could not be made":                      {[]launcher.Event{start, launcher.StartFailed{Reason: "no such file", NoProcess: true}}, v1alpha1.ExitStartFailed, "no such file"},
		"killed before it ran":                   {[]launcher.Event{start, launcher.KillRequested{Token: 3}, launcher.StartFailed{Reason: "hung up"}, sigkill}, v1alpha1.ExitKilled, ""},
		"left by a migration, then killed":       {[]launcher.Event{start, started, moved("device"), moved("completed"), launcher.KillRequested{Token: 3}, sigkill}, v1alpha1.ExitMigrated, ""},
		"left by a migration, then died":         {[]launcher.Event{start, started, moved("pre-switchover"), moved("completed"), sigkill}, v1alpha1.ExitMigrated, ""},
		"died while it was leaving":              {[]launcher.Event{start, started, moved("device"), sigkill}, v1alpha1.ExitCrashed, "QEMU was ended by signal: killed"},
		"never arrived":                          {[]launcher.Event{start, awaited, launcher.Exited{Code: 1, LastLine: "load failed"}}, v1alpha1.ExitStartFailed, "load failed"},
		"not wanted any more":                    {[]launcher.Event{start, awaited, launcher.KillRequested{Token: 3}, sigkill}, v1alpha1.ExitKilled, ""},
		"arrived and powered off":                {[]launcher.Event{start, awaited, arrived, word("guest-shutdown"), clean}, v1alpha1.ExitGuestShutdown, ""},
		"a healthy end with a warning":           {[]launcher.Event{start, started, word("guest-shutdown"), launcher.Exited{LastLine: "warning"}}, v1alpha1.ExitGuestShutdown, ""},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			s, actions := play(tc.events...)
			p := s.Public()
			if p.Exit == nil || p.Exit.Cause != tc.want || p.Exit.Message != tc.text {
				t.Fatalf("got exit %+v, want %s %q", p.Exit, tc.want, tc.text)
			}
			if p.Phase != v1alpha1.InstanceStopped {
				t.Errorf("got phase %s", p.Phase)
			}
			if !contains(actions, launcher.RecordExit{Exit: *p.Exit}) {
				t.Error("the exit was not recorded")
			}
		})
	}
}

func contains(actions []launcher.Action, want launcher.Action) bool {
	for _, a := range actions {
		if cmp.Equal(a, want) {
			return true
		}
	}
	return false
}

func TestPhases(t *testing.T) {
	changed := launcher.GuestStateChanged{}
	read := func(status string) launcher.Event {
		return launcher.StatusRead{Status: statusOf(status)}
	}
	cases := map[string]struct {
		events []launcher.Event
		phase  v1alpha1.InstancePhase
		reason string
	}{
		"fresh":                             {nil, v1alpha1.InstancePending, ""},
		"being made":                        {[]launcher.Event{start}, v1alpha1.InstanceStarting, ""},
		"running":                           {[]launcher.Event{start, started}, v1alpha1.InstanceRunning, ""},
		"out of space":                      {[]launcher.Event{start, started, launcher.IOError{NoSpace: true}, changed, read("io-error")}, v1alpha1.InstancePaused, "NoSpace"},
		"a broken disk":                     {[]launcher.Event{start, started, launcher.IOError{}, changed, read("io-error")}, v1alpha1.InstancePaused, "IOError"},
		"asleep":                            {[]launcher.Event{start, started, changed, read("suspended")}, v1alpha1.InstancePaused, "Suspended"},
		"stopped by someone":                {[]launcher.Event{start, started, changed, read("paused")}, v1alpha1.InstancePaused, "Unknown"},
		"a state of a newer QEMU":           {[]launcher.Event{start, started, changed, read("dreaming")}, v1alpha1.InstancePaused, "Unknown"},
		"runs again":                        {[]launcher.Event{start, started, changed, read("io-error"), changed, read("running")}, v1alpha1.InstanceRunning, ""},
		"unreadable":                        {[]launcher.Event{start, started, changed, launcher.StatusRead{Err: errors.New("late")}}, v1alpha1.InstanceRunning, ""},
		"stopping":                          {[]launcher.Event{start, started, stop(time.Minute)}, v1alpha1.InstanceStopping, ""},
		"never back from stopping":          {[]launcher.Event{start, started, stop(time.Minute), changed, read("io-error")}, v1alpha1.InstanceStopping, ""},
		"waits for a migration":             {[]launcher.Event{start, awaited}, v1alpha1.InstanceStarting, ""},
		"still waits":                       {[]launcher.Event{start, awaited, moved("completed"), changed, read("paused")}, v1alpha1.InstanceStarting, ""},
		"arrived":                           {[]launcher.Event{start, awaited, arrived}, v1alpha1.InstanceRunning, ""},
		"its own arrival is no departure":   {[]launcher.Event{start, awaited, arrived, moved("active"), moved("completed"), read("running")}, v1alpha1.InstanceRunning, ""},
		"did not arrive in time":            {[]launcher.Event{start, awaited, launcher.CommandDone{Command: arrived.Command, Err: errors.New("active")}}, v1alpha1.InstanceStarting, ""},
		"stands still to leave":             {[]launcher.Event{start, started, moved("pre-switchover"), changed, read("finish-migrate")}, v1alpha1.InstanceRunning, ""},
		"stands still on an error to leave": {[]launcher.Event{start, started, changed, read("io-error"), changed, read("finish-migrate")}, v1alpha1.InstancePaused, "IOError"},
		"has left":                          {[]launcher.Event{start, started, moved("device"), moved("completed")}, v1alpha1.InstancePaused, "Migrated"},
		"has left, says its state":          {[]launcher.Event{start, started, changed, read("postmigrate")}, v1alpha1.InstancePaused, "Migrated"},
		"never back from leaving":           {[]launcher.Event{start, started, changed, read("postmigrate"), changed, read("running")}, v1alpha1.InstancePaused, "Migrated"},
		"could not leave":                   {[]launcher.Event{start, started, moved("device"), moved("failed"), changed, read("running")}, v1alpha1.InstanceRunning, ""},
		"stopped before it ran":             {[]launcher.Event{start, stop(time.Minute), started}, v1alpha1.InstanceStopping, ""},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			s, _ := play(tc.events...)
			if p := s.Public(); p.Phase != tc.phase || p.PauseReason != tc.reason {
				t.Errorf("got %q %q, want %q %q", p.Phase, p.PauseReason, tc.phase, tc.reason)
			}
		})
	}
}

// The handler talks to the agent while the launcher says that somebody listens.
func TestAgentConnected(t *testing.T) {
	opened, closed := launcher.AgentRead{Connected: true}, launcher.AgentRead{}
	cases := map[string]struct {
		events []launcher.Event
		want   bool
	}{
		"never opened":                       {[]launcher.Event{start, started}, false},
		"opened":                             {[]launcher.Event{start, started, opened}, true},
		"closed again":                       {[]launcher.Event{start, started, opened, closed}, false},
		"open in a guest that is arriving":   {[]launcher.Event{start, awaited, opened, arrived}, true},
		"the process ended":                  {[]launcher.Event{start, started, opened, clean}, false},
		"a question that came back too late": {[]launcher.Event{start, started, clean, opened}, false},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			if s, _ := play(tc.events...); s.Public().AgentConnected != tc.want {
				t.Errorf("got %t", !tc.want)
			}
		})
	}
}

func TestActions(t *testing.T) {
	press := launcher.Command{Kind: launcher.CommandPowerDown}
	ok := func(t launcher.Token) launcher.Action { return launcher.Answer{Token: t} }
	refused := func(t launcher.Token, e *wire.Error) launcher.Action { return launcher.Answer{Token: t, Err: e} }
	exit := v1alpha1.Exit{Cause: v1alpha1.ExitGuestShutdown, Time: metav1.NewTime(zero.Add(2 * time.Second))}
	cases := map[string]struct {
		events []launcher.Event
		want   []launcher.Action
	}{
		"one start, never a second": {
			[]launcher.Event{start, started, launcher.StartRequested{Token: 9}, clean, launcher.StartRequested{Token: 10}},
			[]launcher.Action{launcher.Spawn{Token: 1}, ok(1), refused(9, wire.ErrAlreadyStarted),
				launcher.RecordExit{Exit: v1alpha1.Exit{Cause: v1alpha1.ExitGuestShutdown, Time: metav1.NewTime(zero.Add(3 * time.Second))}},
				refused(10, wire.ErrAlreadyStarted)},
		},
		"a shutdown before the guest runs waits for it": {
			[]launcher.Event{start, stop(time.Minute), started},
			[]launcher.Action{launcher.Spawn{Token: 1}, ok(2), ok(1), press},
		},
		"no grace, no question": {
			[]launcher.Event{start, started, stop(0)},
			[]launcher.Action{launcher.Spawn{Token: 1}, ok(1), ok(2), launcher.KillProcess{}},
		},
		"bye ends a launcher whose guest is gone": {
			[]launcher.Event{start, started, clean, launcher.ByeRequested{Token: 5}},
			[]launcher.Action{launcher.Spawn{Token: 1}, ok(1), launcher.RecordExit{Exit: exit}, ok(5), launcher.Leave{Code: 0}},
		},
		"bye before a start calls it off for good": {
			[]launcher.Event{launcher.ByeRequested{Token: 5}, start},
			[]launcher.Action{ok(5), launcher.Leave{Code: 0}, refused(1, wire.ErrAlreadyStarted)},
		},
		"deletion of an unused pod": {[]launcher.Event{term}, []launcher.Action{launcher.Leave{Code: 0}}},
		"deletion asks the guest once": {
			[]launcher.Event{start, started, term, term},
			[]launcher.Action{launcher.Spawn{Token: 1}, ok(1), press},
		},
		"no start once the pod is being deleted and gone": {
			[]launcher.Event{term, start},
			[]launcher.Action{launcher.Leave{Code: 0}, refused(1, wire.ErrAlreadyStarted)},
		},
		"requests without a guest are refused": {
			[]launcher.Event{stop(0), launcher.KillRequested{Token: 3}, launcher.ResumeRequested{Token: 4},
				launcher.ResizeRequested{Token: 5}, launcher.RebootActionRequested{Token: 6}},
			[]launcher.Action{refused(2, wire.ErrNotRunning), refused(3, wire.ErrNotRunning), refused(4, wire.ErrNotRunning),
				refused(5, wire.ErrNotRunning), refused(6, wire.ErrNotRunning)},
		},
		"a guest that has left is never resumed": {
			[]launcher.Event{start, started, launcher.StatusRead{Status: "postmigrate"}, launcher.ResumeRequested{Token: 4}, launcher.ResumeIncomingRequested{Token: 5}},
			[]launcher.Action{launcher.Spawn{Token: 1}, ok(1),
				refused(4, wire.Errorf(wire.CodeNotRunning, "the guest has left this process")), refused(5, wire.ErrNotRunning)},
		},
		"nobody is asked to power off what a guest has left": {
			[]launcher.Event{start, started, launcher.StatusRead{Status: "postmigrate"}, stop(time.Minute)},
			[]launcher.Action{launcher.Spawn{Token: 1}, ok(1), ok(2), launcher.KillProcess{}},
		},
		"only resume-incoming lets an arrived guest run, and once": {
			[]launcher.Event{start, awaited, launcher.ResumeRequested{Token: 4}, launcher.ResumeIncomingRequested{Token: 5}, arrived, launcher.ResumeIncomingRequested{Token: 6}},
			[]launcher.Action{launcher.Spawn{Token: 1}, ok(1), refused(4, wire.ErrNotRunning),
				launcher.Command{Token: 5, Kind: launcher.CommandResumeIncoming}, launcher.QueryDevices{}, ok(5), ok(6)},
		},
		"a shutdown while it arrives reaches the guest": {
			[]launcher.Event{start, awaited, stop(time.Minute), arrived},
			[]launcher.Action{launcher.Spawn{Token: 1}, ok(1), ok(2), press, launcher.QueryDevices{}, ok(5)},
		},
		"one question about the state at a time, and one more if it changed meanwhile": {
			[]launcher.Event{start, started, launcher.GuestStateChanged{}, launcher.GuestStateChanged{}, launcher.GuestStateChanged{},
				launcher.StatusRead{Status: "running"}, launcher.StatusRead{Status: "running"}},
			[]launcher.Action{launcher.Spawn{Token: 1}, ok(1), launcher.QueryStatus{}, launcher.QueryStatus{}},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			_, got := play(tc.events...)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestDeadlines(t *testing.T) {
	at := func(seconds int) time.Time { return zero.Add(time.Duration(seconds) * time.Second) }
	t.Run("the power button is pressed again until the grace period is over", func(t *testing.T) {
		s, _ := play(start, started, stop(25*time.Second))
		var log []string
		for range 10 {
			d := s.Deadline()
			if d.IsZero() {
				break
			}
			var actions []launcher.Action
			s, actions = s.Next(d, launcher.Tick{})
			for _, a := range actions {
				switch a.(type) {
				case launcher.Command:
					log = append(log, "press "+d.Sub(zero).String())
				case launcher.KillProcess:
					log = append(log, "kill "+d.Sub(zero).String())
				}
			}
		}
		if diff := cmp.Diff([]string{"press 12s", "press 22s", "kill 27s"}, log); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("a later shutdown may shorten the grace period and never lengthen it", func(t *testing.T) {
		s, _ := play(start, started, stop(60*time.Second), stop(5*time.Second), stop(600*time.Second))
		s, _ = s.Next(at(7), launcher.Tick{})
		_, actions := s.Next(at(8), launcher.Tick{})
		if !contains(actions, launcher.KillProcess{}) {
			t.Errorf("got %v", actions)
		}
	})
	t.Run("a process that hung up and goes on living is killed", func(t *testing.T) {
		s, _ := play(start, started, launcher.MonitorClosed{})
		s, actions := s.Next(s.Deadline(), launcher.Tick{})
		if !contains(actions, launcher.KillProcess{}) {
			t.Fatalf("got %v", actions)
		}
		s, _ = s.Next(at(9), sigkill)
		if x := s.Public().Exit; x.Cause != v1alpha1.ExitCrashed || x.Message == "" {
			t.Errorf("got %+v", x)
		}
	})
	t.Run("one that hung up because it ends may take its time", func(t *testing.T) {
		s, _ := play(start, started, word("guest-shutdown"), launcher.MonitorClosed{})
		if d := s.Deadline(); !d.IsZero() {
			t.Errorf("got deadline %s", d)
		}
	})
	t.Run("a deleted pod waits a while for its exit to be recorded", func(t *testing.T) {
		s, _ := play(start, started, term, word("guest-shutdown"), clean)
		_, actions := s.Next(s.Deadline(), launcher.Tick{})
		if !contains(actions, launcher.Leave{Code: 0}) {
			t.Errorf("got %v", actions)
		}
	})
}

func TestResize(t *testing.T) {
	resize := func(disk string, bytes int64) launcher.Event {
		return launcher.ResizeRequested{Token: 4, Disk: disk, Bytes: bytes}
	}
	cases := map[string]struct {
		event launcher.Event
		want  bool
	}{
		"growing":                  {resize("vd-root", 2048), true},
		"the same size":            {resize("vd-root", 1024), true},
		"shrinking":                {resize("vd-root", 512), false},
		"half a sector":            {resize("vd-root", 2049), false},
		"a disk that is not there": {resize("vd-data", 2048), false},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			s, _ := play(start, started)
			s, actions := s.Next(zero, tc.event)
			command, ok := actions[0].(launcher.Command)
			if ok != tc.want {
				t.Fatalf("got %+v", actions)
			}
			if !ok {
				return
			}
			s, actions = s.Next(zero, launcher.CommandDone{Command: command})
			if got := s.Public().Disks[0].Size; got != command.Bytes || !contains(actions, launcher.Answer{Token: 4}) {
				t.Errorf("got size %d, %v", got, actions)
			}
		})
	}
}

// Every state answers every event: no order of things may bring the machine down, or
// let it make a second process or lose an exit.
func TestNextIsTotal(t *testing.T) {
	events := []launcher.Event{
		start, started, stop(time.Second), stop(0), term, clean, sigkill, word("guest-reset"),
		launcher.KillRequested{Token: 3}, launcher.ByeRequested{Token: 4}, launcher.ResumeRequested{Token: 5},
		launcher.RebootActionRequested{Token: 6, Action: v1alpha1.RebootShutdown}, launcher.ResizeRequested{Token: 7, Disk: "vd-root", Bytes: 4096},
		launcher.StartFailed{Reason: "r"}, launcher.StartFailed{Reason: "r", NoProcess: true}, launcher.MonitorClosed{},
		launcher.GuestStateChanged{}, launcher.StatusRead{Status: "paused"}, launcher.IOError{NoSpace: true},
		launcher.CommandDone{Command: launcher.Command{Token: 6, Kind: launcher.CommandRebootAction}}, launcher.Tick{},
		attach, attached, detach, deleted, released, listed(),
	}
	var walk func(s launcher.State, at time.Time, spawned, recorded, depth int)
	walk = func(s launcher.State, at time.Time, spawned, recorded, depth int) {
		if depth == 0 {
			return
		}
		for _, e := range events {
			next, actions := s.Next(at, e)
			spawns, records := spawned, recorded
			for _, a := range actions {
				switch a.(type) {
				case launcher.Spawn:
					spawns++
				case launcher.RecordExit:
					records++
				}
			}
			if spawns > 1 || records > 1 || records > spawns {
				t.Fatalf("%d processes made and %d exits recorded after %T", spawns, records, e)
			}
			if (next.Public().Exit != nil) != (records == 1) {
				t.Fatalf("exit %v with %d recorded after %T", next.Public().Exit, records, e)
			}
			walk(next, at.Add(time.Second), spawns, records, depth-1)
		}
	}
	walk(launcher.State{}, zero, 0, 0, 4)
}
