//go:build integration

package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"orlop.dev/orlop/api/core/v1alpha2"
	deckhousev1alpha1 "orlop.dev/orlop/api/deckhouse/v1alpha1"
	instancev1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/testkit"
)

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard())
	testkit.Main(m)
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// TestWholeController runs everything the binary runs, with its webhooks called by a
// real API server.
func TestWholeController(t *testing.T) {
	api := testkit.API(t)
	c := api.Client(t)
	t.Setenv("KUBECONFIG", api.Kubeconfig())
	create := func(o client.Object) {
		t.Helper()
		if err := c.Create(t.Context(), o); err != nil {
			t.Fatalf("create %T: %v", o, err)
		}
	}
	create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "d8-virtualization"}})
	config := &deckhousev1alpha1.ModuleConfig{ObjectMeta: metav1.ObjectMeta{Name: "virtualization"}}
	config.Spec.Version = 1
	config.Spec.Settings = &runtime.RawExtension{Raw: []byte(
		`{"virtualMachineCIDRs":["10.66.10.0/24"],"dvcr":{"storage":{"type":"PersistentVolumeClaim","persistentVolumeClaim":{"size":"1G"}}}}`)}
	create(config)
	create(testkit.Class("generic").Default().Fresh())

	port, health := freePort(t), freePort(t)
	f := flags{metrics: "0", health: fmt.Sprintf("127.0.0.1:%d", health), webhookPort: port, leaderElection: true}
	f.platform.Namespace, f.platform.LauncherImage, f.platform.ImporterImage, f.platform.DVCRHost = "d8-virtualization", "launcher", "importer", "dvcr:5000"
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- run(ctx, logr.Discard(), f) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	testkit.Eventually(t, time.Minute, "the controller is ready", func() error {
		response, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/readyz", health))
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("status %d", response.StatusCode)
		}
		return nil
	})
	connection, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port), &tls.Config{InsecureSkipVerify: true}) // only who answers matters
	if err != nil {
		t.Fatal(err)
	}
	_ = connection.Close()
	registerWebhooks(t, c, port)
	admissions(t, c, api.Namespace(t))
	evictions(t, c, api.Namespace(t))
}

// evictions: a pod of a machine is never evicted, but its machine is asked to move; of
// a pod of somebody else nothing is asked, whatever its name.
func evictions(t *testing.T, c client.Client, namespace string) {
	launcher := map[string]string{v1alpha2.LabelLauncher: v1alpha2.LauncherValue, v1alpha2.LabelVirtualMachineUID: "uid", v1alpha2.LabelVirtualMachineName: "m"}
	cases := map[string]struct {
		labels  map[string]string
		dryRun  bool
		refused bool
		marked  bool
	}{
		"virt-launcher-m-1":     {labels: launcher, refused: true, marked: true},
		"virt-launcher-m-2":     {labels: launcher, refused: true, dryRun: true},
		"virt-launcher-foreign": {},
		"foreign":               {labels: launcher},
	}
	for name, tc := range cases {
		t.Run("eviction of "+name, func(t *testing.T) {
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: tc.labels},
				Spec: corev1.PodSpec{NodeName: "n", Containers: []corev1.Container{{Name: "c", Image: "i"}}, AutomountServiceAccountToken: new(false),
					TerminationGracePeriodSeconds: new(int64(0))}}
			if err := c.Create(t.Context(), pod); err != nil {
				t.Fatal(err)
			}
			options := &client.SubResourceCreateOptions{}
			if tc.dryRun {
				options.DryRun = []string{metav1.DryRunAll}
			}
			err := c.SubResource("eviction").Create(t.Context(), pod, &policyv1.Eviction{}, options)
			if tc.refused != apierrors.IsTooManyRequests(err) || !tc.refused && err != nil {
				t.Fatalf("got %v", err)
			}
			if !tc.refused {
				return
			}
			if err := c.Get(t.Context(), client.ObjectKeyFromObject(pod), pod); err != nil {
				t.Fatal(err)
			}
			if got := pod.Annotations[v1alpha2.AnnotationEvacuationRequested]; (got == "n") != tc.marked {
				t.Errorf("the request is written down as %q", got)
			}
		})
	}
}

// ownAddress is an address of this machine that is not the loopback's, which the API
// server takes for no endpoint.
func ownAddress(t *testing.T) string {
	t.Helper()
	all, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
			return n.IP.String()
		}
	}
	t.Skip("this machine has no address but the loopback's")
	return ""
}

