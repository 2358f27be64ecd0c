package plan

import (
	"maps"
	"sort"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/qemu"
)

// CopiedMetadataAnnotation on a launcher pod lists the label and annotation keys
// that came from the machine, so that one removed there is removed here.
const CopiedMetadataAnnotation = "internal.virtualization.deckhouse.io/copied-metadata"

// qemuUser runs the launcher and QEMU and owns disk files.
const qemuUser = 107

// launcherGrace is what a pod may live beyond the guest's grace period, in seconds:
// the launcher kills the guest first and then still has to tell how it ended.
const launcherGrace = 30

// LauncherPod describes the pod of a launch; instance is the one it runs.
func LauncherPod(l Launch, instance *v1alpha1.Instance) *corev1.Pod {
	labels, annotations := LauncherMetadata(l.VM, l.Network.Address)
	vm := l.VM
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: l.Name, Namespace: vm.Namespace,
			Labels: labels, Annotations: annotations,
			Finalizers:      []string{v1alpha2.FinalizerPodProtection},
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(instance, v1alpha1.GroupVersion.WithKind("Instance"))},
		},
		Spec: corev1.PodSpec{
			RestartPolicy:                 corev1.RestartPolicyNever,
			AutomountServiceAccountToken:  new(false),
			EnableServiceLinks:            new(false),
			DNSPolicy:                     corev1.DNSClusterFirst,
			TerminationGracePeriodSeconds: new(GracePeriod(vm) + launcherGrace),
			PriorityClassName:             vm.Spec.PriorityClassName,
			NodeSelector:                  nodeSelector(l),
			Affinity:                      affinity(l),
			TopologySpreadConstraints:     spread(vm.Spec.TopologySpreadConstraints),
			Tolerations:                   tolerations(l),
			SecurityContext: &corev1.PodSecurityContext{
				RunAsUser: new(int64(qemuUser)), RunAsGroup: new(int64(qemuUser)), FSGroup: new(int64(qemuUser)),
				RunAsNonRoot:        new(true),
				FSGroupChangePolicy: new(corev1.FSGroupChangeOnRootMismatch),
				SeccompProfile:      &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
			Containers: []corev1.Container{compute(l, instance.Spec.Machine)},
			Volumes:    volumes(instance),
		},
	}
	mountVolumes(instance.Spec.Machine.Disks, &pod.Spec.Containers[0])
	return pod
}

func compute(l Launch, machine v1alpha1.Machine) corev1.Container {
	return corev1.Container{
		Name: policy.ComputeContainer, Image: l.LauncherImage, ImagePullPolicy: corev1.PullIfNotPresent,
		Resources: launcherResources(l.VM, machine),
		SecurityContext: &corev1.SecurityContext{
			AllowPrivilegeEscalation: new(false),
			ReadOnlyRootFilesystem:   new(true),
			Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		},
		TerminationMessagePath: corev1.TerminationMessagePathDefault,
	}
}

// launcherResources makes the pod Guaranteed at a share of 100% and Burstable below.
func launcherResources(vm *v1alpha2.VirtualMachine, machine v1alpha1.Machine) corev1.ResourceRequirements {
	share, err := policy.CoreFraction(vm.Spec.CPU.CoreFraction)
	if err != nil {
		share = 100 // admission has let only readable shares through
	}
	memory := machine.Memory.Size.DeepCopy()
	memory.Add(qemu.Overhead(machine))
	cores := vm.Spec.CPU.Cores
	return corev1.ResourceRequirements{
		Requests: corev1.ResourceList{corev1.ResourceCPU: policy.CPURequest(cores, share), corev1.ResourceMemory: memory},
		Limits:   corev1.ResourceList{corev1.ResourceCPU: *resource.NewQuantity(int64(cores), resource.DecimalSI), corev1.ResourceMemory: memory},
	}
}

// volumes are those of the Instance, not of what the machine wants by now: the
// process gets the devices that its Instance names, from this pod.
func volumes(instance *v1alpha1.Instance) []corev1.Volume {
	all := []corev1.Volume{{Name: "run", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{
		SizeLimit: resource.NewQuantity(64*mebibyte, resource.BinarySI)}}}}
	for _, d := range instance.Spec.Machine.Disks {
		switch {
		case d.Source.PersistentVolumeClaim != nil:
			all = append(all, corev1.Volume{Name: d.ID, VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: d.Source.PersistentVolumeClaim.ClaimName}}})
		case d.Source.FirstBoot != nil && instance.Spec.FirstBoot != nil:
			all = append(all, corev1.Volume{Name: d.ID, VolumeSource: corev1.VolumeSource{
				Secret: &corev1.SecretVolumeSource{SecretName: instance.Spec.FirstBoot.SecretName, DefaultMode: new(int32(0o440))}}})
		}
	}
	return all
}

