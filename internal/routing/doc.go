// Package routing keeps, on one node, the routes to the addresses of virtual
// machines that run on other nodes: vm-route-forge.
//
// The routes are in a table of their own, which policy rules consult before the
// main one, for destinations in the machines' ranges only. An address that has no
// route there falls through to the main table, where the CNI has the local pods.
// The order matters: while a migration prepares, the target node already has a pod
// with the machine's address, and its traffic must still go to the source.
//
// The table and the rules of our priority belong to this package alone: what does
// not belong there is removed, first of all at the start. It assumes that nodes
// reach each other directly; a node behind a router needs a tunnel, which does not
// exist yet, and its machines get no route.
package routing
