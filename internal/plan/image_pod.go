package plan

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orlop.dev/orlop/api/core/v1alpha2"
)

// DataPodApp is the value of the label "app" on importing and populating pods.
const DataPodApp = "dvcr-data-importer"

// OwnerUIDLabel on a data pod is the UID of the object it works for.
const OwnerUIDLabel = "internal.virtualization.deckhouse.io/owner-uid"

// dataUser is the uid and gid of every pod that touches a disk: QEMU's.
const dataUser = 107

// dataDeadline ends a pod that neither succeeds nor fails, in seconds. It is half
// the life of the token in its Secret.
const dataDeadline = 12 * 60 * 60

// DataPod describes one run of the importer: an import into the registry or the
// filling of a volume. The paths are those the importer expects.
type DataPod struct {
	Namespace string
	// Name of both the pod and its Secret; it contains the number of the attempt.
	Name  string
	Owner metav1.OwnerReference
	// Image is the importer's container image.
	Image string
	// Config is the importer's whole configuration; it holds a token.
	Config []byte
	// ConfigKey and ConfigDir are where the importer looks for it.
	ConfigKey, ConfigDir string
	// ScratchDir gets an emptyDir of at most ScratchLimit bytes; empty for none.
	ScratchDir   string
	ScratchLimit int64
	// Claim is mounted read-write at ClaimDir; empty for none. A pod that writes a volume
	// carries a finalizer: it must not be forgotten before it is known to have stopped.
	Claim, ClaimDir string
	// AnyNode tolerates taints that keep ordinary pods from being scheduled: a volume
	// that is bound to a node must be filled there.
	AnyNode bool
}

// Secret is what the pod reads its configuration from. It belongs to the pod and
// goes with it: the token in it must not outlive the run.
func (d DataPod) Secret(pod *corev1.Pod) *corev1.Secret {
	meta := d.meta()
	meta.Annotations = nil
	meta.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID}}
	return &corev1.Secret{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"},
		ObjectMeta: meta,
		Immutable:  new(true),
		Data:       map[string][]byte{d.ConfigKey: d.Config},
	}
}

// Pod is the run itself: no credentials but the one in its Secret, no
// capabilities, nothing writable but scratch and target.
func (d DataPod) Pod() *corev1.Pod {
	pod := &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: d.meta(),
		Spec: corev1.PodSpec{
			RestartPolicy:                corev1.RestartPolicyNever,
			AutomountServiceAccountToken: new(false),
			EnableServiceLinks:           new(false),
			ActiveDeadlineSeconds:        new(int64(dataDeadline)),
			SecurityContext: &corev1.PodSecurityContext{
				RunAsNonRoot: new(true),
				RunAsUser:    new(int64(dataUser)),
				RunAsGroup:   new(int64(dataUser)),
				FSGroup:      new(int64(dataUser)),
				// A volume may hold a whole file system of somebody's; only its root is ours.
				FSGroupChangePolicy: new(corev1.FSGroupChangeOnRootMismatch),
				SeccompProfile:      &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
			Tolerations: []corev1.Toleration{{
				Key: "dedicated.deckhouse.io", Operator: corev1.TolerationOpEqual, Value: "system",
			}},
			Containers: []corev1.Container{{
				Name:            "importer",
				Image:           d.Image,
				ImagePullPolicy: corev1.PullIfNotPresent,
				Resources: corev1.ResourceRequirements{
					Requests: corev1.ResourceList{
						corev1.ResourceCPU:    resource.MustParse("100m"),
						corev1.ResourceMemory: resource.MustParse("60M"),
					},
					Limits: corev1.ResourceList{
						corev1.ResourceCPU:    resource.MustParse("1"),
						corev1.ResourceMemory: resource.MustParse("3600M"),
					},
				},
				SecurityContext: &corev1.SecurityContext{
					AllowPrivilegeEscalation: new(false),
					ReadOnlyRootFilesystem:   new(true),
					Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
				},
			}},
		},
	}
	if d.AnyNode {
		pod.Spec.Tolerations = append(pod.Spec.Tolerations,
			corev1.Toleration{Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule})
	}
	mount(&pod.Spec, "config", d.ConfigDir, true, corev1.VolumeSource{
		Secret: &corev1.SecretVolumeSource{SecretName: d.Name, DefaultMode: new(int32(0o440))},
	})
	if d.ScratchDir != "" {
		mount(&pod.Spec, "scratch", d.ScratchDir, false, corev1.VolumeSource{
			EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: resource.NewQuantity(d.ScratchLimit, resource.BinarySI)},
		})
	}
	if d.Claim != "" {
		pod.Finalizers = []string{v1alpha2.FinalizerPodProtection}
		mount(&pod.Spec, "target", d.ClaimDir, false, corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: d.Claim},
		})
	}
	return pod
}

func (d DataPod) meta() metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace: d.Namespace,
		Name:      d.Name,
		Labels: map[string]string{
			"app":         DataPodApp,
			"heritage":    "deckhouse",
			"module":      "virtualization",
			OwnerUIDLabel: string(d.Owner.UID),
		},
		// Drain and descheduler would only make it start over.
		Annotations:     map[string]string{"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"},
		OwnerReferences: []metav1.OwnerReference{d.Owner},
	}
}

// mount adds one volume to a pod and to its first container.
func mount(spec *corev1.PodSpec, name, path string, readOnly bool, source corev1.VolumeSource) {
	spec.Volumes = append(spec.Volumes, corev1.Volume{Name: name, VolumeSource: source})
	spec.Containers[0].VolumeMounts = append(spec.Containers[0].VolumeMounts,
		corev1.VolumeMount{Name: name, MountPath: path, ReadOnly: readOnly})
}
