package v1alpha2

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
)

// MachinePhase is the life of a machine.
//
// +kubebuilder:validation:Enum=Pending;Running;Degraded;Terminating;Stopped;Stopping;Starting;Migrating;Pause
type MachinePhase string

// The machine phases.
const (
	// MachinePending: the machine waits for what it depends on, or cannot be placed.
	MachinePending MachinePhase = "Pending"
	// MachineStarting: its Pod and its QEMU process are being started.
	MachineStarting MachinePhase = "Starting"
	// MachineRunning: the guest runs.
	MachineRunning MachinePhase = "Running"
	// MachinePause: the guest's processors stand still.
	MachinePause MachinePhase = "Pause"
	// MachineMigrating: the guest moves to another node.
	MachineMigrating MachinePhase = "Migrating"
	// MachineStopping: the guest shuts down.
	MachineStopping MachinePhase = "Stopping"
	// MachineStopped: off, without any compute resources.
	MachineStopped MachinePhase = "Stopped"
	// MachineTerminating: being deleted.
	MachineTerminating MachinePhase = "Terminating"
	// MachineDegraded is part of the contract and not set by anything today.
	MachineDegraded MachinePhase = "Degraded"
)

// VirtualMachineStatus is what the controller found and did.
type VirtualMachineStatus struct {
	// Phase of the machine.
	// +optional
	Phase MachinePhase `json:"phase,omitempty"`
	// NodeName is the node that runs the machine.
	// +optional
	NodeName string `json:"nodeName,omitempty"`
	// VirtualMachineIPAddressName is the VirtualMachineIPAddress in use.
	// +optional
	VirtualMachineIPAddressName string `json:"virtualMachineIPAddressName,omitempty"`
	// IPAddress is the address in the Main network.
	// +optional
	IPAddress string `json:"ipAddress,omitempty"`
	// BlockDeviceRefs are the devices as they are.
	// +optional
	BlockDeviceRefs []BlockDeviceStatusRef `json:"blockDeviceRefs,omitempty"`
	// GuestOSInfo is what the guest agent tells about the guest.
	// +optional
	GuestOSInfo GuestOSInfo `json:"guestOSInfo,omitzero"`
	// MigrationState is the last live migration.
	// +optional
	MigrationState *MigrationState `json:"migrationState,omitempty"`
	// Stats has start times and phase changes.
	// +optional
	Stats *VirtualMachineStats `json:"stats,omitempty"`
	// Conditions of the machine.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// RestartAwaitingChanges are changes that apply with the next restart.
	// +optional
	RestartAwaitingChanges []RestartAwaitingChange `json:"restartAwaitingChanges,omitempty"`
	// ObservedGeneration is the last metadata.generation the controller acted on.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// RecommendedResources are what the autoscaler proposes.
	// +optional
	RecommendedResources *RecommendedResources `json:"recommendedResources,omitempty"`
	// VirtualMachinePods are the Pods of the machine.
	// +optional
	VirtualMachinePods []VirtualMachinePod `json:"virtualMachinePods,omitempty"`
	// Versions of the programs that run the machine.
	// +optional
	Versions Versions `json:"versions,omitzero"`
	// Resources are the processor and memory as applied.
	// +optional
	Resources ResourcesStatus `json:"resources,omitzero"`
	// USBDevices are the USB devices as they are.
	// +optional
	USBDevices []USBDeviceStatusRef `json:"usbDevices,omitempty"`
	// Networks are the networks as they are.
	// +optional
	Networks []NetworksStatus `json:"networks,omitempty"`
	// Instance is internal bookkeeping: which process belongs to the machine. It is written before the process is created.
	// +optional
	Instance *InstanceRecord `json:"instance,omitempty"`
}

