package admission

import (
	"context"
	"fmt"
	"net/http"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/settings"
)

// evictionPath is where the webhook configuration sends evictions.
const evictionPath = "/evict-virtual-machine"

// eviction answers evictions of pods of machines: never with yes. A guest cannot be
// ended and begun elsewhere as other pods are, so the request becomes a wish to move
// the machine, and the answer "too many requests" makes whoever asked ask again until
// the pod is gone by itself.
//
// The API server asks only about pods with our names, and about those this answers
// for pods of others that happen to have such a name.
type eviction struct {
	client client.Client
	// reader reads without a cache: a pod that the cache does not know yet must not
	// pass for one that does not exist.
	reader client.Reader
}

// +kubebuilder:rbac:groups="",resources=pods,verbs=get;list;watch;patch
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualmachineoperations,verbs=get;list;watch
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualmachines,verbs=get;list;watch

func evictions(m ctrl.Manager, _ settings.Platform) error {
	m.GetWebhookServer().Register(evictionPath, &webhook.Admission{Handler: &eviction{client: m.GetClient(), reader: m.GetAPIReader()}})
	return nil
}

// Handle implements admission.Handler.
func (w *eviction) Handle(ctx context.Context, request admission.Request) admission.Response {
	pod := &corev1.Pod{}
	err := w.reader.Get(ctx, client.ObjectKey{Namespace: request.Namespace, Name: request.Name}, pod)
	switch {
	case apierrors.IsNotFound(err):
		return admission.Allowed("")
	case err != nil:
		return admission.Errored(http.StatusInternalServerError, fmt.Errorf("get pod %s: %w", request.Name, err))
	}
	kind, vm := pod.Labels[v1alpha2.LabelLauncher], pod.Labels[v1alpha2.LabelVirtualMachineUID]
	over := pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
	switch {
	case vm == "" || over || kind != v1alpha2.LauncherValue && kind != v1alpha2.HotplugValue:
		return admission.Allowed("")
	case kind == v1alpha2.HotplugValue:
		return refused("Pod %s holds a volume of a running virtual machine and goes when the machine has left the node", pod.Name)
	case pod.DeletionTimestamp != nil:
		return refused("The guest of pod %s is being shut down", pod.Name)
	}
	if request.DryRun == nil || !*request.DryRun {
		if err := w.mark(ctx, pod); err != nil {
			return admission.Errored(http.StatusInternalServerError, fmt.Errorf("ask for the evacuation of pod %s: %w", pod.Name, err))
		}
	}
	return refused("%s", w.explain(ctx, pod))
}

// mark writes the wish down, where the machine's controller finds it.
func (w *eviction) mark(ctx context.Context, pod *corev1.Pod) error {
	if pod.Annotations[v1alpha2.AnnotationEvacuationRequested] == pod.Spec.NodeName {
		return nil
	}
	after := pod.DeepCopy()
	if after.Annotations == nil {
		after.Annotations = map[string]string{}
	}
	after.Annotations[v1alpha2.AnnotationEvacuationRequested] = pod.Spec.NodeName
	return client.IgnoreNotFound(w.client.Patch(ctx, after, client.MergeFrom(pod)))
}

// explain says what happens to the machine, as far as that is known.
func (w *eviction) explain(ctx context.Context, pod *corev1.Pod) string {
	vm := &v1alpha2.VirtualMachine{}
	name := policy.MachineOf(pod)
	going := fmt.Sprintf("Virtual machine %s/%s is asked to move away from node %s", pod.Namespace, name, pod.Spec.NodeName)
	if w.client.Get(ctx, client.ObjectKey{Namespace: pod.Namespace, Name: name}, vm) != nil {
		return going
	}
	if r := vm.Status.Instance; r != nil && r.Name != pod.Name && (r.Target == nil || r.Target.Name != pod.Name) {
		return fmt.Sprintf("The guest of pod %s has moved, the pod is about to go", pod.Name)
	}
	c := meta.FindStatusCondition(vm.Status.Conditions, v1alpha2.MachineConditionMigratable)
	if c != nil && c.Status == metav1.ConditionFalse {
		return fmt.Sprintf("Virtual machine %s/%s cannot be moved away from node %s while it runs: %s. Stop it, or remove the cause",
			pod.Namespace, name, pod.Spec.NodeName, c.Message)
	}
	list := &v1alpha2.VirtualMachineOperationList{}
	if w.client.List(ctx, list, client.InNamespace(pod.Namespace)) != nil {
		return going
	}
	if failed := policy.FailedEvacuation(list.Items, vm.Name); failed != nil {
		return fmt.Sprintf("Virtual machine %s/%s was not moved away from node %s, see VirtualMachineOperation %s: delete it to try again",
			pod.Namespace, name, pod.Spec.NodeName, failed.Name)
	}
	return going
}

// refused is an answer after which well-behaved clients ask again later.
func refused(format string, args ...any) admission.Response {
	return admission.Response{AdmissionResponse: admissionv1.AdmissionResponse{Result: &metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusTooManyRequests, Reason: metav1.StatusReasonTooManyRequests,
		Message: fmt.Sprintf(format, args...)}}}
}
