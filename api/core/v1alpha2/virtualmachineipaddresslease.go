package v1alpha2

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// VirtualMachineIPAddressLease is one address taken out of the module's ranges. Its
// name is made from the address, which is why two claims can never hold the same one.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:metadata:labels={"heritage=deckhouse","module=virtualization"}
// +kubebuilder:resource:path=virtualmachineipaddressleases,scope=Cluster,singular=virtualmachineipaddresslease,shortName={vmipl,vmiplease},categories=virtualization-cluster
// +kubebuilder:printcolumn:name="VirtualMachineIPAddress",type=string,JSONPath=`.spec.virtualMachineIPAddressRef`
// +kubebuilder:printcolumn:name="Status",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type VirtualMachineIPAddressLease struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   VirtualMachineIPAddressLeaseSpec   `json:"spec,omitzero"`
	Status VirtualMachineIPAddressLeaseStatus `json:"status,omitzero"`
}

// VirtualMachineIPAddressLeaseList is a list of leases.
//
// +kubebuilder:object:root=true
type VirtualMachineIPAddressLeaseList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []VirtualMachineIPAddressLease `json:"items"`
}

// VirtualMachineIPAddressLeaseSpec says who holds the address.
type VirtualMachineIPAddressLeaseSpec struct {
	// VirtualMachineIPAddressRef is the claim that holds the address.
	// +optional
	VirtualMachineIPAddressRef *VirtualMachineIPAddressLeaseIPAddressRef `json:"virtualMachineIPAddressRef,omitempty"`
}

// VirtualMachineIPAddressLeaseIPAddressRef names a claim.
type VirtualMachineIPAddressLeaseIPAddressRef struct {
	// Name of the claim; empty once the address was released.
	Name string `json:"name"`
	// Namespace of the claim; kept after the release, because the address stays reserved for it for a while.
	Namespace string `json:"namespace"`
}

// VirtualMachineIPAddressLeasePhase is the life of a lease.
//
// +kubebuilder:validation:Enum=Bound;Released
type VirtualMachineIPAddressLeasePhase string

// The lease phases.
const (
	// VirtualMachineIPAddressLeaseBound: a claim holds the address.
	VirtualMachineIPAddressLeaseBound VirtualMachineIPAddressLeasePhase = "Bound"
	// VirtualMachineIPAddressLeaseReleased: the claim is gone; the address stays with its namespace for ten minutes.
	VirtualMachineIPAddressLeaseReleased VirtualMachineIPAddressLeasePhase = "Released"
)

// VirtualMachineIPAddressLeaseStatus is what the controller found and did.
type VirtualMachineIPAddressLeaseStatus struct {
	// Phase of the lease.
	// +optional
	Phase VirtualMachineIPAddressLeasePhase `json:"phase,omitempty"`
	// Conditions of the lease.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// ObservedGeneration is the last metadata.generation the controller acted on.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
}
