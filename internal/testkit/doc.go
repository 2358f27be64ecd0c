// Package testkit is what our tests share: a real API server to run against,
// builders for objects, a clock that stands still, and checks for things that
// happen sooner or later or must not be left behind.
//
// It is for tests only, and it imitates nothing: the API server is the one of the
// embedded cluster (bin/embedded/orlop-kube), with its own etcd, and with the CRDs
// of config/crd. There are no controllers and no kubelet, so nothing but the code
// under test moves.
package testkit
