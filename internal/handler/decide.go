package handler

import (
	"time"

	"k8s.io/apimachinery/pkg/api/equality"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/wire"
)

// act is one thing to do next.
type act string

// The acts, in the order in which they are considered.
const (
	actReport   act = "report"        // write the status
	actBye      act = "bye"           // let the launcher exit: its word is recorded
	actConnect  act = "connect"       // connect to the launcher
	actWire     act = "wire"          // (re-)apply the pod's network
	actStart    act = "start"         // hand over devices and start QEMU
	actKill     act = "kill"          // end QEMU
	actShutdown act = "shutdown"      // ask the guest to power off
	actReboot   act = "reboot-action" // tell QEMU what a guest reset does
	actResume   act = "resume"        // let a guest go on that stands on an I/O error
)

const (
	// settle is how long a resumed guest must run before we say so: a disk that is
	// still full stops it again within milliseconds.
	settle = time.Second
	// steady is how long a guest must have run for its next pause to be a new one,
	// retried quickly.
	steady = time.Minute
	// quiet is how many failures of one act are nobody's business.
	quiet = 3
)

// memory is what a worker knows. It can all be found out again.
type memory struct {
	instance *v1alpha1.Instance
	// status is what the API server has accepted last.
	status v1alpha1.InstanceStatus

	// launcher is the newest state heard on this connection, nil without one.
	launcher *wire.State
	// wired is true once the network was applied on this connection.
	wired bool
	// asked are the orders already given on this connection.
	asked map[act]bool
	// presence is the time that the guest's agent was announced for; guest is what it
	// says, nil if it does not answer, once guestHeard is true.
	presence   *presence
	guest      *v1alpha1.Guest
	guestHeard bool
	// farewell is true once nothing is left to do for this Instance.
	farewell bool

	// migration is what the migration's loop reports, nil without one; unsettled is
	// true while it still owes the other end a word.
	migration *v1alpha1.MigrationStatus
	unsettled bool

	runningSince, resumedAt time.Time
	// pluggedAt is when a device came or went last.
	pluggedAt time.Time

	retries  map[act]*retry
	problems map[act]string
}

func newMemory(in *v1alpha1.Instance) *memory {
	return &memory{
		instance: in,
		status:   *in.Status.DeepCopy(),
		asked:    map[act]bool{},
		problems: map[act]string{},
		retries: map[act]*retry{
			actReport: {first: 200 * time.Millisecond, most: 10 * time.Second},
			actBye:    {first: time.Second, most: 30 * time.Second},
			// A pod takes about a second from the scheduler's decision to its
			// launcher's socket, which appears in a directory that does not exist
			// yet: looking is cheaper than watching four levels of directories.
			actConnect:  {first: 20 * time.Millisecond, most: time.Second},
			actWire:     {first: 200 * time.Millisecond, most: 10 * time.Second},
			actStart:    {first: 200 * time.Millisecond, most: 10 * time.Second},
			actKill:     {first: 500 * time.Millisecond, most: 10 * time.Second},
			actShutdown: {first: 500 * time.Millisecond, most: 10 * time.Second},
			actReboot:   {first: 500 * time.Millisecond, most: 30 * time.Second},
			actResume:   {first: time.Second, most: 30 * time.Second},
		},
	}
}

// hear takes in a state of the launcher.
func (m *memory) hear(now time.Time, s *wire.State) {
	was := v1alpha1.InstancePending
	if m.launcher != nil {
		was = m.launcher.Phase
	}
	m.launcher = s
	m.forgetPlugs()
	switch {
	case s.Phase == v1alpha1.InstanceRunning && was != v1alpha1.InstanceRunning:
		m.runningSince = now
	case s.Phase == v1alpha1.InstancePaused && was == v1alpha1.InstanceRunning && now.Sub(m.runningSince) >= steady:
		m.retries[actResume].succeeded()
	}
}

// disconnected forgets what only held for one connection.
func (m *memory) disconnected() {
	m.launcher, m.wired = nil, false
	m.asked = map[act]bool{}
}

// started says whether the launcher has been told to start this Instance.
func (m *memory) started() bool {
	return m.launcher != nil && m.launcher.InstanceUID == m.instance.UID
}

