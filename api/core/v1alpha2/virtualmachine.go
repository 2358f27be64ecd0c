package v1alpha2

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// VirtualMachine is one virtual machine: its size, devices, first-boot data and when it runs.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:metadata:labels={"heritage=deckhouse","module=virtualization"}
// +kubebuilder:resource:path=virtualmachines,scope=Namespaced,singular=virtualmachine,shortName=vm,categories={all,virtualization}
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Uptime",type=date,JSONPath=`.status.stats.lastStartTime`
// +kubebuilder:printcolumn:name="Cores",type=string,JSONPath=`.status.resources.cpu.cores`,priority=1
// +kubebuilder:printcolumn:name="CoreFraction",type=string,JSONPath=`.status.resources.cpu.coreFraction`,priority=1
// +kubebuilder:printcolumn:name="Memory",type=string,JSONPath=`.status.resources.memory.size`,priority=1
// +kubebuilder:printcolumn:name="Need restart",type=string,JSONPath=`.status.conditions[?(@.type=='AwaitingRestartToApplyConfiguration')].status`,priority=1
// +kubebuilder:printcolumn:name="Agent",type=string,JSONPath=`.status.conditions[?(@.type=='AgentReady')].status`,priority=1
// +kubebuilder:printcolumn:name="Migratable",type=string,JSONPath=`.status.conditions[?(@.type=='Migratable')].status`,priority=1
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.status.nodeName`
// +kubebuilder:printcolumn:name="IPAddress",type=string,JSONPath=`.status.ipAddress`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type VirtualMachine struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   VirtualMachineSpec   `json:"spec"`
	Status VirtualMachineStatus `json:"status,omitzero"`
}

// VirtualMachineList is a list of machines.
//
// +kubebuilder:object:root=true
type VirtualMachineList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []VirtualMachine `json:"items"`
}

// RunPolicy says when a machine runs.
//
// +kubebuilder:validation:Enum=AlwaysOn;AlwaysOff;Manual;AlwaysOnUnlessStoppedManually
type RunPolicy string

// The run policies.
const (
	// AlwaysOn keeps the machine running, also after the guest powered itself off.
	AlwaysOn RunPolicy = "AlwaysOn"
	// AlwaysOff keeps the machine stopped.
	AlwaysOff RunPolicy = "AlwaysOff"
	// Manual leaves starting and stopping to the user.
	Manual RunPolicy = "Manual"
	// AlwaysOnUnlessStoppedManually keeps the machine running until the user or the guest stops it.
	AlwaysOnUnlessStoppedManually RunPolicy = "AlwaysOnUnlessStoppedManually"
)

// OSType is a preset of devices for a kind of guest.
//
// +kubebuilder:validation:Enum=Windows;Generic;Legacy
type OSType string

// The guest types.
const (
	OSTypeWindows OSType = "Windows"
	OSTypeGeneric OSType = "Generic"
	OSTypeLegacy  OSType = "Legacy"
)

// Bootloader is the firmware of a machine.
//
// +kubebuilder:validation:Enum=BIOS;EFI;EFIWithSecureBoot
type Bootloader string

// The firmware types.
const (
	BIOS              Bootloader = "BIOS"
	EFI               Bootloader = "EFI"
	EFIWithSecureBoot Bootloader = "EFIWithSecureBoot"
)

// LiveMigrationPolicy says whether a live migration may slow the guest down.
//
// +kubebuilder:validation:Enum=AlwaysSafe;PreferSafe;AlwaysForced;PreferForced
type LiveMigrationPolicy string

// The live migration policies.
const (
	// AlwaysSafe never slows the guest down.
	AlwaysSafe LiveMigrationPolicy = "AlwaysSafe"
	// PreferSafe slows the guest down only if the operation says so.
	PreferSafe LiveMigrationPolicy = "PreferSafe"
	// AlwaysForced slows the guest down if the migration does not end otherwise.
	AlwaysForced LiveMigrationPolicy = "AlwaysForced"
	// PreferForced does as AlwaysForced unless the operation says otherwise.
	PreferForced LiveMigrationPolicy = "PreferForced"
)

// VirtualMachineSpec is what the user wants.
//
// +kubebuilder:validation:XValidation:rule="self.osType != 'Legacy' || self.bootloader == 'BIOS'",message="osType Legacy is possible only with bootloader BIOS"
// +kubebuilder:validation:XValidation:rule="self.osType != 'Legacy' || !has(self.provisioning)",message="provisioning is not possible with osType Legacy"
// +kubebuilder:validation:XValidation:rule="self.osType != 'Legacy' || self.enableParavirtualization || size(self.blockDeviceRefs) <= 4",message="osType Legacy without paravirtualization allows at most 4 blockDeviceRefs"
type VirtualMachineSpec struct {
	// RunPolicy says when the machine runs: AlwaysOn, AlwaysOff, Manual, or AlwaysOnUnlessStoppedManually.
	// +optional
	// +kubebuilder:default=AlwaysOnUnlessStoppedManually
	RunPolicy RunPolicy `json:"runPolicy,omitempty"`
	// VirtualMachineIPAddressName is the VirtualMachineIPAddress of the Main network; one is made for the machine if left out.
	// +optional
	// +kubebuilder:validation:MinLength=1
	VirtualMachineIPAddressName string `json:"virtualMachineIPAddressName,omitempty"`
	// TopologySpreadConstraints spread machines over the cluster, as for Pods.
	// +optional
	TopologySpreadConstraints []TopologySpreadConstraint `json:"topologySpreadConstraints,omitempty"`
	// Affinity says near or far from what the machine runs, as for Pods.
	// +optional
	Affinity *VMAffinity `json:"affinity,omitempty"`
	// NodeSelector are labels that the node must have.
	// +optional
	NodeSelector map[string]string `json:"nodeSelector,omitempty"`
	// PriorityClassName is the priority of the machine's Pod.
	// +optional
	// +kubebuilder:validation:MinLength=1
	PriorityClassName string `json:"priorityClassName,omitempty"`
	// Tolerations are the taints of nodes that the machine accepts, as for Pods.
	// +optional
	Tolerations []corev1.Toleration `json:"tolerations,omitempty"`
	// Disruptions says how changes that need a restart are approved.
	// +optional
	// +kubebuilder:default={"restartApprovalMode":"Manual"}
	Disruptions *Disruptions `json:"disruptions,omitempty"`
	// TerminationGracePeriodSeconds is the time between asking the guest to shut down and killing it, in seconds.
	// +optional
	// +kubebuilder:default=60
	TerminationGracePeriodSeconds *int64 `json:"terminationGracePeriodSeconds,omitempty"`
	// EnableParavirtualization gives the guest virtio devices; switch it off for guests without the drivers.
	// +optional
	// +kubebuilder:default=true
	EnableParavirtualization *bool `json:"enableParavirtualization,omitempty"`
	// OSType is a preset of devices for the kind of guest.
	// +optional
	// +kubebuilder:default=Generic
	OSType OSType `json:"osType,omitempty"`
	// Bootloader is the firmware of the machine.
	// +optional
	// +kubebuilder:default=BIOS
	Bootloader Bootloader `json:"bootloader,omitempty"`
	// VirtualMachineClassName is the VirtualMachineClass; the default class if left out.
	// +required
	// +kubebuilder:validation:MinLength=1
	VirtualMachineClassName string `json:"virtualMachineClassName,omitempty"`
	// CPU of the machine.
	CPU CPUSpec `json:"cpu"`
	// Memory of the machine.
	Memory MemorySpec `json:"memory"`
	// BlockDeviceRefs are the disks and images of the machine. The order of the list is the boot order unless bootOrder is used.
	//
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	BlockDeviceRefs []BlockDeviceSpecRef `json:"blockDeviceRefs"`
	// Provisioning is first-boot data for the guest.
	// +optional
	Provisioning *Provisioning `json:"provisioning,omitempty"`
	// LiveMigrationPolicy says whether a live migration may slow the guest down so that it comes to an end.
	// +optional
	// +kubebuilder:default=PreferSafe
	LiveMigrationPolicy LiveMigrationPolicy `json:"liveMigrationPolicy,omitempty"`
	// Networks of the machine; the Main network alone if left out.
	// +optional
	Networks []NetworksSpec `json:"networks,omitempty"`
	// USBDevices are the USB devices passed through to the guest.
	// +optional
	// +kubebuilder:validation:MaxItems=8
	USBDevices []USBDeviceSpecRef `json:"usbDevices,omitempty"`
	// GPUs are the graphics processors passed through to the guest.
	// +optional
	// +kubebuilder:validation:MaxItems=16
	// +listType=atomic
	GPUs []GPUSpecRef `json:"gpus,omitempty"`
}

// RestartApprovalMode says who approves a restart.
//
// +kubebuilder:validation:Enum=Manual;Automatic
type RestartApprovalMode string

// The approval modes.
const (
	// RestartManual: changes wait for the next restart.
	RestartManual RestartApprovalMode = "Manual"
	// RestartAutomatic: the machine is restarted at once.
	RestartAutomatic RestartApprovalMode = "Automatic"
)

// Disruptions says how changes that need a restart are approved.
type Disruptions struct {
	// RestartApprovalMode: Manual waits for the user to restart, Automatic restarts at once.
	// +optional
	RestartApprovalMode RestartApprovalMode `json:"restartApprovalMode,omitempty"`
}

// CPUSpec is the processor of a machine.
type CPUSpec struct {
	// Cores is the number of virtual processors.
	// +kubebuilder:validation:Minimum=1
	Cores int32 `json:"cores"`
	// CoreFraction is the guaranteed share of each core, from 1% to 100%, or Auto.
	// +optional
	// +kubebuilder:validation:Pattern=`^(Auto|(100|[1-9][0-9]?)%)$`
	CoreFraction string `json:"coreFraction,omitempty"`
}

// CoreFractionAuto lets the platform choose the share of a core.
const CoreFractionAuto = "Auto"

// MemorySpec is the memory of a machine.
type MemorySpec struct {
	// Size of the guest's memory.
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$`
	Size resource.Quantity `json:"size"`
}