// registerWebhooks points the API server to the controller, as the chart would.
func registerWebhooks(t *testing.T, c client.Client, port int) {
	t.Helper()
	secret := &corev1.Secret{}
	if err := c.Get(t.Context(), client.ObjectKey{Namespace: "d8-virtualization", Name: "virtualization-controller-tls"}, secret); err != nil {
		t.Fatal(err)
	}
	// The certificate is for the Service's name; this Service leads to this process.
	name := metav1.ObjectMeta{Name: "virtualization-controller", Namespace: "d8-virtualization",
		Labels: map[string]string{discoveryv1.LabelServiceName: "virtualization-controller"}}
	for _, o := range []client.Object{
		&corev1.Service{ObjectMeta: name, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "webhooks", Port: 443}}}},
		&discoveryv1.EndpointSlice{ObjectMeta: name, AddressType: discoveryv1.AddressTypeIPv4,
			Endpoints: []discoveryv1.Endpoint{{Addresses: []string{ownAddress(t)}}},
			Ports:     []discoveryv1.EndpointPort{{Name: new("webhooks"), Port: new(int32(port))}}},
	} {
		if err := c.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	validating := &admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "test"}}
	rules := func(plural string) []admissionregistrationv1.RuleWithOperations {
		return []admissionregistrationv1.RuleWithOperations{{
			Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create, admissionregistrationv1.Update},
			Rule:       admissionregistrationv1.Rule{APIGroups: []string{"virtualization.deckhouse.io"}, APIVersions: []string{"v1alpha2"}, Resources: []string{plural}}}}
	}
	clientConfig := func(path string) admissionregistrationv1.WebhookClientConfig {
		return admissionregistrationv1.WebhookClientConfig{CABundle: secret.Data["ca.crt"], Service: &admissionregistrationv1.ServiceReference{
			Namespace: "d8-virtualization", Name: "virtualization-controller", Path: new("/" + path)}}
	}
	kinds := map[string]string{"virtualmachines": "virtualmachine", "virtualmachineclasses": "virtualmachineclass",
		"virtualmachineoperations": "virtualmachineoperation", "virtualmachineipaddresses": "virtualmachineipaddress",
		"virtualmachineipaddressleases": "virtualmachineipaddresslease", "virtualmachinemacaddresses": "virtualmachinemacaddress",
		"virtualdisks": "virtualdisk"}
	for plural, singular := range kinds {
		validating.Webhooks = append(validating.Webhooks, admissionregistrationv1.ValidatingWebhook{
			Name: singular + ".test.io", AdmissionReviewVersions: []string{"v1"}, SideEffects: new(admissionregistrationv1.SideEffectClassNone),
			ClientConfig: clientConfig("validate-virtualization-deckhouse-io-v1alpha2-" + singular), Rules: rules(plural)})
	}
	validating.Webhooks = append(validating.Webhooks, admissionregistrationv1.ValidatingWebhook{
		Name: "eviction.test.io", AdmissionReviewVersions: []string{"v1"}, SideEffects: new(admissionregistrationv1.SideEffectClassNoneOnDryRun),
		ClientConfig: clientConfig("evict-virtual-machine"), FailurePolicy: new(admissionregistrationv1.Fail),
		MatchConditions: []admissionregistrationv1.MatchCondition{{Name: "launcher", Expression: "request.name.startsWith('virt-launcher-')"}},
		Rules: []admissionregistrationv1.RuleWithOperations{{
			Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
			Rule:       admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods/eviction"}}}}})
	mutating := &admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "test"},
		Webhooks: []admissionregistrationv1.MutatingWebhook{{
			Name: "virtualmachine.test.io", AdmissionReviewVersions: []string{"v1"}, SideEffects: new(admissionregistrationv1.SideEffectClassNone),
			ClientConfig: clientConfig("mutate-virtualization-deckhouse-io-v1alpha2-virtualmachine"), Rules: rules("virtualmachines")}}}
	for _, o := range []client.Object{validating, mutating} {
		if err := c.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Delete(context.Background(), o) })
	}
}

