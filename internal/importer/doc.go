// Package importer moves disk images: from an HTTP(S) server into the cluster's
// registry (import), and from the registry, or from nothing, into the volume of
// a disk (populate). It runs once in a short-lived pod and ends with a
// termination message that the controllers read.
//
// It is not a client of the Kubernetes API: everything it may know is in its
// Config, and everything it has to say is in Progress (while it runs) and in
// Result or Failure (when it ends). It holds one token for one repository.
//
// Invariants: what comes from outside is hostile and bounded (bytes, time,
// redirects, memory); a volume shows either no disk or a whole one; an image is
// in the registry under its tag only after every checksum matched.
package importer
