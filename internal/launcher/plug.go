package launcher

import (
	"slices"
	"time"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/wire"
)

const (
	// checkInterval is how often a device that is to go is looked for: the event that
	// says so may be lost.
	checkInterval = 10 * time.Second
	// A device that is out, but whose file QEMU still holds, is let go of again and
	// again: its requests may be in flight, or the storage hangs.
	firstRelease = 100 * time.Millisecond
	lastRelease  = 15 * time.Second
)

// What the handler says about a device that is being changed.
const (
	messageAttaching = "The device is being attached"
	messageUnplug    = "Waiting for the guest to let go of the device"
	messageRefused   = "The guest refused to let go of the device"
	messageReleasing = "The device's volume is being closed"
)

// Device is one block device as QEMU lists it.
type Device struct {
	ID string
	// Node is its upper block node.
	Node string
	// Size of the medium, in bytes.
	Size int64
}

// step is where a device is between being asked for and being gone.
//
//	        attach                      detach                      device gone
//	(none) ───────► attaching ──────► present ──────► leaving ──────────────────► closing ──► (none)
//	                    │                ▲   refused │                               ▲
//	                    └─ failed        └───────────┘      found to be gone ────────┘
type step int

const (
	present   step = iota // the guest can see it
	attaching             // descriptors, nodes and device are being added
	leaving               // the guest was asked to let go
	closing               // it is out of the machine; nodes and descriptors are being removed
)

// device is what is remembered of one.
type device struct {
	Device

	step    step
	message string
	// token is the attach that waits for an answer.
	token Token
	// at is when to look for a leaving one, or to close a closing one again; zero
	// while that is being done.
	at       time.Time
	failures int
}

// What is asked of devices, and what becomes of them.
type (
	// AttachRequested puts a disk into the machine.
	AttachRequested struct {
		Token Token
		Disk  v1alpha1.Disk
		FDs   []int
	}
	// DetachRequested takes one out.
	DetachRequested struct {
		Token Token
		ID    string
	}
	// Attached is the outcome of an Attach action. After a failure, Clean says that
	// nothing of it was left in QEMU.
	Attached struct {
		ID, Node string
		Err      error
		Clean    bool
	}
	// Unplugged is the outcome of an Unplug action: the guest was asked. Gone is true
	// if QEMU has no such device.
	Unplugged struct {
		Token Token
		ID    string
		Err   error
		Gone  bool
	}
	// DeviceDeleted and UnplugRefused are what QEMU hears from the guest.
	DeviceDeleted struct{ ID string }
	UnplugRefused struct{ ID string }
	// Released is the outcome of a Release action.
	Released struct {
		ID  string
		Err error
	}
	// DevicesRead is the outcome of a QueryDevices action.
	DevicesRead struct {
		Devices []Device
		Err     error
	}
)

func (AttachRequested) event() {}
func (DetachRequested) event() {}
func (Attached) event()        {}
func (Unplugged) event()       {}
func (DeviceDeleted) event()   {}
func (UnplugRefused) event()   {}
func (Released) event()        {}
func (DevicesRead) event()     {}

type (
	// Attach adds descriptors, nodes and device, and comes back as Attached. The
	// descriptors are those of the request of this token.
	Attach struct {
		Token Token
		Disk  v1alpha1.Disk
		FDs   []int
	}
	// Unplug asks the guest, and comes back as Unplugged.
	Unplug struct {
		Token Token
		ID    string
	}
	// Release removes the nodes and descriptors of a device that is out, and comes
	// back as Released.
	Release struct{ ID, Node string }
	// QueryDevices asks QEMU for its block devices, and comes back as DevicesRead.
	QueryDevices struct{}
)

func (Attach) action()       {}
func (Unplug) action()       {}
func (Release) action()      {}
func (QueryDevices) action() {}

// plugNext answers the events of devices.
func (s State) plugNext(now time.Time, e Event) (State, []Action) {
	switch e := e.(type) {
	case AttachRequested:
		return s.attachRequested(e)
	case DetachRequested:
		return s.detachRequested(now, e)
	case Attached:
		return s.attached(now, e)
	case Unplugged:
		return s.unplugged(now, e)
	case DeviceDeleted:
		return s.release(e.ID)
	case UnplugRefused:
		return s.unplugRefused(e)
	case Released:
		return s.released(now, e)
	case DevicesRead:
		return s.devicesRead(e)
	default:
		return s, nil
	}
}

func (s State) attachRequested(e AttachRequested) (State, []Action) {
	if s.stage != alive || s.shutdown || s.leaving || s.left {
		return s, []Action{Answer{e.Token, wire.ErrNotRunning}}
	}
	if d, there := s.device(e.Disk.ID); there {
		if d.step == present {
			return s, []Action{Answer{e.Token, nil}}
		}
		return s, []Action{Answer{e.Token, wire.ErrBusy}}
	}
	s = s.with(device{Device: Device{ID: e.Disk.ID}, step: attaching, token: e.Token, message: messageAttaching})
	return s, []Action{Attach(e)}
}

func (s State) attached(now time.Time, e Attached) (State, []Action) {
	d, there := s.device(e.ID)
	if !there || d.step != attaching {
		return s, nil
	}
	answer := Answer{d.token, nil}
	if e.Err != nil {
		answer.Err = wire.Errorf(wire.CodeInternal, "%v", e.Err)
	}
	switch {
	case e.Err == nil:
		s = s.with(device{Device: Device{ID: e.ID, Node: e.Node}})
		s, actions := s.queryDevices()
		return s, append([]Action{answer}, actions...)
	case e.Clean:
		return s.without(e.ID), []Action{answer}
	default:
		d = device{Device: Device{ID: e.ID, Node: e.Node}, step: closing, message: messageReleasing, at: now.Add(firstRelease)}
		return s.with(d), []Action{answer}
	}
}

