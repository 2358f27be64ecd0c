package testkit

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	corev1alpha2 "orlop.dev/orlop/api/core/v1alpha2"
)

func TestMain(m *testing.M) { Main(m) }

func TestServerServesOurKinds(t *testing.T) {
	if testing.Short() {
		t.Skip("needs the embedded Kubernetes")
	}
	server := API(t)
	c, namespace := server.Client(t), server.Namespace(t)
	vm := VM("a").Namespace(namespace).Disk("root").Fresh()
	if err := c.Create(t.Context(), vm); err != nil {
		t.Fatal(err)
	}
	var read corev1alpha2.VirtualMachine
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(vm), &read); err != nil {
		t.Fatal(err)
	}
	if read.Spec.RunPolicy != corev1alpha2.AlwaysOnUnlessStoppedManually || *read.Spec.TerminationGracePeriodSeconds != 60 {
		t.Errorf("defaults are missing: %+v", read.Spec)
	}
	other := server.ClientFor(t, server.As("nobody", []string{"system:authenticated"}, nil))
	if err := other.List(t.Context(), &corev1.SecretList{}); err == nil {
		t.Error("an impersonated user may do everything")
	}
}

func TestSuspiciousFindsAGoroutine(t *testing.T) {
	release := make(chan struct{})
	go func() { <-release }()
	if len(suspicious()) == 0 {
		t.Error("a goroutine that waits for ever is not found")
	}
	close(release)
}
