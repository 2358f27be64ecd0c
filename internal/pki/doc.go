// Package pki makes and checks the certificates that our components show each
// other: authorities that live for a year, leaves that live for a day and are
// renewed at half life, and TLS configurations that follow a renewal without a
// restart.
//
// It knows nothing of Kubernetes: where keys and certificates are kept is the
// caller's business (Secrets in the controller, files in the other components).
// The invariant: what a certificate is good for is decided by whoever signs it,
// never by the request that asked for it.
package pki
