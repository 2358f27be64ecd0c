// Package v1alpha2 is the aggregated API group
// subresources.virtualization.deckhouse.io: what one can do to a running virtual
// machine through the API server without changing its object.
//
// Nothing here is stored. A VirtualMachine of this group carries metadata only;
// the other types are the query parameters of its stream subresources.
//
// +kubebuilder:object:generate=true
// +kubebuilder:skip
// +groupName=subresources.virtualization.deckhouse.io
// +k8s:openapi-gen=true
package v1alpha2
