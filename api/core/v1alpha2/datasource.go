package v1alpha2

// DataSourceType is where the bytes of an image or disk come from.
//
// +kubebuilder:validation:Enum=HTTP;ContainerImage;ObjectRef;Upload
type DataSourceType string

// The data source types.
const (
	// DataSourceHTTP downloads a file from a URL.
	DataSourceHTTP DataSourceType = "HTTP"
	// DataSourceContainerImage takes the disk file out of a container image.
	DataSourceContainerImage DataSourceType = "ContainerImage"
	// DataSourceObjectRef copies another object of this API.
	DataSourceObjectRef DataSourceType = "ObjectRef"
	// DataSourceUpload waits for the user to send the bytes.
	DataSourceUpload DataSourceType = "Upload"
)

// DataSourceHTTPSource is a file on a web server.
type DataSourceHTTPSource struct {
	// URL of the file to download. Accepted formats: qcow2, raw, vmdk, vdi, iso, each also compressed as .gz or .xz.
	//
	// +kubebuilder:validation:Pattern=`^https?://[^\s/$.?#][^\s]*$`
	// +kubebuilder:validation:MaxLength=2048
	URL string `json:"url"`
	// CABundle is a base64 encoded PEM bundle used to check the server's certificate.
	// +optional
	CABundle []byte `json:"caBundle,omitempty"`
	// Checksum of the file; every given sum must match.
	// +optional
	Checksum *Checksum `json:"checksum,omitempty"`
}

// Checksum holds expected sums of the bytes as they are transferred, before any
// unpacking. All given sums are computed in one pass.
type Checksum struct {
	// MD5 sum, 32 hexadecimal digits.
	// +optional
	// +kubebuilder:validation:Pattern=`^[0-9a-fA-F]{32}$`
	// +kubebuilder:validation:MinLength=32
	// +kubebuilder:validation:MaxLength=32
	MD5 string `json:"md5,omitempty"`
	// SHA1 sum, 40 hexadecimal digits.
	// +optional
	// +kubebuilder:validation:Pattern=`^[0-9a-fA-F]{40}$`
	// +kubebuilder:validation:MinLength=40
	// +kubebuilder:validation:MaxLength=40
	SHA1 string `json:"sha1,omitempty"`
	// SHA256 sum, 64 hexadecimal digits.
	// +optional
	// +kubebuilder:validation:Pattern=`^[0-9a-fA-F]{64}$`
	// +kubebuilder:validation:MinLength=64
	// +kubebuilder:validation:MaxLength=64
	SHA256 string `json:"sha256,omitempty"`
	// SHA512 sum, 128 hexadecimal digits.
	// +optional
	// +kubebuilder:validation:Pattern=`^[0-9a-fA-F]{128}$`
	// +kubebuilder:validation:MinLength=128
	// +kubebuilder:validation:MaxLength=128
	SHA512 string `json:"sha512,omitempty"`
	// Streebog256 sum (GOST R 34.11-2012), 64 hexadecimal digits.
	// +optional
	// +kubebuilder:validation:Pattern=`^[0-9a-fA-F]{64}$`
	// +kubebuilder:validation:MinLength=64
	// +kubebuilder:validation:MaxLength=64
	Streebog256 string `json:"streebog256,omitempty"`
	// Streebog512 sum (GOST R 34.11-2012), 128 hexadecimal digits.
	// +optional
	// +kubebuilder:validation:Pattern=`^[0-9a-fA-F]{128}$`
	// +kubebuilder:validation:MinLength=128
	// +kubebuilder:validation:MaxLength=128
	Streebog512 string `json:"streebog512,omitempty"`
}

// DataSourceUploadSource waits for bytes sent by the user.
type DataSourceUploadSource struct {
	// Checksum of the bytes sent by the client; every given sum must match.
	// +optional
	Checksum *Checksum `json:"checksum,omitempty"`
}

// DataSourceContainerRegistry is a container image that carries a disk file in the
// directory `disk` of its layers.
type DataSourceContainerRegistry struct {
	// Image reference; the first regular file below `disk/` in its layers is the disk.
	//
	// +kubebuilder:validation:Pattern=`^(([a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])(\.([a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9]))*(:[0-9]+)?/)?[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*(:[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?$`
	// +kubebuilder:validation:MaxLength=1024
	Image string `json:"image"`
	// ImagePullSecret names a Secret of type kubernetes.io/dockerconfigjson in the same namespace.
	// +optional
	ImagePullSecret ImagePullSecretName `json:"imagePullSecret,omitzero"`
	// CABundle is a base64 encoded PEM bundle used to check the registry's certificate.
	// +optional
	CABundle []byte `json:"caBundle,omitempty"`
}