// mountVolumes lists every claim in the container, or the kubelet would never attach
// it. Mounts are read-only: QEMU writes through descriptors the handler passes it.
func mountVolumes(disks []v1alpha1.Disk, c *corev1.Container) {
	c.VolumeMounts = []corev1.VolumeMount{{Name: "run", MountPath: "/run/orlop"}}
	for _, d := range disks {
		claim := d.Source.PersistentVolumeClaim
		switch {
		case claim != nil && claim.Mode == string(corev1.PersistentVolumeBlock):
			c.VolumeDevices = append(c.VolumeDevices, corev1.VolumeDevice{Name: d.ID, DevicePath: "/dev/disks/" + d.ID})
		case claim != nil:
			c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: d.ID, MountPath: "/disks/" + d.ID, ReadOnly: true})
		case d.Source.FirstBoot != nil:
			c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: d.ID, MountPath: "/run/firstboot", ReadOnly: true})
		}
	}
}

func nodeSelector(l Launch) map[string]string {
	selector := map[string]string{}
	maps.Copy(selector, l.VM.Spec.NodeSelector)
	selector[v1alpha2.LabelNodeSchedulable] = "true"
	if !l.AllowEmulation {
		selector[v1alpha2.LabelNodeAccelerator] = "kvm"
	}
	return selector
}

// tolerations leave the loss of a node to our controller alone: the default of 300
// seconds would end healthy guests after a short partition.
func tolerations(l Launch) []corev1.Toleration {
	all := append([]corev1.Toleration(nil), l.VM.Spec.Tolerations...)
	all = append(all, l.Class.Spec.Tolerations...)
	for _, key := range []string{corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable} {
		all = append(all, corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute})
	}
	return all
}

// affinity joins the machine's wishes with the class's selector, which every
// alternative has to satisfy, and prefers nodes with KVM where both kinds will do.
func affinity(l Launch) *corev1.Affinity {
	result := &corev1.Affinity{}
	if a := l.VM.Spec.Affinity; a != nil {
		result.NodeAffinity = a.NodeAffinity.DeepCopy()
		if near := a.VirtualMachineAndPodAffinity; near != nil {
			result.PodAffinity = &corev1.PodAffinity{
				RequiredDuringSchedulingIgnoredDuringExecution:  terms(near.RequiredDuringSchedulingIgnoredDuringExecution),
				PreferredDuringSchedulingIgnoredDuringExecution: weighted(near.PreferredDuringSchedulingIgnoredDuringExecution),
			}
		}
		if away := a.VirtualMachineAndPodAntiAffinity; away != nil {
			result.PodAntiAffinity = &corev1.PodAntiAffinity{
				RequiredDuringSchedulingIgnoredDuringExecution:  terms(away.RequiredDuringSchedulingIgnoredDuringExecution),
				PreferredDuringSchedulingIgnoredDuringExecution: weighted(away.PreferredDuringSchedulingIgnoredDuringExecution),
			}
		}
	}
	if result.NodeAffinity == nil {
		result.NodeAffinity = &corev1.NodeAffinity{}
	}
	requireOnNode(result.NodeAffinity, classRequirements(l.Class.Spec.NodeSelector))
	if l.AllowEmulation {
		result.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution = append(
			result.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution, corev1.PreferredSchedulingTerm{
				Weight: 100, Preference: corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{{
					Key: v1alpha2.LabelNodeAccelerator, Operator: corev1.NodeSelectorOpIn, Values: []string{"kvm"}}}}})
	}
	if isEmpty(result.NodeAffinity) {
		result.NodeAffinity = nil
	}
	if result.NodeAffinity == nil && result.PodAffinity == nil && result.PodAntiAffinity == nil {
		return nil
	}
	return result
}

func isEmpty(a *corev1.NodeAffinity) bool {
	return a.RequiredDuringSchedulingIgnoredDuringExecution == nil && len(a.PreferredDuringSchedulingIgnoredDuringExecution) == 0
}

func classRequirements(s v1alpha2.NodeSelector) []corev1.NodeSelectorRequirement {
	var all []corev1.NodeSelectorRequirement
	for _, key := range sortedKeys(s.MatchLabels) {
		all = append(all, corev1.NodeSelectorRequirement{Key: key, Operator: corev1.NodeSelectorOpIn, Values: []string{s.MatchLabels[key]}})
	}
	return append(all, s.MatchExpressions...)
}

// requireOnNode adds requirements to every alternative, since alternatives are ORed.
func requireOnNode(a *corev1.NodeAffinity, requirements []corev1.NodeSelectorRequirement) {
	if len(requirements) == 0 {
		return
	}
	required := a.RequiredDuringSchedulingIgnoredDuringExecution
	if required == nil || len(required.NodeSelectorTerms) == 0 {
		required = &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{}}}
	}
	for i := range required.NodeSelectorTerms {
		t := &required.NodeSelectorTerms[i]
		t.MatchExpressions = append(t.MatchExpressions, requirements...)
	}
	a.RequiredDuringSchedulingIgnoredDuringExecution = required
}

func terms(list []v1alpha2.VirtualMachineAndPodAffinityTerm) []corev1.PodAffinityTerm {
	var all []corev1.PodAffinityTerm
	for _, t := range list {
		all = append(all, term(t))
	}
	return all
}