func (s State) detachRequested(now time.Time, e DetachRequested) (State, []Action) {
	if s.stage != alive || s.leaving || s.left {
		return s, []Action{Answer{e.Token, wire.ErrNotRunning}}
	}
	d, there := s.device(e.ID)
	switch {
	case !there, d.step == closing:
		return s, []Action{Answer{e.Token, nil}}
	case d.step == attaching:
		return s, []Action{Answer{e.Token, wire.ErrBusy}}
	}
	d.step, d.message, d.at = leaving, messageUnplug, now.Add(checkInterval)
	return s.with(d), []Action{Unplug(e)}
}

// unplugged says that the guest was asked. A refusal of QEMU itself leaves the device
// where it is: it cannot be taken out, or is already on its way.
func (s State) unplugged(now time.Time, e Unplugged) (State, []Action) {
	answer := Answer{e.Token, nil}
	d, there := s.device(e.ID)
	switch {
	case e.Gone:
		s, actions := s.release(e.ID)
		return s, append([]Action{answer}, actions...)
	case e.Err != nil:
		answer.Err = wire.Errorf(wire.CodeInternal, "%v", e.Err)
		if there && d.step == leaving {
			d.at = now.Add(checkInterval)
			s = s.with(d)
		}
	}
	return s, []Action{answer}
}

func (s State) unplugRefused(e UnplugRefused) (State, []Action) {
	d, there := s.device(e.ID)
	if !there || d.step != leaving {
		return s, nil
	}
	d.step, d.message, d.at = present, messageRefused, time.Time{}
	return s.with(d), nil
}

// release lets go of what is behind a device that is out of the machine, whoever has
// taken it out.
func (s State) release(id string) (State, []Action) {
	d, there := s.device(id)
	if !there || d.step == closing || d.step == attaching {
		return s, nil
	}
	d.step, d.message, d.at, d.failures = closing, messageReleasing, time.Time{}, 0
	return s.with(d), []Action{Release{ID: id, Node: d.Node}}
}

func (s State) released(now time.Time, e Released) (State, []Action) {
	d, there := s.device(e.ID)
	if !there || d.step != closing {
		return s, nil
	}
	if e.Err == nil {
		return s.without(e.ID), nil
	}
	d.at = now.Add(min(lastRelease, firstRelease<<min(d.failures, 16)))
	d.failures++
	if d.failures > 5 { // being busy for a moment is nobody's business
		d.message = messageReleasing + ": " + e.Err.Error()
	}
	return s.with(d), nil
}

// queryDevices asks for the devices, once at a time.
func (s State) queryDevices() (State, []Action) {
	if s.listing {
		s.listStale = true
		return s, nil
	}
	s.listing = true
	return s, []Action{QueryDevices{}}
}

// devicesRead believes the list, but for devices on their way in or out: it may be
// older than what is known of those.
func (s State) devicesRead(e DevicesRead) (State, []Action) {
	s.listing = false
	var actions []Action
	if s.listStale {
		s.listStale = false
		return s.queryDevices()
	}
	if e.Err != nil || s.stage != alive {
		return s, nil
	}
	for _, d := range slices.Clone(s.devices) {
		at := slices.IndexFunc(e.Devices, func(l Device) bool { return l.ID == d.ID })
		switch {
		case at >= 0 && (d.step == present || d.step == leaving):
			d.Device = e.Devices[at]
			s = s.with(d)
		case at < 0 && (d.step == present || d.step == leaving):
			var more []Action
			s, more = s.release(d.ID)
			actions = append(actions, more...)
		}
	}
	for _, l := range e.Devices {
		if _, known := s.device(l.ID); !known && l.ID != "" {
			s = s.with(device{Device: l})
		}
	}
	return s, actions
}

// plugTick does what has become due.
func (s State) plugTick(now time.Time) (State, []Action) {
	var actions []Action
	for _, d := range s.devices {
		if d.at.IsZero() || now.Before(d.at) {
			continue
		}
		switch d.step {
		case closing:
			d.at = time.Time{}
			s = s.with(d)
			actions = append(actions, Release{ID: d.ID, Node: d.Node})
		case leaving:
			d.at = now.Add(checkInterval)
			var more []Action
			s, more = s.with(d).queryDevices()
			actions = append(actions, more...)
		case present, attaching:
		}
	}
	return s, actions
}

// device finds one by id.
func (s State) device(id string) (device, bool) {
	for _, d := range s.devices {
		if d.ID == id {
			return d, true
		}
	}
	return device{}, false
}

// with is the state with a device added or changed. States share no memory.
func (s State) with(d device) State {
	s.devices = slices.Clone(s.devices)
	if i := slices.IndexFunc(s.devices, func(o device) bool { return o.ID == d.ID }); i >= 0 {
		s.devices[i] = d
	} else {
		s.devices = append(s.devices, d)
	}
	return s
}

func (s State) without(id string) State {
	s.devices = slices.DeleteFunc(slices.Clone(s.devices), func(d device) bool { return d.ID == id })
	return s
}

// disks are the devices as the handler sees them.
func (s State) disks() []v1alpha1.DiskStatus {
	var all []v1alpha1.DiskStatus
	for _, d := range s.devices {
		all = append(all, v1alpha1.DiskStatus{
			ID: d.ID, Attached: d.step == present || d.step == leaving, Message: d.message, Size: d.Size,
		})
	}
	return all
}

// abandon answers those whose device will never come, because QEMU has ended.
func (s State) abandon() []Action {
	var actions []Action
	for _, d := range s.devices {
		if d.step == attaching {
			actions = append(actions, Answer{d.token, wire.ErrNotRunning})
		}
	}
	return actions
}
