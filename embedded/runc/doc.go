// Package runc pins the container runtime and the CNI plugins that the embedded
// cluster's boxes use. It has no code: both are main packages of other modules,
// named as tools in go.mod and built from there by hack/build-embedded.
package runc