// fresh says whether the launcher has never been told to start anything.
func (m *memory) fresh() bool { return m.launcher != nil && m.launcher.InstanceUID == "" }

// wanted says whether this Instance is to be started in this pod and has not been
// before: the one question whose wrong answer would run a machine twice.
func (m *memory) wanted() bool {
	in := m.instance
	if in.Spec.PodUID == "" || in.DeletionTimestamp != nil || m.unwanted() {
		return false
	}
	switch m.status.Phase {
	case v1alpha1.InstancePending:
		return m.status.PodUID == ""
	case v1alpha1.InstanceStarting:
		// Claimed, by us or by a handler that died before it could start: the
		// launcher, who alone knows, says it has not been started.
		return m.status.PodUID == in.Spec.PodUID
	default:
		return false
	}
}

// unwanted says whether a start was called off before it happened: its launcher may
// go, and the kubelet's word on the container is the proof of death.
func (m *memory) unwanted() bool {
	return m.instance.Spec.Power == v1alpha1.PowerOff || m.instance.Spec.Power == v1alpha1.PowerKill
}

// decide returns the next act, or none and the time at which to ask again (zero:
// when something happens).
func decide(m *memory, now time.Time) (act, time.Time) {
	if m.farewell || m.instance.Spec.PodUID == "" {
		return "", time.Time{}
	}
	var wake time.Time
	for _, a := range due(m, now) {
		if soon := m.pluggedAt.Add(plugPace); asksPace(a) && now.Before(soon) {
			wake = earliest(wake, soon)
			continue
		}
		r := m.retry(a)
		if r.due(now) {
			return a, time.Time{}
		}
		wake = earliest(wake, r.next)
		if a == actReport {
			break // what follows may rest on what is not written yet
		}
	}
	if t := m.resumedAt.Add(settle); m.status.Phase == v1alpha1.InstancePaused && now.Before(t) {
		wake = earliest(wake, t)
	}
	return "", wake
}

// due lists the acts that the state of things asks for, whenever they may be tried.
func due(m *memory, now time.Time) []act {
	var acts []act
	if !equality.Semantic.DeepEqual(statusOf(m, now), m.status) {
		acts = append(acts, actReport)
	}
	if m.launcher == nil {
		return append(acts, actConnect)
	}
	l := m.launcher
	switch {
	case m.status.Phase == v1alpha1.InstanceStopped && m.unsettled:
		return acts
	case m.status.Phase == v1alpha1.InstanceStopped:
		return append(acts, actBye)
	case m.fresh():
		switch {
		case m.wanted() && m.status.Phase == v1alpha1.InstanceStarting:
			acts = append(acts, actStart)
		case m.unwanted():
			acts = append(acts, actBye)
		}
		return acts
	case !m.started() || l.Exit != nil:
		return acts
	}
	if !m.wired {
		acts = append(acts, actWire)
	}
	return append(acts, orders(m)...)
}

// orders are what a running QEMU is told.
func orders(m *memory) []act {
	var acts []act
	in, l := m.instance, m.launcher
	switch {
	case in.Spec.Power == v1alpha1.PowerKill:
		if !m.asked[actKill] {
			acts = append(acts, actKill)
		}
		return acts
	case in.Spec.Power == v1alpha1.PowerOff:
		// A launcher that is stopping keeps the clock itself: told again by a
		// restarted handler it would begin anew.
		if !m.asked[actShutdown] && l.Phase != v1alpha1.InstanceStopping {
			acts = append(acts, actShutdown)
		}
	}
	if l.Phase == v1alpha1.InstanceStopping {
		return acts
	}
	if rebootAction(in.Spec.RebootAction) != rebootAction(l.RebootAction) {
		acts = append(acts, actReboot)
	}
	if l.Phase == v1alpha1.InstancePaused && (l.PauseReason == "NoSpace" || l.PauseReason == "IOError") {
		acts = append(acts, actResume)
	}
	return append(acts, plugs(m)...)
}

func rebootAction(a v1alpha1.RebootAction) v1alpha1.RebootAction {
	if a == "" {
		return v1alpha1.RebootReset
	}
	return a
}
