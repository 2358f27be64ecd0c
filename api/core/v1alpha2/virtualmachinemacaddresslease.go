package v1alpha2

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// VirtualMachineMACAddressLease is one hardware address that is in use. Its name is made from
// the address, which is why two claims can never hold the same one.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:metadata:labels={"heritage=deckhouse","module=virtualization"}
// +kubebuilder:resource:path=virtualmachinemacaddressleases,scope=Cluster,singular=virtualmachinemacaddresslease,shortName={vmmacl,vmmaclease},categories=virtualization-cluster
// +kubebuilder:printcolumn:name="VirtualMachineMACAddress",type=string,JSONPath=`.spec.virtualMachineMACAddressRef`
// +kubebuilder:printcolumn:name="Status",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type VirtualMachineMACAddressLease struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   VirtualMachineMACAddressLeaseSpec   `json:"spec,omitzero"`
	Status VirtualMachineMACAddressLeaseStatus `json:"status,omitzero"`
}

// VirtualMachineMACAddressLeaseList is a list of leases.
//
// +kubebuilder:object:root=true
type VirtualMachineMACAddressLeaseList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []VirtualMachineMACAddressLease `json:"items"`
}

// VirtualMachineMACAddressLeaseSpec says who holds the address.
type VirtualMachineMACAddressLeaseSpec struct {
	// VirtualMachineMACAddressRef is the claim that holds the address.
	// +optional
	VirtualMachineMACAddressRef *VirtualMachineMACAddressLeaseMACAddressRef `json:"virtualMachineMACAddressRef,omitempty"`
}

// VirtualMachineMACAddressLeaseMACAddressRef names a claim.
type VirtualMachineMACAddressLeaseMACAddressRef struct {
	// Name of the claim.
	Name string `json:"name"`
	// Namespace of the claim.
	Namespace string `json:"namespace"`
}

// VirtualMachineMACAddressLeasePhase is the life of a lease.
//
// +kubebuilder:validation:Enum=Bound
type VirtualMachineMACAddressLeasePhase string

// VirtualMachineMACAddressLeaseBound is the only phase: a claim holds the address. A lease goes with its claim.
const VirtualMachineMACAddressLeaseBound VirtualMachineMACAddressLeasePhase = "Bound"

// VirtualMachineMACAddressLeaseStatus is what the controller found and did.
type VirtualMachineMACAddressLeaseStatus struct {
	// Phase of the lease.
	// +optional
	Phase VirtualMachineMACAddressLeasePhase `json:"phase,omitempty"`
	// Conditions of the lease.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// ObservedGeneration is the last metadata.generation the controller acted on.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
}
