package v1alpha2

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// VirtualMachineOperation is a one-shot action on a machine: start, stop, restart, move, restore or clone.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:metadata:labels={"heritage=deckhouse","module=virtualization"}
// +kubebuilder:resource:path=virtualmachineoperations,scope=Namespaced,singular=virtualmachineoperation,shortName=vmop,categories=virtualization
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Progress",type=string,JSONPath=`.status.progress`
// +kubebuilder:printcolumn:name="Type",type=string,JSONPath=`.spec.type`
// +kubebuilder:printcolumn:name="VirtualMachine",type=string,JSONPath=`.spec.virtualMachineName`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type VirtualMachineOperation struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   VirtualMachineOperationSpec   `json:"spec"`
	Status VirtualMachineOperationStatus `json:"status,omitzero"`
}

// VirtualMachineOperationList is a list of operations.
//
// +kubebuilder:object:root=true
type VirtualMachineOperationList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []VirtualMachineOperation `json:"items"`
}

// OperationType is what an operation does.
//
// +kubebuilder:validation:Enum=Restart;Start;Stop;Migrate;Evict;Restore;Clone
type OperationType string

// The operation types.
const (
	// OperationRestart stops the machine and starts it with its newest specification.
	OperationRestart OperationType = "Restart"
	// OperationStart starts a stopped machine.
	OperationStart OperationType = "Start"
	// OperationStop shuts the machine down.
	OperationStop OperationType = "Stop"
	// OperationMigrate moves a running machine to another node.
	OperationMigrate OperationType = "Migrate"
	// OperationEvict moves a running machine away from its node.
	OperationEvict OperationType = "Evict"
	// OperationRestore takes the machine back to a snapshot.
	OperationRestore OperationType = "Restore"
	// OperationClone makes a copy of the machine.
	OperationClone OperationType = "Clone"
)

// VirtualMachineOperationSpec is what the user wants. It cannot change.
//
// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="spec is immutable"
// +kubebuilder:validation:XValidation:rule="self.type != 'Start' || !has(self.force) || !self.force",message="force is not possible with type Start"
// +kubebuilder:validation:XValidation:rule="self.type != 'Restore' || has(self.restore)",message="restore is required with type Restore"
// +kubebuilder:validation:XValidation:rule="self.type != 'Clone' || has(self.clone)",message="clone is required with type Clone"
// +kubebuilder:validation:XValidation:rule="!has(self.migrate) || self.type == 'Migrate'",message="migrate may be set only with type Migrate"
type VirtualMachineOperationSpec struct {
	// Type of the operation.
	Type OperationType `json:"type"`
	// VirtualMachineName is the machine to act on, in the same namespace.
	// +kubebuilder:validation:MinLength=1
	VirtualMachineName string `json:"virtualMachineName"`
	// Force leaves out the grace period of Stop and Restart. For Evict and Migrate it switches AutoConverge on (true) or off (false) where the machine's policy leaves the choice.
	// +optional
	Force *bool `json:"force,omitempty"`
	// Restore has the parameters of type Restore.
	// +optional
	Restore *VirtualMachineOperationRestore `json:"restore,omitempty"`
	// Clone has the parameters of type Clone.
	// +optional
	Clone *VirtualMachineOperationClone `json:"clone,omitempty"`
	// Migrate has the parameters of type Migrate.
	// +optional
	Migrate *VirtualMachineOperationMigrate `json:"migrate,omitempty"`
}

// SnapshotOperationMode is how careful a restore or clone is.
//
// +kubebuilder:validation:Enum=DryRun;Strict;BestEffort
type SnapshotOperationMode string

// The modes.
const (
	// SnapshotOperationDryRun only checks what would happen.
	SnapshotOperationDryRun SnapshotOperationMode = "DryRun"
	// SnapshotOperationStrict wants every object or nothing.
	SnapshotOperationStrict SnapshotOperationMode = "Strict"
	// SnapshotOperationBestEffort does what is possible.
	SnapshotOperationBestEffort SnapshotOperationMode = "BestEffort"
)

// VirtualMachineOperationRestore has the parameters of type Restore.
type VirtualMachineOperationRestore struct {
	// Mode: DryRun only checks, Strict wants everything or nothing, BestEffort does what is possible.
	Mode SnapshotOperationMode `json:"mode"`
	// VirtualMachineSnapshotName is the snapshot of the same machine to go back to.
	// +kubebuilder:validation:MinLength=1
	VirtualMachineSnapshotName string `json:"virtualMachineSnapshotName"`
}

