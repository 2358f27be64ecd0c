package v1alpha2

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// VirtualMachineIPAddress claims an address for a machine and keeps it across stops, restarts and moves.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:metadata:labels={"heritage=deckhouse","module=virtualization"}
// +kubebuilder:resource:path=virtualmachineipaddresses,scope=Namespaced,singular=virtualmachineipaddress,shortName=vmip,categories=virtualization
// +kubebuilder:printcolumn:name="Address",type=string,JSONPath=`.status.address`
// +kubebuilder:printcolumn:name="Status",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="VM",type=string,JSONPath=`.status.virtualMachineName`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type VirtualMachineIPAddress struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   VirtualMachineIPAddressSpec   `json:"spec"`
	Status VirtualMachineIPAddressStatus `json:"status,omitzero"`
}

// VirtualMachineIPAddressList is a list of address claims.
//
// +kubebuilder:object:root=true
type VirtualMachineIPAddressList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []VirtualMachineIPAddress `json:"items"`
}

// VirtualMachineIPAddressType is who chooses the address.
//
// +kubebuilder:validation:Enum=Auto;Static
type VirtualMachineIPAddressType string

// The address types.
const (
	// VirtualMachineIPAddressAuto: any free address of the module's ranges.
	VirtualMachineIPAddressAuto VirtualMachineIPAddressType = "Auto"
	// VirtualMachineIPAddressStatic: the address in staticIP.
	VirtualMachineIPAddressStatic VirtualMachineIPAddressType = "Static"
)

// VirtualMachineIPAddressSpec is what the user wants.
type VirtualMachineIPAddressSpec struct {
	// Type says who chooses the address: the module (Auto) or the user (Static).
	Type VirtualMachineIPAddressType `json:"type"`
	// StaticIP is the wanted IPv4 address, for type Static only.
	// +optional
	StaticIP string `json:"staticIP,omitempty"`
}

// VirtualMachineIPAddressPhase is the life of an address claim.
//
// +kubebuilder:validation:Enum=Pending;Bound;Attached
type VirtualMachineIPAddressPhase string

// The address phases.
const (
	// VirtualMachineIPAddressPending: no lease is held.
	VirtualMachineIPAddressPending VirtualMachineIPAddressPhase = "Pending"
	// VirtualMachineIPAddressBound: a lease is held.
	VirtualMachineIPAddressBound VirtualMachineIPAddressPhase = "Bound"
	// VirtualMachineIPAddressAttached: a machine uses the address.
	VirtualMachineIPAddressAttached VirtualMachineIPAddressPhase = "Attached"
)

// VirtualMachineIPAddressStatus is what the controller found and did.
type VirtualMachineIPAddressStatus struct {
	// Phase of the claim.
	// +optional
	Phase VirtualMachineIPAddressPhase `json:"phase,omitempty"`
	// Address that is allocated.
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
