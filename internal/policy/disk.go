package policy

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"orlop.dev/orlop/api/core/v1alpha2"
)

// HolderAnnotation on a VirtualDisk names the machine that may start with it, as
// name/UID. The machine's controller writes it against the resourceVersion it read,
// before anything is created, and removes it when no process of the machine can be
// alive any more: it is the lock that keeps a disk from two machines.
const HolderAnnotation = "internal.virtualization.deckhouse.io/held-by"

// Holder is the value of HolderAnnotation for a machine.
func Holder(vm *v1alpha2.VirtualMachine) string { return vm.Name + "/" + string(vm.UID) }

// DiskHolder reads HolderAnnotation; empty if nobody holds the disk.
func DiskHolder(disk metav1.Object) (name string, uid types.UID) {
	name, id, _ := strings.Cut(disk.GetAnnotations()[HolderAnnotation], "/")
	return name, types.UID(id)
}

// DiskUse is how far a disk is for a machine that wants it.
type DiskUse int

// The answers. Bindable disks have a claim that waits for its first consumer: the
// machine's pod may be created and is that consumer.
const (
	DiskUnusable DiskUse = iota
	DiskBindable
	DiskUsable
)

// UseOf says whether a machine may start with a disk. claim is the disk's claim, or nil.
func UseOf(disk *v1alpha2.VirtualDisk, claim *corev1.PersistentVolumeClaim) DiskUse {
	if disk.DeletionTimestamp != nil || claim == nil || claim.DeletionTimestamp != nil {
		return DiskUnusable
	}
	switch disk.Status.Phase {
	case v1alpha2.DiskReady, v1alpha2.DiskResizing:
		return DiskUsable
	case v1alpha2.DiskWaitForFirstConsumer:
		return DiskBindable
	default:
		return DiskUnusable
	}
}
