package policy

import (
	"encoding/json"

	corev1 "k8s.io/api/core/v1"

	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
)

// ComputeContainer is the container of a launcher pod that runs QEMU.
const ComputeContainer = "compute"

// Death says how a process ended, if that is proven. Proof is one of:
//
//   - the handler wrote the exit, which it does only after waitpid;
//   - the kubelet saw the compute container terminate. A pod phase written by
//     garbage collection, or a status the kubelet made up for a container it does
//     not know, has no container id and no end time and proves nothing;
//   - the kubelet ended or refused the pod and no handler had claimed the instance,
//     which it does before it starts anything;
//   - the node carries the out-of-service taint, by which an administrator or a
//     fencing agent vouches for its death;
//   - the instance was called off before it was given to a node: no handler may
//     start what is not to be on.
//
// Any of the arguments may be nil; what is missing proves nothing.
func Death(instance *v1alpha1.Instance, pod *corev1.Pod, node *corev1.Node) (v1alpha1.Exit, bool) {
	if instance != nil && instance.Status.Exit != nil {
		return *instance.Status.Exit, true
	}
	if exit, ok := containerExit(pod); ok {
		return exit, true
	}
	if instance != nil && instance.Status.PodUID == "" && instance.Status.Phase == v1alpha1.InstancePending && endedByKubelet(pod) {
		return v1alpha1.Exit{Cause: ExitPodTerminated, Message: podMessage(pod)}, true
	}
	if OutOfService(node) {
		return v1alpha1.Exit{Cause: ExitNodeFenced}, true
	}
	if instance != nil && instance.Spec.NodeName == "" && instance.Spec.Power != v1alpha1.PowerOn && instance.Spec.Power != "" {
		return v1alpha1.Exit{Cause: ExitNeverStarted}, true
	}
	return v1alpha1.Exit{}, false
}

func containerExit(pod *corev1.Pod) (v1alpha1.Exit, bool) {
	if pod == nil {
		return v1alpha1.Exit{}, false
	}
	for _, c := range pod.Status.ContainerStatuses {
		t := c.State.Terminated
		if c.Name != ComputeContainer || t == nil || t.ContainerID == "" || t.FinishedAt.IsZero() {
			continue
		}
		exit := v1alpha1.Exit{}
		if json.Unmarshal([]byte(t.Message), &exit) != nil || exit.Cause == "" {
			exit = v1alpha1.Exit{Cause: ExitPodTerminated, Code: t.ExitCode, Message: t.Reason}
		}
		exit.Time = t.FinishedAt
		return exit, true
	}
	return v1alpha1.Exit{}, false
}

// endedByKubelet tells the end of a pod that the kubelet reported from one that
// garbage collection wrote for a node that does not answer. The kubelet gives a
// reason when it refuses a pod, and lists every container as terminated when it has
// ended one.
func endedByKubelet(pod *corev1.Pod) bool {
	if pod == nil || (pod.Status.Phase != corev1.PodFailed && pod.Status.Phase != corev1.PodSucceeded) {
		return false
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.DisruptionTarget && c.Status == corev1.ConditionTrue && c.Reason != corev1.PodReasonTerminationByKubelet {
			return false
		}
	}
	for _, c := range pod.Status.ContainerStatuses {
		if c.State.Terminated == nil {
			return false
		}
	}
	return len(pod.Status.ContainerStatuses) > 0 || pod.Status.Reason != ""
}

// PodStopped says whether it is proven that a pod writes nothing any more, for pods
// without an Instance: the kubelet saw all its containers end or ended the pod itself,
// its node is out of service, or it is being deleted and was never given to a node, and
// then it never will be. A pod that is restarted in place is none of these.
func PodStopped(pod *corev1.Pod, node *corev1.Node) bool {
	if pod.Spec.NodeName == "" {
		return pod.DeletionTimestamp != nil
	}
	return OutOfService(node) || endedByKubelet(pod) || containersEnded(pod)
}

func containersEnded(pod *corev1.Pod) bool {
	ended := 0
	for _, c := range pod.Status.ContainerStatuses {
		if t := c.State.Terminated; t != nil && t.ContainerID != "" && !t.FinishedAt.IsZero() {
			ended++
		}
	}
	return ended > 0 && ended == len(pod.Spec.Containers)
}

func podMessage(pod *corev1.Pod) string {
	if pod.Status.Message != "" {
		return pod.Status.Message
	}
	return pod.Status.Reason
}

// OutOfService says whether somebody vouches that a node is powered off.
func OutOfService(node *corev1.Node) bool {
	if node == nil {
		return false
	}
	for _, t := range node.Spec.Taints {
		if t.Key == corev1.TaintNodeOutOfService {
			return true
		}
	}
	return false
}

// PodDoomed says that a pod will not run its container any longer, whatever becomes
// of the process in it.
func PodDoomed(pod *corev1.Pod) bool {
	return pod != nil && (pod.DeletionTimestamp != nil || pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded)
}
