package policy

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/utils/ptr"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
)

// MostDevices is how many block devices a machine can have, those of attachments included.
const MostDevices = 16

// AttachmentVerdict says what becomes of a wish to attach a device.
type AttachmentVerdict int

// The verdicts. Only an accepted attachment brings a device.
const (
	AttachmentAccepted AttachmentVerdict = iota
	// AttachmentLeaving: it is being deleted.
	AttachmentLeaving
	// AttachmentInSpec: the machine's specification lists the same device.
	AttachmentInSpec
	// AttachmentTwice: an older attachment names the same device.
	AttachmentTwice
	// AttachmentTooMany: the machine has no room left.
	AttachmentTooMany
)

// JudgedAttachment is one attachment with its verdict.
type JudgedAttachment struct {
	*v1alpha2.VirtualMachineBlockDeviceAttachment
	Verdict AttachmentVerdict
}

// JudgeAttachments decides about all attachments of a machine, the oldest first. Two
// controllers ask this, so it looks at nothing but the objects.
func JudgeAttachments(vm *v1alpha2.VirtualMachine, list []v1alpha2.VirtualMachineBlockDeviceAttachment) []JudgedAttachment {
	judged := make([]JudgedAttachment, len(list))
	for i := range list {
		judged[i].VirtualMachineBlockDeviceAttachment = &list[i]
	}
	slices.SortStableFunc(judged, func(a, b JudgedAttachment) int {
		if c := a.CreationTimestamp.Compare(b.CreationTimestamp.Time); c != 0 {
			return c
		}
		return strings.Compare(a.Name, b.Name)
	})
	room := MostDevices - len(vm.Spec.BlockDeviceRefs)
	seen := map[v1alpha2.AttachmentDeviceRef]bool{}
	for i := range judged {
		a := &judged[i]
		ref := a.Spec.BlockDeviceRef
		switch {
		case a.DeletionTimestamp != nil:
			a.Verdict = AttachmentLeaving
		case ListsDevice(vm.Spec.BlockDeviceRefs, ref.Kind, ref.Name):
			a.Verdict = AttachmentInSpec
		case seen[ref]:
			a.Verdict = AttachmentTwice
		case room <= 0:
			a.Verdict = AttachmentTooMany
		default:
			seen[ref] = true
			room--
		}
	}
	return judged
}

// ListsDevice says whether a list of devices names one.
func ListsDevice(refs []v1alpha2.BlockDeviceSpecRef, kind v1alpha2.BlockDeviceKind, name string) bool {
	return slices.ContainsFunc(refs, func(r v1alpha2.BlockDeviceSpecRef) bool { return r.Kind == kind && r.Name == name })
}

// HotPlugs says whether the devices of a running machine can change: without
// paravirtualization its buses take none.
func HotPlugs(spec *v1alpha2.VirtualMachineSpec) bool {
	return ptr.Deref(spec.EnableParavirtualization, true)
}

// FirstBootDevice is the device that a guest boots from first, or nil if there is none.
func FirstBootDevice(refs []v1alpha2.BlockDeviceSpecRef) *v1alpha2.BlockDeviceSpecRef {
	var first *v1alpha2.BlockDeviceSpecRef
	for i := range refs {
		r := &refs[i]
		if r.BootOrder != nil && (first == nil || *r.BootOrder < *first.BootOrder) {
			first = r
		}
	}
	if first == nil && len(refs) > 0 {
		first = &refs[0]
	}
	return first
}

// DeviceGone says that a process has let go of a device for good: nobody wants it
// there any more, and the handler, having seen that, does not report it. A process
// that was given to no node never had it.
func DeviceGone(i *v1alpha1.Instance, id string) bool {
	if i.Status.Exit != nil {
		return true
	}
	if slices.ContainsFunc(i.Spec.Machine.Disks, func(d v1alpha1.Disk) bool { return d.ID == id }) {
		return false
	}
	if i.Spec.NodeName == "" {
		return true
	}
	return i.Status.ObservedGeneration >= i.Generation && DeviceStatus(i, id) == nil
}

// DeviceStatus is what the handler says about a device of a process, or nil.
func DeviceStatus(i *v1alpha1.Instance, id string) *v1alpha1.DiskStatus {
	if at := slices.IndexFunc(i.Status.Disks, func(d v1alpha1.DiskStatus) bool { return d.ID == id }); at >= 0 {
		return &i.Status.Disks[at]
	}
	return nil
}

// Device is a device that a process is meant to have, or nil.
func Device(i *v1alpha1.Instance, id string) *v1alpha1.Disk {
	if at := slices.IndexFunc(i.Spec.Machine.Disks, func(d v1alpha1.Disk) bool { return d.ID == id }); at >= 0 {
		return &i.Spec.Machine.Disks[at]
	}
	return nil
}

// DevicesFrozen says that the devices of a process must not change now, because it is
// one end of a migration: both ends have to be alike. After a migration that failed
// the source is free again, after one that succeeded the target is.
func DevicesFrozen(i *v1alpha1.Instance) bool {
	order, report := i.Spec.Migration, i.Status.Migration
	if order == nil {
		return false
	}
	if report == nil || report.ID != order.ID {
		return true
	}
	switch order.Role {
	case v1alpha1.MigrationSource:
		return report.Phase != v1alpha1.MigrationFailed
	default:
		return report.Phase != v1alpha1.MigrationCompleted
	}
}

// ExclusiveClaim says that only one pod may use a claim at a time: such a volume can
// neither be hot-plugged nor migrate.
func ExclusiveClaim(claim *corev1.PersistentVolumeClaim) bool {
	return slices.Contains(claim.Spec.AccessModes, corev1.ReadWriteOncePod)
}

// VolumeReaches says whether a volume can be used on a node.
func VolumeReaches(volume *corev1.PersistentVolume, node *corev1.Node) bool {
	if volume.Spec.NodeAffinity == nil || volume.Spec.NodeAffinity.Required == nil {
		return true
	}
	fits, err := nodeaffinity.NewNodeSelector(volume.Spec.NodeAffinity.Required)
	return err != nil || fits.Match(node)
}
