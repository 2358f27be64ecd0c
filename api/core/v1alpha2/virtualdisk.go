package v1alpha2

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// VirtualDisk is a writable disk on a persistent volume. At most one running machine holds it at a time.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:metadata:labels={"heritage=deckhouse","module=virtualization"}
// +kubebuilder:resource:path=virtualdisks,scope=Namespaced,singular=virtualdisk,shortName=vd,categories=virtualization
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Capacity",type=string,JSONPath=`.status.capacity`
// +kubebuilder:printcolumn:name="InUse",type=string,JSONPath=`.status.conditions[?(@.type=='InUse')].status`,priority=1
// +kubebuilder:printcolumn:name="VirtualMachine",type=string,JSONPath=`.status.attachedToVirtualMachines[?(@.mounted==true)].name`
// +kubebuilder:printcolumn:name="Progress",type=string,JSONPath=`.status.progress`,priority=1
// +kubebuilder:printcolumn:name="StorageClass",type=string,JSONPath=`.status.storageClassName`,priority=1
// +kubebuilder:printcolumn:name="TargetPVC",type=string,JSONPath=`.status.target.persistentVolumeClaimName`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type VirtualDisk struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   VirtualDiskSpec   `json:"spec"`
	Status VirtualDiskStatus `json:"status,omitzero"`
}

// VirtualDiskList is a list of disks.
//
// +kubebuilder:object:root=true
type VirtualDiskList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []VirtualDisk `json:"items"`
}

// VirtualDiskSpec is what the user wants.
type VirtualDiskSpec struct {
	// DataSource is what the disk is filled from; leave it out for an empty disk.
	// +optional
	DataSource *VirtualDiskDataSource `json:"dataSource,omitempty"`
	// PersistentVolumeClaim has the size and the storage of the disk.
	// +optional
	PersistentVolumeClaim VirtualDiskPersistentVolumeClaim `json:"persistentVolumeClaim,omitzero"`
}

// VirtualDiskPersistentVolumeClaim has the size and the storage of a disk.
type VirtualDiskPersistentVolumeClaim struct {
	// StorageClassName is the StorageClass of the disk; the module's or the cluster's default if left out. Changing it on a running machine moves the disk.
	// +optional
	StorageClassName *string `json:"storageClassName,omitempty"`
	// Size of the disk. Required for an empty disk; the size of the source if left out. It may only grow.
	// +optional
	Size *resource.Quantity `json:"size,omitempty"`
}

// VirtualDiskDataSource has exactly the block that matches its type.
//
// +kubebuilder:validation:XValidation:rule="has(self.http) == (has(self.type) && self.type == 'HTTP')",message="http must be set if and only if type is HTTP"
// +kubebuilder:validation:XValidation:rule="has(self.containerImage) == (has(self.type) && self.type == 'ContainerImage')",message="containerImage must be set if and only if type is ContainerImage"
// +kubebuilder:validation:XValidation:rule="has(self.objectRef) == (has(self.type) && self.type == 'ObjectRef')",message="objectRef must be set if and only if type is ObjectRef"
// +kubebuilder:validation:XValidation:rule="!has(self.upload) || (has(self.type) && self.type == 'Upload')",message="upload may be set only if type is Upload"
type VirtualDiskDataSource struct {
	// Type says which of the blocks below is used.
	// +optional
	Type DataSourceType `json:"type,omitempty"`
	// HTTP is a file on a web server.
	// +optional
	HTTP *DataSourceHTTPSource `json:"http,omitempty"`
	// ContainerImage is a container image with a disk file in it.
	// +optional
	ContainerImage *DataSourceContainerRegistry `json:"containerImage,omitempty"`
	// ObjectRef is another object to copy.
	// +optional
	ObjectRef *VirtualDiskObjectRef `json:"objectRef,omitempty"`
	// Upload waits for bytes sent by the user.
	// +optional
	Upload *DataSourceUploadSource `json:"upload,omitempty"`
}

// VirtualDiskObjectRefKind is a kind a disk can be made from.
//
// +kubebuilder:validation:Enum=ClusterVirtualImage;VirtualImage;VirtualDiskSnapshot
type VirtualDiskObjectRefKind string

// The kinds a disk can be made from.
const (
	VirtualDiskFromClusterVirtualImage VirtualDiskObjectRefKind = ClusterVirtualImageKind
	VirtualDiskFromVirtualImage        VirtualDiskObjectRefKind = VirtualImageKind
	VirtualDiskFromVirtualDiskSnapshot VirtualDiskObjectRefKind = VirtualDiskSnapshotKind
)

// VirtualDiskObjectRef names the object to copy, in the same namespace unless it is cluster-wide.
type VirtualDiskObjectRef struct {
	// Kind of the object.
	Kind VirtualDiskObjectRefKind `json:"kind"`
	// Name of the object.
	// +kubebuilder:validation:MinLength=1
	Name string `json:"name"`
}

// DiskPhase is the life of a disk.
//
// +kubebuilder:validation:Enum=Pending;Provisioning;WaitForUserUpload;WaitForFirstConsumer;Ready;Resizing;Failed;PVCLost;Exporting;Terminating;Migrating
type DiskPhase string

