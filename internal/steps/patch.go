package steps

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
)

// Event is one thing to tell the user.
type Event struct{ Type, Reason, Message string }

// Transitions finds the conditions that changed status or reason: one event each,
// a Warning where the user must act. What begins well or begins by waiting is not
// news, nor is going on to wait after an error that nobody was told of.
func Transitions(before, after []metav1.Condition, d Decision) []Event {
	var found []Event
	for _, c := range after {
		o, was := d.Outcome(c.Type), meta.FindStatusCondition(before, c.Type)
		switch {
		case o.State == None, c.Reason == ReasonError:
			continue
		case was == nil && o.State != FailedState:
			continue
		case was != nil && was.Reason == ReasonError && o.State == WaitingState:
			continue
		case was != nil && was.Status == c.Status && was.Reason == c.Reason:
			continue
		}
		event := Event{Type: corev1.EventTypeNormal, Reason: c.Reason, Message: c.Message}
		if o.State == FailedState {
			event.Type = corev1.EventTypeWarning
		}
		if event.Message == "" {
			event.Message = c.Type + " is " + string(c.Status)
		}
		found = append(found, event)
	}
	return found
}

// Emit sends events about an object.
func Emit(recorder events.EventRecorder, about runtime.Object, all []Event) {
	for _, e := range all {
		recorder.Eventf(about, nil, e.Type, e.Reason, "Reconcile", "%s", e.Message)
	}
}

// PatchStatus writes after's status over before's, if they differ. It fails with a
// conflict when the object has changed since it was read: what a status remembers
// decides what is done next, so it is never written over something newer.
func PatchStatus(ctx context.Context, c client.Client, before, after client.Object) error {
	if equality.Semantic.DeepEqual(before, after) {
		return nil
	}
	patch := client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
	err := c.Status().Patch(ctx, after.DeepCopyObject().(client.Object), patch)
	return ignore(err, apierrors.IsNotFound)
}

// EnsureFinalizer adds a finalizer if it is missing and says whether it did; the
// object is updated in place. It does nothing to an object being deleted.
func EnsureFinalizer(ctx context.Context, c client.Client, obj client.Object, finalizer string) (bool, error) {
	if obj.GetDeletionTimestamp() != nil || controllerutil.ContainsFinalizer(obj, finalizer) {
		return false, nil
	}
	before := obj.DeepCopyObject().(client.Object)
	controllerutil.AddFinalizer(obj, finalizer)
	err := c.Patch(ctx, obj, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	return err == nil, wrap("add finalizer to", obj, err)
}
