// Package operation reconciles VirtualMachineOperations: it decides whether an
// operation may run, puts it in progress, and tells how it ended.
//
// It never touches a machine. An operation in progress is a wish that the machine's
// controller reads and takes up (status.instance.signal names the operation); how far
// it is follows from the machine's status alone. So no field has two writers, and
// either controller can be away for any time.
package operation
