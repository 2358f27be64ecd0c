// Package v1alpha2 holds the user-facing API group virtualization.deckhouse.io:
// virtual machines and their classes, disks, images, operations and addresses.
//
// Names, defaults, limits and printer columns are a public contract that manifests
// and scripts out there rely on: they are added to, never changed. Fields whose
// behaviour is not built yet are in the schema all the same, and admission refuses
// them. One file per kind; condition types are in conditions.go, reasons in
// reasons.go. Nothing here imports anything of ours.
//
// +kubebuilder:object:generate=true
// +groupName=virtualization.deckhouse.io
package v1alpha2
