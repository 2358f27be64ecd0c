// Package network wires a virtual machine into the network namespace of its pod,
// so that the pod's address is the guest's.
//
// Nothing is translated. eth0 keeps the address the CNI gave it, but the kernel
// stops regarding it as its own (the entry in the table "local" goes), and routes
// it to a bridge with the guest's tap instead. On both sides the pod answers ARP
// by proxy: towards the node for the guest, towards the guest for all the rest.
// The bridge has the same hardware address in every pod of every node, so that a
// guest that moves does not notice. DHCP tells the guest what it needs.
//
//	node ── veth ── eth0 (address, not local) │ pod's routing │ vm0 (router/32) ── tap0 ── guest
//
// Every function here is idempotent: the handler calls them again whenever it
// meets a running machine. What a pod's namespace looks like is hostile input; in
// particular the node's side is only touched after the node's own link proved to
// be the other end of the pod's.
package network
