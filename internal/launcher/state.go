package launcher

import (
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/qmp"
	"orlop.dev/orlop/internal/wire"
)

const (
	// pressInterval is how often the power button is pressed again: a guest that is
	// still booting does not notice the first time.
	pressInterval = 10 * time.Second
	// monitorGrace is how long a QEMU may live without its monitor. A healthy one
	// closes it only in its last moment.
	monitorGrace = 5 * time.Second
	// farewell is how long a deleted pod waits for a handler to record the exit. The
	// kubelet reports the end of the container in any case.
	farewell = 15 * time.Second
	// maxMessage bounds Exit.Message, in bytes.
	maxMessage = 1024
)

// stage is how far the one process is. It only goes forward.
type stage int

const (
	idle     stage = iota // no start yet
	starting              // made, the guest does not run yet
	awaiting              // made, the guest is to arrive by a migration
	alive                 // the guest has run
	gone                  // reaped, or never made
)

// State is everything the launcher remembers. The zero value is a fresh launcher.
//
//	idle ──StartRequested──► starting ──GuestStarted──────────────────► alive
//	  │                         │ └──GuestAwaited──► awaiting ──resumed──┘│
//	  │                         └────────Exited─────────┴─────────────────┴──► gone ──bye or SIGTERM──► leave
//	  └──SIGTERM──► leave
//
// A guest that was alive here may have left by a migration: then the process lives on
// without it, and nothing makes it run again.
type State struct {
	public wire.State
	stage  stage

	// start is the request that waits for the guest to run; 0 once answered.
	start Token
	// failure is why the start failed.
	failure string
	// reason is QEMU's own word on its end.
	reason string
	// shutdown is true once the guest was asked to power off, killed once SIGKILL was sent.
	shutdown, killed bool
	// hungUp is true once the monitor is gone before its time, lost once QEMU was killed
	// for it.
	hungUp, lost bool
	// leaving is true while a migration has stopped the guest, left once it has
	// completed: for ever.
	leaving, left bool
	// noSpace is the kind of the last I/O error.
	noSpace bool
	// devices are the block devices of the living machine; listing and listStale
	// serialise QueryDevices.
	devices            []device
	listing, listStale bool
	// querying and stale serialise QueryStatus: one in flight, one more if something
	// changed meanwhile.
	querying, stale bool

	grace       time.Duration
	killAt      time.Time
	pressAt     time.Time
	leaveAt     time.Time
	terminating bool
}

// Public is the state as the handler sees it.
func (s State) Public() wire.State {
	p := s.public
	p.Disks = s.disks()
	return p
}

