package vm

import (
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/plan"
	"orlop.dev/orlop/internal/policy"
)

// This file is what a running machine's devices are to be. A device passes through
//
//	wanted ─ held ─ attachment pod runs ─ in the Instance ─ reported by the handler
//
// and leaves the other way round: out of the Instance, no longer reported, then the
// pod goes, then the lock on the disk. Each move follows from what is observed, so a
// wish may change at any point of the way.

// disk is one block device that is wanted and what was found for it.
type disk struct {
	ref v1alpha2.BlockDeviceSpecRef
	// object and claim are those of a VirtualDisk, image is that of the other kinds.
	object *v1alpha2.VirtualDisk
	claim  *corev1.PersistentVolumeClaim
	image  *image
	// holderGone is true if the machine that holds the disk no longer exists and
	// neither does an instance of it.
	holderGone bool
	// attachment is the name of the VirtualMachineBlockDeviceAttachment that wants it,
	// empty for a device of the specification.
	attachment string
}

// image is a VirtualImage or ClusterVirtualImage.
type image struct {
	uid       types.UID
	phase     v1alpha2.ImagePhase
	deleting  bool
	cdrom     bool
	reference string
	// size is what a guest sees, in bytes; 0 if it is not known.
	size int64
}

func (i *image) ready() bool {
	return i.phase == v1alpha2.ImageReady && !i.deleting && i.reference != ""
}

func (d disk) id() string { return plan.DiskID(d.ref) }

// use is how far a device is for a machine that wants it.
func (d disk) use() policy.DiskUse {
	switch {
	case d.image != nil && d.image.ready():
		return policy.DiskUsable
	case d.object == nil:
		return policy.DiskUnusable
	}
	return policy.UseOf(d.object, d.claim)
}

func (d disk) exists() bool { return d.object != nil || d.image != nil }

func (d disk) uid() types.UID {
	switch {
	case d.image != nil:
		return d.image.uid
	case d.object != nil:
		return d.object.UID
	}
	return ""
}

// free is true for a device this machine may take. Images are for everybody.
func (d disk) free() bool {
	if d.object == nil {
		return d.image != nil
	}
	name, _ := policy.DiskHolder(d.object)
	return name == "" || d.holderGone
}

// mine is true for a device that this machine may use: it holds the disk, or there is
// nothing to hold.
func (w *world) mine(d disk) bool {
	if d.object == nil {
		return d.image != nil
	}
	return w.holds(d.object)
}

// launchDisk is the device as a process gets it.
func (d disk) launchDisk() plan.LaunchDisk {
	l := plan.LaunchDisk{Ref: d.ref, UID: d.uid(), Attachment: d.attachment != ""}
	if d.image != nil {
		l.Image = &v1alpha1.ImageSource{Reference: d.image.reference, Format: "qcow2"}
		if d.image.cdrom {
			l.Image.Format = plan.ISO
		}
		return l
	}
	if d.claim != nil {
		l.ClaimName, l.Size = d.claim.Name, guestSize(d.claim)
		l.Mode = string(ptr.Deref(d.claim.Spec.VolumeMode, corev1.PersistentVolumeFilesystem))
	}
	return l
}

