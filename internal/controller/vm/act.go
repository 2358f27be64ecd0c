package vm

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/steps"
)

// actor makes the named calls of this controller.
type actor struct{ client client.Client }

// take names the holder of disks, nobody if it is empty. Each patch carries the
// resourceVersion that was read, so that of two machines only one succeeds.
func (a *actor) take(disks []*v1alpha2.VirtualDisk, holder string) steps.Act {
	switch {
	case len(disks) == 0:
		return nil
	case holder == "":
		return a.setHolder("release disks", disks, "")
	}
	return a.setHolder("hold disks", disks, holder)
}

func (a *actor) setHolder(name string, disks []*v1alpha2.VirtualDisk, holder string) steps.Act {
	names := make([]string, len(disks))
	for i, d := range disks {
		names[i] = d.Name
	}
	return steps.Call{Name: name, Args: names, Do: func(ctx context.Context) error {
		for _, d := range disks {
			after := d.DeepCopy()
			if after.Annotations == nil {
				after.Annotations = map[string]string{}
			}
			after.Annotations[policy.HolderAnnotation] = holder
			if holder == "" {
				delete(after.Annotations, policy.HolderAnnotation)
			}
			patch := client.MergeFromWithOptions(d, client.MergeFromWithOptimisticLock{})
			if err := a.client.Patch(ctx, after, patch); client.IgnoreNotFound(err) != nil {
				return err
			}
		}
		return nil
	}}
}

// relabel brings a pod's labels and annotations up to date.
func (a *actor) relabel(before, after *corev1.Pod) steps.Act {
	return steps.Call{Name: "label pod", Args: after.Name, Do: func(ctx context.Context) error {
		return client.IgnoreNotFound(a.client.Patch(ctx, after, client.MergeFrom(before)))
	}}
}

// fails is a call that only reports.
func fails(err error) func(context.Context) error {
	return func(context.Context) error { return err }
}
