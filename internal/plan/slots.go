package plan

import (
	"slices"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
)

// Slots gives each device a place: the one it had, or else the lowest that nobody
// has. So a device that is removed or moved in the list never moves another one in
// the guest. had is what the last process of the machine had; devices come in the
// order of the specification, and only their ID and Bus are read.
func Slots(had []v1alpha2.DeviceSlot, devices []v1alpha2.DeviceSlot) []v1alpha2.DeviceSlot {
	type place struct {
		bus  string
		slot int32
	}
	taken := map[place]bool{}
	placed := slices.Clone(devices)
	kept := make([]bool, len(devices))
	for i, d := range placed {
		at := slices.IndexFunc(had, func(h v1alpha2.DeviceSlot) bool { return h.ID == d.ID && h.Bus == d.Bus })
		if at < 0 || taken[place{d.Bus, had[at].Slot}] {
			continue
		}
		placed[i].Slot, kept[i] = had[at].Slot, true
		taken[place{d.Bus, had[at].Slot}] = true
	}
	for i, d := range placed {
		if kept[i] {
			continue
		}
		next := place{bus: d.Bus}
		for taken[next] {
			next.slot++
		}
		placed[i].Slot = next.slot
		taken[next] = true
	}
	return placed
}

// SlotsOf is what to remember of an instance for the machine's next one.
func SlotsOf(instance *v1alpha1.Instance) []v1alpha2.DeviceSlot {
	all := make([]v1alpha2.DeviceSlot, 0, len(instance.Spec.Machine.Disks))
	for _, d := range instance.Spec.Machine.Disks {
		all = append(all, v1alpha2.DeviceSlot{ID: d.ID, Bus: d.Bus, Slot: d.Slot})
	}
	return all
}