// Deadline is when Tick is due next; zero means never.
func (s State) Deadline() time.Time {
	var next time.Time
	times := []time.Time{s.killAt, s.pressAt, s.leaveAt}
	for _, d := range s.devices {
		times = append(times, d.at)
	}
	for _, t := range times {
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	return next
}

// Next is total: every state answers every event.
func (s State) Next(now time.Time, e Event) (State, []Action) {
	switch e := e.(type) {
	case StartRequested:
		return s.startRequested(e)
	case ShutdownRequested:
		return s.shutdownRequested(now, e)
	case KillRequested:
		return s.killRequested(e)
	case RebootActionRequested:
		return s.command(e.Token, Command{Token: e.Token, Kind: CommandRebootAction, RebootAction: e.Action})
	case ResumeRequested:
		return s.resumeRequested(e)
	case ResumeIncomingRequested:
		return s.resumeIncomingRequested(e)
	case ResizeRequested:
		return s.resizeRequested(e)
	case ByeRequested:
		return s.byeRequested(e)
	case TerminationRequested:
		return s.terminationRequested(now)
	case GuestStarted:
		return s.guestStarted(now, e)
	case GuestAwaited:
		return s.guestAwaited(e)
	case MigrationChanged:
		return s.migrationChanged(e)
	case StartFailed:
		return s.startFailed(now, e)
	case CommandDone:
		return s.commandDone(now, e)
	case StatusRead:
		return s.statusRead(e)
	case AgentRead:
		s.public.AgentConnected = e.Connected && s.living()
		return s, nil
	case GuestStateChanged:
		return s.query()
	case IOError:
		s.noSpace = e.NoSpace
		return s, nil
	case ShutdownAnnounced:
		s.reason = e.Reason
		return s, nil
	case MonitorClosed:
		return s.monitorClosed(now)
	case Exited:
		return s.exited(now, e)
	case Tick:
		return s.tick(now)
	default:
		return s.plugNext(now, e)
	}
}

func (s State) startRequested(e StartRequested) (State, []Action) {
	if s.stage != idle || s.terminating {
		return s, []Action{Answer{e.Token, wire.ErrAlreadyStarted}}
	}
	s.stage, s.start, s.grace = starting, e.Token, e.Grace
	s.public.InstanceUID, s.public.Phase = e.UID, v1alpha1.InstanceStarting
	s.public.RebootAction = v1alpha1.RebootReset
	if e.RebootAction != "" {
		s.public.RebootAction = e.RebootAction
	}
	return s, []Action{Spawn{e.Token}}
}

func (s State) guestStarted(now time.Time, e GuestStarted) (State, []Action) {
	if s.stage != starting {
		return s, nil
	}
	s.public.QEMUVersion = e.Version
	for _, d := range e.Devices {
		s = s.with(device{Device: d})
	}
	actions := []Action{Answer{s.start, nil}}
	s.start = 0
	s, more := s.revived(now)
	return s, append(actions, more...)
}

// revived is the guest's first moment in this process.
func (s State) revived(now time.Time) (State, []Action) {
	s.stage = alive
	s.public.StartTime = &now
	s.public.GuestStatus = string(qmp.StateRunning)
	if s.shutdown {
		return s, []Action{Command{Kind: CommandPowerDown}}
	}
	s.public.Phase = v1alpha1.InstanceRunning
	return s, nil
}

// guestAwaited answers the start, though no guest runs yet.
func (s State) guestAwaited(e GuestAwaited) (State, []Action) {
	if s.stage != starting {
		return s, nil
	}
	s.stage = awaiting
	s.public.QEMUVersion = e.Version
	for _, d := range e.Devices {
		s = s.with(device{Device: d})
	}
	s.public.GuestStatus = string(qmp.StateInMigrate)
	actions := []Action{Answer{s.start, nil}}
	s.start = 0
	return s, actions
}

// migrationChanged follows a guest that leaves. The events of one that arrives look
// alike, and may be heard late: only a source ever stands before the switch-over.
func (s State) migrationChanged(e MigrationChanged) (State, []Action) {
	if s.stage != alive {
		return s, nil
	}
	switch e.Status {
	case qmp.MigrationPreSwitchover, qmp.MigrationDevice:
		s.leaving = true
	case qmp.MigrationCompleted:
		if s.leaving {
			return s.guestLeft()
		}
	case qmp.MigrationSetup, qmp.MigrationFailed, qmp.MigrationCancelled:
		s.leaving = false
	default:
	}
	return s, nil
}

// guestLeft is final: whatever is asked from now on, the guest runs elsewhere.
func (s State) guestLeft() (State, []Action) {
	if s.left {
		return s, nil
	}
	s.left = true
	s.pressAt = time.Time{}
	s.public.GuestStatus = string(qmp.StatePostMigrate)
	if s.shutdown {
		return s, []Action{KillProcess{}} // the shutdown goes on where the guest is
	}
	s.public.Phase, s.public.PauseReason = v1alpha1.InstancePaused, "Migrated"
	return s, nil
}

func (s State) resumeRequested(e ResumeRequested) (State, []Action) {
	if s.left {
		return s, []Action{Answer{e.Token, wire.Errorf(wire.CodeNotRunning, "the guest has left this process")}}
	}
	if s.stage != alive {
		return s, []Action{Answer{e.Token, wire.ErrNotRunning}}
	}
	return s, []Action{Command{Token: e.Token, Kind: CommandContinue}}
}

func (s State) resumeIncomingRequested(e ResumeIncomingRequested) (State, []Action) {
	switch {
	case s.stage == awaiting:
		return s, []Action{Command{Token: e.Token, Kind: CommandResumeIncoming}}
	case s.stage == alive && !s.left:
		return s, []Action{Answer{e.Token, nil}} // done already
	default:
		return s, []Action{Answer{e.Token, wire.ErrNotRunning}}
	}
}

func (s State) startFailed(now time.Time, e StartFailed) (State, []Action) {
	if s.stage != starting {
		return s, nil
	}
	s.failure = e.Reason
	if e.NoProcess {
		return s.exited(now, Exited{Code: 1})
	}
	return s, []Action{KillProcess{}}
}

// shutdownRequested begins or shortens a shutdown; it never lengthens one.
func (s State) shutdownRequested(now time.Time, e ShutdownRequested) (State, []Action) {
	answer := func(err *wire.Error) []Action {
		if e.Token == 0 {
			return nil
		}
		return []Action{Answer{e.Token, err}}
	}
	if !s.living() {
		return s, answer(wire.ErrNotRunning)
	}
	actions := answer(nil)
	if at := now.Add(e.Grace); s.killAt.IsZero() || at.Before(s.killAt) {
		s.killAt = at
	}
	if e.Grace <= 0 {
		s.killed = true
		s.killAt = time.Time{}
		actions = append(actions, KillProcess{})
	}
	s.public.Phase, s.public.PauseReason = v1alpha1.InstanceStopping, ""
	if s.shutdown {
		return s, actions
	}
	s.shutdown = true
	if s.killed {
		return s, actions
	}
	if s.left {
		return s, append(actions, KillProcess{}) // there is nobody to ask
	}
	s.pressAt = now.Add(pressInterval)
	if s.stage == alive {
		actions = append(actions, Command{Kind: CommandPowerDown})
	}
	return s, actions
}

func (s State) killRequested(e KillRequested) (State, []Action) {
	if !s.living() {
		return s, []Action{Answer{e.Token, wire.ErrNotRunning}}
	}
	s.killed = true
	s.killAt, s.pressAt = time.Time{}, time.Time{}
	s.public.Phase, s.public.PauseReason = v1alpha1.InstanceStopping, ""
	return s, []Action{KillProcess{}, Answer{e.Token, nil}}
}

// living is true while there is a process.
func (s State) living() bool { return s.stage == starting || s.stage == awaiting || s.stage == alive }

// command runs a monitor command of the handler.
func (s State) command(t Token, c Command) (State, []Action) {
	if s.stage != alive && s.stage != awaiting {
		return s, []Action{Answer{t, wire.ErrNotRunning}}
	}
	return s, []Action{c}
}

func (s State) resizeRequested(e ResizeRequested) (State, []Action) {
	d, there := s.device(e.Disk)
	switch {
	case s.stage != alive:
		return s, []Action{Answer{e.Token, wire.ErrNotRunning}}
	case !there || d.step != present:
		return s, []Action{Answer{e.Token, wire.Errorf(wire.CodeInvalid, "there is no disk %s", e.Disk)}}
	case e.Bytes < d.Size || e.Bytes%512 != 0:
		return s, []Action{Answer{e.Token, wire.Errorf(wire.CodeInvalid,
			"disk %s cannot be resized from %d to %d bytes", e.Disk, d.Size, e.Bytes)}}
	}
	return s, []Action{Command{Token: e.Token, Kind: CommandResize, Disk: e.Disk, Node: d.Node, Bytes: e.Bytes}}
}

func (s State) commandDone(now time.Time, e CommandDone) (State, []Action) {
	var actions []Action
	if e.Err == nil {
		switch e.Command.Kind {
		case CommandRebootAction:
			s.public.RebootAction = e.Command.RebootAction
		case CommandResize:
			if d, there := s.device(e.Command.Disk); there {
				d.Size = e.Command.Bytes
				s = s.with(d)
			}
		case CommandResumeIncoming:
			if s.stage == awaiting {
				s, actions = s.revived(now)
				var more []Action
				s, more = s.queryDevices() // a disk may have grown at the source
				actions = append(actions, more...)
			}
		case CommandPowerDown, CommandContinue: // QEMU tells what came of it
		}
	}
	if e.Command.Token == 0 {
		return s, actions
	}
	if e.Err != nil {
		return s, append(actions, Answer{e.Command.Token, wire.Errorf(wire.CodeInternal, "%v", e.Err)})
	}
	return s, append(actions, Answer{e.Command.Token, nil})
}

// query asks for the run state, once at a time.
func (s State) query() (State, []Action) {
	if s.querying {
		s.stale = true
		return s, nil
	}
	s.querying = true
	return s, []Action{QueryStatus{}}
}

func (s State) statusRead(e StatusRead) (State, []Action) {
	s.querying = false
	var actions []Action
	if e.Err == nil && s.stage == alive && !s.left {
		s, actions = s.guestIs(e.Status)
	}
	if s.stale {
		s.stale = false
		var more []Action
		s, more = s.query()
		actions = append(actions, more...)
	}
	return s, actions
}

// guestIs takes in a run state.
func (s State) guestIs(status qmp.RunState) (State, []Action) {
	if status == qmp.StatePostMigrate {
		return s.guestLeft()
	}
	s.public.GuestStatus = string(status)
	// The last moment of a migration is not a state of its own: the guest is about to
	// run on, here or elsewhere.
	if status != qmp.StateFinishMigrate && s.public.Phase != v1alpha1.InstanceStopping {
		s.public.Phase, s.public.PauseReason = phase(status, s.noSpace)
	}
	return s, nil
}

// phase reads a run state as an instance's phase and pause reason.
func phase(status qmp.RunState, noSpace bool) (v1alpha1.InstancePhase, string) {
	switch status {
	case qmp.StateRunning, qmp.StateShutdown:
		return v1alpha1.InstanceRunning, ""
	case qmp.StateIOError:
		if noSpace {
			return v1alpha1.InstancePaused, "NoSpace"
		}
		return v1alpha1.InstancePaused, "IOError"
	case qmp.StateSuspended:
		return v1alpha1.InstancePaused, "Suspended"
	case qmp.StateGuestPanicked:
		return v1alpha1.InstancePaused, "GuestPanicked"
	case qmp.StatePaused, qmp.StatePrelaunch, qmp.StateInternalError:
		return v1alpha1.InstancePaused, "Unknown"
	default:
		return v1alpha1.InstancePaused, "Unknown"
	}
}

func (s State) monitorClosed(now time.Time) (State, []Action) {
	if !s.living() || s.killed || s.reason != "" {
		return s, nil // it is on its way out; giving back much memory takes time
	}
	if at := now.Add(monitorGrace); s.killAt.IsZero() || at.Before(s.killAt) {
		s.hungUp, s.killAt = true, at
	}
	return s, nil
}

func (s State) terminationRequested(now time.Time) (State, []Action) {
	if s.terminating {
		return s, nil
	}
	s.terminating = true
	switch s.stage {
	case idle:
		return s, []Action{Leave{0}}
	case gone:
		s.leaveAt = now.Add(farewell)
		return s, nil
	case starting, awaiting, alive:
	}
	return s.shutdownRequested(now, ShutdownRequested{Grace: s.grace})
}

// byeRequested lets go: of an exit that was recorded, or of a start that will not come.
func (s State) byeRequested(e ByeRequested) (State, []Action) {
	switch s.stage {
	case idle:
		s.terminating = true
		return s, []Action{Answer{e.Token, nil}, Leave{0}}
	case gone:
		return s, []Action{Answer{e.Token, nil}, Leave{s.code()}}
	case starting, awaiting, alive:
	}
	return s, []Action{Answer{e.Token, wire.Errorf(wire.CodeInvalid, "there is no exit to be recorded")}}
}

// exited ends the machine: from here on the launcher only waits to be let go.
func (s State) exited(now time.Time, e Exited) (State, []Action) {
	if !s.living() {
		return s, nil
	}
	exit := s.exit(now, e)
	s.stage = gone
	actions := s.abandon()
	s.devices = nil
	s.killAt, s.pressAt = time.Time{}, time.Time{}
	s.public.Phase, s.public.PauseReason, s.public.GuestStatus = v1alpha1.InstanceStopped, "", ""
	s.public.AgentConnected = false
	s.public.Exit = &exit
	actions = append(actions, RecordExit{exit})
	if s.start != 0 {
		actions = append(actions, Answer{s.start, wire.Errorf(wire.CodeInternal, "%s", exit.Message)})
		s.start = 0
	}
	if s.terminating {
		s.leaveAt = now.Add(farewell)
	}
	return s, actions
}

// exit is the proof of death.
func (s State) exit(now time.Time, e Exited) v1alpha1.Exit {
	x := v1alpha1.Exit{Cause: s.cause(e), Code: e.Code, Message: e.LastLine, Time: metav1.NewTime(now)}
	switch {
	case x.Cause == v1alpha1.ExitStartFailed && x.Message == "":
		x.Message = s.failure
	case x.Cause == v1alpha1.ExitCrashed && s.lost:
		x.Message = "QEMU closed its monitor and was killed"
	case x.Cause == v1alpha1.ExitCrashed && s.reason == "guest-panic":
		x.Message = "the guest panicked"
	case x.Cause == v1alpha1.ExitCrashed && e.Signal != "" && x.Message == "":
		x.Message = "QEMU was ended by signal: " + e.Signal
	case x.Cause != v1alpha1.ExitStartFailed && x.Cause != v1alpha1.ExitCrashed:
		x.Message = "" // warnings of a healthy process explain nothing
	}
	if len(x.Message) > maxMessage {
		x.Message = strings.ToValidUTF8(x.Message[:maxMessage], "")
	}
	return x
}

// cause puts together what was asked, what QEMU said and how it ended.
func (s State) cause(e Exited) v1alpha1.ExitCause {
	switch {
	case s.left:
		return v1alpha1.ExitMigrated
	case s.killed && (e.Signal != "" || s.reason == ""):
		return v1alpha1.ExitKilled
	case s.stage == starting, s.stage == awaiting:
		return v1alpha1.ExitStartFailed
	case s.lost, e.Code != 0:
		return v1alpha1.ExitCrashed
	}
	switch s.reason {
	case "guest-panic", "host-error":
		return v1alpha1.ExitCrashed
	case "host-qmp-quit", "host-signal", "host-ui":
		return v1alpha1.ExitKilled
	}
	switch {
	case s.shutdown:
		return v1alpha1.ExitHostShutdown
	case s.reason == "guest-reset":
		return v1alpha1.ExitGuestReset
	default:
		return v1alpha1.ExitGuestShutdown
	}
}

// code is the launcher's own exit code: what the pod's phase is made of.
func (s State) code() int {
	if x := s.public.Exit; x != nil && (x.Cause == v1alpha1.ExitStartFailed || x.Cause == v1alpha1.ExitCrashed) {
		return 1
	}
	return 0
}

func (s State) tick(now time.Time) (State, []Action) {
	due := func(t time.Time) bool { return !t.IsZero() && !now.Before(t) }
	var actions []Action
	if due(s.killAt) {
		s.killAt, s.pressAt = time.Time{}, time.Time{}
		s.lost, s.killed = s.hungUp, !s.hungUp
		actions = append(actions, KillProcess{})
	}
	if due(s.pressAt) {
		s.pressAt = now.Add(pressInterval)
		if s.stage == alive {
			actions = append(actions, Command{Kind: CommandPowerDown})
		}
	}
	if due(s.leaveAt) {
		s.leaveAt = time.Time{}
		actions = append(actions, Leave{s.code()})
	}
	s, more := s.plugTick(now)
	return s, append(actions, more...)
}
