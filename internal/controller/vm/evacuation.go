package vm

import (
	"context"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/plan"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/steps"
)

// evacuationSteps move machines away from nodes that are to be emptied.
var evacuationSteps = []steps.Step[*world]{
	{Condition: v1alpha2.MachineConditionEvictionRequired, Decide: evictionRequired},
	{Decide: evacuationCancelled},
}

// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualmachineoperations,verbs=get;list;watch;create;patch

// evictionRequired exists only while a node asks the machine to leave. It makes the
// operation that moves it, unless one is under way or the last one failed.
func evictionRequired(w *world) (steps.Outcome, steps.Act) {
	if !w.evicted() {
		return steps.Absent(), nil
	}
	node := w.record.NodeName
	o := steps.Waiting(v1alpha2.MachineReasonEvictionRequired, "Node %s is being emptied and the machine has to leave it", node).As(metav1.ConditionTrue)
	if _, obstacle := w.obstacle(); obstacle != "" {
		o.Message += ", but it cannot: " + obstacle
		return o, nil
	}
	if failed := policy.FailedEvacuation(w.operations, w.vm.Name); failed != nil {
		o.Message += ", but VirtualMachineOperation " + failed.Name + " failed: delete it to try again"
		return o, nil
	}
	if policy.Unfinished(w.operations, w.vm.Name) || !w.guestRuns() || w.record.Target != nil {
		return o, nil
	}
	if _, refusal := policy.AutoConverge(w.vm.Spec.LiveMigrationPolicy, string(w.migration.Policy), nil, true); refusal != "" {
		o.Message += ", but it does not: " + strings.ToLower(refusal[:1]) + refusal[1:]
		return o, nil
	}
	return o, steps.Create{Object: plan.Evacuation(w.vm, w.instance)}
}

// evicted says that the present process is to leave its node: somebody asked to evict
// its pod, or the node itself asks.
func (w *world) evicted() bool {
	if !w.live() || w.mustEnd() || w.pod == nil || w.record.NodeName == "" {
		return false
	}
	return w.pod.Annotations[v1alpha2.AnnotationEvacuationRequested] == w.record.NodeName || policy.Leaving(w.node)
}

// evacuationCancelled lets an evacuation that is being deleted go; one that had not
// ended takes the request with it.
func evacuationCancelled(w *world) (steps.Outcome, steps.Act) {
	for i := range w.operations {
		o := &w.operations[i]
		if o.DeletionTimestamp == nil || !controllerutil.ContainsFinalizer(o, v1alpha2.FinalizerVirtualMachineOperationByEvacuation) {
			continue
		}
		asked := w.pod != nil && w.pod.Annotations[v1alpha2.AnnotationEvacuationRequested] != ""
		if asked && !policy.OperationFinished(o.Status.Phase) {
			return steps.Outcome{}, w.act.forget(w.pod)
		}
		return steps.Outcome{}, steps.Release{Object: o, Finalizer: v1alpha2.FinalizerVirtualMachineOperationByEvacuation}
	}
	return steps.Outcome{}, nil
}

// forget removes the request from a pod.
func (a *actor) forget(pod *corev1.Pod) steps.Act {
	return steps.Call{Name: "forget the eviction", Args: pod.Name, Do: func(ctx context.Context) error {
		after := pod.DeepCopy()
		delete(after.Annotations, v1alpha2.AnnotationEvacuationRequested)
		return client.IgnoreNotFound(a.client.Patch(ctx, after, client.MergeFrom(pod)))
	}}
}
