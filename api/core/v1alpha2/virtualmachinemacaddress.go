package v1alpha2

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// VirtualMachineMACAddress claims a hardware address for an interface of a machine and keeps it across stops,
// restarts and moves.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:metadata:labels={"heritage=deckhouse","module=virtualization"}
// +kubebuilder:resource:path=virtualmachinemacaddresses,scope=Namespaced,singular=virtualmachinemacaddress,shortName=vmmac,categories=virtualization
// +kubebuilder:printcolumn:name="Address",type=string,JSONPath=`.status.address`
// +kubebuilder:printcolumn:name="Status",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="VM",type=string,JSONPath=`.status.virtualMachineName`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type VirtualMachineMACAddress struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   VirtualMachineMACAddressSpec   `json:"spec,omitzero"`
	Status VirtualMachineMACAddressStatus `json:"status,omitzero"`
}

// VirtualMachineMACAddressList is a list of address claims.
//
// +kubebuilder:object:root=true
type VirtualMachineMACAddressList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []VirtualMachineMACAddress `json:"items"`
}

// VirtualMachineMACAddressSpec is what the user wants.
type VirtualMachineMACAddressSpec struct {
	// Address is the wanted hardware address, as six pairs of hexadecimal digits with colons or dashes; one is generated if it is absent.
	// +optional
	// +kubebuilder:validation:Pattern=`^([0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}$`
	Address string `json:"address,omitempty"`
}

// VirtualMachineMACAddressPhase is the life of an address claim.
//
// +kubebuilder:validation:Enum=Pending;Bound;Attached
type VirtualMachineMACAddressPhase string

// The address phases.
const (
	// VirtualMachineMACAddressPending: no lease is held.
	VirtualMachineMACAddressPending VirtualMachineMACAddressPhase = "Pending"
	// VirtualMachineMACAddressBound: a lease is held.
	VirtualMachineMACAddressBound VirtualMachineMACAddressPhase = "Bound"
	// VirtualMachineMACAddressAttached: a machine uses the address.
	VirtualMachineMACAddressAttached VirtualMachineMACAddressPhase = "Attached"
)

// VirtualMachineMACAddressStatus is what the controller found and did.
type VirtualMachineMACAddressStatus struct {
	// Phase of the claim.
	// +optional
	Phase VirtualMachineMACAddressPhase `json:"phase,omitempty"`
	// Address that is allocated, in lower case with colons.
	// +optional
	Address string `json:"address,omitempty"`
	// VirtualMachineName is the machine that uses the address.
	// +optional
	VirtualMachineName string `json:"virtualMachineName,omitempty"`
	// Conditions of the claim.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// ObservedGeneration is the last metadata.generation the controller acted on.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
}