// InstanceRecord is what the controller must remember about the present QEMU process
// of a machine. The counter is raised here before the Instance and the Pod of the new
// name are created, so neither a stale cache nor an old leader can make a second one.
type InstanceRecord struct {
	// Counter is how many processes the machine has had; it is part of their names.
	Counter int64 `json:"counter"`
	// Name of the present Instance and of its Pod.
	// +optional
	Name string `json:"name,omitempty"`
	// PodUID is the UID of the only Pod in which that Instance may start.
	// +optional
	PodUID types.UID `json:"podUID,omitempty"`
	// NodeName is the node that Pod was bound to; what must be fenced if nobody can tell whether the process lives.
	// +optional
	NodeName string `json:"nodeName,omitempty"`
	// Exit is how the present process ended, once that is proven; empty while it may still live.
	// +optional
	Exit string `json:"exit,omitempty"`
	// ExitMessage is what the process last said, if it failed.
	// +optional
	ExitMessage string `json:"exitMessage,omitempty"`
	// ExitTime is when that was proven.
	// +optional
	ExitTime *metav1.Time `json:"exitTime,omitempty"`
	// Failures counts processes that failed to start or crashed soon, one after another; it spaces out further attempts.
	// +optional
	Failures int32 `json:"failures,omitempty"`
	// Power is what the user, an operation or the guest last asked for, where the run policy leaves that open.
	// +optional
	// +kubebuilder:validation:Enum=On;Off
	Power InstancePower `json:"power,omitempty"`
	// Signal is the last stop, start or restart that was accepted.
	// +optional
	Signal *InstanceSignal `json:"signal,omitempty"`
	// Slots are where the devices of the last process sat: a device that stays keeps its place, whatever becomes of the others.
	// +optional
	// +listType=map
	// +listMapKey=id
	Slots []DeviceSlot `json:"slots,omitempty"`
	// Target is the process the guest is to move to.
	// +optional
	Target *MigrationTarget `json:"target,omitempty"`
	// Former are processes that migrations left behind, until each is proven dead and gone.
	// +optional
	// +listType=map
	// +listMapKey=name
	Former []FormerProcess `json:"former,omitempty"`
	// Migrated is how the last migration ended: its operation reads it here.
	// +optional
	Migrated *MigrationOutcome `json:"migrated,omitempty"`
}

// MigrationTarget is the process a guest is to move to. The counter has been raised for it, and all of this is written before it is acted upon.
type MigrationTarget struct {
	// Operation is the UID of the VirtualMachineOperation; it makes at most one such process.
	Operation types.UID `json:"operation"`
	// Type of the operation.
	// +kubebuilder:validation:Enum=Evict;Migrate
	Type OperationType `json:"type"`
	// Name of the Instance and of its Pod.
	Name string `json:"name"`
	// PodUID is the UID of the only Pod in which that Instance may start.
	// +optional
	PodUID types.UID `json:"podUID,omitempty"`
	// NodeName is the node that Pod was bound to.
	// +optional
	NodeName string `json:"nodeName,omitempty"`
	// StartTime is when the migration was taken up.
	StartTime metav1.Time `json:"startTime"`
	// NodeSelector are additional labels of the node, from the operation.
	// +optional
	NodeSelector map[string]string `json:"nodeSelector,omitempty"`
	// Syncing is true once the source may have been told to begin: from then on its word decides.
	// +optional
	Syncing bool `json:"syncing,omitempty"`
	// SourceCompleted is true once the source has reported that its guest has left: it never runs there again.
	// +optional
	SourceCompleted bool `json:"sourceCompleted,omitempty"`
	// Reason for which the migration is called off; empty while it goes on.
	// +optional
	Reason Reason `json:"reason,omitempty"`
	// Message says so in a sentence.
	// +optional
	Message string `json:"message,omitempty"`
}

