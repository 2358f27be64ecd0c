// Package qmp is a client of QEMU's machine protocol: JSON commands and answers, one
// in flight at a time or several, and events in between.
//
// The process on the other side may have been taken over by its guest. So lines and
// queues are bounded, and what does not parse ends the connection. Nothing here knows
// what a virtual machine is: the commands are QEMU's, typed.
package qmp