func admissions(t *testing.T, c client.Client, namespace string) {
	machine := func(change func(*v1alpha2.VirtualMachine)) client.Object {
		vm := testkit.VM("m").Namespace(namespace).Disk("root").Fresh()
		vm.Spec.VirtualMachineClassName, vm.Spec.CPU.CoreFraction = "", ""
		change(vm)
		return vm
	}
	operation := func(kind v1alpha2.OperationType) client.Object {
		o := testkit.Operation(kind, "m")
		o.ObjectMeta = metav1.ObjectMeta{Name: strings.ToLower(string(kind)), Namespace: namespace}
		return o
	}
	address := func(static string) client.Object {
		return &v1alpha2.VirtualMachineIPAddress{ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: namespace},
			Spec: v1alpha2.VirtualMachineIPAddressSpec{Type: v1alpha2.VirtualMachineIPAddressStatic, StaticIP: static}}
	}
	cases := map[string]struct {
		object client.Object
		want   string
	}{
		"a plain machine":      {machine(func(*v1alpha2.VirtualMachine) {}), ""},
		"EFI":                  {machine(func(vm *v1alpha2.VirtualMachine) { vm.Spec.Bootloader = v1alpha2.EFI }), "EFI is not supported"},
		"Windows":              {machine(func(vm *v1alpha2.VirtualMachine) { vm.Spec.OSType = v1alpha2.OSTypeWindows }), "Windows is not supported"},
		"17 cores":             {machine(func(vm *v1alpha2.VirtualMachine) { vm.Spec.CPU.Cores = 17 }), "multiple of 2"},
		"an image as a device": {machine(func(vm *v1alpha2.VirtualMachine) { vm.Spec.BlockDeviceRefs[0].Kind = v1alpha2.ImageDevice }), ""},
		"a disk listed twice": {machine(func(vm *v1alpha2.VirtualMachine) {
			vm.Spec.BlockDeviceRefs = append(vm.Spec.BlockDeviceRefs, vm.Spec.BlockDeviceRefs[0])
		}), "listed twice"},
		"a class that does not exist and no share": {machine(func(vm *v1alpha2.VirtualMachine) { vm.Spec.VirtualMachineClassName = "none" }), "does not exist"},
		"a migration": {operation(v1alpha2.OperationMigrate), ""},
		"a migration to labels that cannot be": {func() client.Object {
			o := operation(v1alpha2.OperationMigrate).(*v1alpha2.VirtualMachineOperation)
			o.Spec.Migrate = &v1alpha2.VirtualMachineOperationMigrate{NodeSelector: map[string]string{"a b": "c"}}
			return o
		}(), "spec.migrate.nodeSelector"},
		"a stop":                           {operation(v1alpha2.OperationStop), ""},
		"an address outside of the ranges": {address("192.168.0.1"), "not in the ranges"},
		"the router's address":             {address("10.66.10.1"), "router"},
		"a hardware address of a group": {&v1alpha2.VirtualMachineMACAddress{ObjectMeta: metav1.ObjectMeta{Name: "group", Namespace: namespace},
			Spec: v1alpha2.VirtualMachineMACAddressSpec{Address: "01:00:5e:00:00:01"}}, "group address"},
		"a class with overlapping ranges": {testkit.Class("odd").With(func(c *v1alpha2.VirtualMachineClass) {
			c.Spec.SizingPolicies = []v1alpha2.SizingPolicy{{Cores: &v1alpha2.SizingPolicyCores{Min: 1, Max: 4}}, {Cores: &v1alpha2.SizingPolicyCores{Min: 4, Max: 8}}}
		}).Fresh(), "overlap"},
		"a second default class": {testkit.Class("other").Default().Fresh(), "is the default already"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			err := c.Create(t.Context(), tc.object, client.DryRunAll)
			if (tc.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
	t.Run("defaults, a lease and a process", func(t *testing.T) {
		vm := machine(func(*v1alpha2.VirtualMachine) {}).(*v1alpha2.VirtualMachine)
		if err := c.Create(t.Context(), vm); err != nil {
			t.Fatal(err)
		}
		if vm.Spec.VirtualMachineClassName != "generic" || vm.Spec.CPU.CoreFraction != "100%" {
			t.Errorf("defaults: class %q, share %q", vm.Spec.VirtualMachineClassName, vm.Spec.CPU.CoreFraction)
		}
		testkit.Eventually(t, 20*time.Second, "the machine has an address and waits for its disk", func() error {
			if err := c.Get(t.Context(), client.ObjectKeyFromObject(vm), vm); err != nil {
				return err
			}
			if vm.Status.IPAddress == "" || vm.Status.Phase != v1alpha2.MachinePending {
				return fmt.Errorf("%+v", vm.Status)
			}
			return nil
		})
		list := &instancev1alpha1.InstanceList{}
		if err := c.List(t.Context(), list); err != nil || len(list.Items) != 0 {
			t.Errorf("instances without a disk: %v %v", list.Items, err)
		}
	})
}
