// Package integration tests what only a real API server can tell: that it accepts
// and refuses what our schemas say, that policies and roles hold, and that the
// installer and the controllers get along with it.
//
// Every test has its own namespace; cluster-wide names carry the namespace's name.
// There is no kubelet and no controller but ours.
package integration
