// Package version says which build of Orlop is running.
//
// The value is set once by the linker (see the Makefile) and is the same in every
// binary and image tag of one build; nothing may compute it at run time, or two
// components of one release would disagree about which images belong to them.
package version

// version is set with -ldflags "-X orlop.dev/orlop/internal/version.version=…".
// A binary built without it (go run, go test) says so.
var version = "dev"

// Version returns the version of this build, for example "v0.1.0" or
// "v0.1.0-3-g1a2b3c4"; "dev" when it was built without the Makefile. It is a valid
// image tag.
func Version() string { return version }
