package attachment

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/steps"
)

// all are the steps of this controller. Their order does not matter.
var all = []steps.Step[*world]{
	{Condition: v1alpha2.AttachmentConditionBlockDeviceReady, Decide: blockDevice},
	{Condition: v1alpha2.AttachmentConditionVirtualMachineReady, Decide: machine},
	{Condition: v1alpha2.AttachmentConditionDiskAttachmentCapacityAvailable, Decide: capacity},
	{Condition: v1alpha2.AttachmentConditionAttached, Decide: attached},
	{Condition: v1alpha2.AttachmentConditionTerminating, Decide: terminating},
}

func blockDevice(w *world) (steps.Outcome, steps.Act) {
	problem := w.deviceProblem()
	switch {
	case w.attached():
		// What the guest has does not become less ready by what happens to the object.
		return steps.Done(v1alpha2.AttachmentReasonBlockDeviceReady, "%s is attached", w.device()), nil
	case problem != "" && w.disk == nil && w.image == nil:
		return steps.Failed(v1alpha2.AttachmentReasonBlockDeviceNotReady, "%s", problem), nil
	case problem != "":
		return steps.Waiting(v1alpha2.AttachmentReasonBlockDeviceNotReady, "%s", problem), nil
	case w.claim != nil && policy.ExclusiveClaim(w.claim):
		return steps.Failed(v1alpha2.AttachmentReasonBlockDeviceNotReady,
			"PersistentVolumeClaim %s has access mode ReadWriteOncePod and can only be used by a machine that starts with it: list the disk in the machine",
			w.claim.Name), nil
	}
	return steps.Done(v1alpha2.AttachmentReasonBlockDeviceReady, "%s can be attached", w.device()), nil
}

func machine(w *world) (steps.Outcome, steps.Act) {
	if problem := w.machineProblem(); problem != "" {
		return steps.Waiting(v1alpha2.AttachmentReasonVirtualMachineNotReady, "%s", problem), nil
	}
	return steps.Done(v1alpha2.AttachmentReasonVirtualMachineReady, "VirtualMachine %s runs", w.machine()), nil
}

func capacity(w *world) (steps.Outcome, steps.Act) {
	switch {
	case w.vm == nil:
		return steps.Waiting(v1alpha2.AttachmentReasonCapacityUnknown, "VirtualMachine %s does not exist", w.machine()).As(metav1.ConditionUnknown), nil
	case w.verdict == policy.AttachmentTooMany:
		return steps.Failed(v1alpha2.AttachmentReasonCapacityReached, "VirtualMachine %s has %d block devices, which is the most: detach another one",
			w.machine(), policy.MostDevices), nil
	}
	return steps.Done(v1alpha2.AttachmentReasonCapacityAvailable, "VirtualMachine %s has %d of %d block devices", w.machine(), w.devices, policy.MostDevices), nil
}

// attached is the condition users look at first.
func attached(w *world) (steps.Outcome, steps.Act) {
	if w.attached() && (w.verdict == policy.AttachmentAccepted || w.deleting()) {
		return steps.Done(v1alpha2.AttachmentReasonAttached, "%s is attached to VirtualMachine %s", w.device(), w.machine()), nil
	}
	if w.deleting() {
		return steps.Waiting(v1alpha2.AttachmentReasonNotAttached, "%s is not attached any more", w.device()), nil
	}
	if conflict := w.conflict(); conflict != "" {
		return steps.Failed(v1alpha2.AttachmentReasonConflict, "%s", conflict), nil
	}
	if why := w.notYet(); why != "" {
		return steps.Waiting(v1alpha2.AttachmentReasonNotAttached, "%s", why), nil
	}
	return w.underWay(), nil
}

// conflict says who else has or wants the device, or "".
func (w *world) conflict() string {
	switch w.verdict {
	case policy.AttachmentInSpec:
		return w.device() + " is listed in VirtualMachine " + w.machine() + " itself: delete this attachment"
	case policy.AttachmentTwice:
		return "An older VirtualMachineBlockDeviceAttachment attaches " + w.device() + " already: delete this one"
	case policy.AttachmentAccepted, policy.AttachmentLeaving, policy.AttachmentTooMany:
	}
	if other := w.otherHolder(); other != "" {
		return w.device() + " is used by VirtualMachine " + other + ": stop it or detach the disk there"
	}
	return ""
}

// notYet says what an attachment waits for before anything is done about it, or "".
func (w *world) notYet() string {
	switch {
	case w.verdict == policy.AttachmentTooMany:
		return "VirtualMachine " + w.machine() + " has no room for another block device"
	case w.machineProblem() != "":
		return w.machineProblem()
	case w.deviceProblem() != "":
		return w.deviceProblem()
	case w.claim != nil && policy.ExclusiveClaim(w.claim):
		return "The volume can be used by one pod only"
	case !policy.HotPlugs(&w.vm.Spec):
		return "Without paravirtualization devices are attached when the machine starts: restart it"
	case policy.DevicesFrozen(w.instance):
		return "VirtualMachine " + w.machine() + " is migrating: the device is attached afterwards"
	}
	return ""
}

// underWay follows a device on its way into the guest.
func (w *world) underWay() steps.Outcome {
	sent := func(format string, args ...any) steps.Outcome {
		return steps.Waiting(v1alpha2.AttachmentReasonAttachmentRequestSent, format, args...)
	}
	p, node := w.pod(), w.instance.Spec.NodeName
	switch {
	case policy.Device(w.instance, w.id()) != nil && w.reported() != "":
		return sent("%s", w.reported())
	case policy.Device(w.instance, w.id()) != nil:
		return sent("The machine on node %s is being given the device", node)
	case !w.left():
		return sent("The device is still being detached from before")
	case w.image != nil:
		return sent("The device is about to be attached")
	case p == nil:
		return sent("A pod is being created that brings the volume to node %s", node)
	case unschedulable(p) != "":
		return steps.Failed(v1alpha2.AttachmentReasonDeviceNotAvailableOnNode, "Pod %s, which is to bring the volume to node %s, cannot be placed there: %s",
			p.Name, node, unschedulable(p))
	case p.Status.Phase != corev1.PodRunning:
		return sent("Pod %s is bringing the volume to node %s", p.Name, node)
	}
	return sent("The device is about to be attached")
}

// unschedulable says why a pod cannot be placed, or "".
func unschedulable(p *corev1.Pod) string {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse && c.Reason == corev1.PodReasonUnschedulable {
			return strings.TrimRight(strings.Join(strings.Fields(c.Message), " "), ".")
		}
	}
	return ""
}

// terminating waits until the guest has let go of the device, and the machine of the disk.
func terminating(w *world) (steps.Outcome, steps.Act) {
	pending := func(format string, args ...any) steps.Outcome {
		return steps.Waiting(v1alpha2.AttachmentReasonDetachPending, format, args...).As(metav1.ConditionTrue)
	}
	switch {
	case !w.deleting():
		return steps.Absent(), nil
	case w.wantedElsewhere || w.vm == nil:
	case !w.left() && w.reported() != "":
		return pending("%s", w.reported()), nil
	case !w.left():
		return pending("Waiting for the guest of VirtualMachine %s to let go of %s", w.machine(), w.device()), nil
	case len(w.pods) > 0:
		return pending("Pod %s, which held the volume, is being removed", w.pods[0].Name), nil
	case w.held() && w.instance != nil:
		return pending("VirtualMachine %s is releasing %s", w.machine(), w.device()), nil
	}
	return pending("The attachment is being released"), steps.Release{Object: w.attachment, Finalizer: v1alpha2.FinalizerAttachmentCleanup}
}
