// Package boxes tests the embedded cluster itself: clusters of its own are made,
// killed in every way and removed, and the host is compared with what it was before.
//
// It needs root and the built programs, and must not run beside the other stories,
// because it looks at the whole machine (go test -p 1).
package boxes