func weighted(list []v1alpha2.WeightedVirtualMachineAndPodAffinityTerm) []corev1.WeightedPodAffinityTerm {
	var all []corev1.WeightedPodAffinityTerm
	for _, t := range list {
		all = append(all, corev1.WeightedPodAffinityTerm{Weight: t.Weight, PodAffinityTerm: term(t.VirtualMachineAndPodAffinityTerm)})
	}
	return all
}

func term(t v1alpha2.VirtualMachineAndPodAffinityTerm) corev1.PodAffinityTerm {
	return corev1.PodAffinityTerm{LabelSelector: t.LabelSelector, Namespaces: t.Namespaces, TopologyKey: t.TopologyKey,
		NamespaceSelector: t.NamespaceSelector, MatchLabelKeys: t.MatchLabelKeys, MismatchLabelKeys: t.MismatchLabelKeys}
}

func spread(list []v1alpha2.TopologySpreadConstraint) []corev1.TopologySpreadConstraint {
	var all []corev1.TopologySpreadConstraint
	for _, c := range list {
		all = append(all, corev1.TopologySpreadConstraint{MaxSkew: c.MaxSkew, TopologyKey: c.TopologyKey,
			WhenUnsatisfiable: c.WhenUnsatisfiable, LabelSelector: c.LabelSelector})
	}
	return all
}

// reserved are key prefixes (the part before the slash, or the end of it) by which
// platform and network plug-ins take orders; a machine's owner may not give any.
var reserved = []string{
	"virtualization.deckhouse.io", "deckhouse.io", "cilium.io", "projectcalico.org", "ovn.org", "kubernetes.io", "k8s.io",
	"cncf.io", "kubevirt.io", "kubeovn.io", "antrea.io", "spidernet.io", "tigera.io",
}

// Reserved says whether a label or annotation key is kept from a machine's pod.
func Reserved(key string) bool {
	domain, _, found := strings.Cut(key, "/")
	if !found {
		// Some platform keys have no slash.
		domain = key
	}
	for _, r := range reserved {
		if domain == r || strings.HasSuffix(domain, "."+r) {
			return true
		}
	}
	return false
}

// LauncherMetadata is what a launcher pod is labelled and annotated with: what the
// machine has, without reserved keys, and on top of it our own.
func LauncherMetadata(vm *v1alpha2.VirtualMachine, address string) (labels, annotations map[string]string) {
	labels, annotations = map[string]string{}, map[string]string{}
	var copied []string
	for k, v := range vm.Labels {
		if !Reserved(k) {
			labels[k] = v
			copied = append(copied, "l:"+k)
		}
	}
	for k, v := range vm.Annotations {
		if !Reserved(k) {
			annotations[k] = v
			copied = append(copied, "a:"+k)
		}
	}
	labels[v1alpha2.LabelLauncher] = v1alpha2.LauncherValue
	labels[v1alpha2.LabelVirtualMachineName] = labelValue(vm.Name)
	labels[v1alpha2.LabelVirtualMachineUID] = string(vm.UID)
	maps.Copy(annotations, addressAnnotations(address))
	if len(copied) > 0 {
		sort.Strings(copied)
		annotations[CopiedMetadataAnnotation] = strings.Join(copied, ",")
	}
	return labels, annotations
}

// RefreshedMetadata is a pod's metadata brought up to date with its machine's; keys
// that others put there stay. changed is false when there is nothing to do.
func RefreshedMetadata(pod *corev1.Pod, vm *v1alpha2.VirtualMachine) (fresh *corev1.Pod, changed bool) {
	labels, annotations := LauncherMetadata(vm, pod.Annotations[v1alpha2.AnnotationPodAddress])
	fresh = pod.DeepCopy()
	if fresh.Labels == nil {
		fresh.Labels = map[string]string{}
	}
	if fresh.Annotations == nil {
		fresh.Annotations = map[string]string{}
	}
	for entry := range strings.SplitSeq(pod.Annotations[CopiedMetadataAnnotation], ",") {
		kind, key, _ := strings.Cut(entry, ":")
		if _, kept := labels[key]; kind == "l" && !kept {
			delete(fresh.Labels, key)
			changed = true
		}
		if _, kept := annotations[key]; kind == "a" && !kept {
			delete(fresh.Annotations, key)
			changed = true
		}
	}
	if annotations[CopiedMetadataAnnotation] == "" && pod.Annotations[CopiedMetadataAnnotation] != "" {
		delete(fresh.Annotations, CopiedMetadataAnnotation)
		changed = true
	}
	for k, v := range labels {
		changed = changed || fresh.Labels[k] != v
		fresh.Labels[k] = v
	}
	for k, v := range annotations {
		changed = changed || fresh.Annotations[k] != v
		fresh.Annotations[k] = v
	}
	return fresh, changed
}

// labelValue shortens a name that is too long for a label.
func labelValue(name string) string { return cut(name, 63) }

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