// BlockDeviceKind is a kind of object that a machine can have as block device.
//
// +kubebuilder:validation:Enum=ClusterVirtualImage;VirtualImage;VirtualDisk
type BlockDeviceKind string

// The block device kinds.
const (
	ClusterImageDevice BlockDeviceKind = ClusterVirtualImageKind
	ImageDevice        BlockDeviceKind = VirtualImageKind
	DiskDevice         BlockDeviceKind = VirtualDiskKind
)

// BlockDeviceSpecRef is one block device of a machine.
type BlockDeviceSpecRef struct {
	// Kind of the object: VirtualDisk (writable), VirtualImage or ClusterVirtualImage (read-only).
	// +optional
	Kind BlockDeviceKind `json:"kind,omitempty"`
	// Name of the object.
	// +optional
	// +kubebuilder:validation:MinLength=1
	Name string `json:"name,omitempty"`
	// BootOrder is the place of the device among those the guest boots from, smallest first. If any device has one, only devices with one are booted from.
	// +optional
	// +kubebuilder:validation:Minimum=1
	BootOrder *int `json:"bootOrder,omitempty"`
}

// ProvisioningType is the form of first-boot data.
//
// +kubebuilder:validation:Enum=UserData;UserDataRef;SysprepRef
type ProvisioningType string

