// Package install puts the platform onto a Kubernetes cluster and takes it away again.
//
// The order is the point: definitions before the things defined, workloads before the
// configurations that make the API server depend on them, and everything in reverse
// when it goes. Both directions can be repeated at any moment, also after they were
// interrupted: each step looks at the cluster and does what is missing.
//
// What belongs to people is made once and then left alone: the ModuleConfig and the
// class `generic`.
package install
