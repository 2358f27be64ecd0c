// Package qemu turns a machine description into QEMU's command line, and says how
// much memory the process needs beyond the guest's own.
//
// It is pure: same machine, same environment, same arguments. Every address a guest
// can see (PCI slot, SCSI unit, serial number) follows from the description alone
// and never from the order or number of other devices, because guests and live
// migration remember them. Change what an existing golden file shows only together
// with a new machine type: running guests are pinned to it.
//
// Files reach QEMU as descriptors (fd sets), never as paths, so the process needs no
// view of the host. What the description asks for and this package cannot build is
// an error, never silently something else.
package qemu
