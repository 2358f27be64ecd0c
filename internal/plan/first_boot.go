package plan

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
)

// CloudInitSecretType is the type of Secrets with cloud-init data.
const CloudInitSecretType corev1.SecretType = "provisioning.virtualization.deckhouse.io/cloud-init"

// FirstBootSecret describes the Secret that is mounted into an instance's pod. It is
// made once for each instance, so that a change of the source reaches a guest only
// with its next start, and it goes with the instance.
func FirstBootSecret(vm *v1alpha2.VirtualMachine, instance *v1alpha1.Instance, userData []byte) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Name: instance.Name, Namespace: vm.Namespace,
			Labels:          map[string]string{v1alpha2.LabelVirtualMachineUID: string(vm.UID)},
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(instance, v1alpha1.GroupVersion.WithKind("Instance"))},
		},
		Data: map[string][]byte{
			"user-data": userData,
			"meta-data": fmt.Appendf(nil, "instance-id: %s\nlocal-hostname: %s\n", vm.UID, vm.Name),
		},
	}
}

// UserData takes the cloud-init text out of a user's Secret.
func UserData(secret *corev1.Secret) ([]byte, error) {
	if secret.Type != CloudInitSecretType {
		return nil, fmt.Errorf("secret %s has type %s instead of %s", secret.Name, secret.Type, CloudInitSecretType)
	}
	for _, key := range []string{"userData", "userdata"} {
		if data, ok := secret.Data[key]; ok {
			return data, nil
		}
	}
	return nil, fmt.Errorf("secret %s has no key userData", secret.Name)
}

// UserDataWarning says what is odd about cloud-init data, or nothing. The guest
// decides what it makes of it, so this never stops a start.
func UserDataWarning(data []byte) string {
	line, _, _ := strings.Cut(string(data), "\n")
	line = strings.TrimSpace(line)
	for _, known := range []string{"#cloud-config", "#!", "#include", "#cloud-boothook", "#part-handler", "#upstart-job",
		"## template: jinja", "Content-Type:", "MIME-Version:"} {
		if strings.HasPrefix(line, known) {
			return ""
		}
	}
	if strings.HasPrefix(string(data), "\x1f\x8b") {
		return "" // gzip
	}
	return fmt.Sprintf("The first line of the cloud-init data is %.40q, which cloud-init does not know; it should be #cloud-config or a script", line)
}
