package v1alpha2

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// VirtualImage is a read-only image that machines and disks of its namespace can use.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:metadata:labels={"heritage=deckhouse","module=virtualization"}
// +kubebuilder:resource:path=virtualimages,scope=Namespaced,singular=virtualimage,shortName=vi,categories=virtualization
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="CDROM",type=boolean,JSONPath=`.status.cdrom`
// +kubebuilder:printcolumn:name="Progress",type=string,JSONPath=`.status.progress`
// +kubebuilder:printcolumn:name="StoredSize",type=string,JSONPath=`.status.size.stored`,priority=1
// +kubebuilder:printcolumn:name="UnpackedSize",type=string,JSONPath=`.status.size.unpacked`,priority=1
// +kubebuilder:printcolumn:name="Registry URL",type=string,JSONPath=`.status.target.registryURL`,priority=1
// +kubebuilder:printcolumn:name="TargetPVC",type=string,JSONPath=`.status.target.persistentVolumeClaimName`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type VirtualImage struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   VirtualImageSpec   `json:"spec"`
	Status VirtualImageStatus `json:"status,omitzero"`
}

// VirtualImageList is a list of images.
//
// +kubebuilder:object:root=true
type VirtualImageList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []VirtualImage `json:"items"`
}

// StorageType is where an image lives.
//
// +kubebuilder:validation:Enum=ContainerRegistry;Kubernetes;PersistentVolumeClaim
type StorageType string

// The storage types. StorageKubernetes is the old name of StoragePersistentVolumeClaim.
const (
	StorageContainerRegistry     StorageType = "ContainerRegistry"
	StorageKubernetes            StorageType = "Kubernetes"
	StoragePersistentVolumeClaim StorageType = "PersistentVolumeClaim"
)

// VirtualImageSpec is what the user wants.
type VirtualImageSpec struct {
	// Storage is where the image lives: in the module's registry, or on a volume. `Kubernetes` is the old name of `PersistentVolumeClaim`.
	// +kubebuilder:default=ContainerRegistry
	Storage StorageType `json:"storage"`
	// PersistentVolumeClaim has the parameters of the volume; used only if the image lives on one.
	// +optional
	PersistentVolumeClaim VirtualImagePersistentVolumeClaim `json:"persistentVolumeClaim,omitzero"`
	// DataSource is where the image comes from.
	DataSource VirtualImageDataSource `json:"dataSource"`
}

// VirtualImagePersistentVolumeClaim has the parameters of an image's volume.
type VirtualImagePersistentVolumeClaim struct {
	// StorageClassName is the StorageClass of the claim.
	// +optional
	StorageClassName *string `json:"storageClassName,omitempty"`
}

// VirtualImageDataSource has exactly the block that matches its type.
//
// +kubebuilder:validation:XValidation:rule="has(self.http) == (has(self.type) && self.type == 'HTTP')",message="http must be set if and only if type is HTTP"
// +kubebuilder:validation:XValidation:rule="has(self.containerImage) == (has(self.type) && self.type == 'ContainerImage')",message="containerImage must be set if and only if type is ContainerImage"
// +kubebuilder:validation:XValidation:rule="has(self.objectRef) == (has(self.type) && self.type == 'ObjectRef')",message="objectRef must be set if and only if type is ObjectRef"
// +kubebuilder:validation:XValidation:rule="!has(self.upload) || (has(self.type) && self.type == 'Upload')",message="upload may be set only if type is Upload"
type VirtualImageDataSource struct {
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
	ObjectRef *VirtualImageObjectRef `json:"objectRef,omitempty"`
	// Upload waits for bytes sent by the user.
	// +optional
	Upload *DataSourceUploadSource `json:"upload,omitempty"`
}

// VirtualImageObjectRefKind is a kind an image can be made from.
//
// +kubebuilder:validation:Enum=ClusterVirtualImage;VirtualImage;VirtualDisk;VirtualDiskSnapshot
type VirtualImageObjectRefKind string

// The kinds an image can be made from.
const (
	VirtualImageFromClusterVirtualImage VirtualImageObjectRefKind = ClusterVirtualImageKind
	VirtualImageFromVirtualImage        VirtualImageObjectRefKind = VirtualImageKind
	VirtualImageFromVirtualDisk         VirtualImageObjectRefKind = VirtualDiskKind
	VirtualImageFromVirtualDiskSnapshot VirtualImageObjectRefKind = VirtualDiskSnapshotKind
)

// VirtualImageObjectRef names the object to copy, in the same namespace unless it is cluster-wide.
type VirtualImageObjectRef struct {
	// Kind of the object.
	Kind VirtualImageObjectRefKind `json:"kind"`
	// Name of the object.
	// +kubebuilder:validation:MinLength=1
	Name string `json:"name"`
}

// VirtualImageStatus is what the controller found and did.
type VirtualImageStatus struct {
	// Phase of the image.
	// +optional
	Phase ImagePhase `json:"phase,omitempty"`
	// Progress of the import in percent.
	// +optional
	Progress string `json:"progress,omitempty"`
	// CDROM is true for an ISO, which machines get as an optical drive.
	// +optional
	CDROM bool `json:"cdrom,omitempty"`
	// Format of the source as detected: qcow2, raw, vmdk, vdi or iso.
	// +optional
	Format string `json:"format,omitempty"`
	// Size of the image.
	// +optional
	Size ImageStatusSize `json:"size,omitzero"`
	// DownloadSpeed while the import runs.
	// +optional
	DownloadSpeed *StatusSpeed `json:"downloadSpeed,omitempty"`
	// ImageUploadURLs are where to send the bytes for data source type Upload.
	// +optional
	ImageUploadURLs *ImageUploadURLs `json:"imageUploadURLs,omitempty"`
	// UploadCommand is a ready-made command line for the upload. Deprecated: use imageUploadURLs.
	// +optional
	UploadCommand string `json:"uploadCommand,omitempty"`
	// SourceUID is the UID of the object the image was made from, so that a replaced source is noticed.
	// +optional
	SourceUID string `json:"sourceUID,omitempty"`
	// StorageClassName is the StorageClass in effect, if the image lives on a volume.
	// +optional
	StorageClassName string `json:"storageClassName,omitempty"`
	// Target is where the image is stored.
	// +optional
	Target VirtualImageTarget `json:"target,omitzero"`
	// Conditions of the image.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// ObservedGeneration is the last metadata.generation the controller acted on.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
}

// VirtualImageTarget is where the image is stored.
type VirtualImageTarget struct {
	// RegistryURL is the reference of the image in the module's registry.
	// +optional
	RegistryURL string `json:"registryURL,omitempty"`
	// PersistentVolumeClaimName is the claim that holds the image.
	// +optional
	PersistentVolumeClaimName string `json:"persistentVolumeClaimName,omitempty"`
}
