package plan

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
)

// AttachmentMachineAnnotation on an attachment pod names its machine. It is no label:
// by labels, users and Services choose pods that are machines.
const AttachmentMachineAnnotation = "internal.virtualization.deckhouse.io/virtual-machine"

// AttachmentDeviceAnnotation on an attachment pod is the id of its device.
const AttachmentDeviceAnnotation = "internal.virtualization.deckhouse.io/device"

// attachmentGrace is how long an attachment pod may take to end, in seconds: it does nothing.
const attachmentGrace = 2

// AttachmentPodName is the pod that holds the volume of a device for a process.
func AttachmentPodName(instance *v1alpha1.Instance, device string) string {
	return cut("hp-"+shortUID(instance.UID)+"-"+device, 63)
}

// AttachmentPod describes the pod that brings a volume to the node of a running
// process and keeps it there. It does nothing else: the handler opens the volume
// through its directory.
func AttachmentPod(l Launch, instance *v1alpha1.Instance, d LaunchDisk) *corev1.Pod {
	id := DiskID(d.Ref)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: AttachmentPodName(instance, id), Namespace: instance.Namespace,
			Labels: map[string]string{
				v1alpha2.LabelLauncher:          v1alpha2.HotplugValue,
				v1alpha2.LabelVirtualMachineUID: string(instance.Spec.VirtualMachine.UID),
			},
			Annotations: map[string]string{
				AttachmentMachineAnnotation: instance.Spec.VirtualMachine.Name,
				AttachmentDeviceAnnotation:  id,
				// Nobody gains by moving it: the machine would lose its volume.
				"cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
			},
			Finalizers:      []string{v1alpha2.FinalizerPodProtection},
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(instance, v1alpha1.GroupVersion.WithKind("Instance"))},
		},
		Spec: corev1.PodSpec{
			RestartPolicy:                 corev1.RestartPolicyAlways,
			AutomountServiceAccountToken:  new(false),
			EnableServiceLinks:            new(false),
			TerminationGracePeriodSeconds: new(int64(attachmentGrace)),
			PriorityClassName:             l.VM.Spec.PriorityClassName,
			Affinity:                      onNode(instance.Spec.NodeName),
			// The machine is on that node already, whatever keeps newcomers from it.
			Tolerations: append(tolerations(l), corev1.Toleration{Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule}),
			SecurityContext: &corev1.PodSecurityContext{
				RunAsUser: new(int64(qemuUser)), RunAsGroup: new(int64(qemuUser)), FSGroup: new(int64(qemuUser)),
				RunAsNonRoot:        new(true),
				FSGroupChangePolicy: new(corev1.FSGroupChangeOnRootMismatch),
				SeccompProfile:      &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
			Containers: []corev1.Container{attachmentContainer(l)},
			Volumes: []corev1.Volume{{Name: id, VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: d.ClaimName}}}},
		},
	}
	c := &pod.Spec.Containers[0]
	if d.Mode == string(corev1.PersistentVolumeBlock) {
		c.VolumeDevices = []corev1.VolumeDevice{{Name: id, DevicePath: "/dev/disks/" + id}}
	} else {
		c.VolumeMounts = []corev1.VolumeMount{{Name: id, MountPath: "/disks/" + id, ReadOnly: true}}
	}
	return pod
}

// attachmentContainer sleeps; requests equal limits, so that the kubelet evicts it last.
func attachmentContainer(l Launch) corev1.Container {
	little := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("5m"), corev1.ResourceMemory: resource.MustParse("16Mi")}
	return corev1.Container{
		Name: "volume", Image: l.LauncherImage, ImagePullPolicy: corev1.PullIfNotPresent,
		Command:   []string{"/usr/bin/pause"},
		Resources: corev1.ResourceRequirements{Requests: little, Limits: little},
		SecurityContext: &corev1.SecurityContext{
			AllowPrivilegeEscalation: new(false),
			ReadOnlyRootFilesystem:   new(true),
			Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		},
	}
}

// onNode requires a node by name, through the scheduler, which also waits for volumes.
func onNode(name string) *corev1.Affinity {
	return &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
		RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchFields: []corev1.NodeSelectorRequirement{{Key: metav1.ObjectNameField, Operator: corev1.NodeSelectorOpIn, Values: []string{name}}},
		}}},
	}}
}

// FromLauncherPod is a list of devices as a new process gets it: every volume from its
// own launcher pod, none from the attachment pods of another process.
func FromLauncherPod(disks []v1alpha1.Disk) []v1alpha1.Disk {
	if disks == nil {
		return nil
	}
	all := make([]v1alpha1.Disk, len(disks))
	for i := range disks {
		disks[i].DeepCopyInto(&all[i])
		if claim := all[i].Source.PersistentVolumeClaim; claim != nil {
			claim.Pod = nil
		}
	}
	return all
}
