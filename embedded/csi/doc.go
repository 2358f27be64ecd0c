// Package csi pins the sidecars that stand between Kubernetes and the one-machine
// CSI driver: provisioner, resizer, snapshotter and snapshot controller. It has no
// code: they are main packages of other modules, named as tools in go.mod and
// built from there by hack/build-embedded. The Kubernetes versions are the same
// as in embedded/kubernetes, so that both share one build cache.
package csi
