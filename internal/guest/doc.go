// Package guest makes what a guest reads at its first boot: the CD-ROM of cloud-init's
// NoCloud source, or of Windows Setup's answer file.
//
// The same input gives the same bytes, so that a restart of a VM does not look like
// new hardware to the guest. Nothing here is logged: it holds the user's passwords.
package guest