// FormerProcess is a process that a migration left behind: its source, or a target that was not needed.
type FormerProcess struct {
	// Name of the Instance and of its Pod.
	Name string `json:"name"`
	// PodUID is the UID of its Pod.
	// +optional
	PodUID types.UID `json:"podUID,omitempty"`
	// NodeName is the node of that Pod.
	// +optional
	NodeName string `json:"nodeName,omitempty"`
	// Exit is how it ended, once that is proven.
	// +optional
	Exit string `json:"exit,omitempty"`
	// Blocks is true if it may hold the guest: no other process is started before its death is proven.
	// +optional
	Blocks bool `json:"blocks,omitempty"`
}

// MigrationOutcome is how a migration ended.
type MigrationOutcome struct {
	// Operation is the UID of the VirtualMachineOperation.
	Operation types.UID `json:"operation"`
	// Reason is Completed, or why the guest did not move.
	Reason Reason `json:"reason"`
	// Message says so in a sentence.
	// +optional
	Message string `json:"message,omitempty"`
}

// DeviceSlot is the place of one block device in the guest.
type DeviceSlot struct {
	// ID of the device, made from the kind and name of its object.
	ID string `json:"id"`
	// Bus it is on, such as "scsi".
	Bus string `json:"bus"`
	// Slot is the unit on that bus.
	// +kubebuilder:validation:Minimum=0
	Slot int32 `json:"slot"`
}

// InstancePower is a remembered wish.
type InstancePower string

// The wishes.
const (
	InstancePowerOn  InstancePower = "On"
	InstancePowerOff InstancePower = "Off"
)

// InstanceSignal is a stop, start or restart that the controller took up: it is recorded here before anything is done.
type InstanceSignal struct {
	// Operation is the UID of the VirtualMachineOperation, empty for a restart by the controller itself.
	// +optional
	Operation types.UID `json:"operation,omitempty"`
	// Type of the signal.
	// +kubebuilder:validation:Enum=Start;Stop;Restart
	Type OperationType `json:"type"`
	// Counter of the process it was meant for.
	Counter int64 `json:"counter"`
	// Force leaves out the grace period.
	// +optional
	Force bool `json:"force,omitempty"`
}

// BlockDeviceStatusRef is one device as it is.
type BlockDeviceStatusRef struct {
	// Kind of the object.
	Kind BlockDeviceKind `json:"kind"`
	// Name of the object.
	Name string `json:"name"`
	// Size of the device.
	Size string `json:"size"`
	// Attached is true once the running guest has the device.
	Attached bool `json:"attached"`
	// Target is the name of the device in the guest.
	// +optional
	Target string `json:"target,omitempty"`
	// VirtualMachineBlockDeviceAttachmentName is the attachment that brought the device.
	// +optional
	VirtualMachineBlockDeviceAttachmentName string `json:"virtualMachineBlockDeviceAttachmentName,omitempty"`
	// Hotplugged is true if the device came while the machine ran.
	// +optional
	Hotplugged bool `json:"hotplugged,omitempty"`
	// BootOrder is the place of the device among those the guest boots from.
	// +optional
	BootOrder *int `json:"bootOrder,omitempty"`
}

// GuestOSInfo is what the guest agent tells about the guest.
//
// +kubebuilder:pruning:PreserveUnknownFields
type GuestOSInfo struct {
	// ID of the system, such as "debian".
	// +optional
	ID string `json:"id,omitempty"`
	// Name of the system.
	// +optional
	Name string `json:"name,omitempty"`
	// PrettyName of the system, with version.
	// +optional
	PrettyName string `json:"prettyName,omitempty"`
	// Version of the system.
	// +optional
	Version string `json:"version,omitempty"`
	// VersionID of the system.
	// +optional
	VersionID string `json:"versionId,omitempty"`
	// KernelRelease of the guest.
	// +optional
	KernelRelease string `json:"kernelRelease,omitempty"`
	// KernelVersion of the guest.
	// +optional
	KernelVersion string `json:"kernelVersion,omitempty"`
	// Machine is the hardware name, such as "x86_64".
	// +optional
	Machine string `json:"machine,omitempty"`
}

// MigrationResult is how a live migration ended.
//
// +kubebuilder:validation:Enum="";Succeeded;Failed
type MigrationResult string

