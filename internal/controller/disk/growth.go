package disk

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/plan"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/steps"
)

// A disk grows in four moves, each observed before the next:
//
//	the claim asks for more ─ the volume has grown ─ the claim says what guests are
//	to see (the machine's controller passes it on) ─ every guest has seen it
//
// The file system of a volume that nobody uses grows when it is mounted, and the
// file in it before the guest runs: such a disk is done with the second move.

// wantedSize is the size that a finished disk is to grow to, in bytes; 0 if it is
// large enough.
func (w *world) wantedSize() int64 {
	size := w.disk.Spec.PersistentVolumeClaim.Size
	if w.stage() != finished || size == nil || w.claim == nil || w.claim.DeletionTimestamp != nil || w.claim.Status.Phase != corev1.ClaimBound {
		return 0
	}
	if want := plan.RoundDiskSize(size.Value()); want > w.record.Result.VirtualSize {
		return want
	}
	return 0
}

// resizing drives the growth; its condition exists only while one is wanted.
func resizing(w *world) (steps.Outcome, steps.Act) {
	want := w.wantedSize()
	if want == 0 {
		return steps.Absent(), nil
	}
	if why := w.cannotGrow(); why != "" {
		return steps.Failed(v1alpha2.DiskReasonNotAvailable.String(), "The disk keeps its size of %s: %s", quantity(w.record.Result.VirtualSize), why), nil
	}
	under := func(format string, args ...any) steps.Outcome {
		return steps.Waiting(v1alpha2.DiskReasonInProgress.String(), format, args...).As(metav1.ConditionTrue)
	}
	need := plan.ClaimSize(want)
	switch {
	case w.claim.Spec.Resources.Requests.Storage().Value() < need:
		return under("PersistentVolumeClaim %s is being grown to %s", w.claim.Name, quantity(need)), w.run.growClaim(need)
	case !w.volumeGrown(need) && growthError(w.claim) != "":
		return steps.Failed(v1alpha2.DiskReasonInProgress.String(), "The volume of PersistentVolumeClaim %s does not grow: %s",
			w.claim.Name, growthError(w.claim)).As(metav1.ConditionTrue), nil
	case !w.volumeGrown(need):
		return under("Waiting for the volume of PersistentVolumeClaim %s to grow to %s", w.claim.Name, quantity(need)), nil
	case w.claimedSize() < want:
		return under("The disk is being grown to %s", quantity(want)), w.run.announceSize(want)
	case w.blind(want) != "":
		return under("Waiting for the guest of VirtualMachine %s to see the new size", w.blind(want)), nil
	}
	grown := w.record
	result := *w.record.Result
	result.VirtualSize = want
	grown.Result = &result
	return under("The disk has grown to %s", quantity(want)), w.run.remember(grown)
}

// cannotGrow says why the disk's storage does not grow, or "".
func (w *world) cannotGrow() string {
	switch {
	case w.class == nil:
		return fmt.Sprintf("StorageClass %s does not exist any more", w.className)
	case !ptr.Deref(w.class.AllowVolumeExpansion, false):
		return fmt.Sprintf("StorageClass %s does not allow volumes to grow", w.className)
	case ptr.Deref(w.claim.Spec.VolumeMode, corev1.PersistentVolumeFilesystem) != corev1.PersistentVolumeFilesystem:
		return "growing disks on Block volumes is not supported yet"
	}
	return ""
}

// volumeGrown reports that the volume has so many bytes: with its file system, if a
// process uses it now.
func (w *world) volumeGrown(need int64) bool {
	if w.claim.Status.Capacity.Storage().Value() >= need {
		return true
	}
	volume := w.volume(func(v *corev1.PersistentVolume) bool { return v.Name == w.claim.Spec.VolumeName })
	return len(w.processes) == 0 && volume != nil && volume.Spec.Capacity.Storage().Value() >= need
}

// growthError is what storage said about a growth that went wrong, or "".
func growthError(claim *corev1.PersistentVolumeClaim) string {
	for _, c := range claim.Status.Conditions {
		failed := c.Type == corev1.PersistentVolumeClaimControllerResizeError || c.Type == corev1.PersistentVolumeClaimNodeResizeError
		if failed && c.Status == corev1.ConditionTrue {
			return oneLine(c.Message)
		}
	}
	return ""
}

