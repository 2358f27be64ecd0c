package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// MigrationRole is which end of a live migration a process is.
//
// +kubebuilder:validation:Enum=Source;Target
type MigrationRole string

// The roles.
const (
	// MigrationSource: the guest runs here and is to leave.
	MigrationSource MigrationRole = "Source"
	// MigrationTarget: the process waits for the guest. It never lets a CPU run
	// before the source has reported `completed`.
	MigrationTarget MigrationRole = "Target"
)

// Migration is the controller's order to one end. A new migration has a new ID and
// replaces the order of the last one.
type Migration struct {
	// ID is the UID of the operation.
	ID string `json:"id"`
	// Role of this process.
	Role MigrationRole `json:"role"`
	// Peer is the Instance at the other end, in the same namespace.
	Peer string `json:"peer"`
	// PeerNode is the node of the other end; a connection from or to any other node is refused.
	PeerNode string `json:"peerNode"`
	// Endpoint is where the target listens, copied from its status. A source does
	// nothing before it is set.
	// +optional
	Endpoint string `json:"endpoint,omitempty"`
	// AutoConverge lets QEMU slow the guest's CPUs down until the copy keeps up.
	// +optional
	AutoConverge bool `json:"autoConverge,omitempty"`
	// BandwidthBytes limits the transfer, in bytes per second; 0 is no limit.
	// +optional
	BandwidthBytes int64 `json:"bandwidthBytes,omitempty"`
	// CompletionTimeoutSeconds is how long the transfer may take altogether; 0 is for ever.
	// +optional
	CompletionTimeoutSeconds int64 `json:"completionTimeoutSeconds,omitempty"`
	// ProgressTimeoutSeconds is how long the remaining memory may fail to reach a new low; 0 is for ever.
	// +optional
	ProgressTimeoutSeconds int64 `json:"progressTimeoutSeconds,omitempty"`
	// Abort calls the migration off. A source that has completed can no longer follow.
	// +optional
	Abort bool `json:"abort,omitempty"`
	// SourceCompleted tells a target that its source has reported `completed`, in case
	// the source's own word was lost. It is copied from the source's status, never guessed.
	// +optional
	SourceCompleted bool `json:"sourceCompleted,omitempty"`
}

// MigrationPhase is how far one end is; it never goes back.
//
// +kubebuilder:validation:Enum=Preparing;Ready;Transferring;Switching;Completed;Failed
type MigrationPhase string

// The phases. A target goes Preparing, Ready, Completed; a source Transferring,
// Switching, Completed. Either may end Failed.
const (
	// MigrationPreparing: the target process is being started.
	MigrationPreparing MigrationPhase = "Preparing"
	// MigrationReady: the target listens at Endpoint.
	MigrationReady MigrationPhase = "Ready"
	// MigrationTransferring: the source copies, the guest runs.
	MigrationTransferring MigrationPhase = "Transferring"
	// MigrationSwitching: the guest stands still and the last of it is copied.
	MigrationSwitching MigrationPhase = "Switching"
	// MigrationCompleted: at the source, QEMU reported `completed` and the guest never
	// runs there again; at the target, it runs. Final.
	MigrationCompleted MigrationPhase = "Completed"
	// MigrationFailed: at the source, the guest runs on there; at the target, it never ran. Final.
	MigrationFailed MigrationPhase = "Failed"
)

// MigrationStatus is one end's report.
type MigrationStatus struct {
	// ID of the order it answers.
	ID string `json:"id"`
	// Phase of this end.
	Phase MigrationPhase `json:"phase"`
	// Endpoint is the address and port of the target's handler.
	// +optional
	Endpoint string `json:"endpoint,omitempty"`
	// Reason of a failure: Aborted, NotConverging, ConnectionLost, Incompatible, TargetDied or Error.
	// +optional
	Reason string `json:"reason,omitempty"`
	// Message says in one sentence what goes on or what went wrong.
	// +optional
	Message string `json:"message,omitempty"`
	// StartTime is when the transfer began.
	// +optional
	StartTime *metav1.Time `json:"startTime,omitempty"`
	// EndTime is when it ended.
	// +optional
	EndTime *metav1.Time `json:"endTime,omitempty"`
	// TotalBytes of guest memory; this and the next two are written at most once in two seconds.
	// +optional
	TotalBytes int64 `json:"totalBytes,omitempty"`
	// RemainingBytes are still to copy.
	// +optional
	RemainingBytes int64 `json:"remainingBytes,omitempty"`
	// TransferredBytes were sent so far.
	// +optional
	TransferredBytes int64 `json:"transferredBytes,omitempty"`
	// Iteration is how often memory has been gone through; 1 is the bulk copy.
	// +optional
	Iteration int32 `json:"iteration,omitempty"`
	// ThrottlePercent is how much the CPUs are slowed down, 0 to 99.
	// +optional
	ThrottlePercent int32 `json:"throttlePercent,omitempty"`
	// NotConverging is true while the remaining memory has not fallen for 10 s at the highest throttle allowed.
	// +optional
	NotConverging bool `json:"notConverging,omitempty"`
	// DowntimeMilliseconds is for how long the guest stood still, as QEMU measured it.
	// +optional
	DowntimeMilliseconds int64 `json:"downtimeMilliseconds,omitempty"`
}
