// Package disk is the controller of VirtualDisk: it makes the claim that holds a
// disk, has it filled from an image or with nothing, and tells who uses it.
//
// Filling follows the volume populator contract of Kubernetes. The disk's claim has
// the disk as its data source, so no provisioner touches it. A second claim, the
// prime, gets a volume from the provisioner; a pod writes the disk into it; one
// patch hands the filled volume over to the disk's claim; then prime and pod go.
//
//	claim   ─ Pending ───────────────────────────────┐            ┌─ Bound
//	prime   ─ Pending ─ Bound ─ pod writes ─ pod ends ┤ volume     ├ deleted
//	volume             └ claimRef: prime ─────────────┘ re-bound ──┘
//
// With a class that binds late nothing happens before the scheduler has chosen a
// node for the first consumer and written it on the disk's claim.
//
// What must hold: a volume is marked as filled in the very patch that hands it
// over; a claim is made for exactly one version of the disk's wishes and replaced,
// never changed, when they change before the disk is ready; once a disk was ready,
// nothing here ever makes it anew.
package disk
