package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Instance is one QEMU process on one node for one virtual machine, with its
// hardware fully resolved. Its name is the name of its launcher pod.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=instances,scope=Namespaced,singular=instance
// +kubebuilder:selectablefield:JSONPath=`.spec.nodeName`
// +kubebuilder:printcolumn:name="VM",type=string,JSONPath=`.spec.virtualMachine.name`
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Power",type=string,JSONPath=`.spec.power`
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.nodeName`
// +kubebuilder:printcolumn:name="Exit",type=string,JSONPath=`.status.exit.cause`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Instance struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   InstanceSpec   `json:"spec"`
	Status InstanceStatus `json:"status,omitempty"`
}

// InstanceList is a list of instances.
//
// +kubebuilder:object:root=true
type InstanceList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []Instance `json:"items"`
}

// PowerState is what the controller wants of the process.
//
// +kubebuilder:validation:Enum=On;Off;Kill
type PowerState string

// The wanted power states. They only ever move downwards: an instance that was
// told to stop is never told to run again, a new instance is made instead.
const (
	// PowerOn starts the guest once and leaves it running.
	PowerOn PowerState = "On"
	// PowerOff asks the guest to shut down (ACPI) and kills it after GracePeriodSeconds.
	PowerOff PowerState = "Off"
	// PowerKill ends the process at once.
	PowerKill PowerState = "Kill"
)

// RebootAction says what a guest reset does.
//
// +kubebuilder:validation:Enum=Reset;Shutdown
type RebootAction string

// The reboot actions, in QEMU's `set-action` terms.
const (
	// RebootReset resets the machine inside the running process.
	RebootReset RebootAction = "Reset"
	// RebootShutdown ends the process with exit cause GuestReset, so that the
	// controller can start the next instance with the newest spec.
	RebootShutdown RebootAction = "Shutdown"
)

// InstanceSpec is written by the controller only.
type InstanceSpec struct {
	// VirtualMachine is the VM this process belongs to, by name and UID.
	VirtualMachine VirtualMachineReference `json:"virtualMachine"`
	// NodeName is the node the pod was bound to; empty until then. The handler of
	// that node watches by this field.
	// +optional
	NodeName string `json:"nodeName,omitempty"`
	// PodUID is the only pod in which this instance may be started.
	// +optional
	PodUID types.UID `json:"podUID,omitempty"`
	// Power is the wanted power state.
	// +kubebuilder:default=On
	Power PowerState `json:"power,omitempty"`
	// GracePeriodSeconds is how long a guest may take to shut down, in seconds; 0 cuts the power.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:default=60
	// +optional
	GracePeriodSeconds int64 `json:"gracePeriodSeconds"`
	// RebootAction is what a guest reset does.
	// +kubebuilder:default=Reset
	RebootAction RebootAction `json:"rebootAction,omitempty"`
	// Machine is the resolved hardware. It does not change once NodeName is set,
	// except for hot-plug.
	Machine Machine `json:"machine"`
	// Network is the address plan of the guest's main interface.
	// +optional
	Network *Network `json:"network,omitempty"`
	// FirstBoot names the Secret mounted into the pod that holds first-boot data.
	// +optional
	FirstBoot *FirstBoot `json:"firstBoot,omitempty"`
	// Migration is the part this process has, or had last, in a live migration.
	// +optional
	Migration *Migration `json:"migration,omitempty"`
}

// VirtualMachineReference names the owning VirtualMachine in the same namespace.
type VirtualMachineReference struct {
	// Name of the machine.
	Name string `json:"name"`
	// UID of the machine.
	UID types.UID `json:"uid"`
}

// Accelerator is how QEMU runs guest code.
//
// +kubebuilder:validation:Enum=KVM;TCG
type Accelerator string

// The accelerators. A VM never migrates from one to the other.
const (
	AcceleratorKVM Accelerator = "KVM"
	AcceleratorTCG Accelerator = "TCG"
)

// Machine is everything the guest can see of its hardware. It is pinned: a later
// release, another node or another order of hot-plugs must not change it.
type Machine struct {
	// Type is a versioned QEMU machine type such as "pc-q35-10.0", never an alias.
	Type string `json:"type"`
	// Accelerator is chosen by the controller when the node is known.
	// +optional
	Accelerator Accelerator `json:"accelerator,omitempty"`
	// UUID is the SMBIOS system UUID (the VM's UID).
	UUID string `json:"uuid"`
	// Hostname is the guest's host name for DHCP and first-boot data.
	Hostname string `json:"hostname"`
	// Firmware is "BIOS", "EFI" or "EFIWithSecureBoot".
	// +kubebuilder:validation:Enum=BIOS;EFI;EFIWithSecureBoot
	// +kubebuilder:default=BIOS
	Firmware string `json:"firmware,omitempty"`
	CPU      CPU    `json:"cpu"`
	Memory   Memory `json:"memory"`
	// Disks are in boot order unless BootIndex says otherwise.
	// +optional
	// +listType=map
	// +listMapKey=id
	Disks []Disk `json:"disks,omitempty"`
	// Interfaces are the network cards.
	// +optional
	// +listType=map
	// +listMapKey=id
	Interfaces []Interface `json:"interfaces,omitempty"`
}

// CPU is the guest's processor topology and model.
type CPU struct {
	// Model is a QEMU CPU model, with features, as `-cpu` takes it ("Nehalem",
	// "host", "qemu64,+sse4.1"). Under KVM the launcher adds ",enforce" for named models.
	Model string `json:"model"`
	// Sockets, 1 or more.
	Sockets int32 `json:"sockets"`
	// CoresPerSocket, 1 or more; the guest has Sockets*CoresPerSocket vCPUs.
	CoresPerSocket int32 `json:"coresPerSocket"`
	// MaxCPUs is the highest number of vCPUs that hot-plug may reach; at least the present number.
	// +optional
	MaxCPUs int32 `json:"maxCPUs,omitempty"`
}

// Memory is the guest's RAM.
type Memory struct {
	// Size of guest RAM, a multiple of 1 MiB.
	Size resource.Quantity `json:"size"`
}

// VolumeSource says where a device's bytes are. Exactly one field is set.
type VolumeSource struct {
	// PersistentVolumeClaim is a claim of the same namespace, mounted (read-only)
	// or mapped into the compute container.
	// +optional
	PersistentVolumeClaim *PersistentVolumeClaimSource `json:"persistentVolumeClaim,omitempty"`
	// Image is a blob in DVCR, attached read-only from the node's cache.
	// +optional
	Image *ImageSource `json:"image,omitempty"`
	// FirstBoot is the NoCloud or Sysprep ISO made by the launcher from spec.firstBoot.
	// +optional
	FirstBoot *FirstBootSource `json:"firstBoot,omitempty"`
}

// PersistentVolumeClaimSource is a disk on a PVC.
type PersistentVolumeClaimSource struct {
	// ClaimName is the claim in the same namespace.
	ClaimName string `json:"claimName"`
	// Pod is the attachment pod that holds the volume on the node; absent for a
	// volume of the launcher pod itself.
	// +optional
	Pod *AttachmentPod `json:"pod,omitempty"`
	// Mode is "Filesystem" (a qcow2 file named disk.qcow2 in the root of the volume)
	// or "Block" (raw bytes on the device).
	// +kubebuilder:validation:Enum=Filesystem;Block
	Mode string `json:"mode"`
}

// AttachmentPod is the pod that keeps a hot-plugged volume on the machine's node.
type AttachmentPod struct {
	// Name of the pod in the same namespace.
	Name string `json:"name"`
	// UID of the pod: its directory on the node.
	UID types.UID `json:"uid"`
}

// ImageSource is an image blob in DVCR.
type ImageSource struct {
	// Reference is a digest reference, host/repository@sha256:….
	Reference string `json:"reference"`
	// Format is "qcow2" or "iso".
	Format string `json:"format"`
}

// FirstBootSource marks the device that carries first-boot data.
type FirstBootSource struct{}

// Disk is one block device of the guest.
type Disk struct {
	// ID is the stable QEMU id and at the same time the name of the pod's volume,
	// such as "vd-root"; first-boot data is "firstboot".
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	// +kubebuilder:validation:MaxLength=63
	ID string `json:"id"`
	// Bus is "scsi", "sata", "virtio" or "ide".
	// +kubebuilder:validation:Enum=scsi;sata;virtio;ide
	Bus string `json:"bus"`
	// Slot is the unit on the bus (SCSI LUN of target 0, SATA port, PCI slot), pinned for the life of the VM.
	// +kubebuilder:validation:Minimum=0
	Slot int32 `json:"slot"`
	// Serial is the guest-visible serial number (md5 of the object's UID), at most 36 characters.
	// +optional
	Serial string `json:"serial,omitempty"`
	// CDROM makes the device a read-only optical drive.
	// +optional
	CDROM bool `json:"cdrom,omitempty"`
	// ReadOnly forbids guest writes.
	// +optional
	ReadOnly bool `json:"readOnly,omitempty"`
	// BootIndex orders boot devices, 1 first; 0 means not bootable.
	// +optional
	BootIndex int32 `json:"bootIndex,omitempty"`
	// Size is what the guest is to see of a disk, in bytes; 0 means whatever the file
	// or device has. A running guest is told when the disk has grown; it never shrinks.
	// +optional
	Size int64 `json:"size,omitempty"`
	// Hotplugged is true if the device came while the guest ran.
	// +optional
	Hotplugged bool         `json:"hotplugged,omitempty"`
	Source     VolumeSource `json:"source"`
}

// Interface is one network card.
type Interface struct {
	// ID is the stable QEMU id, "net0" for the main interface.
	ID string `json:"id"`
	// Model is "virtio", "e1000" or "rtl8139".
	// +kubebuilder:validation:Enum=virtio;e1000;rtl8139
	Model string `json:"model"`
	// MAC is the guest's address, such as "02:00:0a:42:0a:02".
	MAC string `json:"mac"`
	// Slot is the PCI root port, pinned for the life of the VM.
	// +kubebuilder:validation:Minimum=0
	Slot int32 `json:"slot"`
}

// AddressSource says who chose the guest's address.
//
// +kubebuilder:validation:Enum=Lease;PodIP
type AddressSource string

// The address sources.
const (
	// AddressFromLease is an address leased from virtualMachineCIDRs; the pod was created with it.
	AddressFromLease AddressSource = "Lease"
	// AddressFromPod is whatever address the CNI gave the pod.
	AddressFromPod AddressSource = "PodIP"
)

// Network is the plan for the guest's main interface: what DHCP answers and what
// the handler routes.
type Network struct {
	AddressSource AddressSource `json:"addressSource"`
	// Address is the guest's IPv4 address, without mask.
	// +optional
	Address string `json:"address,omitempty"`
	// CIDR is the range the address belongs to; its first address is the guest's router.
	// +optional
	CIDR string `json:"cidr,omitempty"`
	// Nameservers are given to the guest by DHCP.
	// +optional
	Nameservers []string `json:"nameservers,omitempty"`
	// SearchDomains are given to the guest by DHCP.
	// +optional
	SearchDomains []string `json:"searchDomains,omitempty"`
}

// FirstBoot says what the mounted Secret holds.
type FirstBoot struct {
	// Type is "NoCloud" (keys user-data, meta-data) or "Sysprep" (key unattend.xml).
	// +kubebuilder:validation:Enum=NoCloud;Sysprep
	Type string `json:"type"`
	// SecretName is the Secret made by the controller for this VM, mounted at /run/firstboot.
	SecretName string `json:"secretName"`
}

// InstancePhase is the life of the process; it never goes back.
//
// +kubebuilder:validation:Enum="";Starting;Running;Paused;Stopping;Stopped
type InstancePhase string

// The phases.
const (
	// InstancePending: the handler has not begun.
	InstancePending InstancePhase = ""
	// InstanceStarting: the handler has claimed the pod and is starting QEMU.
	InstanceStarting InstancePhase = "Starting"
	// InstanceRunning: the guest's CPUs run.
	InstanceRunning InstancePhase = "Running"
	// InstancePaused: QEMU lives but the CPUs stand still; PauseReason says why.
	InstancePaused InstancePhase = "Paused"
	// InstanceStopping: a shutdown has been sent.
	InstanceStopping InstancePhase = "Stopping"
	// InstanceStopped: QEMU has been reaped and Exit is set. Final.
	InstanceStopped InstancePhase = "Stopped"
)

// ExitCause is how a QEMU process ended.
//
// +kubebuilder:validation:Enum=GuestShutdown;GuestReset;HostShutdown;Killed;StartFailed;Crashed;Migrated
type ExitCause string

// The exit causes.
const (
	// ExitGuestShutdown: the guest powered itself off.
	ExitGuestShutdown ExitCause = "GuestShutdown"
	// ExitGuestReset: the guest reset while RebootAction was Shutdown.
	ExitGuestReset ExitCause = "GuestReset"
	// ExitHostShutdown: the guest followed our ACPI request.
	ExitHostShutdown ExitCause = "HostShutdown"
	// ExitKilled: we killed it, by PowerKill or after the grace period.
	ExitKilled ExitCause = "Killed"
	// ExitStartFailed: QEMU never reached a running guest; Message has its last words.
	ExitStartFailed ExitCause = "StartFailed"
	// ExitCrashed: it died by itself (signal, abort, guest panic).
	ExitCrashed ExitCause = "Crashed"
	// ExitMigrated: the guest runs in another process now; this one was the source.
	ExitMigrated ExitCause = "Migrated"
)

// Exit is proof of death: it is written only after waitpid.
type Exit struct {
	// Cause in one word.
	Cause ExitCause `json:"cause"`
	// Code is the exit status, or 128 + signal number.
	// +optional
	Code int32 `json:"code,omitempty"`
	// Message is the last line QEMU wrote to stderr, at most 1024 bytes.
	// +optional
	Message string `json:"message,omitempty"`
	// Time at which it was reaped.
	Time metav1.Time `json:"time"`
}

// InstanceStatus is written by the handler of the node only.
type InstanceStatus struct {
	// +optional
	Phase InstancePhase `json:"phase,omitempty"`
	// PodUID is the pod in which the handler started (or is starting) QEMU; set
	// before the start, so that a crash in between cannot start it twice.
	// +optional
	PodUID types.UID `json:"podUID,omitempty"`
	// StartTime is when the guest's CPUs first ran.
	// +optional
	StartTime *metav1.Time `json:"startTime,omitempty"`
	// PauseReason is why the guest stands still: "IOError", "NoSpace", "GuestPanicked", "Suspended", "Migrated" (it
	// runs in another process, and never in this one again) or "Unknown".
	// +optional
	PauseReason string `json:"pauseReason,omitempty"`
	// Message says in one sentence what the handler waits for or what went wrong.
	// +optional
	Message string `json:"message,omitempty"`
	// QEMUVersion such as "10.0.2".
	// +optional
	QEMUVersion string `json:"qemuVersion,omitempty"`
	// Exit is set exactly once, when the process has been reaped.
	// +optional
	Exit *Exit `json:"exit,omitempty"`
	// Disks is the state of each device of spec.machine.disks.
	// +optional
	// +listType=map
	// +listMapKey=id
	Disks []DiskStatus `json:"disks,omitempty"`
	// Migration is how the migration of spec.migration goes.
	// +optional
	Migration *MigrationStatus `json:"migration,omitempty"`
	// Guest is what the guest agent says; absent while none answers.
	// +optional
	Guest *Guest `json:"guest,omitempty"`
	// ObservedGeneration is the last metadata.generation the handler acted on.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
}

// DiskStatus is the state of one block device in the running guest.
type DiskStatus struct {
	// ID of the device in spec.machine.disks.
	ID string `json:"id"`
	// Attached is true once the guest can see the device.
	Attached bool `json:"attached"`
	// Message says what an attach or detach waits for, or why it failed.
	// +optional
	Message string `json:"message,omitempty"`
	// Size is the virtual size in bytes.
	// +optional
	Size int64 `json:"size,omitempty"`
}
