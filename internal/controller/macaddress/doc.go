// Package macaddress gives interfaces of additional networks their hardware
// addresses: it reconciles VirtualMachineMACAddresses (claims) and their
// cluster-wide leases.
//
// As with IP addresses, the creation of a lease, whose name is made from the address,
// is the one atomic claim; the candidate is remembered in status.address before it,
// and a claim that holds an address remembers that in its phase, so that a lease which
// somebody deletes can be made again before anybody else takes the address. There is
// no retention: a lease goes with its claim.
//
// The Main network needs no claim: the hardware address there follows from the IP
// address (plan.MAC).
package macaddress
