// Package attachment reconciles VirtualMachineBlockDeviceAttachments: it tells how
// far the attaching or detaching of a device has come, and lets a deleted attachment
// go when the guest has let go of its device.
//
// It moves no device itself. An attachment is a wish that the machine's controller
// reads and carries out together with the machine's own list of devices; which wishes
// count, both controllers find out by the same question (policy.JudgeAttachments). So
// no object has two writers, and the state of an attachment follows from the machine's
// Instance alone.
package attachment
