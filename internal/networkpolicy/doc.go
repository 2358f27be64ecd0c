// Package networkpolicy enforces networking.k8s.io/v1 NetworkPolicy for the pods of
// one node of the embedded cluster, virtual machines among them.
//
// Plan is pure: policies, pods and namespaces in, one nftables table out. The agent
// watches these objects, plans the whole table, and applies what differs from the
// last one in one transaction; while it cannot, the last good table stays.
//
// Every packet is judged, not only the first of a connection, so a connection ends
// with the policy that allowed it. What is judged is the connection: from the side
// that opened it (as connection tracking remembers) to the side that was asked. So
// each chain exists twice, for packets along the connection ("with") and for the
// answers ("back"). The filter sees packets after Services were translated.
//
// Only what goes to or comes from a link of a pod here is judged: each node answers
// for its own pods, so a machine that moves, whose address is in two pods for a
// while, is always judged where its packets enter and leave. Packets between a pod
// and its own node never pass the hook that is used: they are always allowed, as
// Kubernetes wants it. Pods on the host's network have no link and no policy.
package networkpolicy
