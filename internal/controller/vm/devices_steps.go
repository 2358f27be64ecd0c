package vm

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/plan"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/steps"
)

// blockDevices takes hold of the disks once all of them can be used and a start is
// wanted; a machine that is off keeps nobody from a disk. Devices of attachments are
// no part of it: a machine does not wait for them.
func blockDevices(w *world) (steps.Outcome, steps.Act) {
	wanted := w.wantsOn(policy.RememberPower(w.vm.Spec.RunPolicy, w.record.Power))
	binding := ""
	for _, d := range w.disks {
		switch {
		case !d.exists():
			return steps.Failed(v1alpha2.MachineReasonBlockDevicesNotReady, "%s %s does not exist", d.ref.Kind, d.ref.Name), nil
		case !w.mine(d) && !d.free():
			holder, _ := policy.DiskHolder(d.object)
			return steps.Failed(v1alpha2.MachineReasonBlockDevicesNotReady, "VirtualDisk %s is used by VirtualMachine %s: stop it or detach the disk there",
				d.ref.Name, holder), nil
		case w.live() && w.instance != nil && policy.Device(w.instance, d.id()) != nil:
			// What the running process was given does not become less ready by what
			// happens to the objects.
			continue
		case d.use() == policy.DiskUnusable:
			return steps.Waiting(v1alpha2.MachineReasonBlockDevicesNotReady, "%s %s is not ready: %s", d.ref.Kind, d.ref.Name, deviceState(d)), nil
		case d.use() == policy.DiskBindable:
			binding = d.ref.Name
		}
	}
	var act steps.Act
	if wanted && !w.live() {
		act = w.hold()
	}
	if binding != "" {
		return steps.Waiting(v1alpha2.MachineReasonWaitingForWaitForFirstConsumerBlockDevicesToBeReady,
			"VirtualDisk %s is filled once the machine is placed on a node", binding), act
	}
	return steps.Done(v1alpha2.MachineReasonBlockDevicesReady, "All block devices can be used"), act
}

// deviceState tells why a device cannot be used yet.
func deviceState(d disk) string {
	switch {
	case d.image == nil:
		return diskState(d)
	case d.image.deleting:
		return "it is being deleted"
	case d.image.phase == "":
		return "its phase is Pending"
	default:
		return "its phase is " + string(d.image.phase)
	}
}

// hold takes the disks of a machine that is to start: all of the specification, and of
// attachments those that can be used at once and that nobody has.
func (w *world) hold() steps.Act {
	var take []*v1alpha2.VirtualDisk
	for _, d := range w.wanted() {
		if d.object != nil && !w.holds(d.object) && (d.attachment == "" || d.use() == policy.DiskUsable && d.free()) {
			take = append(take, d.object)
		}
	}
	return w.act.take(take, policy.Holder(w.vm))
}

// deviceHold takes the disks that the running machine is to get.
func deviceHold(w *world) (steps.Outcome, steps.Act) {
	if !w.pluggable() {
		return steps.Outcome{}, nil
	}
	var take []*v1alpha2.VirtualDisk
	for _, d := range w.wanted() {
		if d.object != nil && d.use() != policy.DiskUnusable && !w.holds(d.object) && d.free() {
			take = append(take, d.object)
		}
	}
	return steps.Outcome{}, w.act.take(take, policy.Holder(w.vm))
}

// deviceChange writes into the Instance which devices the process is to have.
func deviceChange(w *world) (steps.Outcome, steps.Act) {
	if !w.pluggable() {
		return steps.Outcome{}, nil
	}
	planned := w.plannedDisks()
	after := w.instance.DeepCopy()
	after.Spec.Machine.Disks = planned
	if refs := w.appliedRefs(planned); !equality.Semantic.DeepEqual(refs, w.running.BlockDeviceRefs) {
		running := w.running.DeepCopy()
		running.BlockDeviceRefs = refs
		text, err := json.Marshal(running)
		if err != nil {
			return steps.Outcome{}, steps.Call{Name: "change devices", Do: fails(fmt.Errorf("encode spec: %w", err))}
		}
		after.Annotations[plan.LastAppliedSpecAnnotation] = string(text)
	}
	if equality.Semantic.DeepEqual(after, w.instance) {
		return steps.Outcome{}, nil
	}
	return steps.Outcome{}, w.act.changeDevices(w.instance, after)
}

