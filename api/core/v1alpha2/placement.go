package v1alpha2

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TopologySpreadConstraint spreads machines over a topology, as for Pods.
type TopologySpreadConstraint struct {
	// MaxSkew is the greatest allowed difference between topology domains.
	// +kubebuilder:validation:Minimum=1
	MaxSkew int32 `json:"maxSkew"`
	// TopologyKey is the node label whose values are the domains.
	TopologyKey string `json:"topologyKey"`
	// WhenUnsatisfiable: DoNotSchedule leaves the machine pending, ScheduleAnyway only prefers an even spread.
	// +kubebuilder:validation:Enum=DoNotSchedule;ScheduleAnyway
	WhenUnsatisfiable corev1.UnsatisfiableConstraintAction `json:"whenUnsatisfiable"`
	// LabelSelector chooses the machines that are counted.
	// +optional
	LabelSelector *metav1.LabelSelector `json:"labelSelector,omitempty"`
}

// VMAffinity says near or far from what a machine runs.
type VMAffinity struct {
	// NodeAffinity chooses nodes, as for Pods.
	// +optional
	NodeAffinity *corev1.NodeAffinity `json:"nodeAffinity,omitempty"`
	// VirtualMachineAndPodAffinity runs the machine near other machines and Pods.
	// +optional
	VirtualMachineAndPodAffinity *VirtualMachineAndPodAffinity `json:"virtualMachineAndPodAffinity,omitempty"`
	// VirtualMachineAndPodAntiAffinity runs the machine away from other machines and Pods.
	// +optional
	VirtualMachineAndPodAntiAffinity *VirtualMachineAndPodAntiAffinity `json:"virtualMachineAndPodAntiAffinity,omitempty"`
}

// VirtualMachineAndPodAffinity mirrors the Pod affinity of Kubernetes.
type VirtualMachineAndPodAffinity struct {
	// RequiredDuringSchedulingIgnoredDuringExecution are terms that must all hold when the machine is placed.
	// +optional
	RequiredDuringSchedulingIgnoredDuringExecution []VirtualMachineAndPodAffinityTerm `json:"requiredDuringSchedulingIgnoredDuringExecution,omitempty"`
	// PreferredDuringSchedulingIgnoredDuringExecution are terms that weigh when the machine is placed.
	// +optional
	PreferredDuringSchedulingIgnoredDuringExecution []WeightedVirtualMachineAndPodAffinityTerm `json:"preferredDuringSchedulingIgnoredDuringExecution,omitempty"`
}

// VirtualMachineAndPodAntiAffinity mirrors the Pod anti-affinity of Kubernetes.
type VirtualMachineAndPodAntiAffinity struct {
	// RequiredDuringSchedulingIgnoredDuringExecution are terms that must all hold when the machine is placed.
	// +optional
	RequiredDuringSchedulingIgnoredDuringExecution []VirtualMachineAndPodAffinityTerm `json:"requiredDuringSchedulingIgnoredDuringExecution,omitempty"`
	// PreferredDuringSchedulingIgnoredDuringExecution are terms that weigh when the machine is placed.
	// +optional
	PreferredDuringSchedulingIgnoredDuringExecution []WeightedVirtualMachineAndPodAffinityTerm `json:"preferredDuringSchedulingIgnoredDuringExecution,omitempty"`
}

// WeightedVirtualMachineAndPodAffinityTerm is a term with a weight.
type WeightedVirtualMachineAndPodAffinityTerm struct {
	// Weight of the term, from 1 to 100.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	Weight int32 `json:"weight"`
	// VirtualMachineAndPodAffinityTerm is the term.
	VirtualMachineAndPodAffinityTerm VirtualMachineAndPodAffinityTerm `json:"virtualMachineAndPodAffinityTerm"`
}

// VirtualMachineAndPodAffinityTerm chooses machines and Pods by their labels. The labels of a machine are on its Pod too.
type VirtualMachineAndPodAffinityTerm struct {
	// LabelSelector chooses machines and Pods.
	// +optional
	LabelSelector *metav1.LabelSelector `json:"labelSelector,omitempty"`
	// Namespaces in which they are looked for; the machine's own if neither this nor namespaceSelector is given.
	// +optional
	Namespaces []string `json:"namespaces,omitempty"`
	// TopologyKey is the node label whose equal values mean "near".
	TopologyKey string `json:"topologyKey"`
	// NamespaceSelector chooses further namespaces by their labels.
	// +optional
	NamespaceSelector *metav1.LabelSelector `json:"namespaceSelector,omitempty"`
	// MatchLabelKeys are labels whose values must be those of this machine.
	// +optional
	MatchLabelKeys []string `json:"matchLabelKeys,omitempty"`
	// MismatchLabelKeys are labels whose values must not be those of this machine.
	// +optional
	MismatchLabelKeys []string `json:"mismatchLabelKeys,omitempty"`
}
