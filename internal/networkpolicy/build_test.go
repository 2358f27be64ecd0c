package networkpolicy

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// namespacesXY are two namespaces, one of them with a label.
func namespacesXY() map[string]labels.Set {
	return map[string]labels.Set{
		"x": {"kubernetes.io/metadata.name": "x"},
		"y": {"kubernetes.io/metadata.name": "y", "team": "red"},
	}
}

// podWith is a running pod on node n1; its labels are written "a=b,c=d".
func podWith(namespace, name, address, set string, ports ...corev1.ContainerPort) corev1.Pod {
	pod := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{}}}
	for pair := range strings.SplitSeq(set, ",") {
		if key, value, ok := strings.Cut(pair, "="); ok {
			pod.Labels[key] = value
		}
	}
	pod.Spec.NodeName = "n1"
	pod.Spec.Containers = []corev1.Container{{Ports: ports}}
	pod.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: address}}}
	return pod
}
