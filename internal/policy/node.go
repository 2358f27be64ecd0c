package policy

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"

	"orlop.dev/orlop/api/core/v1alpha2"
)

// Suitable says whether a node can run machines of a class: it lets machines run, has
// KVM unless emulation is allowed, matches the class's selector, and has no taint the
// class does not tolerate. Cordoned nodes cannot.
func Suitable(node *corev1.Node, class *v1alpha2.VirtualMachineClassSpec, emulation bool) bool {
	if node.Labels[v1alpha2.LabelNodeSchedulable] != "true" || node.Spec.Unschedulable || node.DeletionTimestamp != nil {
		return false
	}
	if accelerator := node.Labels[v1alpha2.LabelNodeAccelerator]; accelerator != "kvm" && (!emulation || accelerator != "tcg") {
		return false
	}
	if !labels.SelectorFromSet(class.NodeSelector.MatchLabels).Matches(labels.Set(node.Labels)) || !expressionsMatch(node, class.NodeSelector.MatchExpressions) {
		return false
	}
	_, untolerated := corev1helpers.FindMatchingUntoleratedTaint(klog.Background(), node.Spec.Taints, class.Tolerations, func(t *corev1.Taint) bool {
		return t.Effect != corev1.TaintEffectPreferNoSchedule
	}, false)
	return !untolerated
}

func expressionsMatch(node *corev1.Node, expressions []corev1.NodeSelectorRequirement) bool {
	if len(expressions) == 0 {
		return true
	}
	selector, err := nodeaffinity.NewNodeSelector(&corev1.NodeSelector{
		NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: expressions}}})
	return err == nil && selector.Match(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node.Name, Labels: node.Labels}})
}
