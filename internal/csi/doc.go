// Package csi is the storage of an embedded cluster: the CSI driver
// "local.orlop" for one machine whose nodes (boxes) share its kernel and one
// host directory.
//
// A volume is one sparse image file in a Store. Raw block volumes are a loop
// device over it, file systems are made inside it and mounted through that
// device. Since all boxes share one kernel, a device mounted in several boxes is
// one superblock, and a volume of class "shared" may be written from all of them
// at once; class "local" binds a volume to one node. Snapshots and clones are
// reflink copies, which the kernel makes at one point in time.
//
// It is not for storage that spans machines.
//
// Invariants: a volume or snapshot is in its final folder only when it is
// whole; whatever changes one holds the lock of its folder; a loop device goes
// only when no node has the volume staged. Every call may be repeated, by
// another process, after the death of the one that began it.
package csi
