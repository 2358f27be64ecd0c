// Package vm reconciles VirtualMachines: it decides whether a machine should run,
// makes an Instance and a launcher Pod for it, binds the two to a node, and shows
// what becomes of them.
//
// The invariant to keep: a second process of a machine is never made possible while
// an earlier one may live. So the counter in status.instance is raised before
// anything of that name is created; what is remembered there (how the process ended,
// what was last asked for) is patched before it is acted upon; and an exit is
// recorded only on proof (policy.Death). Both objects carry a finalizer of ours
// until then, so that deleting them proves nothing and loses nothing.
//
// The package knows nothing of how a process is run; that is the handler's part.
package vm
