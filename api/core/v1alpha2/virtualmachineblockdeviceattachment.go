package v1alpha2

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// VirtualMachineBlockDeviceAttachment attaches a disk or image to a machine, also while it runs, and detaches it when it is deleted.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:metadata:labels={"heritage=deckhouse","module=virtualization"}
// +kubebuilder:resource:path=virtualmachineblockdeviceattachments,scope=Namespaced,singular=virtualmachineblockdeviceattachment,shortName=vmbda,categories=virtualization
// +kubebuilder:printcolumn:name="PHASE",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="BLOCKDEVICE KIND",type=string,JSONPath=`.spec.blockDeviceRef.kind`,priority=1
// +kubebuilder:printcolumn:name="BLOCKDEVICE NAME",type=string,JSONPath=`.spec.blockDeviceRef.name`,priority=1
// +kubebuilder:printcolumn:name="VIRTUALMACHINE",type=string,JSONPath=`.status.virtualMachineName`
// +kubebuilder:printcolumn:name="AGE",type=date,JSONPath=`.metadata.creationTimestamp`
type VirtualMachineBlockDeviceAttachment struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   VirtualMachineBlockDeviceAttachmentSpec   `json:"spec"`
	Status VirtualMachineBlockDeviceAttachmentStatus `json:"status,omitzero"`
}

// VirtualMachineBlockDeviceAttachmentList is a list of attachments.
//
// +kubebuilder:object:root=true
type VirtualMachineBlockDeviceAttachmentList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []VirtualMachineBlockDeviceAttachment `json:"items"`
}

// VirtualMachineBlockDeviceAttachmentSpec is what the user wants. It can not be changed.
//
// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="spec can not be changed: delete the attachment and make another one"
type VirtualMachineBlockDeviceAttachmentSpec struct {
	// VirtualMachineName is the machine, in the same namespace.
	// +kubebuilder:validation:MinLength=1
	VirtualMachineName string `json:"virtualMachineName"`
	// BlockDeviceRef is what to attach: a disk is writable, images are read-only.
	BlockDeviceRef AttachmentDeviceRef `json:"blockDeviceRef"`
}

// AttachmentDeviceRef names a block device, in the same namespace unless it is cluster-wide.
type AttachmentDeviceRef struct {
	// Kind of the object: VirtualDisk (writable), VirtualImage or ClusterVirtualImage (read-only).
	// +optional
	Kind BlockDeviceKind `json:"kind,omitempty"`
	// Name of the object.
	// +optional
	// +kubebuilder:validation:MinLength=1
	Name string `json:"name,omitempty"`
}

// AttachmentPhase is the life of an attachment.
//
// +kubebuilder:validation:Enum=Pending;InProgress;Attached;Failed;Terminating
type AttachmentPhase string

// The attachment phases.
const (
	// AttachmentPending: waits for the device, or for the machine to run.
	AttachmentPending AttachmentPhase = "Pending"
	// AttachmentInProgress: the running machine is being given the device.
	AttachmentInProgress AttachmentPhase = "InProgress"
	// AttachmentAttached: the guest has the device.
	AttachmentAttached AttachmentPhase = "Attached"
	// AttachmentFailed: the device can not be attached; the conditions tell why.
	AttachmentFailed AttachmentPhase = "Failed"
	// AttachmentTerminating: the device is being taken from the machine.
	AttachmentTerminating AttachmentPhase = "Terminating"
)

// VirtualMachineBlockDeviceAttachmentStatus is what the controller found and did.
type VirtualMachineBlockDeviceAttachmentStatus struct {
	// Phase of the attachment.
	// +optional
	Phase AttachmentPhase `json:"phase,omitempty"`
	// VirtualMachineName is the machine that uses the attachment.
	// +optional
	VirtualMachineName string `json:"virtualMachineName,omitempty"`
	// Conditions of the attachment.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// ObservedGeneration is the last metadata.generation the controller acted on.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
}
