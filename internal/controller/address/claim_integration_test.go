//go:build integration

package address

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"orlop.dev/orlop/api/core/v1alpha2"
	deckhousev1alpha1 "orlop.dev/orlop/api/deckhouse/v1alpha1"
	instancev1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
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
	configure(t, c)
	m, err := ctrl.NewManager(api.Config(), ctrl.Options{Scheme: testkit.Scheme(), Metrics: server.Options{BindAddress: "0"},
		Controller: ctrlconfig.Controller{SkipNameValidation: new(true)}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	if err := Setup(ctx, m, Retention); err != nil {
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

// configure sets the ranges that the tests of the package share.
func configure(t *testing.T, c client.Client) {
	t.Helper()
	ranges(t, c, "10.66.10.0/28", "10.66.20.0/24")
}

// ranges sets the ranges of the module.
func ranges(t *testing.T, c client.Client, cidrs ...string) {
	t.Helper()
	settings, err := json.Marshal(map[string]any{"virtualMachineCIDRs": cidrs,
		"dvcr": map[string]any{"storage": map[string]any{"type": "PersistentVolumeClaim", "persistentVolumeClaim": map[string]any{"size": "1G"}}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background() // clean-up calls this too
	config := &deckhousev1alpha1.ModuleConfig{ObjectMeta: metav1.ObjectMeta{Name: "virtualization"}}
	_, err = controllerutil.CreateOrPatch(ctx, c, config, func() error {
		config.Spec.Version, config.Spec.Settings = 1, &runtime.RawExtension{Raw: settings}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
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

	// A lease that somebody deletes comes back, and so does its label.
	former := lease.UID
	if err := c.Delete(t.Context(), lease); err != nil {
		t.Fatal(err)
	}
	restored := func() error {
		if err := c.Get(t.Context(), client.ObjectKeyFromObject(lease), lease); err != nil {
			return err
		}
		if lease.UID == former || lease.Labels[v1alpha2.LabelVirtualMachineIPAddressUID] != string(taken.UID) {
			return fmt.Errorf("%+v", lease.ObjectMeta)
		}
		return nil
	}
	testkit.Eventually(t, patience, "a deleted lease is made again", restored)
	bounds(t, c, taken, bound, "10.66.10.4", "Bound")
	stripped := lease.DeepCopy()
	stripped.Labels = nil
	if err := c.Patch(t.Context(), stripped, client.MergeFrom(lease)); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, patience, "the label is put back", restored)
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
	// It is held back while the machine is there, and goes with it.
	if err := c.Delete(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	bounds(t, c, a, v1alpha2.VirtualMachineIPAddressAttached, "", "Bound")
	if !slices.Contains(a.Finalizers, v1alpha2.FinalizerVirtualMachineIPAddressProtection) {
		t.Errorf("finalizers %q", a.Finalizers)
	}
	if err := c.Delete(t.Context(), vm); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, patience, "the claim goes with its machine", func() error { return gone(c.Get(t.Context(), client.ObjectKeyFromObject(a), a)) })
}

func TestOneMachinePerClaim(t *testing.T) {
	c, namespace := start(t)
	shared := claim(t, c, namespace, "shared", "")
	names := func(name string) *v1alpha2.VirtualMachine {
		vm := testkit.VM(name).Namespace(namespace).Disk("root").With(func(vm *v1alpha2.VirtualMachine) {
			vm.Spec.VirtualMachineIPAddressName = shared.Name
		}).Fresh()
		if err := c.Create(t.Context(), vm); err != nil {
			t.Fatal(err)
		}
		return vm
	}
	uses := func(name string) {
		t.Helper()
		testkit.Eventually(t, patience, name+" uses the claim", func() error {
			if err := c.Get(t.Context(), client.ObjectKeyFromObject(shared), shared); err != nil {
				return err
			}
			if shared.Status.VirtualMachineName != name || shared.Status.Phase != v1alpha2.VirtualMachineIPAddressAttached {
				return fmt.Errorf("%+v", shared.Status)
			}
			return nil
		})
	}
	first := names("first")
	uses("first")
	// The process of the first one keeps the address, whatever its machine wants by now.
	process := &instancev1alpha1.Instance{ObjectMeta: metav1.ObjectMeta{Name: "virt-launcher-first-1", Namespace: namespace},
		Spec: instancev1alpha1.InstanceSpec{VirtualMachine: instancev1alpha1.VirtualMachineReference{Name: "first", UID: first.UID},
			Power: instancev1alpha1.PowerOn, RebootAction: instancev1alpha1.RebootReset,
			Machine: instancev1alpha1.Machine{Type: "pc-q35-10.0", UUID: string(first.UID), Firmware: "BIOS",
				CPU: instancev1alpha1.CPU{Model: "host", Sockets: 1, CoresPerSocket: 1, MaxCPUs: 1}, Memory: instancev1alpha1.Memory{Size: resource.MustParse("256Mi")}},
			Network: &instancev1alpha1.Network{AddressSource: instancev1alpha1.AddressFromLease, Address: shared.Status.Address}}}
	if err := c.Create(t.Context(), process); err != nil {
		t.Fatal(err)
	}
	names("second")
	changed := first.DeepCopy()
	changed.Spec.VirtualMachineIPAddressName = "another"
	if err := c.Patch(t.Context(), changed, client.MergeFrom(first)); err != nil {
		t.Fatal(err)
	}
	testkit.Never(t, 500*time.Millisecond, "the second machine gets the address of a process", func() error {
		if err := c.Get(t.Context(), client.ObjectKeyFromObject(shared), shared); err != nil {
			return err
		}
		if shared.Status.VirtualMachineName == "second" {
			return errors.New("it has it")
		}
		return nil
	})
	if err := c.Delete(t.Context(), process); err != nil {
		t.Fatal(err)
	}
	uses("second")
}

// TestNothingIsFree: a claim that finds no address waits, and gets the first one that
// its namespace gives back, or that a larger range brings.
func TestNothingIsFree(t *testing.T) {
	c, namespace := start(t)
	ranges(t, c, "10.66.30.0/30")
	t.Cleanup(func() { configure(t, c) })
	only := claim(t, c, namespace, "only", "")
	bounds(t, c, only, v1alpha2.VirtualMachineIPAddressBound, "10.66.30.2", "Bound")
	mine := claim(t, c, namespace, "mine", "")
	theirs := claim(t, c, testkit.API(t).Namespace(t), "theirs", "")
	for _, a := range []*v1alpha2.VirtualMachineIPAddress{mine, theirs} {
		bounds(t, c, a, v1alpha2.VirtualMachineIPAddressPending, "", "VirtualMachineIPAddressIsOutOfTheValidRange")
	}
	if err := c.Delete(t.Context(), only); err != nil {
		t.Fatal(err)
	}
	bounds(t, c, mine, v1alpha2.VirtualMachineIPAddressBound, "10.66.30.2", "Bound")
	ranges(t, c, "10.66.30.0/30", "10.66.31.0/30")
	bounds(t, c, theirs, v1alpha2.VirtualMachineIPAddressBound, "10.66.31.2", "Bound")
}
