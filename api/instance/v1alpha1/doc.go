// Package v1alpha1 holds the internal API group internal.virtualization.deckhouse.io:
// Instance, one QEMU process on one node for one virtual machine.
//
// The controller alone writes spec, the handler of the named node alone writes
// status; both halves restart from what stands here. Nothing in this group is for
// users, and nothing here mirrors a VirtualMachine: it is what one QEMU process gets.
//
// +kubebuilder:object:generate=true
// +groupName=internal.virtualization.deckhouse.io
package v1alpha1
