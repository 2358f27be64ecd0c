package install

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	corev1alpha2 "orlop.dev/orlop/api/core/v1alpha2"
	deckhousev1alpha1 "orlop.dev/orlop/api/deckhouse/v1alpha1"
	instancev1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/controller/certificates"
	"orlop.dev/orlop/internal/pki"
	"orlop.dev/orlop/internal/settings"
	"orlop.dev/orlop/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func TestCheckVersion(t *testing.T) {
	tests := map[string]bool{
		"v1.31.9": false, "v1.32.0": true, "v1.36.3": true, "v1.33.1+k3s1": true, "v1.32.4-eks-abc": true, "v2.0.0": true, "nonsense": false,
	}
	for text, want := range tests {
		if err := checkVersion(text); (err == nil) != want {
			t.Errorf("checkVersion(%s) = %v", text, err)
		}
	}
}

func TestPodCIDR(t *testing.T) {
	tests := map[string]struct {
		nodes []string
		want  string
	}{
		"one node's own range":           {[]string{"10.111.3.0/24"}, "10.111.3.0/24"},
		"the range around two":           {[]string{"10.111.0.0/24", "10.111.1.0/24"}, "10.111.0.0/23"},
		"the range around distant ones":  {[]string{"10.111.1.0/24", "10.111.200.0/24"}, "10.111.0.0/16"},
		"nothing where nothing is known": {[]string{"", ""}, ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var nodes []corev1.Node
			for _, cidr := range test.nodes {
				nodes = append(nodes, corev1.Node{Spec: corev1.NodeSpec{PodCIDR: cidr}})
			}
			if got := podCIDR(nodes); got != test.want {
				t.Errorf("podCIDR() = %q, want %q", got, test.want)
			}
		})
	}
}

// bench is a cluster without nodes on which somebody plays kubelet and components.
type bench struct {
	server *testkit.Server
	client client.WithWatch
	getter *genericclioptions.ConfigFlags
	out    bytes.Buffer
}

func newBench(t *testing.T) *bench {
	t.Helper()
	if testing.Short() {
		t.Skip("needs the embedded Kubernetes")
	}
	server, err := testkit.Start(testkit.Options{WithoutCRDs: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	getter := genericclioptions.NewConfigFlags(true)
	kubeconfig := server.Kubeconfig()
	getter.KubeConfig = &kubeconfig
	return &bench{server: server, client: server.Client(t), getter: getter}
}

func (b *bench) install(t *testing.T) error {
	t.Helper()
	return Install(t.Context(), Options{
		Getter: b.getter, Out: &b.out, Clock: clock.RealClock{}, Registry: "registry.example", Version: "v1", Timeout: 60 * time.Second,
		Module: ModuleOptions{VirtualMachineCIDRs: []string{"10.66.10.0/24"}, DVCRSize: "1G", AllowEmulation: true},
	})
}

// play makes workloads ready, certificates as the controller does, and answers for the
// aggregated API, until the context ends.
func (b *bench) play(ctx context.Context, t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	api := newStandIn(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			b.ready(ctx)
			b.certify(ctx, api)
			select {
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond):
			}
		}
	}()
	return func() { cancel(); <-done; api.close() }
}

func (b *bench) ready(ctx context.Context) {
	var deployments appsv1.DeploymentList
	_ = b.client.List(ctx, &deployments, client.InNamespace(settings.Namespace))
	for _, d := range deployments.Items {
		d.Status = appsv1.DeploymentStatus{ObservedGeneration: d.Generation, Replicas: *d.Spec.Replicas, ReadyReplicas: *d.Spec.Replicas, UpdatedReplicas: *d.Spec.Replicas}
		_ = b.client.Status().Update(ctx, &d)
	}
	var daemons appsv1.DaemonSetList
	_ = b.client.List(ctx, &daemons, client.InNamespace(settings.Namespace))
	for _, d := range daemons.Items {
		d.Status.ObservedGeneration = d.Generation
		_ = b.client.Status().Update(ctx, &d)
	}
}

