package v1alpha2

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// VirtualMachineClass says what processor guests see, on which nodes machines may run, and which sizes they may have.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:metadata:labels={"heritage=deckhouse","module=virtualization","backup.deckhouse.io/cluster-config=true"}
// +kubebuilder:resource:path=virtualmachineclasses,scope=Cluster,singular=virtualmachineclass,shortName={vmc,vmclass},categories=virtualization-cluster
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="IsDefault",type=string,JSONPath=`.metadata.annotations.virtualmachineclass\.virtualization\.deckhouse\.io\/is-default-class`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type VirtualMachineClass struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   VirtualMachineClassSpec   `json:"spec"`
	Status VirtualMachineClassStatus `json:"status,omitzero"`
}

// VirtualMachineClassList is a list of classes.
//
// +kubebuilder:object:root=true
type VirtualMachineClassList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []VirtualMachineClass `json:"items"`
}

// VirtualMachineClassSpec is what the administrator wants.
type VirtualMachineClassSpec struct {
	// NodeSelector limits the nodes for every machine of the class.
	// +optional
	NodeSelector NodeSelector `json:"nodeSelector,omitzero"`
	// Tolerations are added to every machine of the class.
	// +optional
	Tolerations []corev1.Toleration `json:"tolerations,omitempty"`
	// CPU is the processor that guests see. It cannot change.
	//
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="spec.cpu is immutable"
	CPU VirtualMachineClassCPU `json:"cpu"`
	// SizingPolicies are the allowed sizes, by ranges of cores.
	// +optional
	// +kubebuilder:validation:MaxItems=16
	SizingPolicies []SizingPolicy `json:"sizingPolicies,omitempty"`
}

// NodeSelector chooses nodes by labels and expressions; both must match.
type NodeSelector struct {
	// MatchLabels are labels the node must have.
	// +optional
	MatchLabels map[string]string `json:"matchLabels,omitempty"`
	// MatchExpressions are requirements on the node's labels.
	// +optional
	MatchExpressions []corev1.NodeSelectorRequirement `json:"matchExpressions,omitempty"`
}

// CPUType is how the guest's processor is chosen.
//
// +kubebuilder:validation:Enum=Host;HostPassthrough;Discovery;Model;Features
type CPUType string

// The processor types.
const (
	// CPUTypeHost is a model as close to the node's processor as can be described.
	CPUTypeHost CPUType = "Host"
	// CPUTypeHostPassthrough is the node's processor itself.
	CPUTypeHostPassthrough CPUType = "HostPassthrough"
	// CPUTypeDiscovery has the features common to a group of nodes.
	CPUTypeDiscovery CPUType = "Discovery"
	// CPUTypeModel is a named model.
	CPUTypeModel CPUType = "Model"
	// CPUTypeFeatures has the listed features.
	CPUTypeFeatures CPUType = "Features"
)

// VirtualMachineClassCPU is the processor that guests see.
//
// +kubebuilder:validation:XValidation:rule="!(self.type in ['Host', 'HostPassthrough']) || (!has(self.model) && !has(self.features) && !has(self.discovery))",message="model, features and discovery are not possible with type Host or HostPassthrough"
// +kubebuilder:validation:XValidation:rule="self.type != 'Discovery' || (!has(self.model) && !has(self.features))",message="model and features are not possible with type Discovery"
// +kubebuilder:validation:XValidation:rule="self.type != 'Model' || (has(self.model) && !has(self.features) && !has(self.discovery))",message="type Model requires model and allows neither features nor discovery"
// +kubebuilder:validation:XValidation:rule="self.type != 'Features' || (has(self.features) && !has(self.model) && !has(self.discovery))",message="type Features requires features and allows neither model nor discovery"
type VirtualMachineClassCPU struct {
	// Type says how the processor is chosen.
	Type CPUType `json:"type"`
	// Model is the name of a processor model, for type Model. Nodes offer the models in their labels `cpu-model.node.virtualization.deckhouse.io/<model>`.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	Model string `json:"model,omitempty"`
	// Features are the processor features guests get, for type Features.
	// +optional
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=1024
	Features []string `json:"features,omitempty"`
	// Discovery says which nodes' common features guests get, for type Discovery.
	// +optional
	Discovery *CPUDiscovery `json:"discovery,omitempty"`
}

// CPUDiscovery says which nodes' common features guests get.
type CPUDiscovery struct {
	// NodeSelector chooses the nodes whose common features are taken; all nodes if empty.
	// +optional
	NodeSelector metav1.LabelSelector `json:"nodeSelector,omitzero"`
}

