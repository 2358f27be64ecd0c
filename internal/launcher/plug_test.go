package launcher_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/launcher"
	"orlop.dev/orlop/internal/wire"
)

const nodeData = "node-scsi-3"

var (
	dataDisk = v1alpha1.Disk{ID: "vd-data", Bus: "scsi", Slot: 3}
	attach   = launcher.AttachRequested{Token: 11, Disk: dataDisk, FDs: []int{0}}
	attached = launcher.Attached{ID: "vd-data", Node: nodeData}
	detach   = launcher.DetachRequested{Token: 12, ID: "vd-data"}
	asked    = launcher.Unplugged{Token: 12, ID: "vd-data"}
	deleted  = launcher.DeviceDeleted{ID: "vd-data"}
	refusal  = launcher.UnplugRefused{ID: "vd-data"}
	released = launcher.Released{ID: "vd-data"}
)

func listed(ids ...string) launcher.DevicesRead {
	r := launcher.DevicesRead{Devices: []launcher.Device{{ID: "vd-root", Node: "node-scsi-0", Size: 1024}}}
	for _, id := range ids {
		r.Devices = append(r.Devices, launcher.Device{ID: id, Node: nodeData, Size: 2048})
	}
	return r
}

// One situation per line: what the handler sees of a disk, and what is done last.
func TestPlug(t *testing.T) {
	broken := errors.New("broken")
	in := func(more ...launcher.Event) []launcher.Event {
		return append([]launcher.Event{start, started, attach, attached, listed("vd-data")}, more...)
	}
	ok := func(t launcher.Token) launcher.Action { return launcher.Answer{Token: t} }
	refused := func(t launcher.Token, err *wire.Error) launcher.Action {
		return launcher.Answer{Token: t, Err: err}
	}
	release := launcher.Release{ID: "vd-data", Node: nodeData}
	seen := v1alpha1.DiskStatus{ID: "vd-data", Attached: true, Size: 2048}
	leaving := v1alpha1.DiskStatus{ID: "vd-data", Attached: true, Size: 2048, Message: "Waiting for the guest to let go of the device"}
	closing := v1alpha1.DiskStatus{ID: "vd-data", Size: 2048, Message: "The device's volume is being closed"}
	unsized := v1alpha1.DiskStatus{ID: "vd-data", Message: closing.Message}
	none := v1alpha1.DiskStatus{}
	second := launcher.AttachRequested{Token: 13, Disk: dataDisk}
	cases := map[string]struct {
		events []launcher.Event
		want   v1alpha1.DiskStatus
		last   launcher.Action
	}{
		"before the guest runs":                      {[]launcher.Event{start, attach}, none, refused(11, wire.ErrNotRunning)},
		"while it shuts down":                        {[]launcher.Event{start, started, stop(time.Minute), attach}, none, refused(11, wire.ErrNotRunning)},
		"after its end":                              {[]launcher.Event{start, started, clean, attach}, none, refused(11, wire.ErrNotRunning)},
		"asked for":                                  {[]launcher.Event{start, started, attach}, v1alpha1.DiskStatus{ID: "vd-data", Message: "The device is being attached"}, launcher.Attach(attach)},
		"asked for twice":                            {[]launcher.Event{start, started, attach, second}, v1alpha1.DiskStatus{ID: "vd-data", Message: "The device is being attached"}, refused(13, wire.ErrBusy)},
		"in: the size is QEMU's word":                {in(), seen, launcher.QueryDevices{}},
		"in, and asked for again":                    {in(second), seen, ok(13)},
		"could not be attached, nothing is left":     {[]launcher.Event{start, started, attach, launcher.Attached{ID: "vd-data", Err: broken, Clean: true}}, none, refused(11, wire.Errorf(wire.CodeInternal, "broken"))},
		"could not be attached, something is left":   {[]launcher.Event{start, started, attach, launcher.Attached{ID: "vd-data", Node: nodeData, Err: broken}, launcher.Tick{}}, unsized, release},
		"QEMU ends in the middle":                    {[]launcher.Event{start, started, attach, clean}, none, launcher.RecordExit{}},
		"to go":                                      {in(detach), leaving, launcher.Unplug(detach)},
		"to go while it comes":                       {[]launcher.Event{start, started, attach, detach}, v1alpha1.DiskStatus{ID: "vd-data", Message: "The device is being attached"}, refused(12, wire.ErrBusy)},
		"to go, and the guest was asked":             {in(detach, asked), leaving, ok(12)},
		"to go, but nobody knows it":                 {[]launcher.Event{start, started, detach}, none, ok(12)},
		"to go twice":                                {in(detach, asked, detach), leaving, launcher.Unplug(detach)},
		"gone by the guest's word":                   {in(detach, asked, deleted), closing, release},
		"gone before the answer":                     {in(detach, deleted, asked), closing, ok(12)},
		"gone when asked for":                        {in(detach, launcher.Unplugged{Token: 12, ID: "vd-data", Gone: true}), closing, release},
		"gone, its event lost, found by a look":      {in(detach, asked, late, listed()), closing, release},
		"not gone when looked for":                   {in(detach, asked, late, listed("vd-data")), leaving, launcher.QueryDevices{}},
		"the guest refuses":                          {in(detach, asked, refusal), v1alpha1.DiskStatus{ID: "vd-data", Attached: true, Size: 2048, Message: "The guest refused to let go of the device"}, ok(12)},
		"the guest refuses, is asked again, and can": {in(detach, asked, refusal, detach, asked, deleted), closing, release},
		"QEMU refuses":                               {in(detach, launcher.Unplugged{Token: 12, ID: "vd-data", Err: broken}), leaving, refused(12, wire.Errorf(wire.CodeInternal, "broken"))},
		"taken out behind our back":                  {in(deleted), closing, release},
		"closed":                                     {in(detach, asked, deleted, released), none, release},
		"not closed at once, closed the next time":   {in(detach, asked, deleted, launcher.Released{ID: "vd-data", Err: broken}, launcher.Tick{}), closing, release},
		"asked for while it is being closed":         {in(detach, asked, deleted, second), closing, refused(13, wire.ErrBusy)},
		"back again":                                 {in(detach, asked, deleted, released, attach, attached, listed("vd-data")), seen, launcher.QueryDevices{}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			s, actions := playLate(tc.events)
			var got v1alpha1.DiskStatus
			for _, d := range s.Public().Disks {
				if d.ID == "vd-data" {
					got = d
				}
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(tc.last, actions[len(actions)-1], cmpopts.IgnoreFields(launcher.RecordExit{}, "Exit")); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// late is a Tick after the deadline, however far that is.
var late = launcher.Tick{}

// playLate feeds events at the machine's own pace: a Tick comes when it is due.
func playLate(events []launcher.Event) (launcher.State, []launcher.Action) {
	var s launcher.State
	var all []launcher.Action
	now := zero
	for _, e := range events {
		if _, tick := e.(launcher.Tick); tick && s.Deadline().After(now) {
			now = s.Deadline()
		}
		var actions []launcher.Action
		s, actions = s.Next(now, e)
		all = append(all, actions...)
		now = now.Add(time.Millisecond)
	}
	return s, all
}

// A device that cannot be let go of is tried for ever, more and more seldom, and does
// not hold up another one.
func TestStubbornVolume(t *testing.T) {
	s, _ := playLate([]launcher.Event{start, started, attach, attached, listed("vd-data"), detach, asked, deleted})
	now := zero.Add(time.Minute)
	for i := range 40 {
		s, _ = s.Next(now, launcher.Released{ID: "vd-data", Err: errors.New("in use")})
		wait := s.Deadline().Sub(now)
		if wait <= 0 || wait > 15*time.Second {
			t.Fatalf("attempt %d waits %s", i, wait)
		}
		now = s.Deadline()
		var actions []launcher.Action
		s, actions = s.Next(now, launcher.Tick{})
		if !contains(actions, launcher.Release{ID: "vd-data", Node: nodeData}) {
			t.Fatalf("attempt %d: %v", i, actions)
		}
	}
	if got := s.Public().Disks[1].Message; got != "The device's volume is being closed: in use" {
		t.Errorf("got message %q", got)
	}
	other := launcher.AttachRequested{Token: 20, Disk: v1alpha1.Disk{ID: "vd-other", Bus: "scsi", Slot: 4}}
	if _, actions := s.Next(now, other); !contains(actions, launcher.Attach(other)) {
		t.Errorf("got %v", actions)
	}
}
