package plan

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestDataPods(t *testing.T) {
	data := DataPod{
		Namespace: "default", Name: DataPodName("vi", uid, 1), Image: "orlop.internal/dvcr-importer:1",
		Owner:  metav1.OwnerReference{APIVersion: "virtualization.deckhouse.io/v1alpha2", Kind: "VirtualImage", Name: "debian", UID: uid},
		Config: []byte("{}"), ConfigKey: "config.json", ConfigDir: "/run/importer",
		ScratchDir: "/scratch", ScratchLimit: gibi,
	}
	pod := data.Pod()
	golden(t, "image-importer", pod)
	pod.UID = "pod"
	golden(t, "image-importer-secret", data.Secret(pod))

	data.Name, data.ScratchDir = DataPodName("vd", uid, 2), ""
	data.Claim, data.ClaimDir, data.AnyNode = "vd-root-0f1e2d3c-prime", "/target", true
	golden(t, "disk-populator", data.Pod())
}

// TestDataPodIsUnprivileged is what the namespace's "restricted" standard asks for,
// and a little more.
func TestDataPodIsUnprivileged(t *testing.T) {
	spec := DataPod{Name: "x", ScratchDir: "/scratch", Claim: "c", ClaimDir: "/target"}.Pod().Spec
	c := spec.Containers[0]
	switch {
	case spec.AutomountServiceAccountToken == nil || *spec.AutomountServiceAccountToken:
		t.Error("it gets a token of the service account")
	case !*spec.SecurityContext.RunAsNonRoot || *spec.SecurityContext.RunAsUser != 107:
		t.Error("it does not run as user 107")
	case *c.SecurityContext.AllowPrivilegeEscalation || !*c.SecurityContext.ReadOnlyRootFilesystem:
		t.Error("it can write its root or gain privileges")
	case len(c.SecurityContext.Capabilities.Drop) != 1 || c.SecurityContext.Capabilities.Drop[0] != "ALL" || c.SecurityContext.Capabilities.Add != nil:
		t.Error("it keeps capabilities")
	case spec.SecurityContext.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault:
		t.Error("it runs without seccomp")
	case spec.HostNetwork || spec.HostPID || spec.HostIPC:
		t.Error("it shares namespaces with the host")
	case spec.ActiveDeadlineSeconds == nil || c.Resources.Limits.Memory().IsZero() || c.Resources.Limits.Cpu().IsZero():
		t.Error("it is not bounded")
	}
}

func TestImageRepository(t *testing.T) {
	const host = "dvcr.d8-virtualization.svc:5000"
	if got := ImageRepository(host, "default", "debian"); got != "vi/default/debian" {
		t.Error(got)
	}
	if got := ImageRepository(host, "", "debian"); got != "cvi/debian" {
		t.Error(got)
	}
	long := ImageRepository(host, strings.Repeat("n", 63), strings.Repeat("x", 253))
	if len(host+"/"+long) > 255 {
		t.Errorf("%d characters", len(host+"/"+long))
	}
	if long == ImageRepository(host, strings.Repeat("n", 63), strings.Repeat("x", 252)) {
		t.Error("two long names become one")
	}
	if tail := long[len(long)-17:]; tail[0] != '-' {
		t.Errorf("ends in %q, want - and 16 hex digits", tail)
	}
}
