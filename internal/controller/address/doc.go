// Package address gives machines their IPv4 addresses: it reconciles
// VirtualMachineIPAddresses (claims) and their cluster-wide leases.
//
// The creation of a lease, whose name is made from the address, is the one atomic
// claim; everything before it (the pool, the candidate remembered in status.address)
// only guesses well. A claim that holds an address remembers that in its phase: while
// its lease is missing, because somebody deleted it, no other claim may make it. A
// lease outlives its claim for a while, kept for the claim's namespace, so that a
// machine made anew finds its address again.
//
// The package does not route or configure anything: handlers and route-forge read
// what stands here.
package address
