package disk

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/attempt"
	"orlop.dev/orlop/internal/dvcr"
	"orlop.dev/orlop/internal/importer"
	"orlop.dev/orlop/internal/plan"
	"orlop.dev/orlop/internal/steps"
)

// runner makes the acts of one pass. Its methods return values; nothing happens
// before they are performed.
type runner struct {
	r *Reconciler
	w *world
}

// remember patches the attempt record.
func (x runner) remember(record attempt.Record) steps.Act {
	return steps.Call{Name: "remember attempt", Args: record, Do: func(ctx context.Context) error {
		after := x.w.disk.DeepCopy()
		if after.Annotations == nil {
			after.Annotations = map[string]string{}
		}
		after.Annotations[attempt.Annotation] = record.String()
		return x.patch(ctx, x.w.disk, after)
	}}
}

// configure makes the Secret of a pod. The token is minted as late as possible and
// never is part of a value that could be compared or logged.
func (x runner) configure(pod *corev1.Pod) steps.Act {
	return steps.Call{Name: "create configuration", Args: pod.Name, Do: func(ctx context.Context) error {
		fill := &importer.Populate{VirtualSize: x.w.size()}
		if s := x.w.source; s != nil {
			image, err := x.r.Registry.Grant(ctx, s.repository, "@"+s.digest, dvcr.Pull)
			if err != nil {
				return err
			}
			fill.Image = &image
		}
		raw, err := (&importer.Config{Populate: fill}).Marshal()
		if err != nil {
			return err
		}
		err = x.r.Client.Create(ctx, x.w.data(raw).Secret(pod), client.FieldOwner(fieldOwner))
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
		return err
	}}
}

// rebind hands the filled volume over to the disk's claim.
func (x runner) rebind(volume *corev1.PersistentVolume) steps.Act {
	return steps.Call{Name: "hand over volume", Args: volume.Name, Do: func(ctx context.Context) error {
		return x.patch(ctx, volume, plan.DiskRebound(volume, x.w.claim, x.w.disk.UID))
	}}
}

// unselect lets the scheduler choose again, and removes the prime that could not be served.
func (x runner) unselect() steps.Act {
	return steps.Call{Name: "give up node", Args: x.w.node(), Do: func(ctx context.Context) error {
		after := x.w.claim.DeepCopy()
		delete(after.Annotations, plan.SelectedNodeAnnotation)
		if err := x.patch(ctx, x.w.claim, after); err != nil {
			return err
		}
		return client.IgnoreNotFound(x.r.Client.Delete(ctx, x.w.prime, client.Preconditions{UID: &x.w.prime.UID}))
	}}
}

// patch writes the difference between two versions, unless the object has changed since.
func (x runner) patch(ctx context.Context, before, after client.Object) error {
	return x.r.Client.Patch(ctx, after, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}), client.FieldOwner(fieldOwner))
}

func (w *world) owner() metav1.OwnerReference {
	return metav1.OwnerReference{APIVersion: v1alpha2.GroupVersion.String(), Kind: v1alpha2.VirtualDiskKind,
		Name: w.disk.Name, UID: w.disk.UID, Controller: new(true)}
}

func (w *world) claims() plan.DiskClaim {
	modes, err := w.modes()
	if err != nil {
		return plan.DiskClaim{} // a disk without modes is blocked
	}
	return plan.DiskClaim{Namespace: w.disk.Namespace, Disk: w.disk.Name, DiskUID: w.disk.UID, Owner: w.owner(),
		Class: w.className, Modes: modes, VirtualSize: w.size(), Work: w.record.Work}
}

func (w *world) data(config []byte) plan.DataPod {
	return plan.DataPod{
		Namespace: w.disk.Namespace, Name: w.podName(), Owner: w.owner(), Image: w.importerImage,
		Config: config, ConfigKey: importer.ConfigKey, ConfigDir: importer.ConfigDir,
		Claim: plan.DiskPrimeName(w.disk.Name, w.disk.UID), ClaimDir: importer.TargetDir,
		AnyNode: w.node() != "",
	}
}
