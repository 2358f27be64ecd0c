package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"orlop.dev/orlop/api/instance/v1alpha1"
)

// Version is the protocol this package speaks.
const Version = 1

// SocketName is the launcher's socket in the pod's run directory. It is one letter
// because paths of unix sockets are limited to 108 bytes.
const SocketName = "l"

// Bounds of one packet. A start message of a machine with 16 disks is about 8 KiB
// and carries some 40 descriptors.
const (
	MaxMessage = 1 << 20
	MaxFDs     = 128
)

// Type names a message.
type Type string

// The messages. All but TypeAnswer and TypeState are requests of the handler.
const (
	TypeHello        Type = "hello"
	TypeStart        Type = "start"
	TypeShutdown     Type = "shutdown"
	TypeKill         Type = "kill"
	TypeRebootAction Type = "reboot-action"
	TypeResume       Type = "resume"
	// TypeResumeIncoming lets the guest run that has arrived by a migration.
	TypeResumeIncoming Type = "resume-incoming"
	TypeResize         Type = "resize"
	TypeBye            Type = "bye"

	TypeAnswer Type = "answer"
	TypeState  Type = "state"
)

// Message is one packet without its descriptors.
type Message struct {
	Type Type `json:"type"`
	// ID pairs an answer with its request; a state has none.
	ID uint64 `json:"id,omitempty"`
	// Body depends on Type, and for an answer on the type of the request.
	Body json.RawMessage `json:"body,omitempty"`
	// Error is set in an answer to a request that was refused or failed.
	Error *Error `json:"error,omitempty"`
}

// Code says what kind of error an answer is, for programs.
type Code string

// The codes. An unknown one reads as CodeInternal.
const (
	// CodeAlreadyStarted refuses a second start, whatever became of the first.
	CodeAlreadyStarted Code = "AlreadyStarted"
	// CodeNotRunning refuses what needs a living QEMU.
	CodeNotRunning Code = "NotRunning"
	// CodeInvalid refuses a request that can never succeed as it is.
	CodeInvalid Code = "Invalid"
	// CodeUnsupported refuses a request this launcher does not know.
	CodeUnsupported Code = "Unsupported"
	// CodeInternal is everything else.
	CodeInternal Code = "Internal"
)

// Error is a refusal that travelled over the wire. errors.Is compares codes with
// the sentinels below.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
}

// Sentinels for errors.Is.
var (
	ErrAlreadyStarted = &Error{Code: CodeAlreadyStarted, Message: "already started"}
	ErrNotRunning     = &Error{Code: CodeNotRunning, Message: "QEMU is not running"}
)

// ErrClosed is returned when the connection ended before the answer came.
var ErrClosed = errors.New("connection closed")

// Errorf makes an error that keeps its code on the way.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Error implements error.
func (e *Error) Error() string { return e.Message }

// Is reports whether target is a wire error of the same code.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// Hello opens a connection in either direction.
type Hello struct {
	// Version is the protocol of the sender.
	Version int `json:"version"`
	// State is set in the launcher's answer.
	State *State `json:"state,omitempty"`
}

// Start is everything QEMU is made of. Descriptors are named by their index among
// the descriptors of the same packet.
type Start struct {
	InstanceUID types.UID `json:"instanceUID"`
	// Machine has its accelerator resolved.
	Machine v1alpha1.Machine `json:"machine"`
	// RebootAction is the initial one; empty means Reset.
	RebootAction v1alpha1.RebootAction `json:"rebootAction,omitempty"`
	// GracePeriodSeconds is how long the guest may take to shut down when the pod
	// is deleted (SIGTERM), in seconds.
	GracePeriodSeconds int64 `json:"gracePeriodSeconds,omitempty"`
	// FirstBoot says what is mounted at /run/firstboot; needed if a disk has that source.
	FirstBoot *v1alpha1.FirstBoot `json:"firstBoot,omitempty"`
	// Disks has one entry for each disk of the machine but the first-boot one.
	Disks []StartDisk `json:"disks,omitempty"`
	// Interfaces has one entry for each interface of the machine.
	Interfaces []StartInterface `json:"interfaces,omitempty"`
	// Incoming makes QEMU wait for a guest that arrives by a migration: nothing lets it
	// run but resume-incoming.
	Incoming bool `json:"incoming,omitempty"`
	// KVM is the index of an open /dev/kvm, needed with accelerator KVM.
	KVM *int `json:"kvm,omitempty"`
}

// StartDisk gives a disk its descriptors.
type StartDisk struct {
	// ID is the disk's id in the machine.
	ID string `json:"id"`
	// FDs are the indices of the descriptors of one file or device: one opened
	// O_RDWR|O_DIRECT for a writable disk, O_RDONLY for a read-only one (O_DIRECT if
	// the file system has it). At the moment exactly one.
	FDs []int `json:"fds"`
}

// StartInterface gives an interface its tap.
type StartInterface struct {
	// ID is the interface's id in the machine.
	ID string `json:"id"`
	// FD is the index of a tap descriptor (IFF_TAP|IFF_NO_PI|IFF_VNET_HDR).
	FD int `json:"fd"`
	// MTU is announced to the guest by virtio, in bytes; 0 announces nothing.
	MTU int32 `json:"mtu,omitempty"`
}

// Shutdown asks the guest to power off.
type Shutdown struct {
	// GracePeriodSeconds after which QEMU is killed, in seconds; 0 kills at once.
	GracePeriodSeconds int64 `json:"gracePeriodSeconds"`
}

// SetRebootAction changes what a guest reset does.
type SetRebootAction struct {
	Action v1alpha1.RebootAction `json:"action"`
}

// Resize tells the guest that the file or device of a disk has grown.
type Resize struct {
	// Disk is the id in the machine.
	Disk string `json:"disk"`
	// Bytes is the new virtual size, a multiple of 512. Shrinking is refused.
	Bytes int64 `json:"bytes"`
}

// State is all a launcher knows of its QEMU.
type State struct {
	// InstanceUID of the start request; empty before it.
	InstanceUID types.UID `json:"instanceUID,omitempty"`
	// Phase never goes back, but between Running and Paused.
	Phase v1alpha1.InstancePhase `json:"phase"`
	// PauseReason is set in phase Paused: IOError, NoSpace, GuestPanicked, Suspended,
	// Migrated (it runs in another process now, and never here again) or Unknown.
	PauseReason string `json:"pauseReason,omitempty"`
	// StartTime is when the guest's CPUs first ran.
	StartTime *time.Time `json:"startTime,omitempty"`
	// QEMUVersion such as "10.0.2".
	QEMUVersion string `json:"qemuVersion,omitempty"`
	// GuestStatus is QEMU's run state as QMP spells it ("running", "io-error").
	GuestStatus string `json:"guestStatus,omitempty"`
	// RebootAction that QEMU has been told.
	RebootAction v1alpha1.RebootAction `json:"rebootAction,omitempty"`
	// Disks that the guest sees, with their virtual sizes.
	Disks []v1alpha1.DiskStatus `json:"disks,omitempty"`
	// AgentConnected is true while a program in the guest has the agent's channel open.
	AgentConnected bool `json:"agentConnected,omitempty"`
	// Exit is set once QEMU has been reaped, or could not be started.
	Exit *v1alpha1.Exit `json:"exit,omitempty"`
}
