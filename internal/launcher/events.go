package launcher

import (
	"time"

	"k8s.io/apimachinery/pkg/types"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/qmp"
	"orlop.dev/orlop/internal/wire"
)

// Event is something that happened. The set is closed.
type Event interface{ event() }

// Token names a request of the handler that waits for its answer.
type Token uint64

// What the handler or the kubelet asks.
type (
	// StartRequested asks for the one start.
	StartRequested struct {
		Token        Token
		UID          types.UID
		RebootAction v1alpha1.RebootAction
		// Grace is how long the guest may take to shut down when the pod is deleted.
		Grace time.Duration
	}
	// ShutdownRequested asks the guest to power off, and kills it after Grace.
	ShutdownRequested struct {
		Token Token
		Grace time.Duration
	}
	// KillRequested ends QEMU at once.
	KillRequested struct{ Token Token }
	// RebootActionRequested changes what a guest reset does.
	RebootActionRequested struct {
		Token  Token
		Action v1alpha1.RebootAction
	}
	// ResumeRequested lets a paused guest run again.
	ResumeRequested struct{ Token Token }
	// ResumeIncomingRequested lets a guest run that has arrived by a migration.
	ResumeIncomingRequested struct{ Token Token }
	// ResizeRequested tells the guest a disk's new size, in bytes.
	ResizeRequested struct {
		Token Token
		Disk  string
		Bytes int64
	}
	// ByeRequested says that the exit has been recorded.
	ByeRequested struct{ Token Token }
	// TerminationRequested is SIGTERM: the pod is being deleted.
	TerminationRequested struct{}
)

// What QEMU does.
type (
	// GuestStarted follows the first `cont`.
	GuestStarted struct {
		Version string
		Devices []Device
	}
	// GuestAwaited follows the start of a process that waits for a migration.
	GuestAwaited struct {
		Version string
		Devices []Device
	}
	// MigrationChanged is QEMU's word on a migration, in either direction.
	MigrationChanged struct{ Status qmp.MigrationStatus }
	// StartFailed means that the guest will never run. A process may be left to end.
	StartFailed struct {
		Reason string
		// NoProcess is true if none was made, so that no Exited will follow.
		NoProcess bool
	}
	// CommandDone is the outcome of a Command action.
	CommandDone struct {
		Command Command
		Err     error
	}
	// StatusRead is the outcome of a QueryStatus action.
	StatusRead struct {
		Status qmp.RunState
		Err    error
	}
	// AgentRead comes before StatusRead where QEMU could be asked.
	AgentRead struct {
		// Connected is true while the guest has the agent's channel open.
		Connected bool
	}
	// GuestStateChanged means that QueryStatus will say something new.
	GuestStateChanged struct{}
	// IOError is a failed request of a disk that stopped the guest.
	IOError struct{ NoSpace bool }
	// ShutdownAnnounced is QEMU's word on why it is about to end.
	ShutdownAnnounced struct{ Reason string }
	// MonitorClosed means that QEMU hung up.
	MonitorClosed struct{}
	// Exited means that the process has been reaped and everything it said was heard.
	Exited struct {
		// Code is the exit status, or 128 + signal number.
		Code int32
		// Signal that ended it, or "".
		Signal string
		// LastLine of its stderr.
		LastLine string
	}
)

// Tick is the passing of State.Deadline.
type Tick struct{}

func (StartRequested) event()          {}
func (ShutdownRequested) event()       {}
func (KillRequested) event()           {}
func (RebootActionRequested) event()   {}
func (ResumeRequested) event()         {}
func (ResumeIncomingRequested) event() {}
func (ResizeRequested) event()         {}
func (ByeRequested) event()            {}
func (TerminationRequested) event()    {}
func (GuestStarted) event()            {}
func (GuestAwaited) event()            {}
func (MigrationChanged) event()        {}
func (StartFailed) event()             {}
func (CommandDone) event()             {}
func (StatusRead) event()              {}
func (AgentRead) event()               {}
func (GuestStateChanged) event()       {}
func (IOError) event()                 {}
func (ShutdownAnnounced) event()       {}
func (MonitorClosed) event()           {}
func (Exited) event()                  {}
func (Tick) event()                    {}

// Action is something to be done. The set is closed.
type Action interface{ action() }

// What the loop does for the machine.
type (
	// Spawn makes the process from the start request of this token.
	Spawn struct{ Token Token }
	// Command runs a monitor command and comes back as CommandDone. With a token it
	// belongs to a request.
	Command struct {
		Token        Token
		Kind         CommandKind
		RebootAction v1alpha1.RebootAction
		Disk, Node   string
		Bytes        int64
	}
	// QueryStatus asks QEMU for its run state and comes back as StatusRead.
	QueryStatus struct{}
	// KillProcess sends SIGKILL.
	KillProcess struct{}
	// Answer answers a request; nil means success.
	Answer struct {
		Token Token
		Err   *wire.Error
	}
	// RecordExit writes the termination message of the container.
	RecordExit struct{ Exit v1alpha1.Exit }
	// Leave ends the launcher with this exit code.
	Leave struct{ Code int }
)

// CommandKind is a monitor command.
type CommandKind string

// The commands.
const (
	CommandPowerDown    CommandKind = "power-down"
	CommandContinue     CommandKind = "continue"
	CommandRebootAction CommandKind = "reboot-action"
	CommandResize       CommandKind = "resize"
	// CommandResumeIncoming is `cont`, given only if a migration has filled the memory.
	CommandResumeIncoming CommandKind = "resume-incoming"
)

func (Spawn) action()       {}
func (Command) action()     {}
func (QueryStatus) action() {}
func (KillProcess) action() {}
func (Answer) action()      {}
func (RecordExit) action()  {}
func (Leave) action()       {}