// certify plays the controller's certificates, and leads both Services to the stand-in.
func (b *bench) certify(ctx context.Context, answers *standIn) {
	if _, err := certificates.Bootstrap(ctx, b.client, settings.Platform{Namespace: settings.Namespace}); err != nil {
		return
	}
	for service, name := range map[string]string{"virtualization-api": certificates.APISecret, "virtualization-controller": certificates.ControllerSecret} {
		secret := &corev1.Secret{}
		if b.client.Get(ctx, client.ObjectKey{Namespace: settings.Namespace, Name: name}, secret) != nil {
			return
		}
		_ = answers.identities[service].SetPair(pki.Pair{Certificate: secret.Data["tls.crt"], Key: secret.Data["tls.key"]})
		ready, port, portName := true, int32(answers.port), map[string]string{"virtualization-api": "https", "virtualization-controller": "webhooks"}[service]
		_ = b.client.Create(ctx, &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Namespace: settings.Namespace, Name: service, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
			AddressType: discoveryv1.AddressTypeIPv4,
			Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{answers.address}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}},
			Ports:       []discoveryv1.EndpointPort{{Name: &portName, Port: &port}},
		})
	}
}

// standIn answers every request: as the aggregated API, and as webhooks that allow everything.
type standIn struct {
	identities map[string]*pki.Held // by service
	address    string
	port       int
	server     *http.Server
	done       chan struct{}
}

func newStandIn(t *testing.T) *standIn {
	t.Helper()
	s := &standIn{identities: map[string]*pki.Held{"virtualization-api": {}, "virtualization-controller": {}}, done: make(chan struct{})}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range addresses {
		// The API server refuses endpoints on the loopback interface.
		if ip, ok := address.(*net.IPNet); ok && ip.IP.To4() != nil && ip.IP.IsGlobalUnicast() {
			s.address = ip.IP.String()
		}
	}
	if s.address == "" {
		t.Skip("this machine has no address but the loopback one")
	}
	listener, err := tls.Listen("tcp", s.address+":0", &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		service, _, _ := strings.Cut(hello.ServerName, ".")
		if identity, ok := s.identities[service]; ok {
			return identity.Current()
		}
		return nil, fmt.Errorf("nobody is called %s", hello.ServerName)
	}})
	if err != nil {
		t.Fatal(err)
	}
	s.port = listener.Addr().(*net.TCPAddr).Port
	s.server = &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		review := &admissionv1.AdmissionReview{}
		if json.NewDecoder(r.Body).Decode(review) == nil && review.Request != nil {
			review.Response = &admissionv1.AdmissionResponse{UID: review.Request.UID, Allowed: true}
			_ = json.NewEncoder(w).Encode(review)
			return
		}
		fmt.Fprint(w, `{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"subresources.virtualization.deckhouse.io/v1alpha2","resources":[]}`)
	})}
	go func() { defer close(s.done); _ = s.server.Serve(listener) }()
	return s
}

func (s *standIn) close() {
	_ = s.server.Close()
	<-s.done
}