// The results of a live migration.
const (
	MigrationSucceeded MigrationResult = "Succeeded"
	MigrationFailed    MigrationResult = "Failed"
)

// MigrationState is the record of a live migration.
type MigrationState struct {
	// StartTimestamp is when the migration began.
	// +optional
	// +nullable
	StartTimestamp *metav1.Time `json:"startTimestamp,omitempty"`
	// EndTimestamp is when the migration ended.
	// +optional
	// +nullable
	EndTimestamp *metav1.Time `json:"endTimestamp,omitempty"`
	// Target is where the guest goes.
	// +optional
	Target MigrationEnd `json:"target,omitzero"`
	// Source is where the guest comes from.
	// +optional
	Source MigrationEnd `json:"source,omitzero"`
	// Result of the migration.
	// +optional
	Result MigrationResult `json:"result,omitempty"`
}

// MigrationEnd is one end of a live migration.
type MigrationEnd struct {
	// Node of this end.
	// +optional
	Node string `json:"node,omitempty"`
	// Pod of this end.
	// +optional
	Pod string `json:"pod,omitempty"`
}

// VirtualMachineStats has start times and phase changes.
type VirtualMachineStats struct {
	// PhasesTransitions are the last five changes of phase.
	// +optional
	PhasesTransitions []PhaseTransition `json:"phasesTransitions,omitempty"`
	// LaunchTimeDuration has the length of each step of the last start.
	// +optional
	LaunchTimeDuration LaunchTimeDuration `json:"launchTimeDuration,omitzero"`
	// LastStartTime is when the guest last started.
	// +optional
	// +nullable
	LastStartTime *metav1.Time `json:"lastStartTime,omitempty"`
}

// PhaseTransition is a change of phase.
type PhaseTransition struct {
	// Phase that began.
	// +optional
	Phase MachinePhase `json:"phase,omitempty"`
	// Timestamp is when it began.
	// +optional
	// +nullable
	Timestamp metav1.Time `json:"timestamp,omitempty"`
}

// LaunchTimeDuration has the length of each step of a start.
type LaunchTimeDuration struct {
	// WaitingForDependencies is the time from Pending to Starting.
	// +optional
	// +nullable
	WaitingForDependencies *metav1.Duration `json:"waitingForDependencies,omitempty"`
	// VirtualMachineStarting is the time from Starting to Running.
	// +optional
	// +nullable
	VirtualMachineStarting *metav1.Duration `json:"virtualMachineStarting,omitempty"`
	// GuestOSAgentStarting is the time from Running until the guest agent answers.
	// +optional
	// +nullable
	GuestOSAgentStarting *metav1.Duration `json:"guestOSAgentStarting,omitempty"`
}

// ChangeOperation is a kind of change.
//
// +kubebuilder:validation:Enum=add;remove;replace
type ChangeOperation string

// The kinds of changes.
const (
	ChangeAdd     ChangeOperation = "add"
	ChangeRemove  ChangeOperation = "remove"
	ChangeReplace ChangeOperation = "replace"
)

// RestartAwaitingChange is a change that applies with the next restart.
type RestartAwaitingChange struct {
	// Operation is what happens to the field.
	Operation ChangeOperation `json:"operation"`
	// Path of the field.
	Path string `json:"path"`
	// CurrentValue is the value in the running machine.
	// +optional
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:pruning:PreserveUnknownFields
	CurrentValue *runtime.RawExtension `json:"currentValue,omitempty"`
	// DesiredValue is the value in the specification.
	// +optional
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:pruning:PreserveUnknownFields
	DesiredValue *runtime.RawExtension `json:"desiredValue,omitempty"`
}

// RecommendedResources are what the autoscaler proposes.
type RecommendedResources struct {
	// CPU that is proposed.
	// +optional
	CPU RecommendedCPU `json:"cpu,omitzero"`
}

