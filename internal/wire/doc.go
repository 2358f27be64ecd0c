// Package wire is the protocol between virt-handler (privileged, on the node)
// and virt-launcher (PID 1 of a virtual machine's pod): one SOCK_SEQPACKET unix
// socket, one JSON message per packet, file descriptors beside it by SCM_RIGHTS.
//
// The handler sends requests and the launcher answers each of them once, under
// the same id. The launcher also sends its whole State unasked whenever it
// changes; a State replaces all earlier ones, so that a reader may skip some.
//
// Both ends treat the other as hostile: a packet has a bounded size and number of
// descriptors, descriptors that a message has no use for are closed, and each
// side can ask the kernel who the peer is. Launchers live for months and handlers
// do not, so messages only ever grow by optional fields; Version changes when that
// is not enough.
package wire