func TestInstallTwiceAndUninstall(t *testing.T) {
	b := newBench(t)
	stop := b.play(t.Context(), t)
	defer stop()
	if err := b.install(t); err != nil {
		t.Fatalf("install: %v\n%s", err, b.out.String())
	}
	config := &deckhousev1alpha1.ModuleConfig{}
	if err := b.client.Get(t.Context(), client.ObjectKey{Name: "virtualization"}, config); err != nil {
		t.Fatal(err)
	}
	if config.Annotations[corev1alpha2.AnnotationAllowEmulation] != "true" {
		t.Error("emulation is not allowed")
	}
	class := &corev1alpha2.VirtualMachineClass{ObjectMeta: metav1.ObjectMeta{Name: "generic"}}
	if err := b.client.Get(t.Context(), client.ObjectKeyFromObject(class), class); err != nil {
		t.Fatal(err)
	}

	// What people change or delete is theirs: a second installation leaves it alone.
	config.Spec.Settings.Raw = bytes.ReplaceAll(config.Spec.Settings.Raw, []byte("10.66.10.0/24"), []byte("10.77.0.0/16"))
	if err := b.client.Update(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	if err := b.client.Delete(t.Context(), class); err != nil {
		t.Fatal(err)
	}
	b.out.Reset()
	if err := b.install(t); err != nil {
		t.Fatalf("install again: %v\n%s", err, b.out.String())
	}
	if err := b.client.Get(t.Context(), client.ObjectKey{Name: "virtualization"}, config); err != nil || !strings.Contains(string(config.Spec.Settings.Raw), "10.77.0.0/16") {
		t.Errorf("the ModuleConfig was written over: %s %v", config.Spec.Settings.Raw, err)
	}
	if err := b.client.Get(t.Context(), client.ObjectKeyFromObject(class), class); !apierrors.IsNotFound(err) {
		t.Errorf("the class that was deleted is back: %v", err)
	}

	b.uninstall(t)
}

func (b *bench) uninstall(t *testing.T) {
	t.Helper()
	options := UninstallOptions{Getter: b.getter, Out: &b.out, Clock: clock.RealClock{}, Timeout: 8 * time.Second}
	if err := b.client.Create(t.Context(), testkit.Disk("precious").Size("1Gi").Fresh()); err != nil {
		t.Fatal(err)
	}
	if err := Uninstall(t.Context(), options); err == nil || !strings.Contains(err.Error(), "1 VirtualDisk") {
		t.Fatalf("uninstall with a user's disk says %v", err)
	}
	// Nobody removes namespaces here, so the last part ends at its time-out; before
	// that everything that calls us and every object must be gone.
	options.DeleteUserObjects = true
	if err := Uninstall(t.Context(), options); err == nil || !strings.Contains(err.Error(), "namespace") {
		t.Fatalf("uninstall: %v\n%s", err, b.out.String())
	}
	var disks corev1alpha2.VirtualDiskList
	if err := b.client.List(t.Context(), &disks); err != nil || len(disks.Items) != 0 {
		t.Errorf("disks are left: %v %v", disks.Items, err)
	}
	i, err := newInstaller(Options{Getter: b.getter, Out: &b.out, Clock: clock.RealClock{}})
	if err != nil {
		t.Fatal(err)
	}
	if present, err := i.webhooksInstalled(t.Context()); err != nil || present {
		t.Errorf("webhooks are left: %v %v", present, err)
	}
	if err := errors.Join(i.removeDefinitions(t.Context()), i.removeTraces(t.Context())); err != nil {
		t.Fatal(err)
	}
}

func TestPolicies(t *testing.T) {
	b := newBench(t)
	stop := b.play(t.Context(), t)
	defer stop()
	if err := b.install(t); err != nil {
		t.Fatalf("install: %v\n%s", err, b.out.String())
	}
	account := func(name string) string { return "system:serviceaccount:" + settings.Namespace + ":" + name }
	as := func(user, node string, groups ...string) client.Client {
		extra := map[string][]string{}
		if node != "" {
			extra["authentication.kubernetes.io/node-name"] = []string{node}
		}
		return b.server.ClientFor(t, b.server.As(user, append(groups, "system:authenticated"), extra))
	}
	controller, admin := as(account("virtualization-controller"), "", "system:masters"), as("root", "", "system:masters")
	handlerA, stray := as(account("virt-handler"), "a"), as(account("virt-handler"), "")
	for _, name := range []string{"a", "b"} {
		if err := b.client.Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"theirs": "1"}}}); err != nil {
			t.Fatal(err)
		}
		if err := controller.Create(t.Context(), instance(name)); err != nil {
			t.Fatal(err)
		}
	}
	patch := func(c client.Client, object client.Object, body string) error {
		return c.Patch(t.Context(), object, client.RawPatch(types.MergePatchType, []byte(body)))
	}
	status := func(c client.Client, node string) error {
		return c.Status().Patch(t.Context(), instance(node), client.RawPatch(types.MergePatchType, []byte(`{"status":{"phase":"Running"}}`)))
	}
	node := func(name string) client.Object { return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}} }
	label := func(key string) string { return fmt.Sprintf(`{"metadata":{"labels":{%q:"x"}}}`, key) }
	pod := func(annotation string) client.Object {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", GenerateName: "p-"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "a", Image: "a"}}}}
		if annotation != "" {
			p.Annotations = map[string]string{annotation: "10.66.10.9"}
		}
		return p
	}
	tests := map[string]struct {
		try  func() error
		want bool
	}{
		"a handler reports on its own node":         {func() error { return status(handlerA, "a") }, true},
		"a handler does not report on another node": {func() error { return status(handlerA, "b") }, false},
		"a handler without a node reports nothing":  {func() error { return status(stray, "a") }, false},
		"a handler does not write a specification":  {func() error { return patch(handlerA, instance("a"), `{"spec":{"power":"Off"}}`) }, false},
		"a handler labels its own node":             {func() error { return patch(handlerA, node("a"), label("virtualization.deckhouse.io/kvm-enabled")) }, true},
		"a handler uses its sub-domains": {func() error {
			return patch(handlerA, node("a"), label("kubevirt.internal.virtualization.deckhouse.io/schedulable"))
		}, true},
		"a handler does not label another node":            {func() error { return patch(handlerA, node("b"), label("virtualization.deckhouse.io/kvm-enabled")) }, false},
		"a handler does not set other labels":              {func() error { return patch(handlerA, node("a"), label("node-role.kubernetes.io/control-plane")) }, false},
		"a handler does not set look-alike labels":         {func() error { return patch(handlerA, node("a"), label("evil-virtualization.deckhouse.io/x")) }, false},
		"a handler does not remove other labels":           {func() error { return patch(handlerA, node("a"), `{"metadata":{"labels":{"theirs":null}}}`) }, false},
		"a handler does not taint":                         {func() error { return patch(handlerA, node("a"), `{"spec":{"unschedulable":true}}`) }, false},
		"an administrator does not write internal objects": {func() error { return patch(admin, instance("a"), `{"spec":{"power":"Off"}}`) }, false},
		"nor delete them":                                  {func() error { return admin.Delete(t.Context(), instance("b")) }, false},
		"the controller does":                              {func() error { return patch(controller, instance("a"), `{"spec":{"power":"Off"}}`) }, true},
		"anybody makes ordinary pods":                      {func() error { return admin.Create(t.Context(), pod("")) }, true},
		"nobody chooses a pod's address":                   {func() error { return admin.Create(t.Context(), pod("internal.virtualization.deckhouse.io/ip-address")) }, false},
		"not by the annotation of the CNI either":          {func() error { return admin.Create(t.Context(), pod("cni.cilium.io/ipAddress")) }, false},
		"nor by that of Calico":                            {func() error { return admin.Create(t.Context(), pod("cni.projectcalico.org/ipAddrs")) }, false},
		"nor by that of Kube-OVN":                          {func() error { return admin.Create(t.Context(), pod("ovn.kubernetes.io/ip_address")) }, false},
		"which Kube-OVN itself notes on every pod": {func() error {
			return as("system:serviceaccount:kube-system:ovn", "", "system:masters").Create(t.Context(), pod("ovn.kubernetes.io/ip_address"))
		}, true},
		"but nothing else": {func() error {
			return as("system:serviceaccount:kube-system:ovn", "", "system:masters").Create(t.Context(), pod("cni.cilium.io/ipAddress"))
		}, false},
		"but the controller": {func() error {
			return controller.Create(t.Context(), pod("internal.virtualization.deckhouse.io/ip-address"))
		}, true},
	}
	// A new policy takes effect when the API server has noticed it.
	testkit.Eventually(t, 20*time.Second, "policies in force", func() error {
		if status(handlerA, "b") == nil || admin.Create(t.Context(), pod("cni.cilium.io/ipAddress"), client.DryRunAll) == nil {
			return errors.New("not yet")
		}
		return nil
	})
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if err := test.try(); (err == nil) != test.want {
				t.Errorf("allowed = %v, want %v: %v", err == nil, test.want, err)
			} else if err != nil && !apierrors.IsForbidden(err) {
				t.Errorf("refused for another reason: %v", err)
			}
		})
	}
	kubelet := as("system:node:a", "", "system:nodes", "system:masters")
	var pods corev1.PodList
	if err := b.client.List(t.Context(), &pods, client.InNamespace("default")); err != nil {
		t.Fatal(err)
	}
	for _, p := range pods.Items {
		if err := kubelet.Status().Patch(t.Context(), &p, client.RawPatch(types.MergePatchType, []byte(`{"status":{"message":"x"}}`))); err != nil {
			t.Errorf("the kubelet cannot report on pod %v: %v", p.Annotations, err)
		}
	}
}

func instance(node string) *instancev1alpha1.Instance {
	i := &instancev1alpha1.Instance{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "on-" + node}}
	i.Spec.VirtualMachine.Name, i.Spec.VirtualMachine.UID = "vm", "uid"
	i.Spec.NodeName = node
	i.Spec.Machine = instancev1alpha1.Machine{Type: "pc-q35-10.0", UUID: "u", Hostname: "vm", Firmware: "BIOS", CPU: instancev1alpha1.CPU{Model: "max", Sockets: 1, CoresPerSocket: 1}, Memory: instancev1alpha1.Memory{Size: resource.MustParse("1Gi")}}
	i.Spec.Power, i.Spec.RebootAction = instancev1alpha1.PowerOn, instancev1alpha1.RebootReset
	return i
}