// The forms of first-boot data.
const (
	// ProvisioningUserData is cloud-init data in the specification itself.
	ProvisioningUserData ProvisioningType = "UserData"
	// ProvisioningUserDataRef is cloud-init data in a Secret.
	ProvisioningUserDataRef ProvisioningType = "UserDataRef"
	// ProvisioningSysprepRef is a Windows answer file in a Secret.
	ProvisioningSysprepRef ProvisioningType = "SysprepRef"
)

// Provisioning is first-boot data; exactly the field that matches its type is set.
//
// +kubebuilder:validation:XValidation:rule="has(self.userData) == (self.type == 'UserData')",message="userData must be set if and only if type is UserData"
// +kubebuilder:validation:XValidation:rule="has(self.userDataRef) == (self.type == 'UserDataRef')",message="userDataRef must be set if and only if type is UserDataRef"
// +kubebuilder:validation:XValidation:rule="has(self.sysprepRef) == (self.type == 'SysprepRef')",message="sysprepRef must be set if and only if type is SysprepRef"
type Provisioning struct {
	// Type says which of the fields below is used.
	Type ProvisioningType `json:"type"`
	// UserData is cloud-init data, at most 2048 characters; put longer data into a Secret.
	// +optional
	// +kubebuilder:validation:MaxLength=2048
	UserData string `json:"userData,omitempty"`
	// UserDataRef is a Secret with cloud-init data, of type provisioning.virtualization.deckhouse.io/cloud-init.
	// +optional
	UserDataRef *UserDataRef `json:"userDataRef,omitempty"`
	// SysprepRef is a Secret with a Windows answer file, of type provisioning.virtualization.deckhouse.io/sysprep.
	// +optional
	SysprepRef *SysprepRef `json:"sysprepRef,omitempty"`
}