// ImagePullSecretName names a pull secret in the namespace of the object.
type ImagePullSecretName struct {
	// Name of the Secret.
	// +optional
	Name string `json:"name,omitempty"`
}

// ClusterDataSourceContainerRegistry is DataSourceContainerRegistry for cluster-wide
// images, where the pull secret needs a namespace.
type ClusterDataSourceContainerRegistry struct {
	// Image reference; the first regular file below `disk/` in its layers is the disk.
	//
	// +kubebuilder:validation:Pattern=`^(([a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])(\.([a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9]))*(:[0-9]+)?/)?[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*(:[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?$`
	// +kubebuilder:validation:MaxLength=1024
	Image string `json:"image"`
	// ImagePullSecret names a Secret of type kubernetes.io/dockerconfigjson.
	// +optional
	ImagePullSecret ClusterImagePullSecret `json:"imagePullSecret,omitzero"`
	// CABundle is a base64 encoded PEM bundle used to check the registry's certificate.
	// +optional
	CABundle []byte `json:"caBundle,omitempty"`
}

// ClusterImagePullSecret names a pull secret in any namespace.
type ClusterImagePullSecret struct {
	// Name of the Secret.
	// +optional
	Name string `json:"name,omitempty"`
	// Namespace of the Secret.
	// +optional
	Namespace string `json:"namespace,omitempty"`
}

// ImageStatusSize is how much room an image takes.
type ImageStatusSize struct {
	// Stored is the space the image takes in its storage, human readable.
	// +optional
	Stored string `json:"stored,omitempty"`
	// StoredBytes is the same in bytes.
	// +optional
	StoredBytes string `json:"storedBytes,omitempty"`
	// Unpacked is the virtual size of the image, human readable; a disk made from it cannot be smaller.
	// +optional
	Unpacked string `json:"unpacked,omitempty"`
	// UnpackedBytes is the same in bytes.
	// +optional
	UnpackedBytes string `json:"unpackedBytes,omitempty"`
}

// StatusSpeed is how fast data is transferred.
type StatusSpeed struct {
	// Avg is the mean speed since the start, human readable.
	// +optional
	Avg string `json:"avg,omitempty"`
	// AvgBytes is the mean speed in bytes per second.
	// +optional
	AvgBytes string `json:"avgBytes,omitempty"`
	// Current is the speed at this moment, human readable.
	// +optional
	Current string `json:"current,omitempty"`
	// CurrentBytes is the speed at this moment in bytes per second.
	// +optional
	CurrentBytes string `json:"currentBytes,omitempty"`
}

// ImageUploadURLs are the addresses for data source type Upload.
type ImageUploadURLs struct {
	// External is the address for clients outside the cluster.
	// +optional
	External string `json:"external,omitempty"`
	// InCluster is the address for clients on nodes and in pods.
	// +optional
	InCluster string `json:"inCluster,omitempty"`
}

// ImagePhase is the life of an image.
//
// +kubebuilder:validation:Enum=Pending;Provisioning;WaitForUserUpload;Ready;Failed;Terminating;ImageLost;PVCLost
type ImagePhase string

// The image phases. ImagePVCLost exists for VirtualImage only.
const (
	// ImagePending: something the image needs is not ready.
	ImagePending ImagePhase = "Pending"
	// ImageProvisioning: the import runs.
	ImageProvisioning ImagePhase = "Provisioning"
	// ImageWaitForUserUpload: the endpoint is open and nothing has arrived yet.
	ImageWaitForUserUpload ImagePhase = "WaitForUserUpload"
	// ImageReady: the image can be used.
	ImageReady ImagePhase = "Ready"
	// ImageFailed: a final error, or an upload that never started.
	ImageFailed ImagePhase = "Failed"
	// ImageTerminating: the image is being deleted, and waits while machines use it.
	ImageTerminating ImagePhase = "Terminating"
	// ImageLost: the data is not in the registry; the image returns to Ready when it reappears.
	ImageLost ImagePhase = "ImageLost"
	// ImagePVCLost: the claim that held the image is gone.
	ImagePVCLost ImagePhase = "PVCLost"
)
