// Package certificates keeps everything that our components show and believe: the
// authorities, the leaves of webhooks, aggregated API and registry, the bundles in
// webhook configurations and in the APIService, the key that signs registry tokens,
// and one serving certificate per node's handler.
//
// All of it is in Secrets and ConfigMaps of the module's namespace and is made anew
// if it is missing or spoilt, so deleting a Secret is the way to rotate it by hand.
// Bootstrap makes them before the manager starts, since the controller itself needs a
// certificate before it can serve; several replicas may do so at the same time, the
// first to create an object wins and the others adopt it.
//
// An authority is replaced in three steps so that nobody ever meets a certificate of
// an authority they have not heard of: the next one is announced in the bundles, a
// day later it starts to sign, and the former one leaves the bundles when it expires.
package certificates
