// Package launcher is PID 1 of a virtual machine's pod: it starts one QEMU when the
// handler says so, watches it, ends it when told, and reports how it ended.
//
// State is a pure machine: events in, actions out, the time given. The loop owns the
// QEMU process, the monitor and the handler's connection; everything that happens
// reaches it as an event, one after another, and nobody else touches the process. So
// "started at most once" and "dead means reaped" are questions about one goroutine.
//
// The pod has no credentials and no privilege, and this process must stay small: it
// is paid for once for each virtual machine. Keep client libraries out.
package launcher
