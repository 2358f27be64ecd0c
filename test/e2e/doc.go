// Package e2e holds the user stories: an embedded cluster of its own, the real
// chart, real guests, and the d8 command as a user types it.
//
// The stories run in the order of their names' numbers on one cluster, because
// bringing one up is the expensive part; each leaves nothing behind for the next.
// Run them with `make e2e`. `go test -tags e2e ./test/e2e -keep` leaves the
// cluster standing for a look; `-reuse` takes one that stands.
package e2e
