package migration

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/qmp"
	"orlop.dev/orlop/internal/wire"
)

// Reasons of a failure.
const (
	ReasonAborted        = "Aborted"
	ReasonNotConverging  = "NotConverging"
	ReasonConnectionLost = "ConnectionLost"
	ReasonIncompatible   = "Incompatible"
	ReasonTargetDied     = "TargetDied"
	ReasonError          = "Error"
)

// act is one thing to do next.
type act string

// The acts.
const (
	actObserve  act = "observe"  // ask QEMU how it is, over a new connection if need be
	actListen   act = "listen"   // source: open the socket for QEMU's memory
	actSend     act = "send"     // source: order QEMU to migrate
	actContinue act = "continue" // source: let the switch-over go on
	actCancel   act = "cancel"   // source: call the migration off
	actResume   act = "resume"   // source: let a guest run on that could not leave
	actTell     act = "tell"     // source: tell the target's handler how it ended
	actEnd      act = "end"      // end this process: the guest is not in it
	actReceive  act = "receive"  // target: order QEMU to listen
	actCut      act = "cut"      // target: close the memory's channels for good
	actRun      act = "run"      // target: let the arrived guest run
)

const (
	// pace is how often a migration under way is looked at when nothing is heard.
	pace = time.Second
	// haste is the same while the guest stands still.
	haste = 100 * time.Millisecond
	// reportEvery is the shortest time between two reports of progress alone.
	reportEvery = 2 * time.Second
	// patience is how long a copy may fail to get smaller before it is said.
	patience = 10 * time.Second
	// throttleMost is the highest throttle of QEMU's auto-converge, in percent.
	throttleMost = 99
	// goodbyes is how often a dead source tells its end before it is left to the controller.
	goodbyes = 3
)

// View is what a Loop is told; each one replaces the last.
type View struct {
	// Order is the controller's.
	Order v1alpha1.Migration
	// Accepted is what the API server has of our report.
	Accepted v1alpha1.MigrationStatus
	// Launcher is the launcher's state.
	Launcher wire.State
}

// observed is QEMU's word, at one moment.
type observed struct {
	migrate qmp.Migration
	run     qmp.RunState
}

// memory is what a Loop knows. All that matters in it can be found out again.
type memory struct {
	view View
	// report is what should be accepted.
	report v1alpha1.MigrationStatus
	// endpoint is where our handler listens.
	endpoint string
	// adopted is true if an earlier Loop had begun this migration.
	adopted bool
	// qemu is nil when something may have changed since QEMU was asked.
	qemu *observed

	listening, issued bool
	// cancelling is why the migration is being called off.
	cancelling, cancelMessage string
	// refused is why QEMU would not begin.
	refused string
	// broken is how the relay of the memory ended.
	broken string
	told   bool
	// goodbyes counts attempts to tell.
	goodbyes int
	progress progress

	// sourceCompleted and sourceFailed are the source's own word.
	sourceCompleted bool
	sourceFailed    string
	// cut is true once no memory can come or go any more.
	cut bool

	failures map[act]int
	again    map[act]time.Time
}

func newMemory(v View, endpoint string) *memory {
	m := &memory{view: v, endpoint: endpoint, failures: map[act]int{}, again: map[act]time.Time{}}
	m.report = v1alpha1.MigrationStatus{ID: v.Order.ID}
	if v.Accepted.ID == v.Order.ID {
		m.report = *v.Accepted.DeepCopy()
		m.adopted = true
	}
	return m
}

// final says whether a report is the last.
func final(p v1alpha1.MigrationPhase) bool {
	return p == v1alpha1.MigrationCompleted || p == v1alpha1.MigrationFailed
}

// accepted says whether the API server has recorded that we are this far.
func (m *memory) accepted(p v1alpha1.MigrationPhase) bool {
	return m.view.Accepted.ID == m.view.Order.ID && m.view.Accepted.Phase == p
}

// living says whether there is a process.
func (m *memory) living() bool { return m.view.Launcher.Exit == nil }

// fail ends the migration in a report.
func (m *memory) fail(now time.Time, reason, message string) {
	m.report.Phase, m.report.Reason, m.report.Message = v1alpha1.MigrationFailed, reason, message
	m.report.NotConverging = false
	m.end(now)
}

func (m *memory) end(now time.Time) {
	t := metav1.NewTime(now.Truncate(time.Second)) // what JSON keeps of it
	m.report.EndTime = &t
}

// decide brings the report up to date and returns the next act, or none and the time
// at which to ask again (zero: when something happens).
func decide(m *memory, now time.Time) (act, time.Time) {
	var next act
	var wake time.Time
	if m.view.Order.Role == v1alpha1.MigrationTarget {
		next, wake = target(m, now)
	} else {
		next, wake = source(m, now)
	}
	if at := m.again[next]; next != "" && now.Before(at) {
		return "", earliest(wake, at)
	}
	return next, wake
}

// failed puts the next attempt at an act off.
func (m *memory) failed(a act, now time.Time) {
	wait := 100 * time.Millisecond << min(m.failures[a], 10)
	m.failures[a]++
	m.again[a] = now.Add(min(wait, 5*time.Second))
}

func (m *memory) succeeded(a act) {
	delete(m.failures, a)
	delete(m.again, a)
}

// earliest returns the sooner of two times, where zero means never.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