// VirtualMachineOperationClone has the parameters of type Clone.
//
// +kubebuilder:validation:XValidation:rule="(has(self.nameReplacement) && size(self.nameReplacement) > 0) || (has(self.customization) && (has(self.customization.namePrefix) || has(self.customization.nameSuffix)))",message="a name prefix, a name suffix or at least one nameReplacement is required"
type VirtualMachineOperationClone struct {
	// Mode: DryRun only checks, Strict wants everything or nothing, BestEffort does what is possible.
	Mode SnapshotOperationMode `json:"mode"`
	// NameReplacement gives new names to chosen objects.
	// +optional
	// +kubebuilder:validation:MaxItems=256
	NameReplacement []NameReplacement `json:"nameReplacement,omitempty"`
	// Customization changes the names of all objects.
	// +optional
	Customization *VirtualMachineOperationCloneCustomization `json:"customization,omitempty"`
}

// VirtualMachineOperationCloneCustomization changes the names of all cloned objects.
type VirtualMachineOperationCloneCustomization struct {
	// NamePrefix is put in front of every name, 1 to 59 characters.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=59
	NamePrefix string `json:"namePrefix,omitempty"`
	// NameSuffix is put behind every name, 1 to 59 characters.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=59
	NameSuffix string `json:"nameSuffix,omitempty"`
}

// NameReplacement gives a new name to one object.
type NameReplacement struct {
	// From chooses the object.
	From NameReplacementFrom `json:"from"`
	// To is its new name, 1 to 59 characters.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=59
	To string `json:"to"`
}

// NameReplacementFrom chooses an object by name and, if given, by kind.
type NameReplacementFrom struct {
	// Kind of the object; any kind if left out.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Kind string `json:"kind,omitempty"`
	// Name of the object.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
}

// VirtualMachineOperationMigrate has the parameters of type Migrate.
type VirtualMachineOperationMigrate struct {
	// NodeSelector are additional labels the new node must have.
	// +optional
	NodeSelector map[string]string `json:"nodeSelector,omitempty"`
}

// OperationPhase is the life of an operation.
//
// +kubebuilder:validation:Enum=Pending;InProgress;Completed;Failed;Terminating;Superseded
type OperationPhase string

// The operation phases.
const (
	// OperationPending: queued.
	OperationPending OperationPhase = "Pending"
	// OperationInProgress: under way.
	OperationInProgress OperationPhase = "InProgress"
	// OperationCompleted: done. Final.
	OperationCompleted OperationPhase = "Completed"
	// OperationFailed: not done. Final.
	OperationFailed OperationPhase = "Failed"
	// OperationTerminating: being deleted.
	OperationTerminating OperationPhase = "Terminating"
	// OperationSuperseded: a later operation took its place. Final.
	OperationSuperseded OperationPhase = "Superseded"
)

// VirtualMachineOperationStatus is what the controller found and did.
type VirtualMachineOperationStatus struct {
	// Phase of the operation.
	Phase OperationPhase `json:"phase"`
	// Progress in percent.
	// +optional
	Progress string `json:"progress,omitempty"`
	// Resources are the results for each object touched by a restore or clone.
	// +optional
	Resources []OperationResource `json:"resources,omitempty"`
	// Conditions of the operation.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// ObservedGeneration is the last metadata.generation the controller acted on.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
}

// OperationResourceStatus is the result for one object.
//
// +kubebuilder:validation:Enum=InProgress;Completed;Failed
type OperationResourceStatus string

// The results.
const (
	OperationResourceInProgress OperationResourceStatus = "InProgress"
	OperationResourceCompleted  OperationResourceStatus = "Completed"
	OperationResourceFailed     OperationResourceStatus = "Failed"
)

// OperationResource is the result for one object of a restore or clone.
type OperationResource struct {
	// APIVersion of the object.
	APIVersion string `json:"apiVersion"`
	// Kind of the object.
	Kind string `json:"kind"`
	// Name of the object.
	Name string `json:"name"`
	// Status of the object.
	Status OperationResourceStatus `json:"status"`
	// Message says more about the status.
	Message string `json:"message"`
}
