package plan

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
)

// TargetInstance describes the process that a guest is to move to: its source with
// another name, without a node yet, and with every volume in its own pod.
func TargetInstance(source *v1alpha1.Instance, name string, order v1alpha1.Migration) *v1alpha1.Instance {
	target := &v1alpha1.Instance{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Namespace: source.Namespace,
			Labels:          maps.Clone(source.Labels),
			Annotations:     maps.Clone(source.Annotations),
			Finalizers:      []string{v1alpha2.FinalizerPodProtection},
			OwnerReferences: slices.Clone(source.OwnerReferences),
		},
		Spec: *source.Spec.DeepCopy(),
	}
	target.Spec.NodeName, target.Spec.PodUID, target.Spec.Power = "", "", v1alpha1.PowerOn
	target.Spec.Migration = &order
	target.Spec.Machine.Disks = FromLauncherPod(source.Spec.Machine.Disks)
	if target.Spec.FirstBoot != nil {
		target.Spec.FirstBoot.SecretName = name
	}
	return target
}

// TargetPod describes the pod of such a process. It must not go to the node the guest
// leaves, and to none that lacks any of these labels.
func TargetPod(l Launch, target *v1alpha1.Instance, away string, labels ...map[string]string) *corev1.Pod {
	pod := LauncherPod(l, target)
	if pod.Spec.Affinity == nil {
		pod.Spec.Affinity = &corev1.Affinity{}
	}
	if pod.Spec.Affinity.NodeAffinity == nil {
		pod.Spec.Affinity.NodeAffinity = &corev1.NodeAffinity{}
	}
	var wanted []corev1.NodeSelectorRequirement
	for _, m := range labels {
		wanted = append(wanted, classRequirements(v1alpha2.NodeSelector{MatchLabels: m})...)
	}
	requireOnNode(pod.Spec.Affinity.NodeAffinity, wanted)
	// Alternatives are ORed, so each of them has to exclude the node.
	terms := pod.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
	for i := range terms {
		terms[i].MatchFields = append(terms[i].MatchFields, corev1.NodeSelectorRequirement{
			Key: metav1.ObjectNameField, Operator: corev1.NodeSelectorOpNotIn, Values: []string{away}})
	}
	return pod
}

// TargetFirstBootSecret is the source's once more: the guest goes on reading the
// device it has.
func TargetFirstBootSecret(target *v1alpha1.Instance, data map[string][]byte) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Name: target.Name, Namespace: target.Namespace,
			Labels:          maps.Clone(target.Labels),
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(target, v1alpha1.GroupVersion.WithKind("Instance"))},
		},
		Data: data,
	}
}

// MigrationBudgetName is the name of a machine's disruption budget.
func MigrationBudgetName(vm *v1alpha2.VirtualMachine) string {
	return "virt-launcher-" + cut(vm.Name, 48)
}

// MigrationBudget keeps both pods of a machine from eviction while the guest moves.
// It counts pods, since their owner is no workload that Kubernetes could ask.
func MigrationBudget(vm *v1alpha2.VirtualMachine) *policyv1.PodDisruptionBudget {
	both := intstr.FromInt32(2)
	return &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{
			Name: MigrationBudgetName(vm), Namespace: vm.Namespace,
			Labels:          map[string]string{v1alpha2.LabelVirtualMachineUID: string(vm.UID)},
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(vm, v1alpha2.GroupVersion.WithKind(v1alpha2.VirtualMachineKind))},
		},
		Spec: policyv1.PodDisruptionBudgetSpec{
			MinAvailable: &both,
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{
				v1alpha2.LabelLauncher: v1alpha2.LauncherValue, v1alpha2.LabelVirtualMachineUID: string(vm.UID)}},
		},
	}
}

// Evacuation describes the operation that moves a machine away from its node. The name
// follows from the process, so that two passes never make two.
func Evacuation(vm *v1alpha2.VirtualMachine, instance *v1alpha1.Instance) *v1alpha2.VirtualMachineOperation {
	return &v1alpha2.VirtualMachineOperation{
		ObjectMeta: metav1.ObjectMeta{
			Name: "evacuation-" + cut(instance.Name, 52), Namespace: vm.Namespace,
			Labels:      map[string]string{v1alpha2.LabelVirtualMachineUID: string(vm.UID)},
			Annotations: map[string]string{v1alpha2.AnnotationEvacuation: "true"},
			Finalizers:  []string{v1alpha2.FinalizerVirtualMachineOperationByEvacuation},
		},
		Spec: v1alpha2.VirtualMachineOperationSpec{Type: v1alpha2.OperationEvict, VirtualMachineName: vm.Name},
	}
}
