package v1alpha2

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// VirtualMachine stands for a VirtualMachine of the virtualization.deckhouse.io
// group; a GET answers its metadata.
//
// +kubebuilder:object:root=true
type VirtualMachine struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
}

// VirtualMachineList is a list of VirtualMachine.
//
// +kubebuilder:object:root=true
type VirtualMachineList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []VirtualMachine `json:"items"`
}

// VirtualMachineConsole holds the query parameters of the serial console.
//
// +kubebuilder:object:root=true
type VirtualMachineConsole struct {
	metav1.TypeMeta `json:",inline"`

	// Probe asks who holds the console instead of taking it.
	Probe bool `json:"probe,omitempty"`
}

// VirtualMachineVNC holds the query parameters of the graphical console.
//
// +kubebuilder:object:root=true
type VirtualMachineVNC struct {
	metav1.TypeMeta `json:",inline"`

	// Probe asks who holds the display instead of taking it.
	Probe bool `json:"probe,omitempty"`
}

// VirtualMachinePortForward holds the query parameters of a forwarded port.
//
// +kubebuilder:object:root=true
type VirtualMachinePortForward struct {
	metav1.TypeMeta `json:",inline"`

	// Protocol is "tcp" (the default) or "udp".
	Protocol string `json:"protocol,omitempty"`
	// Port of the guest, 1 to 65535.
	Port int32 `json:"port"`
}

// VirtualMachineFreeze holds the query parameters of freezing the guest's file systems.
// They may come as the body instead.
//
// +kubebuilder:object:root=true
type VirtualMachineFreeze struct {
	metav1.TypeMeta `json:",inline"`

	// UnfreezeTimeout is how long the file systems stay frozen at most, such as "30s";
	// up to 1h, by default 5m.
	UnfreezeTimeout *metav1.Duration `json:"unfreezeTimeout,omitempty"`
}

// VirtualMachineUnfreeze holds the query parameters of thawing them: none.
//
// +kubebuilder:object:root=true
type VirtualMachineUnfreeze struct {
	metav1.TypeMeta `json:",inline"`
}
