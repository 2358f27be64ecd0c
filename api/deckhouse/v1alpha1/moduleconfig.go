package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// ModuleConfig has the settings of one module of the platform; its name is the name of the module.
//
// +kubebuilder:object:root=true
// +kubebuilder:metadata:labels={"heritage=deckhouse","backup.deckhouse.io/cluster-config=true"}
// +kubebuilder:resource:path=moduleconfigs,scope=Cluster,singular=moduleconfig,shortName=mc
// +kubebuilder:printcolumn:name="Enabled",type=boolean,JSONPath=`.spec.enabled`
// +kubebuilder:printcolumn:name="Version",type=integer,JSONPath=`.spec.version`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type ModuleConfig struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec ModuleConfigSpec `json:"spec"`
}

// ModuleConfigList is a list of module configurations.
//
// +kubebuilder:object:root=true
type ModuleConfigList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []ModuleConfig `json:"items"`
}

// ModuleConfigSpec is what the administrator wants of the module.
type ModuleConfigSpec struct {
	// Enabled switches the module on or off.
	// +optional
	Enabled *bool `json:"enabled,omitempty"`
	// Version of the settings' format.
	// +optional
	Version int `json:"version,omitempty"`
	// Settings of the module, in the format of the version.
	// +optional
	// +kubebuilder:pruning:PreserveUnknownFields
	Settings *runtime.RawExtension `json:"settings,omitempty"`
}
