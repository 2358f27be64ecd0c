// Package guestagent speaks to the QEMU guest agent over the host end of its channel,
// a stream socket.
//
// The other end is a program inside the guest, so all that comes back is the guest's
// word, and the guest may be hostile: it may be silent, never stop, answer late, or
// send anything at all. Every command therefore has a time-out, every answer a bound,
// every text is cut and cleaned, and nothing is believed beyond its own field.
//
// The protocol has no request numbers that old agents know. Before each group of
// commands, and after every failure, the client synchronises: it sends
// guest-sync-delimited with a random number and throws away everything up to the
// delimiter (byte 0xFF) that is followed by the same number. So an answer that comes
// after its time-out can never be taken for the next one.
//
// The package opens no socket and keeps no clock; when to ask is the handler's
// business.
package guestagent
