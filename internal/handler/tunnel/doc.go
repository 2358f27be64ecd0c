// Package tunnel carries the bytes of live migrations from handler to handler: one
// TLS connection for each channel, opened by the source's node, and relayed at both
// ends to a unix socket of QEMU.
//
// Both ends show the certificate of their node. Which node may open which channel is
// not decided here: the server asks, with the node's proven name, and carries no byte
// before it got an answer.
//
// A cut connection is an end for both sides, never a pause: nothing here reconnects,
// since QEMU could not go on where it was.
package tunnel