// SizingPolicy is what machines within a range of cores may have.
type SizingPolicy struct {
	// Cores is the range the policy covers.
	Cores *SizingPolicyCores `json:"cores"`
	// Memory limits for machines in the range.
	// +optional
	Memory *SizingPolicyMemory `json:"memory,omitempty"`
	// CoreFractions are the allowed shares of a core, in percent.
	// +optional
	// +kubebuilder:validation:MaxItems=100
	CoreFractions []CoreFractionValue `json:"coreFractions,omitempty"`
	// DefaultCoreFraction is the share used when the machine gives none: 1 to 100 percent, or Auto.
	//
	// +optional
	// +kubebuilder:validation:XValidation:rule="type(self) == int ? self >= 1 && self <= 100 : self == 'Auto'",message="defaultCoreFraction must be a number from 1 to 100 or Auto"
	DefaultCoreFraction *intstr.IntOrString `json:"defaultCoreFraction,omitempty"`
	// DedicatedCores is kept for compatibility and has no effect.
	// +optional
	DedicatedCores []bool `json:"dedicatedCores,omitempty"`
}

// CoreFractionValue is a share of a core in percent.
//
// +kubebuilder:validation:Minimum=1
// +kubebuilder:validation:Maximum=100
type CoreFractionValue int

// SizingPolicyCores is a range of cores.
//
// +kubebuilder:validation:XValidation:rule="self.max > self.min",message="max must be greater than min"
// +kubebuilder:validation:XValidation:rule="!has(self.step) || self.max > self.step",message="max must be greater than step"
type SizingPolicyCores struct {
	// Min is the smallest number of cores.
	// +kubebuilder:validation:Minimum=1
	Min int `json:"min"`
	// Max is the greatest number of cores.
	// +kubebuilder:validation:Maximum=1024
	Max int `json:"max"`
	// Step is the distance between allowed numbers inside the range, counted from min.
	// +optional
	// +kubebuilder:validation:Minimum=1
	Step int `json:"step,omitempty"`
}

// SizingPolicyMemory limits memory, as a whole or for each core.
type SizingPolicyMemory struct {
	MemoryMinMax `json:",inline"`
	// Step is the distance between allowed sizes, of the whole memory or, if perCore is used, for each core.
	// +optional
	Step *resource.Quantity `json:"step,omitempty"`
	// PerCore limits the memory for each core.
	// +optional
	PerCore *SizingPolicyMemoryPerCore `json:"perCore,omitempty"`
}

// SizingPolicyMemoryPerCore limits the memory for each core.
type SizingPolicyMemoryPerCore struct {
	MemoryMinMax `json:",inline"`
}

// MemoryMinMax is a range of memory.
type MemoryMinMax struct {
	// Min is the smallest size.
	// +optional
	Min *resource.Quantity `json:"min,omitempty"`
	// Max is the greatest size.
	// +optional
	Max *resource.Quantity `json:"max,omitempty"`
}

// VirtualMachineClassPhase is the life of a class.
//
// +kubebuilder:validation:Enum=Pending;Ready;Terminating
type VirtualMachineClassPhase string

// The class phases.
const (
	// VirtualMachineClassPending: no suitable node yet.
	VirtualMachineClassPending VirtualMachineClassPhase = "Pending"
	// VirtualMachineClassReady: machines of the class can run.
	VirtualMachineClassReady VirtualMachineClassPhase = "Ready"
	// VirtualMachineClassTerminating: being deleted, and waits while machines use it.
	VirtualMachineClassTerminating VirtualMachineClassPhase = "Terminating"
)

// VirtualMachineClassStatus is what the controller found.
type VirtualMachineClassStatus struct {
	// Phase of the class.
	Phase VirtualMachineClassPhase `json:"phase"`
	// CPUFeatures are the features of the processor, for the types Features and Discovery.
	// +optional
	CPUFeatures CPUFeatures `json:"cpuFeatures,omitzero"`
	// AvailableNodes are the nodes that can run machines of the class.
	// +optional
	AvailableNodes []string `json:"availableNodes,omitempty"`
	// MaxAllocatableResources are the largest amounts of CPU and memory that one of these nodes has.
	// +optional
	MaxAllocatableResources corev1.ResourceList `json:"maxAllocatableResources,omitempty"`
	// Conditions of the class.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// ObservedGeneration is the last metadata.generation the controller acted on.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
}

// CPUFeatures are processor features found on nodes.
type CPUFeatures struct {
	// Enabled are the features given to guests.
	// +optional
	Enabled []string `json:"enabled,omitempty"`
	// NotEnabledCommon are features common to the nodes that guests do not get.
	// +optional
	NotEnabledCommon []string `json:"notEnabledCommon,omitempty"`
}
