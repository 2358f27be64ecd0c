// Package v1alpha1 holds the one kind of the group deckhouse.io that we read:
// ModuleConfig, the settings of a module of the platform.
//
// On a Deckhouse platform the kind belongs to the platform; elsewhere `d8 install`
// brings it. Either way it has the same shape: settings are free-form here and
// checked by the module they belong to (package internal/settings).
//
// +kubebuilder:object:generate=true
// +groupName=deckhouse.io
package v1alpha1