// changeDevices is a patch and no apply: an apply removes nothing from a list that was
// there before the first one.
func (a *actor) changeDevices(before, after *v1alpha1.Instance) steps.Act {
	ids := make([]string, len(after.Spec.Machine.Disks))
	for i, d := range after.Spec.Machine.Disks {
		ids[i] = d.ID
	}
	return steps.Call{Name: "change devices", Args: ids, Do: func(ctx context.Context) error {
		patch := client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
		return client.IgnoreNotFound(a.client.Patch(ctx, after.DeepCopy(), patch))
	}}
}

// attachmentPodMade makes the pod that brings a volume to the machine's node.
func attachmentPodMade(w *world) (steps.Outcome, steps.Act) {
	if !w.pluggable() {
		return steps.Outcome{}, nil
	}
	for _, d := range w.wanted() {
		if w.needsPod(d) && w.attachmentPod(d.id()) == nil {
			return steps.Outcome{}, steps.Create{Object: plan.AttachmentPod(w.launchWith(nil), w.instance, d.launchDisk())}
		}
	}
	return steps.Outcome{}, nil
}

// needsPod is true for a disk that the running machine is to get and has not got yet.
func (w *world) needsPod(d disk) bool {
	return d.object != nil && d.use() != policy.DiskUnusable && w.mine(d) && !policy.ExclusiveClaim(d.claim) &&
		policy.Device(w.instance, d.id()) == nil && policy.DeviceGone(w.instance, d.id())
}

// attachmentPodGone removes attachment pods whose device has left, or whose process is
// proven dead. Until then the finalizer stays: the volume is open.
func attachmentPodGone(w *world) (steps.Outcome, steps.Act) {
	for _, p := range w.attachmentPods {
		if w.releasable(p) {
			return steps.Outcome{}, steps.Delete{Object: p, Finalizer: v1alpha2.FinalizerPodProtection, Now: policy.OutOfService(w.node)}
		}
	}
	return steps.Outcome{}, nil
}

func (w *world) releasable(p *corev1.Pod) bool {
	owner := ownerOf(p)
	if w.instance == nil || owner != w.instance.UID {
		return w.ownerProvenDead(p)
	}
	id := p.Annotations[plan.AttachmentDeviceAnnotation]
	switch has := policy.Device(w.instance, id); {
	case !w.live():
		return true
	case has != nil:
		claim := has.Source.PersistentVolumeClaim
		return claim == nil || claim.Pod == nil || claim.Pod.UID != p.UID
	case !policy.DeviceGone(w.instance, id) || !w.pluggable():
		return false
	case policy.PodDoomed(p):
		return true // another one takes its place
	}
	d, found := find(w.wanted(), id)
	return !found || !w.needsPod(d) || claimOfPod(p) != d.claim.Name
}

// ownerProvenDead is about pods of another process than the present one: the source of
// a migration, or one whose Instance is gone, which it only is after proof. An
// Instance that somebody tore away from a process of ours proves nothing.
func (w *world) ownerProvenDead(p *corev1.Pod) bool {
	if w.instance == nil && w.live() && w.record.PodUID != "" {
		return false
	}
	owner, exists := w.podOwners[ownerOf(p)]
	return !exists || owner.Status.Exit != nil
}

// diskRelease lets go of disks that no process of this machine can be using: all of
// them once nothing is left and no start is wanted, else those no longer wanted.
func diskRelease(w *world) (steps.Outcome, steps.Act) {
	var drop []*v1alpha2.VirtualDisk
	wanted := w.wantsOn(w.record.Power)
	for _, d := range w.held {
		lists := w.lists(d.Name)
		switch {
		case !w.alone():
		case !w.live() && w.gone() && (!wanted || !lists), w.live() && !lists && w.detached(d):
			drop = append(drop, d)
		}
	}
	return steps.Outcome{}, w.act.take(drop, "")
}

// detached is true for a disk that the running process has let go of.
func (w *world) detached(d *v1alpha2.VirtualDisk) bool {
	id := plan.DiskID(v1alpha2.BlockDeviceSpecRef{Kind: v1alpha2.DiskDevice, Name: d.Name})
	return w.pluggable() && len(w.strayInstances) == 0 && policy.DeviceGone(w.instance, id) && w.attachmentPod(id) == nil
}

func (w *world) lists(disk string) bool {
	for _, d := range w.wanted() {
		if d.ref.Kind == v1alpha2.DiskDevice && d.ref.Name == disk {
			return true
		}
	}
	return false
}

// pendingChange is the outcome of ConfigurationApplied while devices come and go.
func pendingChange(names []string) steps.Outcome {
	return steps.Waiting(v1alpha2.MachineReasonConfigurationNotApplied, "Block devices are being attached or detached: %s", strings.Join(names, ", "))
}
