//go:build integration

package address

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"orlop.dev/orlop/api/core/v1alpha2"
	deckhousev1alpha1 "orlop.dev/orlop/api/deckhouse/v1alpha1"
	"orlop.dev/orlop/internal/plan"
	"orlop.dev/orlop/internal/testkit"
)

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard())
	testkit.Main(m)
}

const patience = 20 * time.Second

func start(t *testing.T) (client.Client, string) {
	t.Helper()
	api := testkit.API(t)
	c := api.Client(t)
	config := &deckhousev1alpha1.ModuleConfig{ObjectMeta: metav1.ObjectMeta{Name: "virtualization"}}
	config.Spec.Version = 1
	config.Spec.Settings = &runtime.RawExtension{Raw: []byte(
		`{"virtualMachineCIDRs":["10.66.10.0/28"],"dvcr":{"storage":{"type":"PersistentVolumeClaim","persistentVolumeClaim":{"size":"1G"}}}}`)}
	if err := c.Create(t.Context(), config); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	m, err := ctrl.NewManager(api.Config(), ctrl.Options{Scheme: testkit.Scheme(), Metrics: server.Options{BindAddress: "0"},
		Controller: ctrlconfig.Controller{SkipNameValidation: new(true)}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	if err := Setup(ctx, m); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- m.Start(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return c, api.Namespace(t)
}

func claim(t *testing.T, c client.Client, namespace, name, static string) *v1alpha2.VirtualMachineIPAddress {
	t.Helper()
	a := &v1alpha2.VirtualMachineIPAddress{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace},
		Spec: v1alpha2.VirtualMachineIPAddressSpec{Type: v1alpha2.VirtualMachineIPAddressAuto}}
	if static != "" {
		a.Spec = v1alpha2.VirtualMachineIPAddressSpec{Type: v1alpha2.VirtualMachineIPAddressStatic, StaticIP: static}
	}
	if err := c.Create(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	return a
}

func bounds(t *testing.T, c client.Client, a *v1alpha2.VirtualMachineIPAddress, phase v1alpha2.VirtualMachineIPAddressPhase, address, reason string) {
	t.Helper()
	testkit.Eventually(t, patience, fmt.Sprintf("claim %s is %s with %q", a.Name, phase, address), func() error {
		if err := c.Get(t.Context(), client.ObjectKeyFromObject(a), a); err != nil {
			return err
		}
		if a.Status.Phase != phase || (address != "" && a.Status.Address != address) {
			return fmt.Errorf("%+v", a.Status)
		}
		for _, condition := range a.Status.Conditions {
			if condition.Type == v1alpha2.AddressConditionBound && condition.Reason == reason {
				return nil
			}
		}
		return fmt.Errorf("%+v", a.Status)
	})
}

func TestClaims(t *testing.T) {
	c, namespace := start(t)
	const bound = v1alpha2.VirtualMachineIPAddressBound
	first := claim(t, c, namespace, "first", "")
	bounds(t, c, first, bound, "10.66.10.2", "Bound")
	fixed := claim(t, c, namespace, "fixed", "10.66.10.3")
	bounds(t, c, fixed, bound, "10.66.10.3", "Bound")
	second := claim(t, c, namespace, "second", "")
	bounds(t, c, second, bound, "10.66.10.4", "Bound")

	taken := claim(t, c, namespace, "taken", "10.66.10.4")
	bounds(t, c, taken, v1alpha2.VirtualMachineIPAddressPending, "", "VirtualMachineIPAddressLeaseAlreadyExists")
	outside := claim(t, c, namespace, "outside", "192.168.1.1")
	bounds(t, c, outside, v1alpha2.VirtualMachineIPAddressPending, "", "VirtualMachineIPAddressIsOutOfTheValidRange")

	// A released address stays with its namespace, and is not given to anybody else.
	if err := c.Delete(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	lease := &v1alpha2.VirtualMachineIPAddressLease{}
	testkit.Eventually(t, patience, "the claim that waits for the address gets it", func() error {
		if err := c.Get(t.Context(), client.ObjectKey{Name: "ip-10-66-10-4"}, lease); err != nil {
			return err
		}
		if ref := lease.Spec.VirtualMachineIPAddressRef; ref == nil || ref.Name != "taken" {
			return fmt.Errorf("held by %+v", ref)
		}
		return nil
	})
	bounds(t, c, taken, bound, "10.66.10.4", "Bound")

	// A lease that somebody deletes or strips stays or comes back.
	if err := c.Delete(t.Context(), lease); err != nil {
		t.Fatal(err)
	}
	testkit.Never(t, 500*time.Millisecond, "a held lease goes away", func() error {
		return c.Get(t.Context(), client.ObjectKeyFromObject(lease), lease)
	})
}

func TestReleasedLeaseIsKeptForItsNamespace(t *testing.T) {
	c, namespace := start(t)
	mine := claim(t, c, namespace, "mine", "10.66.10.7")
	bounds(t, c, mine, v1alpha2.VirtualMachineIPAddressBound, "10.66.10.7", "Bound")
	if err := c.Delete(t.Context(), mine); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, patience, "the lease is released", func() error {
		lease := &v1alpha2.VirtualMachineIPAddressLease{}
		if err := c.Get(t.Context(), client.ObjectKey{Name: "ip-10-66-10-7"}, lease); err != nil {
			return err
		}
		if lease.Status.Phase != v1alpha2.VirtualMachineIPAddressLeaseReleased {
			return fmt.Errorf("%+v", lease)
		}
		return nil
	})
	elsewhere := claim(t, c, testkit.API(t).Namespace(t), "theirs", "10.66.10.7")
	bounds(t, c, elsewhere, v1alpha2.VirtualMachineIPAddressPending, "", "VirtualMachineIPAddressLeaseAlreadyExists")
	again := claim(t, c, namespace, "again", "10.66.10.7")
	bounds(t, c, again, v1alpha2.VirtualMachineIPAddressBound, "10.66.10.7", "Bound")
}

func TestClaimKnowsItsMachine(t *testing.T) {
	c, namespace := start(t)
	vm := testkit.VM("user").Namespace(namespace).Disk("root").Fresh()
	if err := c.Create(t.Context(), vm); err != nil {
		t.Fatal(err)
	}
	a := claim(t, c, namespace, plan.AddressName("user", vm.UID), "")
	bounds(t, c, a, v1alpha2.VirtualMachineIPAddressAttached, "", "Bound")
	if a.Status.VirtualMachineName != "user" {
		t.Errorf("used by %q", a.Status.VirtualMachineName)
	}
}
