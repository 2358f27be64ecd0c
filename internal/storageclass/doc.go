// Package storageclass answers the questions a disk asks of a StorageClass:
// which class applies, whether it may be used, and with which volume mode,
// access mode and binding its volumes are to be requested.
//
// It is pure: StorageClass objects and settings in, a choice or a reason out.
// It does not read the cluster and knows nothing of disks or virtual machines.
//
// A choice made once is written into a PVC and lives as long as the data, so the
// order of modes in a profile may be extended but never rearranged for storage
// that is already listed.
package storageclass
