package migration

import (
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/qmp"
	"orlop.dev/orlop/internal/testkit"
	"orlop.dev/orlop/internal/wire"
)

func TestMain(m *testing.M) { testkit.Main(m) }

var now = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

// situation is what a Loop may find when it begins, or come to know.
type situation func(*memory)

func at(phase v1alpha1.MigrationPhase) situation {
	return func(m *memory) {
		m.report.Phase, m.view.Accepted = phase, v1alpha1.MigrationStatus{ID: "id", Phase: phase}
	}
}

func unrecorded(phase v1alpha1.MigrationPhase) situation {
	return func(m *memory) { m.report.Phase = phase }
}

func says(status qmp.MigrationStatus, run qmp.RunState) situation {
	return func(m *memory) { m.qemu = &observed{migrate: qmp.Migration{Status: status}, run: run} }
}

func order(change func(*v1alpha1.Migration)) situation {
	return func(m *memory) { change(&m.view.Order) }
}

func died(cause v1alpha1.ExitCause) situation {
	return func(m *memory) { m.view.Launcher.Exit = &v1alpha1.Exit{Cause: cause} }
}

var (
	endpoint   situation = order(func(o *v1alpha1.Migration) { o.Endpoint = "192.0.2.1:4135" })
	abort      situation = order(func(o *v1alpha1.Migration) { o.Abort = true })
	carried    situation = order(func(o *v1alpha1.Migration) { o.SourceCompleted = true })
	listening  situation = func(m *memory) { m.listening = true }
	issued     situation = func(m *memory) { m.issued = true }
	adopted    situation = func(m *memory) { m.adopted = true }
	told       situation = func(m *memory) { m.told = true }
	cut        situation = func(m *memory) { m.cut = true }
	completed  situation = func(m *memory) { m.sourceCompleted = true }
	failed     situation = func(m *memory) { m.sourceFailed = "ConnectionLost" }
	left       situation = func(m *memory) { m.view.Launcher.PauseReason = "Migrated" }
	guestRan   situation = func(m *memory) { m.view.Launcher.StartTime = &now }
	brokenLine situation = func(m *memory) { m.broken = "The connection to the target has ended" }
)

type decision struct {
	situations []situation
	want       act
	phase      v1alpha1.MigrationPhase
	reason     string
}

func check(t *testing.T, role v1alpha1.MigrationRole, cases map[string]decision) {
	t.Helper()
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			m := newMemory(View{
				Order:    v1alpha1.Migration{ID: "id", Role: role, Peer: "peer", PeerNode: "node-b"},
				Launcher: wire.State{Phase: v1alpha1.InstanceRunning},
			}, "192.0.2.2:4135")
			for _, s := range c.situations {
				s(m)
			}
			got, _ := decide(m, now)
			if got != c.want || m.report.Phase != c.phase || m.report.Reason != c.reason {
				t.Errorf("got %q with %s %s (%s), want %q with %s %s", got, m.report.Phase, m.report.Reason, m.report.Message, c.want, c.phase, c.reason)
			}
		})
	}
}

