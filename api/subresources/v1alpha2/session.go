package v1alpha2

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// StreamHolder answers a probe: who holds a console or a display. Nobody does when
// Holder is empty. It is plain JSON, no API object.
//
// +kubebuilder:object:generate=false
// +k8s:openapi-gen=false
type StreamHolder struct {
	// Holder is the name of the user, as the API server knows it.
	Holder string `json:"holder"`
	// StartTime is when the holder connected.
	StartTime *metav1.MicroTime `json:"startTime,omitempty"`
	// Client is the program the holder uses: "d8" is the command line, "console" the
	// web console. It is what that program says of itself, at most 128 characters.
	Client string `json:"client"`
}

// Names of a session record, a Lease beside the virtual machine.
const (
	// SessionLabel marks the record; its value is the stream, "console" or "vnc".
	SessionLabel = "virtualization.deckhouse.io/session"
	// SessionIDAnnotation tells one connection from the next.
	SessionIDAnnotation = "virtualization.deckhouse.io/session-id"
	// SessionClientAnnotation is the program at the user's end.
	SessionClientAnnotation = "virtualization.deckhouse.io/session-client"
)
