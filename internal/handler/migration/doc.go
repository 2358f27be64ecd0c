// Package migration is the handler's part in the live migration of one machine, at
// either end: it orders QEMU over the handler's own monitor, relays the memory through
// package tunnel, and passes the word that decides who runs.
//
// A Loop is given the controller's order, what the API server has accepted of its
// reports, and the launcher's state; it hands back reports. Between its pure half
// (source.go, target.go: memory in, report and acts out) and its hands (perform.go)
// there is no third. It relies on no event: what QEMU says now is asked for, and a
// Loop that begins anew finds its place from the answers.
//
// The invariants, of which the first is the reason for everything here:
//   - the target's guest is let run only after the source's QEMU has reported
//     `completed` and the API server has recorded it;
//   - a target whose memory is complete is given up only on the source's word that it
//     has failed, since its own acknowledgement may have completed the source;
//   - a source that has not completed goes on running, whatever is lost.
package migration