// RecommendedCPU is the processor share the autoscaler proposes.
type RecommendedCPU struct {
	// CoreFraction that is proposed.
	// +optional
	// +kubebuilder:validation:Pattern=`^(100|[1-9][0-9]?)%$`
	CoreFraction string `json:"coreFraction,omitempty"`
}

// VirtualMachinePod is a Pod of the machine.
type VirtualMachinePod struct {
	// Name of the Pod.
	Name string `json:"name"`
	// Active is true for the Pod that runs the guest now.
	Active bool `json:"active"`
}

// Versions of the programs that run a machine.
type Versions struct {
	// QEMU is the version of QEMU.
	// +optional
	QEMU string `json:"qemu,omitempty"`
	// Libvirt is kept for compatibility; no libvirt is involved.
	// +optional
	Libvirt string `json:"libvirt,omitempty"`
}

// ResourcesStatus are the processor and memory as applied.
type ResourcesStatus struct {
	// CPU as applied.
	// +optional
	CPU *CPUStatus `json:"cpu,omitempty"`
	// Memory as applied.
	// +optional
	Memory *MemoryStatus `json:"memory,omitempty"`
}

// CPUStatus is the processor as applied.
type CPUStatus struct {
	// Cores that the guest has.
	Cores int `json:"cores"`
	// CoreFraction that is guaranteed.
	// +optional
	CoreFraction string `json:"coreFraction,omitempty"`
	// RequestedCores is cores times share: what the Pod requests.
	// +optional
	RequestedCores *resource.Quantity `json:"requestedCores,omitempty"`
	// RuntimeOverhead is what the Pod requests beyond the guest.
	// +optional
	RuntimeOverhead *resource.Quantity `json:"runtimeOverhead,omitempty"`
	// Topology that the guest sees.
	// +optional
	Topology *Topology `json:"topology,omitempty"`
}

// Topology is how cores are grouped.
type Topology struct {
	// CoresPerSocket is the number of cores in each socket.
	CoresPerSocket int `json:"coresPerSocket"`
	// Sockets is the number of sockets.
	Sockets int `json:"sockets"`
}

// MemoryStatus is the memory as applied.
type MemoryStatus struct {
	// Size that the guest has.
	Size resource.Quantity `json:"size"`
	// RuntimeOverhead is what the Pod requests beyond the guest.
	// +optional
	RuntimeOverhead *resource.Quantity `json:"runtimeOverhead,omitempty"`
}

// USBDeviceStatusRef is a USB device as it is.
type USBDeviceStatusRef struct {
	// Name of the USBDevice.
	Name string `json:"name"`
	// Attached is true once the guest has the device.
	Attached bool `json:"attached"`
	// Ready is true if the device can be used.
	Ready bool `json:"ready"`
	// Address in the guest.
	// +optional
	Address *USBAddress `json:"address,omitempty"`
	// Hotplugged is true if the device came while the machine ran.
	// +optional
	Hotplugged bool `json:"hotplugged,omitempty"`
}

// USBAddress is where a USB device sits in the guest.
type USBAddress struct {
	// Bus number.
	// +optional
	Bus int `json:"bus,omitempty"`
	// Port number.
	// +optional
	Port int `json:"port,omitempty"`
}

// NetworksStatus is a network as it is.
type NetworksStatus struct {
	// ID of the interface.
	// +optional
	ID int `json:"id,omitempty"`
	// Type of the network.
	Type NetworkType `json:"type"`
	// Name of the network.
	// +optional
	Name string `json:"name,omitempty"`
	// MAC address of the interface.
	// +optional
	MAC string `json:"macAddress,omitempty"`
	// VirtualMachineMACAddressName is the VirtualMachineMACAddress in use.
	// +optional
	VirtualMachineMACAddressName string `json:"virtualMachineMACAddressName,omitempty"`
	// IPAddress of an additional network.
	// +optional
	IPAddress string `json:"ipAddress,omitempty"`
}
