package vm

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/plan"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/steps"
	"orlop.dev/orlop/internal/testkit"
)

// extra is a second disk that is wanted by the specification and ready, and free.
func extra(w *world) {
	w.firstBootExists = true
	d := disk{ref: v1alpha2.BlockDeviceSpecRef{Kind: v1alpha2.DiskDevice, Name: "data"}, object: testkit.Disk("data").Ready().Object(),
		claim: &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "claim-data",
			Annotations: map[string]string{plan.VirtualSizeAnnotation: "1024"}}}}
	w.disks = append(w.disks, d)
	w.vm.Spec.BlockDeviceRefs = append(w.vm.Spec.BlockDeviceRefs, d.ref)
}

// attachedBy makes the second disk an attachment's.
func attachedBy(w *world) {
	d := w.disks[1]
	d.attachment = "att"
	w.disks, w.attached = w.disks[:1], []disk{d}
	w.vm.Spec.BlockDeviceRefs = w.vm.Spec.BlockDeviceRefs[:1]
}

func holdsExtra(w *world) {
	d := w.disks[1].object
	d.Annotations = map[string]string{policy.HolderAnnotation: policy.Holder(w.vm)}
	w.held = append(w.held, d)
}

// podOf adds the attachment pod of the second disk.
func podOf(phase corev1.PodPhase) func(*world) {
	return func(w *world) {
		p := plan.AttachmentPod(w.launchWith(nil), w.instance, w.disks[1].launchDisk())
		p.UID, p.Status.Phase = "hp", phase
		if phase == corev1.PodRunning {
			p.Spec.NodeName = "n"
		}
		w.attachmentPods = append(w.attachmentPods, p)
	}
}

// given adds the second disk to the Instance, and reported to its status.
func given(w *world) {
	d, ready := w.addition(w.disks[1])
	if !ready {
		panic("not ready")
	}
	d.Slot = 2
	w.instance.Spec.Machine.Disks = append(w.instance.Spec.Machine.Disks, d)
	w.running.BlockDeviceRefs = w.vm.Spec.BlockDeviceRefs
}

func reported(w *world) {
	w.instance.Status.Disks = append(w.instance.Status.Disks, v1alpha1.DiskStatus{ID: "vd-data", Attached: true, Size: 1024})
}

// unwanted takes the second disk from the specification again.
func unwanted(w *world) {
	w.disks = w.disks[:1]
	w.vm.Spec.BlockDeviceRefs = w.vm.Spec.BlockDeviceRefs[:1]
}

// taken is the Instance without the second disk; the handler has seen that or not.
func taken(seen bool) func(*world) {
	return func(w *world) {
		w.record.Slots = w.takenSlots()
		w.instance.Spec.Machine.Disks = w.instance.Spec.Machine.Disks[:len(w.instance.Spec.Machine.Disks)-1]
		w.running.BlockDeviceRefs = w.vm.Spec.BlockDeviceRefs
		w.instance.Generation = 2
		if seen {
			w.instance.Status.ObservedGeneration = 2
		}
	}
}

func gonePods(w *world) { w.attachmentPods = nil }