func TestSource(t *testing.T) {
	const (
		transferring = v1alpha1.MigrationTransferring
		switching    = v1alpha1.MigrationSwitching
		done         = v1alpha1.MigrationCompleted
		lost         = v1alpha1.MigrationFailed
	)
	none := says(qmp.MigrationNone, qmp.StateRunning)
	check(t, v1alpha1.MigrationSource, map[string]decision{
		"nothing is done before the target listens":                      {[]situation{none}, "", "", ""},
		"QEMU is asked first":                                            {[]situation{endpoint}, actObserve, "", ""},
		"the transfer is on record before it begins":                     {[]situation{endpoint, none}, "", transferring, ""},
		"then the socket is made":                                        {[]situation{endpoint, none, at(transferring)}, actListen, transferring, ""},
		"then QEMU is told":                                              {[]situation{endpoint, none, at(transferring), listening}, actSend, transferring, ""},
		"it is told again if nobody knows whether it was":                {[]situation{endpoint, none, at(transferring), listening, adopted}, actSend, transferring, ""},
		"an earlier failure is none of this migration":                   {[]situation{endpoint, says(qmp.MigrationFailed, qmp.StateRunning)}, "", transferring, ""},
		"the guest's own arrival is no departure":                        {[]situation{endpoint, says(qmp.MigrationCompleted, qmp.StateRunning)}, "", transferring, ""},
		"nor is it one for a handler that begins anew":                   {[]situation{endpoint, at(transferring), adopted, listening, says(qmp.MigrationCompleted, qmp.StateRunning)}, actSend, transferring, ""},
		"a completion is whole when QEMU has let go":                     {[]situation{endpoint, at(switching), adopted, listening, says(qmp.MigrationCompleted, qmp.StateFinishMigrate)}, "", switching, ""},
		"called off before it began":                                     {[]situation{abort, none}, "", lost, ReasonAborted},
		"called off while it copies":                                     {[]situation{endpoint, abort, at(transferring), issued, says(qmp.MigrationActive, qmp.StateRunning)}, actCancel, transferring, ""},
		"called off while the guest stands still":                        {[]situation{endpoint, abort, at(switching), issued, says(qmp.MigrationPreSwitchover, qmp.StateFinishMigrate)}, actCancel, switching, ""},
		"called off too late":                                            {[]situation{endpoint, abort, at(switching), issued, says(qmp.MigrationCompleted, qmp.StatePostMigrate)}, "", done, ""},
		"the switch-over waits for us":                                   {[]situation{endpoint, at(transferring), issued, says(qmp.MigrationPreSwitchover, qmp.StateFinishMigrate)}, actContinue, switching, ""},
		"even for one who has just begun":                                {[]situation{endpoint, at(transferring), adopted, says(qmp.MigrationPreSwitchover, qmp.StateFinishMigrate)}, actContinue, switching, ""},
		"nobody is told of what is not on record":                        {[]situation{endpoint, at(switching), says(qmp.MigrationCompleted, qmp.StatePostMigrate)}, "", done, ""},
		"what is on record is told":                                      {[]situation{endpoint, at(done)}, actTell, done, ""},
		"the process is ended once the target has answered":              {[]situation{endpoint, at(done), told}, actEnd, done, ""},
		"a handler that begins anew finds it completed":                  {[]situation{endpoint, at(transferring), adopted, says(qmp.MigrationCompleted, qmp.StatePostMigrate)}, "", done, ""},
		"so does one whose QEMU has died since":                          {[]situation{endpoint, at(transferring), adopted, died(v1alpha1.ExitMigrated)}, "", done, ""},
		"the dead tell it too":                                           {[]situation{endpoint, at(done), died(v1alpha1.ExitMigrated)}, actTell, done, ""},
		"a cut line":                                                     {[]situation{endpoint, at(transferring), issued, brokenLine, says(qmp.MigrationFailed, qmp.StateRunning)}, "", lost, ReasonConnectionLost},
		"a handler that begins anew finds it failed":                     {[]situation{endpoint, at(transferring), adopted, says(qmp.MigrationFailed, qmp.StateRunning)}, "", lost, ReasonConnectionLost},
		"a source that died before it completed":                         {[]situation{endpoint, at(switching), died(v1alpha1.ExitCrashed)}, "", lost, ReasonError},
		"a guest that stands after a failure is let run":                 {[]situation{endpoint, at(lost), says(qmp.MigrationFailed, qmp.StatePaused)}, actResume, lost, ""},
		"not one that has left":                                          {[]situation{endpoint, at(lost), left, says(qmp.MigrationCompleted, qmp.StatePostMigrate)}, actTell, lost, ""},
		"a guest that runs on needs nothing but the telling":             {[]situation{endpoint, at(lost), says(qmp.MigrationFailed, qmp.StateRunning)}, actTell, lost, ""},
		"a failure that is told is over":                                 {[]situation{endpoint, at(lost), told, says(qmp.MigrationFailed, qmp.StateRunning)}, "", lost, ""},
		"and a guest that stands still later does so for another reason": {[]situation{endpoint, at(lost), told, says(qmp.MigrationFailed, qmp.StatePaused)}, "", lost, ""},
		"a process that has completed is never resumed":                  {[]situation{endpoint, at(done), says(qmp.MigrationCompleted, qmp.StatePostMigrate)}, actTell, done, ""},
		"a report that was not recorded is not acted upon":               {[]situation{endpoint, unrecorded(done), says(qmp.MigrationCompleted, qmp.StatePostMigrate)}, "", done, ""},
		"QEMU that refuses at once is not asked again":                   {[]situation{endpoint, at(transferring), none, func(m *memory) { m.refused = "blocked" }}, "", lost, ReasonIncompatible},
		"a completed source is not the target's to give back":            {[]situation{endpoint, abort, at(done)}, actTell, done, ""},
	})
}

