package v1alpha2

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// ClusterVirtualImage is a read-only image in the module's registry that machines and disks of every namespace can use.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:metadata:labels={"heritage=deckhouse","module=virtualization","backup.deckhouse.io/cluster-config=true"}
// +kubebuilder:resource:path=clustervirtualimages,scope=Cluster,singular=clustervirtualimage,shortName=cvi,categories=virtualization-cluster
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="CDROM",type=boolean,JSONPath=`.status.cdrom`
// +kubebuilder:printcolumn:name="Progress",type=string,JSONPath=`.status.progress`
// +kubebuilder:printcolumn:name="StoredSize",type=string,JSONPath=`.status.size.stored`,priority=1
// +kubebuilder:printcolumn:name="UnpackedSize",type=string,JSONPath=`.status.size.unpacked`,priority=1
// +kubebuilder:printcolumn:name="Registry URL",type=string,JSONPath=`.status.target.registryURL`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type ClusterVirtualImage struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   ClusterVirtualImageSpec   `json:"spec"`
	Status ClusterVirtualImageStatus `json:"status,omitzero"`
}

// ClusterVirtualImageList is a list of cluster-wide images.
//
// +kubebuilder:object:root=true
type ClusterVirtualImageList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []ClusterVirtualImage `json:"items"`
}

// ClusterVirtualImageSpec is what the user wants. It cannot change once the image is Ready.
type ClusterVirtualImageSpec struct {
	// DataSource is where the image comes from.
	DataSource ClusterVirtualImageDataSource `json:"dataSource"`
}

// ClusterVirtualImageDataSource has exactly the block that matches its type.
//
// +kubebuilder:validation:XValidation:rule="has(self.http) == (self.type == 'HTTP')",message="http must be set if and only if type is HTTP"
// +kubebuilder:validation:XValidation:rule="has(self.containerImage) == (self.type == 'ContainerImage')",message="containerImage must be set if and only if type is ContainerImage"
// +kubebuilder:validation:XValidation:rule="has(self.objectRef) == (self.type == 'ObjectRef')",message="objectRef must be set if and only if type is ObjectRef"
// +kubebuilder:validation:XValidation:rule="!has(self.upload) || self.type == 'Upload'",message="upload may be set only if type is Upload"
type ClusterVirtualImageDataSource struct {
	// Type says which of the blocks below is used.
	Type DataSourceType `json:"type"`
	// HTTP is a file on a web server.
	// +optional
	HTTP *DataSourceHTTPSource `json:"http,omitempty"`
	// ContainerImage is a container image with a disk file in it.
	// +optional
	ContainerImage *ClusterDataSourceContainerRegistry `json:"containerImage,omitempty"`
	// ObjectRef is another object to copy.
	// +optional
	ObjectRef *ClusterVirtualImageObjectRef `json:"objectRef,omitempty"`
	// Upload waits for bytes sent by the user.
	// +optional
	Upload *DataSourceUploadSource `json:"upload,omitempty"`
}

// ClusterVirtualImageObjectRefKind is a kind a cluster-wide image can be made from.
//
// +kubebuilder:validation:Enum=ClusterVirtualImage;VirtualImage;VirtualDisk;VirtualDiskSnapshot
type ClusterVirtualImageObjectRefKind string

// The kinds a cluster-wide image can be made from.
const (
	ClusterVirtualImageFromClusterVirtualImage ClusterVirtualImageObjectRefKind = ClusterVirtualImageKind
	ClusterVirtualImageFromVirtualImage        ClusterVirtualImageObjectRefKind = VirtualImageKind
	ClusterVirtualImageFromVirtualDisk         ClusterVirtualImageObjectRefKind = VirtualDiskKind
	ClusterVirtualImageFromVirtualDiskSnapshot ClusterVirtualImageObjectRefKind = VirtualDiskSnapshotKind
)

// ClusterVirtualImageObjectRef names the object to copy.
//
// +kubebuilder:validation:XValidation:rule="self.kind == 'ClusterVirtualImage' || (has(self.__namespace__) && size(self.__namespace__) >= 1 && size(self.__namespace__) <= 63)",message="namespace is required for VirtualImage, VirtualDisk and VirtualDiskSnapshot and has 1 to 63 characters"
type ClusterVirtualImageObjectRef struct {
	// Kind of the object.
	Kind ClusterVirtualImageObjectRefKind `json:"kind"`
	// Name of the object.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
	// Namespace of the object; required for every kind but ClusterVirtualImage.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	Namespace string `json:"namespace,omitempty"`
}

// ClusterVirtualImageStatus is what the controller found and did.
type ClusterVirtualImageStatus struct {
	// Phase of the image.
	// +optional
	// +kubebuilder:validation:Enum=Pending;Provisioning;WaitForUserUpload;Ready;Failed;Terminating;ImageLost
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
	// Target is where the image is stored.
	// +optional
	Target ClusterVirtualImageTarget `json:"target,omitzero"`
	// UsedInNamespaces are the namespaces whose machines use the image.
	// +optional
	UsedInNamespaces []string `json:"usedInNamespaces,omitempty"`
	// Conditions of the image.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// ObservedGeneration is the last metadata.generation the controller acted on.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
}

// ClusterVirtualImageTarget is where the image is stored.
type ClusterVirtualImageTarget struct {
	// RegistryURL is the reference of the image in the module's registry.
	// +optional
	RegistryURL string `json:"registryURL,omitempty"`
}