// The disk phases.
const (
	// DiskPending: something the disk needs is not ready.
	DiskPending DiskPhase = "Pending"
	// DiskProvisioning: the volume is being made and filled.
	DiskProvisioning DiskPhase = "Provisioning"
	// DiskWaitForUserUpload: the endpoint is open and nothing has arrived yet.
	DiskWaitForUserUpload DiskPhase = "WaitForUserUpload"
	// DiskWaitForFirstConsumer: the StorageClass binds late; a machine that uses the disk starts its creation.
	DiskWaitForFirstConsumer DiskPhase = "WaitForFirstConsumer"
	// DiskReady: the disk can be used.
	DiskReady DiskPhase = "Ready"
	// DiskResizing: the disk grows.
	DiskResizing DiskPhase = "Resizing"
	// DiskFailed: a final error.
	DiskFailed DiskPhase = "Failed"
	// DiskPVCLost: the claim that held the disk is gone.
	DiskPVCLost DiskPhase = "PVCLost"
	// DiskExporting: the data is being exported.
	DiskExporting DiskPhase = "Exporting"
	// DiskTerminating: the disk is being deleted, and waits while it is used.
	DiskTerminating DiskPhase = "Terminating"
	// DiskMigrating: the data moves to another volume.
	DiskMigrating DiskPhase = "Migrating"
)

// VirtualDiskStatus is what the controller found and did.
type VirtualDiskStatus struct {
	// Phase of the disk.
	// +optional
	Phase DiskPhase `json:"phase,omitempty"`
	// Progress of the creation in percent; empty while Pending.
	// +optional
	Progress string `json:"progress,omitempty"`
	// Capacity is the real size of the volume.
	// +optional
	Capacity string `json:"capacity,omitempty"`
	// AttachedToVirtualMachines are the machines that refer to the disk.
	// +optional
	AttachedToVirtualMachines []AttachedVirtualMachine `json:"attachedToVirtualMachines,omitempty"`
	// DownloadSpeed while the import runs.
	// +optional
	DownloadSpeed *StatusSpeed `json:"downloadSpeed,omitempty"`
	// ImageUploadURLs are where to send the bytes for data source type Upload.
	// +optional
	ImageUploadURLs *ImageUploadURLs `json:"imageUploadURLs,omitempty"`
	// UploadCommand is a ready-made command line for the upload. Deprecated: use imageUploadURLs.
	// +optional
	UploadCommand string `json:"uploadCommand,omitempty"`
	// SourceUID is the UID of the object the disk was made from, so that a replaced source is noticed.
	// +optional
	SourceUID string `json:"sourceUID,omitempty"`
	// StorageClassName is the StorageClass in effect.
	// +optional
	StorageClassName string `json:"storageClassName,omitempty"`
	// Target is what was made for the disk.
	// +optional
	Target VirtualDiskTarget `json:"target,omitzero"`
	// MigrationState is the record of the last move to another volume.
	// +optional
	MigrationState *VirtualDiskMigrationState `json:"migrationState,omitempty"`
	// Stats has timings of the creation.
	// +optional
	Stats VirtualDiskStats `json:"stats,omitzero"`
	// Conditions of the disk.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// ObservedGeneration is the last metadata.generation the controller acted on.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
}

// AttachedVirtualMachine is a machine that refers to a disk.
type AttachedVirtualMachine struct {
	// Name of the machine.
	// +optional
	Name string `json:"name,omitempty"`
	// Mounted is true for the one machine that really holds the disk.
	// +optional
	Mounted bool `json:"mounted,omitempty"`
}

// VirtualDiskTarget is what was made for a disk.
type VirtualDiskTarget struct {
	// PersistentVolumeClaimName is the claim that holds the data.
	// +optional
	PersistentVolumeClaimName string `json:"persistentVolumeClaimName,omitempty"`
}

// DiskMigrationResult is how a move ended.
//
// +kubebuilder:validation:Enum=Succeeded;Failed
type DiskMigrationResult string

// The results of a move.
const (
	DiskMigrationSucceeded DiskMigrationResult = "Succeeded"
	DiskMigrationFailed    DiskMigrationResult = "Failed"
)

// VirtualDiskMigrationState is the record of a move to another volume.
type VirtualDiskMigrationState struct {
	// SourcePVC is the old claim.
	// +optional
	SourcePVC string `json:"sourcePVC,omitempty"`
	// TargetPVC is the new claim.
	// +optional
	TargetPVC string `json:"targetPVC,omitempty"`
	// Result of the move.
	// +optional
	Result DiskMigrationResult `json:"result,omitempty"`
	// Message says why it ended as it did.
	// +optional
	Message string `json:"message,omitempty"`
	// StartTimestamp is when the move began.
	// +optional
	StartTimestamp *metav1.Time `json:"startTimestamp,omitempty"`
	// EndTimestamp is when the move ended.
	// +optional
	EndTimestamp *metav1.Time `json:"endTimestamp,omitempty"`
}

// VirtualDiskStats has timings of a disk's creation.
type VirtualDiskStats struct {
	// CreationDuration has the length of each step of the creation.
	// +optional
	CreationDuration VirtualDiskCreationDuration `json:"creationDuration,omitzero"`
}

// VirtualDiskCreationDuration has the length of each step of a disk's creation.
type VirtualDiskCreationDuration struct {
	// WaitingForDependencies is the time until everything the disk needs was ready.
	// +optional
	// +nullable
	WaitingForDependencies *metav1.Duration `json:"waitingForDependencies,omitempty"`
	// WaitingForFirstConsumer is the time spent waiting for a machine.
	// +optional
	// +nullable
	WaitingForFirstConsumer *metav1.Duration `json:"waitingForFirstConsumer,omitempty"`
	// DVCRProvisioning is the time spent loading the source into the module's registry.
	// +optional
	// +nullable
	DVCRProvisioning *metav1.Duration `json:"dvcrProvisioning,omitempty"`
	// TotalProvisioning is the time from ready dependencies to Ready.
	// +optional
	// +nullable
	TotalProvisioning *metav1.Duration `json:"totalProvisioning,omitempty"`
}