// guestSize is what the guest is to see of a disk by now, in bytes; 0 if nobody said.
func guestSize(claim *corev1.PersistentVolumeClaim) int64 {
	n, err := strconv.ParseInt(claim.Annotations[plan.VirtualSizeAnnotation], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// wanted is every device the machine is to have, by specification and attachments.
func (w *world) wanted() []disk { return slices.Concat(w.disks, w.attached) }

func find(devices []disk, id string) (disk, bool) {
	if at := slices.IndexFunc(devices, func(d disk) bool { return d.id() == id }); at >= 0 {
		return devices[at], true
	}
	return disk{}, false
}

// starting are the devices of a new process: all of the specification, and those of
// attachments that can be used at once. The others come when they are ready.
func (w *world) starting() []disk {
	all := slices.Clone(w.disks)
	for _, d := range w.attached {
		if d.use() == policy.DiskUsable && w.mine(d) {
			all = append(all, d)
		}
	}
	return all
}

// outdated is true for a process that no node has yet and that would wait for a
// device which nobody wants any more: it makes room for one without.
func (w *world) outdated() bool {
	if w.instance == nil || w.instance.Spec.NodeName != "" || (w.pod != nil && w.pod.Spec.NodeName != "") {
		return false
	}
	wanted := w.wanted()
	return slices.ContainsFunc(w.instance.Spec.Machine.Disks, func(d v1alpha1.Disk) bool {
		_, found := find(wanted, d.ID)
		return !found && d.Source.FirstBoot == nil
	})
}

// pluggable is true while devices of the present process can be changed.
func (w *world) pluggable() bool {
	i := w.instance
	if !w.live() || w.mustEnd() || w.record.Target != nil || i == nil || w.running == nil || i.Spec.Power != v1alpha1.PowerOn ||
		i.Status.Exit != nil || !policy.HotPlugs(w.running) || policy.DevicesFrozen(i) {
		return false
	}
	return i.Status.Phase == v1alpha1.InstanceRunning || i.Status.Phase == v1alpha1.InstancePaused
}

// bootDevice is the id of the device that the present process boots from first.
func bootDevice(i *v1alpha1.Instance) string {
	id, least := "", int32(0)
	for _, d := range i.Spec.Machine.Disks {
		if d.BootIndex > 0 && (least == 0 || d.BootIndex < least) {
			id, least = d.ID, d.BootIndex
		}
	}
	return id
}

// plannedDisks are the devices the present process is to have next, given what it has.
func (w *world) plannedDisks() []v1alpha1.Disk {
	i, wanted := w.instance, w.wanted()
	var planned []v1alpha1.Disk
	for _, had := range i.Spec.Machine.Disks {
		d, found := find(wanted, had.ID)
		if !w.stays(had, d, found) {
			continue
		}
		if found && d.claim != nil && had.Source.PersistentVolumeClaim != nil {
			had.Size = max(had.Size, guestSize(d.claim))
		}
		planned = append(planned, had)
	}
	return append(planned, w.additions(planned, wanted)...)
}

// stays says whether a device of the process is still wanted as it is. One that the
// handler has not attached yet is taken back when its volume or image has gone.
func (w *world) stays(had v1alpha1.Disk, d disk, wanted bool) bool {
	if had.Source.FirstBoot != nil || had.ID == bootDevice(w.instance) {
		return true
	}
	if !wanted {
		return false
	}
	if d.exists() && plan.Device(d.launchDisk()).Serial != had.Serial {
		return false // another object has taken the name
	}
	if s := policy.DeviceStatus(w.instance, had.ID); !had.Hotplugged || s != nil && s.Attached {
		return true
	}
	if claim := had.Source.PersistentVolumeClaim; claim != nil && claim.Pod != nil {
		pod := w.attachmentPod(had.ID)
		return pod != nil && pod.UID == claim.Pod.UID && !policy.PodDoomed(pod)
	}
	return had.Source.Image == nil || d.use() == policy.DiskUsable
}

// additions are the wanted devices that the process can be given now, in slots that
// nothing has, what is still leaving included.
func (w *world) additions(planned []v1alpha1.Disk, wanted []disk) []v1alpha1.Disk {
	var fresh []v1alpha1.Disk
	for _, d := range wanted {
		if device, ready := w.addition(d); ready {
			fresh = append(fresh, device)
		}
	}
	if len(fresh) == 0 {
		return nil
	}
	taken := w.takenSlots()
	devices := slices.Clone(taken)
	for _, d := range planned {
		if !slices.ContainsFunc(devices, func(s v1alpha2.DeviceSlot) bool { return s.ID == d.ID }) {
			devices = append(devices, v1alpha2.DeviceSlot{ID: d.ID, Bus: d.Bus})
		}
	}
	first := len(devices)
	for _, d := range fresh {
		devices = append(devices, v1alpha2.DeviceSlot{ID: d.ID, Bus: d.Bus})
	}
	for i, s := range plan.Slots(taken, devices)[first:] {
		fresh[i].Slot = s.Slot
	}
	return fresh
}

// addition is a wanted device that the process lacks, once everything it needs is there.
func (w *world) addition(d disk) (v1alpha1.Disk, bool) {
	id := d.id()
	if policy.Device(w.instance, id) != nil || !policy.DeviceGone(w.instance, id) || d.use() != policy.DiskUsable && d.use() != policy.DiskBindable || !w.mine(d) {
		return v1alpha1.Disk{}, false
	}
	device := plan.Device(d.launchDisk())
	device.Hotplugged = true
	if d.image != nil {
		return device, true
	}
	pod := w.attachmentPod(id)
	if pod == nil || pod.DeletionTimestamp != nil || pod.Status.Phase != corev1.PodRunning ||
		pod.Spec.NodeName != w.instance.Spec.NodeName || claimOfPod(pod) != d.claim.Name {
		return v1alpha1.Disk{}, false
	}
	device.Source.PersistentVolumeClaim.Pod = &v1alpha1.AttachmentPod{Name: pod.Name, UID: pod.UID}
	return device, true
}

// takenSlots are the places of the devices that the process has or that have not left it yet.
func (w *world) takenSlots() []v1alpha2.DeviceSlot {
	taken := plan.SlotsOf(w.instance)
	for _, s := range w.record.Slots {
		if policy.Device(w.instance, s.ID) == nil && !policy.DeviceGone(w.instance, s.ID) {
			taken = append(taken, s)
		}
	}
	return taken
}

// attachmentPod is the pod that holds a volume for the present process, or nil.
func (w *world) attachmentPod(id string) *corev1.Pod {
	name := plan.AttachmentPodName(w.instance, id)
	for _, p := range w.attachmentPods {
		if p.Name == name {
			return p
		}
	}
	return nil
}

func claimOfPod(p *corev1.Pod) string {
	for _, v := range p.Spec.Volumes {
		if v.PersistentVolumeClaim != nil {
			return v.PersistentVolumeClaim.ClaimName
		}
	}
	return ""
}

// appliedRefs is the device list of the specification as far as the process follows
// it: the wanted one once nothing is missing and nothing too much.
func (w *world) appliedRefs(planned []v1alpha1.Disk) []v1alpha2.BlockDeviceSpecRef {
	has := func(r v1alpha2.BlockDeviceSpecRef) bool {
		return slices.ContainsFunc(planned, func(d v1alpha1.Disk) bool { return d.ID == plan.DiskID(r) })
	}
	wanted, complete := w.vm.Spec.BlockDeviceRefs, true
	var refs []v1alpha2.BlockDeviceSpecRef
	for _, r := range w.running.BlockDeviceRefs {
		if !has(r) {
			continue
		}
		refs = append(refs, r)
		complete = complete && policy.ListsDevice(wanted, r.Kind, r.Name)
	}
	for _, r := range wanted {
		switch {
		case !has(r):
			complete = false
		case !policy.ListsDevice(refs, r.Kind, r.Name):
			refs = append(refs, r)
		}
	}
	if complete {
		return wanted
	}
	return refs
}

// bootOrderChanged is true when the guest would boot in another order from what it
// has now. That is no change that waits for a restart, but the next boot has to be
// another process. Devices that came later have no place in the order; that they
// come last needs no new process.
func (w *world) bootOrderChanged() bool {
	if !w.live() || w.instance == nil || w.deleting() {
		return false
	}
	var has, wants []string
	for _, d := range w.instance.Spec.Machine.Disks {
		if d.BootIndex > 0 {
			has = append(has, d.ID)
		}
	}
	index := func(id string) int32 { return policy.Device(w.instance, id).BootIndex }
	slices.SortStableFunc(has, func(a, b string) int { return int(index(a) - index(b)) })
	order := plan.BootIndexes(w.vm.Spec.BlockDeviceRefs)
	places := map[string]int32{}
	for i, r := range w.vm.Spec.BlockDeviceRefs {
		id := plan.DiskID(r)
		if order[i] > 0 && policy.Device(w.instance, id) != nil {
			wants, places[id] = append(wants, id), order[i]
		}
	}
	slices.SortStableFunc(wants, func(a, b string) int { return int(places[a] - places[b]) })
	return len(wants) < len(has) || !slices.Equal(wants[:len(has)], has)
}

// keptBootDevice is the device the guest boots from, if the specification no longer
// lists it: it stays until the next process.
func (w *world) keptBootDevice() *v1alpha2.BlockDeviceSpecRef {
	if w.instance == nil || w.running == nil {
		return nil
	}
	boot := bootDevice(w.instance)
	for i := range w.running.BlockDeviceRefs {
		r := &w.running.BlockDeviceRefs[i]
		if plan.DiskID(*r) == boot && !policy.ListsDevice(w.vm.Spec.BlockDeviceRefs, r.Kind, r.Name) {
			return r
		}
	}
	return nil
}

// pendingDevices names the devices of the specification that the process is still to
// get, and those it is still to lose.
func (w *world) pendingDevices() []string {
	if !w.live() || w.instance == nil || w.running == nil || w.instance.Status.StartTime == nil || !policy.HotPlugs(w.running) {
		return nil
	}
	var names []string
	for _, d := range w.disks {
		if s := policy.DeviceStatus(w.instance, d.id()); s == nil || !s.Attached {
			names = append(names, d.ref.Name)
		}
	}
	for _, r := range w.running.BlockDeviceRefs {
		if !policy.ListsDevice(w.vm.Spec.BlockDeviceRefs, r.Kind, r.Name) {
			names = append(names, r.Name)
		}
	}
	return names
}
