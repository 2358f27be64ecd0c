package handler

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/handler/images"
	"orlop.dev/orlop/internal/qemu"
	"orlop.dev/orlop/internal/wire"
)

// Acts on one disk are named by verb and disk, so that each disk has retries and a
// problem of its own and none waits for another.
const (
	verbAttach = "attach"
	verbDetach = "detach"
	verbResize = "resize"
)

// plugPace is kept between two devices that come or go. Guests hear of them through a
// queue of eight events (virtio-scsi in Linux), and need not look again for what found
// no room in it.
const plugPace = 100 * time.Millisecond

// asksPace says whether an act makes such an event.
func asksPace(a act) bool {
	verb, _, ok := plugOf(a)
	return ok && verb != verbResize
}

func plugAct(verb, disk string) act { return act(verb + " " + disk) }

// plugOf is the verb and the disk of an act on a disk.
func plugOf(a act) (verb, disk string, ok bool) {
	verb, disk, ok = strings.Cut(string(a), " ")
	return verb, disk, ok
}

// retry returns the pacing of an act.
func (m *memory) retry(a act) *retry {
	r := m.retries[a]
	if r == nil {
		r = &retry{first: 200 * time.Millisecond, most: 30 * time.Second}
		if asksGuest(a) {
			// QEMU takes no second request before the guest has had some time.
			r = &retry{first: 6 * time.Second, most: time.Minute}
		}
		m.retries[a] = r
	}
	return r
}

// plugs lists what is to be done so that the machine has the disks of its
// description: those too many go first, since they may be in a place that is needed.
func plugs(m *memory) []act {
	if !pluggable(m) {
		return nil
	}
	var acts []act
	for _, d := range m.launcher.Disks {
		if _, wanted := m.disk(d.ID); !wanted && d.Attached {
			acts = append(acts, plugAct(verbDetach, d.ID))
		}
	}
	for _, d := range m.instance.Spec.Machine.Disks {
		there := launcherDisk(m.launcher, d.ID)
		switch {
		case there == nil && d.Source.FirstBoot == nil:
			acts = append(acts, plugAct(verbAttach, d.ID))
		case there != nil && there.Attached && there.Message == "" && d.Size > there.Size && !qemu.ReadOnly(d):
			acts = append(acts, plugAct(verbResize, d.ID))
		}
	}
	return acts
}

// pluggable says whether devices may change now: while the guest runs here, or stands
// on an I/O error, and is not on its way from or to another process, which must find
// the same devices.
func pluggable(m *memory) bool {
	if p := m.instance.Spec.Power; p == v1alpha1.PowerOff || p == v1alpha1.PowerKill {
		return false
	}
	switch m.launcher.Phase {
	case v1alpha1.InstanceRunning, v1alpha1.InstancePaused:
	default:
		return false
	}
	switch m.launcher.GuestStatus {
	case "inmigrate", "finish-migrate", "postmigrate":
		return false
	}
	order, answer := m.instance.Spec.Migration, m.status.Migration
	if order == nil {
		return true
	}
	if answer == nil || answer.ID != order.ID {
		return false
	}
	if order.Role == v1alpha1.MigrationSource {
		return answer.Phase == v1alpha1.MigrationFailed
	}
	return answer.Phase == v1alpha1.MigrationCompleted
}

// disk is a disk of the machine's description.
func (m *memory) disk(id string) (v1alpha1.Disk, bool) {
	disks := m.instance.Spec.Machine.Disks
	at := slices.IndexFunc(disks, func(d v1alpha1.Disk) bool { return d.ID == id })
	if at < 0 {
		return v1alpha1.Disk{}, false
	}
	return disks[at], true
}

func launcherDisk(s *wire.State, id string) *v1alpha1.DiskStatus {
	at := slices.IndexFunc(s.Disks, func(d v1alpha1.DiskStatus) bool { return d.ID == id })
	if at < 0 {
		return nil
	}
	return &s.Disks[at]
}

// diskStatuses is the launcher's word on each disk, and ours on those it does not
// have yet. A disk is in it from before it is first opened until QEMU has let go of
// it: so long the pod that holds its volume must stay.
func diskStatuses(m *memory) []v1alpha1.DiskStatus {
	all := slices.Clone(m.launcher.Disks)
	for i := range all {
		d := &all[i]
		if _, wanted := m.disk(d.ID); !wanted {
			d.Message = orElse(m.plugProblem(verbDetach, d.ID), d.Message)
			if d.Attached && d.Message == "" {
				d.Message = "The device is to be detached"
			}
			continue
		}
		d.Message = orElse(m.plugProblem(verbResize, d.ID), d.Message)
	}
	if m.launcher.Exit != nil {
		return all
	}
	for _, w := range m.instance.Spec.Machine.Disks {
		if w.Source.FirstBoot != nil || launcherDisk(m.launcher, w.ID) != nil {
			continue
		}
		message := orElse(m.plugProblem(verbAttach, w.ID), "The device is to be attached")
		all = append(all, v1alpha1.DiskStatus{ID: w.ID, Message: message})
	}
	return all
}

