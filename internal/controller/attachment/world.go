package attachment

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/plan"
	"orlop.dev/orlop/internal/policy"
)

// world is everything one pass knows. What does not exist is nil.
type world struct {
	now        time.Time
	attachment *v1alpha2.VirtualMachineBlockDeviceAttachment
	vm         *v1alpha2.VirtualMachine
	// verdict is about this attachment; devices is how many the machine has altogether.
	verdict policy.AttachmentVerdict
	devices int
	// wantedElsewhere: the specification or another attachment wants the same device.
	wantedElsewhere bool

	disk  *v1alpha2.VirtualDisk
	claim *corev1.PersistentVolumeClaim
	image *image

	// instances are all processes of the machine that have not ended, instance the
	// present one.
	instances []*v1alpha1.Instance
	instance  *v1alpha1.Instance
	// pods hold the volume of the device for a process of the machine.
	pods []*corev1.Pod
}

// image is what matters of an image of either kind.
type image struct {
	phase    v1alpha2.ImagePhase
	deleting bool
	stored   bool
}

func (w *world) deleting() bool { return w.attachment.DeletionTimestamp != nil }

func (w *world) ref() v1alpha2.AttachmentDeviceRef { return w.attachment.Spec.BlockDeviceRef }

// device names it for a reader.
func (w *world) device() string { return fmt.Sprintf("%s %s", w.ref().Kind, w.ref().Name) }

func (w *world) machine() string { return w.attachment.Spec.VirtualMachineName }

// id of the device in every process.
func (w *world) id() string {
	return plan.DiskID(v1alpha2.BlockDeviceSpecRef{Kind: w.ref().Kind, Name: w.ref().Name})
}

// deviceProblem says why the device cannot be attached yet, or "".
func (w *world) deviceProblem() string {
	switch {
	case w.disk == nil && w.image == nil:
		return w.device() + " does not exist"
	case w.disk != nil && w.disk.DeletionTimestamp != nil, w.image != nil && w.image.deleting:
		return w.device() + " is being deleted"
	case w.disk != nil && policy.UseOf(w.disk, w.claim) == policy.DiskUnusable:
		return fmt.Sprintf("%s is not ready: its phase is %s", w.device(), orPending(string(w.disk.Status.Phase)))
	case w.image != nil && (w.image.phase != v1alpha2.ImageReady || !w.image.stored):
		return fmt.Sprintf("%s is not ready: its phase is %s", w.device(), orPending(string(w.image.phase)))
	}
	return ""
}

func orPending(phase string) string {
	if phase == "" {
		return "Pending"
	}
	return phase
}

// otherHolder is another machine that has the disk, or "".
func (w *world) otherHolder() string {
	if w.disk == nil {
		return ""
	}
	name, uid := policy.DiskHolder(w.disk)
	if name == "" || w.vm != nil && uid == w.vm.UID {
		return ""
	}
	return name
}

// held is true while the machine still has the lock on the disk.
func (w *world) held() bool {
	if w.disk == nil || w.vm == nil {
		return false
	}
	_, uid := policy.DiskHolder(w.disk)
	return uid == w.vm.UID
}

// machineProblem says why the machine cannot be given a device now, or "".
func (w *world) machineProblem() string {
	switch {
	case w.vm == nil:
		return fmt.Sprintf("VirtualMachine %s does not exist", w.machine())
	case w.vm.DeletionTimestamp != nil:
		return fmt.Sprintf("VirtualMachine %s is being deleted", w.machine())
	case w.instance == nil:
		return fmt.Sprintf("VirtualMachine %s does not run: it gets the device when it starts", w.machine())
	}
	switch w.instance.Status.Phase {
	case v1alpha1.InstanceRunning, v1alpha1.InstancePaused:
		return ""
	default:
		return fmt.Sprintf("VirtualMachine %s does not run yet or is being stopped", w.machine())
	}
}

// attached is true when the guest has the device.
func (w *world) attached() bool {
	if w.instance == nil || policy.Device(w.instance, w.id()) == nil {
		return false
	}
	s := policy.DeviceStatus(w.instance, w.id())
	return s != nil && s.Attached
}

// pod is the one that holds the volume for the present process, or nil.
func (w *world) pod() *corev1.Pod {
	for _, p := range w.pods {
		if owner := metav1.GetControllerOf(p); owner != nil && w.instance != nil && owner.UID == w.instance.UID {
			return p
		}
	}
	return nil
}

// left is true when no process of the machine has the device any more.
func (w *world) left() bool {
	for _, i := range w.instances {
		if !policy.DeviceGone(i, w.id()) {
			return false
		}
	}
	return true
}

// reported is what the handler says about the device, or "".
func (w *world) reported() string {
	for _, i := range w.instances {
		if s := policy.DeviceStatus(i, w.id()); s != nil && s.Message != "" {
			return s.Message
		}
	}
	return ""
}
