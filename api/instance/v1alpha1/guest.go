package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Guest is what the QEMU guest agent says about its operating system. All of it is
// the guest's word: bounded in size, believed by nobody.
type Guest struct {
	// AgentVersion such as "9.2.0".
	AgentVersion string `json:"agentVersion,omitempty"`
	// Since is when the agent first answered in this process.
	// +optional
	Since *metav1.Time `json:"since,omitempty"`
	// Hostname of the guest.
	// +optional
	Hostname string `json:"hostname,omitempty"`
	// OS is the operating system.
	// +optional
	OS GuestOS `json:"os,omitempty"`
	// Timezone such as "UTC, 0".
	// +optional
	Timezone string `json:"timezone,omitempty"`
	// Interfaces, at most 16.
	// +optional
	Interfaces []GuestInterface `json:"interfaces,omitempty"`
	// Users logged in, at most 16.
	// +optional
	Users []string `json:"users,omitempty"`
	// Frozen is true while the file systems are frozen.
	// +optional
	Frozen bool `json:"frozen,omitempty"`
}

// GuestOS is the answer to guest-get-osinfo, field by field (QEMU guest agent protocol reference).
type GuestOS struct {
	// ID such as "debian".
	// +optional
	ID string `json:"id,omitempty"`
	// Name such as "Debian GNU/Linux".
	// +optional
	Name string `json:"name,omitempty"`
	// PrettyName such as "Debian GNU/Linux 13 (trixie)".
	// +optional
	PrettyName string `json:"prettyName,omitempty"`
	// Version such as "13 (trixie)".
	// +optional
	Version string `json:"version,omitempty"`
	// VersionID such as "13".
	// +optional
	VersionID string `json:"versionId,omitempty"`
	// KernelRelease such as "6.12.48-amd64".
	// +optional
	KernelRelease string `json:"kernelRelease,omitempty"`
	// KernelVersion is the build of the kernel.
	// +optional
	KernelVersion string `json:"kernelVersion,omitempty"`
	// Machine is the processor architecture, such as "x86_64".
	// +optional
	Machine string `json:"machine,omitempty"`
}

// GuestInterface is a network interface as the guest sees it.
type GuestInterface struct {
	// Name in the guest.
	Name string `json:"name"`
	// MAC address.
	// +optional
	MAC string `json:"mac,omitempty"`
	// Addresses with their prefix lengths, at most 16.
	// +optional
	Addresses []string `json:"addresses,omitempty"`
}
