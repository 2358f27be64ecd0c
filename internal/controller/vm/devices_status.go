package vm

import (
	"slices"

	"k8s.io/apimachinery/pkg/api/resource"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/plan"
	"orlop.dev/orlop/internal/policy"
)

// blockDeviceRefs shows the wanted devices, and after them those that have not left
// the guest yet, as the last status named them.
func blockDeviceRefs(w *world) []v1alpha2.BlockDeviceStatusRef {
	all := make([]v1alpha2.BlockDeviceStatusRef, 0, len(w.disks)+len(w.attached))
	for _, d := range w.wanted() {
		ref := v1alpha2.BlockDeviceStatusRef{Kind: d.ref.Kind, Name: d.ref.Name, BootOrder: d.ref.BootOrder, Size: d.size(),
			VirtualMachineBlockDeviceAttachmentName: d.attachment, Hotplugged: d.attachment != ""}
		fromInstance(w, d.id(), &ref)
		all = append(all, ref)
	}
	if !w.live() || w.instance == nil {
		return all
	}
	for _, ref := range w.vm.Status.BlockDeviceRefs {
		id := plan.DiskID(v1alpha2.BlockDeviceSpecRef{Kind: ref.Kind, Name: ref.Name})
		if _, wanted := find(w.wanted(), id); wanted || policy.DeviceGone(w.instance, id) {
			continue
		}
		fromInstance(w, id, &ref)
		all = append(all, ref)
	}
	return all
}

func (d disk) size() string {
	switch {
	case d.object != nil:
		return d.object.Status.Capacity
	case d.image != nil && d.image.size > 0:
		return resource.NewQuantity(d.image.size, resource.BinarySI).String()
	}
	return ""
}

// fromInstance adds what the process says about a device.
func fromInstance(w *world, id string, ref *v1alpha2.BlockDeviceStatusRef) {
	if !w.live() || w.instance == nil {
		return
	}
	ref.Attached, ref.Target = false, ""
	if s := policy.DeviceStatus(w.instance, id); s != nil {
		ref.Attached = s.Attached
		if s.Size > 0 {
			ref.Size = resource.NewQuantity(s.Size, resource.BinarySI).String()
		}
	}
	if d := policy.Device(w.instance, id); d != nil {
		ref.Hotplugged = ref.Hotplugged || d.Hotplugged
		ref.BootOrder = nil
		if d.BootIndex > 0 {
			ref.BootOrder = new(int(d.BootIndex))
		}
	}
	ref.Target = target(w.instance.Spec.Machine.Disks, id)
}

// target is the name a Linux guest is likely to give a device: it counts the disks
// it finds, in the order of their slots and over gaps, and optical drives apart. For
// devices that came or went while the guest ran nobody outside can tell.
func target(all []v1alpha1.Disk, id string) string {
	at := slices.IndexFunc(all, func(d v1alpha1.Disk) bool { return d.ID == id })
	if at < 0 || all[at].Bus != "scsi" || all[at].CDROM {
		return ""
	}
	before := 0
	for _, d := range all {
		if d.Bus == "scsi" && !d.CDROM && d.Slot < all[at].Slot {
			before++
		}
	}
	if before >= 26 {
		return ""
	}
	return "sd" + string(rune('a'+before))
}