// blind is a machine whose guest does not see so many bytes yet, or "".
func (w *world) blind(want int64) string {
	for _, in := range w.processes {
		for _, d := range in.Spec.Machine.Disks {
			if c := d.Source.PersistentVolumeClaim; c == nil || c.ClaimName != w.claim.Name {
				continue
			}
			if s := policy.DeviceStatus(in, d.ID); s == nil || s.Size < want {
				return in.Spec.VirtualMachine.Name
			}
		}
	}
	return ""
}

// growClaim asks the storage for more.
func (x runner) growClaim(need int64) steps.Act {
	return steps.Call{Name: "grow claim", Args: need, Do: func(ctx context.Context) error {
		after := x.w.claim.DeepCopy()
		after.Spec.Resources.Requests[corev1.ResourceStorage] = *resource.NewQuantity(need, resource.BinarySI)
		return x.patch(ctx, x.w.claim, after)
	}}
}

// announceSize writes on the claim what guests are to see.
func (x runner) announceSize(want int64) steps.Act {
	return steps.Call{Name: "announce size", Args: want, Do: func(ctx context.Context) error {
		after := x.w.claim.DeepCopy()
		after.Annotations[plan.VirtualSizeAnnotation] = strconv.FormatInt(want, 10)
		return x.patch(ctx, x.w.claim, after)
	}}
}

// Event reasons of growth.
const (
	eventGrowthStarted      = "VirtualDiskResizingStarted"
	eventGrowthCompleted    = "VirtualDiskResizingCompleted"
	eventGrowthFailed       = "VirtualDiskResizingFailed"
	eventGrowthNotAvailable = "VirtualDiskResizingNotAvailable"
)

// withoutGrowth leaves out what growthEvents tells better.
func withoutGrowth(d steps.Decision) steps.Decision {
	return slices.DeleteFunc(slices.Clone(d), func(f steps.Finding) bool { return f.Condition == v1alpha2.DiskConditionResizing })
}

// growthEvents tells of the beginning and the end of a growth and of what is in its way.
func growthEvents(before, after *v1alpha2.VirtualDisk) []steps.Event {
	was := meta.FindStatusCondition(before.Status.Conditions, v1alpha2.DiskConditionResizing)
	is := meta.FindStatusCondition(after.Status.Conditions, v1alpha2.DiskConditionResizing)
	reason := func(c *metav1.Condition) string {
		if c == nil {
			return ""
		}
		return c.Reason
	}
	under, stuck := v1alpha2.DiskReasonInProgress.String(), v1alpha2.DiskReasonNotAvailable.String()
	normal := func(reason, message string) []steps.Event {
		return []steps.Event{{Type: corev1.EventTypeNormal, Reason: reason, Message: message}}
	}
	warning := func(reason string) []steps.Event {
		return []steps.Event{{Type: corev1.EventTypeWarning, Reason: reason, Message: is.Message}}
	}
	switch {
	case reason(was) == under && is == nil && before.Status.Capacity != after.Status.Capacity:
		return normal(eventGrowthCompleted, "The disk has grown to "+after.Status.Capacity)
	case reason(is) == stuck && reason(was) != stuck:
		return warning(eventGrowthNotAvailable)
	case reason(is) == under && reason(was) != under:
		return normal(eventGrowthStarted, "The disk is being grown from "+after.Status.Capacity)
	case reason(is) == under && strings.Contains(is.Message, "does not grow") && was.Message != is.Message:
		return warning(eventGrowthFailed)
	}
	return nil
}

// observeAttachments adds the machines that an attachment gives the disk to.
func (r *Reconciler) observeAttachments(ctx context.Context, w *world) error {
	list := &v1alpha2.VirtualMachineBlockDeviceAttachmentList{}
	if err := r.Client.List(ctx, list, client.InNamespace(w.disk.Namespace), client.MatchingFields{attachmentsByDisk: w.disk.Name}); err != nil {
		return err
	}
	for i := range list.Items {
		w.machines = append(w.machines, list.Items[i].Spec.VirtualMachineName)
	}
	return nil
}

// attachedDiskOf is the disk that an attachment names.
func attachedDiskOf(obj client.Object) []string {
	ref := obj.(*v1alpha2.VirtualMachineBlockDeviceAttachment).Spec.BlockDeviceRef
	if ref.Kind != v1alpha2.DiskDevice {
		return nil
	}
	return []string{ref.Name}
}

func ofAttachment(_ context.Context, obj client.Object) []reconcile.Request {
	var requests []reconcile.Request
	for _, name := range attachedDiskOf(obj) {
		requests = append(requests, request(obj.GetNamespace(), name))
	}
	return requests
}