// plugProblem is why an act on a disk goes wrong. What may pass by itself is not said
// at once.
func (m *memory) plugProblem(verb, disk string) string {
	a := plugAct(verb, disk)
	if r := m.retries[a]; r == nil || r.failures <= 1 {
		return ""
	}
	return m.problems[a]
}

func orElse(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// forgetPlugs drops what is remembered of acts that have reached their end.
func (m *memory) forgetPlugs() {
	for a := range m.retries {
		verb, disk, ok := plugOf(a)
		if !ok {
			continue
		}
		_, wanted := m.disk(disk)
		there := launcherDisk(m.launcher, disk) != nil
		if verb == verbDetach && !there || verb == verbAttach && (there || !wanted) || verb == verbResize && !(there && wanted) {
			delete(m.retries, a)
			delete(m.problems, a)
		}
	}
}

// asksGuest says whether an act is only a request, whose outcome is seen later.
func asksGuest(a act) bool {
	verb, _, _ := plugOf(a)
	return verb == verbDetach
}

// plug carries out an act on a disk. An order without an answer may have been carried
// out all the same, so it ends the connection: the next one begins with the truth.
func (w *worker) plug(ctx context.Context, a act) error {
	verb, id, _ := plugOf(a)
	disk, wanted := w.memory.disk(id)
	var err error
	switch {
	case verb == verbDetach && !wanted:
		err = w.link.client.Detach(ctx, id)
	case verb == verbAttach && wanted:
		err = w.attach(ctx, disk)
	case verb == verbResize && wanted:
		err = w.resize(ctx, disk)
	default:
		return nil // overtaken by a newer description
	}
	if err == nil {
		w.log.Info("launcher was told", "act", verb, "disk", id)
		if asksPace(a) {
			w.memory.pluggedAt = w.node.Now()
		}
		if asksGuest(a) {
			w.memory.retry(a).failed(w.node.Now()) // the next one later, in case it does not help
		}
		w.refresh(ctx)
		return nil
	}
	if errors.Is(err, wire.ErrClosed) || errors.Is(err, context.DeadlineExceeded) {
		w.disconnect()
	} else {
		w.refresh(ctx)
	}
	return err
}

// attach opens a disk's volume and hands it over. Our descriptor is closed in any
// case: one left behind would keep the volume busy after QEMU has let go of it.
func (w *worker) attach(ctx context.Context, d v1alpha1.Disk) error {
	p := &parcel{}
	defer p.close()
	if err := w.node.packDisk(ctx, p, w.memory.instance, &d); err != nil {
		return err
	}
	if len(p.start.Disks) != 1 {
		return errors.New("it cannot be attached to a running machine")
	}
	return w.link.client.Attach(ctx, wire.Attach{Disk: d, FDs: p.start.Disks[0].FDs}, p.files)
}

// resize shows the guest the size that its disk is to have. A file can simply grow; a
// device must have grown first, and the guest sees all of it.
func (w *worker) resize(ctx context.Context, d v1alpha1.Disk) error {
	size := (d.Size + 511) / 512 * 512
	if claim := d.Source.PersistentVolumeClaim; claim != nil && claim.Mode == "Block" {
		device, err := w.node.openVolume(ctx, w.memory.instance, &d, true)
		if err != nil {
			return err
		}
		defer device.File.Close()
		// Where the volume is a loop device on another one, as the kubelet makes it,
		// only the lower one has grown by itself.
		have, err := device.Grown()
		if err != nil {
			return err
		}
		if have < size {
			return fmt.Errorf("its volume has %d bytes so far, %d are needed", have, size)
		}
		size = have
	}
	return w.link.client.Resize(ctx, d.ID, size)
}

// plugFailure is a failed act on a disk in words for the status.
func plugFailure(a act, err error) string {
	verb, _, _ := plugOf(a)
	if coming, ok := errors.AsType[*images.Fetching](err); ok {
		return "Waiting: " + coming.Error()
	}
	if e, ok := errors.AsType[*wire.Error](err); ok && e.Code == wire.CodeUnsupported {
		return fmt.Sprintf("Cannot %s the device: the machine was started by an older release; it can change its devices after its next start", verb)
	}
	return fmt.Sprintf("Cannot %s the device: %v", verb, err)
}

// poke makes a worker try at once what it was waiting with.
func (w *worker) poke() {
	select {
	case w.poked <- struct{}{}:
	default:
	}
}

// hurry forgets the pauses of everything that opens disks.
func (m *memory) hurry() {
	for a, r := range m.retries {
		if verb, _, ok := plugOf(a); a == actStart || ok && verb == verbAttach {
			r.next = time.Time{}
		}
	}
}