// TestDevicesOnTheirWay is the way of a device into a running guest and out again,
// one situation at a time.
func TestDevicesOnTheirWay(t *testing.T) {
	cases := map[string]struct {
		world *world
		acts  []string
	}{
		"a disk is held first":               {calm(up, extra), []string{"hold disks"}},
		"then its pod is made":               {calm(up, extra, holdsExtra), []string{"create *v1.Pod"}},
		"a pod that does not run is awaited": {calm(up, extra, holdsExtra, podOf(corev1.PodPending)), nil},
		"then the instance gets it":          {calm(up, extra, holdsExtra, podOf(corev1.PodRunning)), []string{"change devices"}},
		"and that is all":                    {calm(up, extra, holdsExtra, podOf(corev1.PodRunning), given, reported), nil},
		"an attachment's goes the same way":  {calm(up, extra, attachedBy), []string{"hold disks"}},
		"a pod that is lost before the guest has the device takes it back": {
			calm(up, extra, holdsExtra, podOf(corev1.PodRunning), given, gonePods), []string{"change devices"}},
		"after that the guest keeps it": {calm(up, extra, holdsExtra, podOf(corev1.PodRunning), given, reported, gonePods), nil},
		"a disk that nobody wants leaves the instance": {
			calm(up, extra, holdsExtra, podOf(corev1.PodRunning), given, reported, unwanted), []string{"change devices"}},
		"pod and lock stay while it is reported": {
			calm(up, extra, holdsExtra, podOf(corev1.PodRunning), given, reported, unwanted, taken(true)), nil},
		"and while the handler has not seen it go": {
			calm(up, extra, holdsExtra, podOf(corev1.PodRunning), given, unwanted, taken(false)), nil},
		"then the pod goes": {
			calm(up, extra, holdsExtra, podOf(corev1.PodRunning), given, unwanted, taken(true)), []string{"delete *v1.Pod"}},
		"then the lock": {
			calm(up, extra, holdsExtra, podOf(corev1.PodRunning), given, unwanted, taken(true), gonePods), []string{"release disks"}},
		"wanted again while it leaves, it waits": {
			calm(up, extra, holdsExtra, podOf(corev1.PodRunning), given, reported, taken(true)), nil},
		"in a migration nothing moves": {calm(up, extra, holdsExtra, func(w *world) {
			w.instance.Spec.Migration = &v1alpha1.Migration{ID: "m", Role: v1alpha1.MigrationSource}
		}), nil},
		"nor before the guest runs": {calm(placed, extra, holdsExtra), nil},
		"the pod of a dead process goes": {
			calm(up, extra, holdsExtra, podOf(corev1.PodRunning), given, reported, func(w *world) { w.record.Exit = "Killed"; w.pod, w.instance = nil, nil }),
			[]string{"delete *v1.Pod"}},
		"not that of one that may live": {
			calm(up, extra, holdsExtra, podOf(corev1.PodRunning), given, reported, func(w *world) { w.instance = nil; w.pod.DeletionTimestamp = new(metav1.NewTime(noon)) }), nil},
		"the source of a migration keeps its pods until it is dead": {
			calm(up, extra, holdsExtra, podOf(corev1.PodRunning), given, reported, otherOwner(false)), nil},
		"then they go": {calm(up, extra, holdsExtra, podOf(corev1.PodRunning), given, reported, otherOwner(true)), []string{"delete *v1.Pod"}},
		"a volume for one pod only is not plugged": {calm(up, extra, holdsExtra, func(w *world) {
			w.disks[1].claim.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod}
		}), nil},
		"a process that waits for a node with a device nobody wants is called off": {
			calm(created, func(w *world) {
				w.firstBootExists, w.pod.Spec.NodeName = true, ""
				w.instance.Spec.Machine.Disks = append(w.instance.Spec.Machine.Disks, v1alpha1.Disk{ID: "vd-gone"})
			}), []string{"apply *v1alpha1.Instance"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.acts, acts(steps.Decide(c.world, all...)), cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// otherOwner makes the present process another one than that of the attachment pods.
func otherOwner(dead bool) func(*world) {
	return func(w *world) {
		source := w.instance.DeepCopy()
		if dead {
			source.Status.Exit = &v1alpha1.Exit{Cause: v1alpha1.ExitMigrated}
		}
		w.podOwners = map[types.UID]*v1alpha1.Instance{source.UID: source}
		w.instance.UID = "target"
		w.instance.Spec.Machine.Disks = plan.FromLauncherPod(w.instance.Spec.Machine.Disks)
	}
}

// TestSlotsOfLeavingDevicesStayTaken: the guest still has something there.
func TestSlotsOfLeavingDevicesStayTaken(t *testing.T) {
	w := calm(up, extra, holdsExtra, podOf(corev1.PodRunning), given, reported, taken(true))
	if r := remember(w); len(r.Slots) != 3 || r.Slots[2] != (v1alpha2.DeviceSlot{ID: "vd-data", Bus: "scsi", Slot: 2}) {
		t.Fatalf("remembers %+v", r.Slots)
	}
	image := disk{ref: v1alpha2.BlockDeviceSpecRef{Kind: v1alpha2.ImageDevice, Name: "tools"}, image: &image{phase: v1alpha2.ImageReady, reference: "h/r@sha256:0"}}
	w.disks[1] = image
	planned := w.plannedDisks()
	last := planned[len(planned)-1]
	if last.ID != "vi-tools" || last.Slot != 3 || !last.ReadOnly || !last.Hotplugged || last.BootIndex != 0 {
		t.Errorf("planned %+v", last)
	}
}

func TestBootOrder(t *testing.T) {
	cases := map[string]struct {
		change func(*world)
		want   bool
	}{
		"as it was": {func(*world) {}, false},
		"a disk that comes last needs no new process": {func(w *world) { podOf(corev1.PodRunning)(w); given(w) }, false},
		"one that is to be the first does": {func(w *world) {
			podOf(corev1.PodRunning)(w)
			given(w)
			w.vm.Spec.BlockDeviceRefs[0], w.vm.Spec.BlockDeviceRefs[1] = w.vm.Spec.BlockDeviceRefs[1], w.vm.Spec.BlockDeviceRefs[0]
		}, true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			w := calm(up, extra, holdsExtra)
			c.change(w)
			if got := w.bootOrderChanged(); got != c.want {
				t.Errorf("changed %v", got)
			}
		})
	}
}

// TestGrownDiskIsPassedOn: what the claim says is what the guest is to see.
func TestGrownDiskIsPassedOn(t *testing.T) {
	w := calm(up, extra, holdsExtra, podOf(corev1.PodRunning), given, reported)
	w.disks[1].claim.Annotations[plan.VirtualSizeAnnotation] = "2048"
	planned := w.plannedDisks()
	if got := planned[len(planned)-1].Size; got != 2048 {
		t.Errorf("size %d", got)
	}
	if got := acts(steps.Decide(w, all...)); !cmp.Equal(got, []string{"change devices"}) {
		t.Errorf("acts %v", got)
	}
}

func TestStatusOfDevices(t *testing.T) {
	w := calm(up, extra, holdsExtra, podOf(corev1.PodRunning), given, reported)
	before := blockDeviceRefs(w)
	if d := before[1]; !d.Attached || !d.Hotplugged || d.BootOrder != nil || d.Size != "1Ki" || d.Target != "sdb" {
		t.Errorf("status %+v", d)
	}
	w.vm.Status.BlockDeviceRefs = before
	unwanted(w)
	taken(true)(w)
	if after := blockDeviceRefs(w); len(after) != 2 || !after[1].Attached {
		t.Errorf("a device that is leaving is not shown: %+v", after)
	}
	if got := w.pendingDevices(); len(got) != 0 {
		t.Errorf("pending %v", got)
	}
	w.instance.Status.Disks = w.instance.Status.Disks[:2]
	if after := blockDeviceRefs(w); len(after) != 1 {
		t.Errorf("a device that has left is shown: %+v", after)
	}
}