func TestTarget(t *testing.T) {
	const (
		preparing = v1alpha1.MigrationPreparing
		ready     = v1alpha1.MigrationReady
		done      = v1alpha1.MigrationCompleted
		lost      = v1alpha1.MigrationFailed
	)
	full := says(qmp.MigrationCompleted, qmp.StatePaused)
	check(t, v1alpha1.MigrationTarget, map[string]decision{
		"QEMU is asked first":                                     {nil, actObserve, preparing, ""},
		"then told to listen":                                     {[]situation{says(qmp.MigrationNone, qmp.StateInMigrate)}, actReceive, preparing, ""},
		"it is ready when it listens":                             {[]situation{says(qmp.MigrationSetup, qmp.StateInMigrate)}, "", ready, ""},
		"a full memory alone lets nobody run":                     {[]situation{at(ready), full}, "", ready, ""},
		"the source's word does":                                  {[]situation{at(ready), full, completed}, actRun, ready, ""},
		"so does the controller's":                                {[]situation{at(ready), full, carried}, actRun, ready, ""},
		"a word before the memory is complete waits":              {[]situation{at(ready), says(qmp.MigrationActive, qmp.StateInMigrate), carried}, "", ready, ""},
		"a guest that runs has arrived":                           {[]situation{at(ready), full, carried, guestRan}, "", done, ""},
		"a source that has failed ends it":                        {[]situation{at(ready), full, failed}, actEnd, lost, ReasonError},
		"but not after it had completed":                          {[]situation{at(ready), full, completed, failed}, actRun, ready, ""},
		"called off: first the line is cut":                       {[]situation{at(ready), abort, full}, actCut, ready, ""},
		"then QEMU is asked again":                                {[]situation{at(ready), abort, cut}, actObserve, ready, ""},
		"called off before the memory was complete":               {[]situation{at(ready), abort, cut, says(qmp.MigrationActive, qmp.StateInMigrate)}, actEnd, lost, ReasonAborted},
		"called off when the source may have completed":           {[]situation{at(ready), abort, cut, full}, "", ready, ""},
		"and the source had":                                      {[]situation{at(ready), abort, cut, full, completed}, actRun, ready, ""},
		"and the source had not":                                  {[]situation{at(ready), abort, cut, full, failed}, actEnd, lost, ReasonError},
		"called off after the word":                               {[]situation{at(ready), abort, carried, full}, actRun, ready, ""},
		"a process that died before the guest ran":                {[]situation{at(ready), died(v1alpha1.ExitStartFailed)}, "", lost, ReasonTargetDied},
		"a state that cannot be loaded":                           {[]situation{at(ready), says(qmp.MigrationFailed, qmp.StateInMigrate)}, actEnd, lost, ReasonError},
		"nothing is left to do for one that has arrived":          {[]situation{at(done), full, guestRan}, "", done, ""},
		"an arrival is not undone by what comes late":             {[]situation{at(done), full, guestRan, failed, abort}, "", done, ""},
		"a dead process that had received the word is no arrival": {[]situation{at(ready), completed, died(v1alpha1.ExitCrashed)}, "", lost, ReasonTargetDied},
	})
}

func TestTimeouts(t *testing.T) {
	running := func(remaining int64, pass int32) qmp.Migration {
		q := qmp.Migration{Status: qmp.MigrationActive, Throttle: 20}
		q.RAM.Total, q.RAM.Remaining, q.RAM.Syncs = 1000, remaining, pass
		return q
	}
	type step struct {
		seconds   int
		remaining int64
		pass      int32
	}
	cases := map[string]struct {
		change        func(*v1alpha1.Migration)
		steps         []step
		want          act
		reason        string
		notConverging bool
	}{
		"a slow copy that gets on":             {nil, []step{{0, 1000, 1}, {30, 800, 1}, {60, 600, 1}, {61, 590, 1}}, "", "", false},
		"passes that do not get smaller":       {nil, []step{{0, 1000, 1}, {2, 500, 2}, {4, 10, 2}, {5, 490, 3}, {9, 500, 4}, {17, 500, 5}}, "", "", true},
		"the floor of a pass is no progress":   {nil, []step{{0, 1000, 1}, {2, 500, 2}, {3, 500, 3}, {10, 1, 3}, {14, 1, 3}}, "", "", true},
		"may yet be slowed down":               {func(o *v1alpha1.Migration) { o.AutoConverge = true }, []step{{0, 1000, 1}, {2, 500, 2}, {3, 500, 3}, {20, 500, 4}}, "", "", false},
		"no progress for too long":             {func(o *v1alpha1.Migration) { o.ProgressTimeoutSeconds = 15 }, []step{{0, 1000, 1}, {2, 500, 2}, {3, 500, 3}, {20, 500, 4}}, actCancel, ReasonNotConverging, true},
		"nothing moves at all":                 {func(o *v1alpha1.Migration) { o.ProgressTimeoutSeconds = 15 }, []step{{0, 1000, 1}, {20, 1000, 1}}, actCancel, ReasonNotConverging, true},
		"not finished in time, though it goes": {func(o *v1alpha1.Migration) { o.CompletionTimeoutSeconds = 50 }, []step{{0, 1000, 1}, {30, 800, 1}, {60, 600, 1}}, actCancel, ReasonNotConverging, false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			start := metav1.NewTime(now)
			accepted := v1alpha1.MigrationStatus{ID: "id", Phase: v1alpha1.MigrationTransferring, StartTime: &start}
			m := newMemory(View{Order: v1alpha1.Migration{ID: "id", Role: v1alpha1.MigrationSource, Endpoint: "e"}, Accepted: accepted}, "")
			m.issued = true
			if c.change != nil {
				c.change(&m.view.Order)
			}
			var got act
			for _, s := range c.steps {
				m.qemu = &observed{migrate: running(s.remaining, s.pass)}
				got, _ = decide(m, now.Add(time.Duration(s.seconds)*time.Second))
			}
			if got != c.want || m.cancelling != c.reason || m.report.NotConverging != c.notConverging {
				t.Errorf("got %q %s, not converging is %t", got, m.cancelling, m.report.NotConverging)
			}
		})
	}
}
