// Package qemu_test runs real guests under a real QEMU, through the real launcher, with
// the test in the place of the handler.
//
// It needs what `make test-qemu` prepares: the QEMU of the launcher's image (found by
// ORLOP_QEMU, default bin/qemu/qemu-system-x86_64) and bin/guests/tiny.qcow2. Run by
// root it also drops the launcher to the user of the pods, gives guests a tap and mounts
// small file systems; what needs root is skipped for other users. Guests run under TCG,
// which works everywhere.
package qemu_test
