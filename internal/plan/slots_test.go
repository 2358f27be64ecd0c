package plan

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"orlop.dev/orlop/api/core/v1alpha2"
)

func at(id string, slot int32) v1alpha2.DeviceSlot {
	return v1alpha2.DeviceSlot{ID: id, Bus: "scsi", Slot: slot}
}

func TestSlots(t *testing.T) {
	cases := map[string]struct {
		had  []v1alpha2.DeviceSlot
		ids  []string
		want []v1alpha2.DeviceSlot
	}{
		"the first process takes the order of the list": {
			nil, []string{"a", "b", "firstboot"}, []v1alpha2.DeviceSlot{at("a", 0), at("b", 1), at("firstboot", 2)}},
		"a disk that is removed moves nobody": {
			[]v1alpha2.DeviceSlot{at("a", 0), at("b", 1), at("c", 2)}, []string{"a", "c"}, []v1alpha2.DeviceSlot{at("a", 0), at("c", 2)}},
		"another order moves nobody: it is only the order of booting": {
			[]v1alpha2.DeviceSlot{at("a", 0), at("b", 1)}, []string{"b", "a"}, []v1alpha2.DeviceSlot{at("b", 1), at("a", 0)}},
		"a new disk takes the lowest free place, wherever it is listed": {
			[]v1alpha2.DeviceSlot{at("a", 0), at("c", 2), at("firstboot", 3)}, []string{"new", "newer", "c", "a", "firstboot"},
			[]v1alpha2.DeviceSlot{at("new", 1), at("newer", 4), at("c", 2), at("a", 0), at("firstboot", 3)}},
		"first-boot data that comes later sits behind the disks that are there": {
			[]v1alpha2.DeviceSlot{at("a", 0)}, []string{"a", "firstboot"}, []v1alpha2.DeviceSlot{at("a", 0), at("firstboot", 1)}},
		"a place on another bus is not one on this": {
			[]v1alpha2.DeviceSlot{{ID: "a", Bus: "sata", Slot: 4}}, []string{"a"}, []v1alpha2.DeviceSlot{at("a", 0)}},
		"a record that gives one place twice is not followed twice": {
			[]v1alpha2.DeviceSlot{at("a", 0), at("b", 0)}, []string{"a", "b"}, []v1alpha2.DeviceSlot{at("a", 0), at("b", 1)}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var devices []v1alpha2.DeviceSlot
			for _, id := range c.ids {
				devices = append(devices, v1alpha2.DeviceSlot{ID: id, Bus: "scsi"})
			}
			if diff := cmp.Diff(c.want, Slots(c.had, devices)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestSlotsOfTheNextProcess goes the whole way: what is remembered of one process
// places the devices of the next.
func TestSlotsOfTheNextProcess(t *testing.T) {
	first, err := Instance(launch(nil))
	if err != nil {
		t.Fatal(err)
	}
	next, err := Instance(launch(func(l *Launch) {
		l.Slots = SlotsOf(first)
		l.Disks = l.Disks[1:]
		l.VM.Spec.BlockDeviceRefs = l.VM.Spec.BlockDeviceRefs[1:]
	}))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]v1alpha2.DeviceSlot{at("vd-data", 1), at("firstboot", 2)}, SlotsOf(next)); diff != "" {
		t.Error(diff)
	}
}