// SecretKind is the kind of an object with first-boot data.
//
// +kubebuilder:validation:Enum=Secret
type SecretKind string

// SecretKindSecret is the only SecretKind.
const SecretKindSecret SecretKind = "Secret"

// UserDataRef names a Secret in the namespace of the machine.
type UserDataRef struct {
	// Kind of the object, always Secret.
	// +kubebuilder:default=Secret
	Kind SecretKind `json:"kind"`
	// Name of the Secret.
	// +kubebuilder:validation:MinLength=1
	Name string `json:"name"`
}

// SysprepRef names a Secret in the namespace of the machine.
type SysprepRef struct {
	// Kind of the object, always Secret.
	// +kubebuilder:default=Secret
	Kind SecretKind `json:"kind"`
	// Name of the Secret.
	// +kubebuilder:validation:MinLength=1
	Name string `json:"name"`
}

// NetworkType is a kind of network.
//
// +kubebuilder:validation:Enum=Main;Network;ClusterNetwork
type NetworkType string

// The network types.
const (
	NetworkMain    NetworkType = "Main"
	NetworkNetwork NetworkType = "Network"
	NetworkCluster NetworkType = "ClusterNetwork"
)

// NetworksSpec is one network of a machine.
type NetworksSpec struct {
	// ID of the interface, filled in by itself: 1 for Main, from 2 to 16383 for others.
	// +optional
	ID *int `json:"id,omitempty"`
	// Type of the network. Main must come first and has no name.
	Type NetworkType `json:"type"`
	// Name of the Network or ClusterNetwork.
	// +optional
	// +kubebuilder:validation:MinLength=1
	Name string `json:"name,omitempty"`
	// VirtualMachineMACAddressName is the VirtualMachineMACAddress of the interface; one is made if left out.
	// +optional
	// +kubebuilder:validation:MinLength=1
	VirtualMachineMACAddressName string `json:"virtualMachineMACAddressName,omitempty"`
	// IPAddressName is an address object of the network for a static address.
	// +optional
	// +kubebuilder:validation:MinLength=1
	IPAddressName string `json:"ipAddressName,omitempty"`
}

// USBDeviceSpecRef names a USB device of the namespace.
type USBDeviceSpecRef struct {
	// Name of the USBDevice in the same namespace.
	// +kubebuilder:validation:MinLength=1
	Name string `json:"name"`
}

// GPUSpecRef asks for one graphics processor.
type GPUSpecRef struct {
	// GPUClassName is the class of the graphics processor.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`
	GPUClassName string `json:"gpuClassName"`
}
