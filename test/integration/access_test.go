//go:build integration

package integration

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"orlop.dev/orlop/api/core/v1alpha2"
	instancev1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/apiserver"
	"orlop.dev/orlop/internal/pki"
	"orlop.dev/orlop/internal/stream"
	"orlop.dev/orlop/internal/testkit"
)

const patience = 30 * time.Second

// site is the way from a user to a guest with everything real but the guest: the
// aggregated API behind kube-apiserver, and a node whose handler speaks mutual TLS.
type site struct {
	server    *testkit.Server
	admin     client.WithWatch
	namespace string
	address   net.IP
	// direct is where the aggregated API itself listens, and authority who signed it.
	direct    string
	authority *pki.Authority
	node      *node
}

// node is one node's handler. What it does with a stream is set for each instance.
type node struct {
	name      string
	port      int
	authority *pki.Authority
	identity  pki.Held

	mutex   sync.Mutex
	serve   map[string]http.HandlerFunc
	headers []http.Header
}

func newSite(t *testing.T, configure ...func(*apiserver.Options)) *site {
	t.Helper()
	server := testkit.API(t)
	s := &site{server: server, admin: server.Client(t), namespace: server.Namespace(t), address: localAddress(t)}
	now := time.Now()
	handlerAuthority, clientAuthority, serving := authority(t, "handlers"), authority(t, "api-client"), authority(t, "api-serving")
	s.authority = serving
	s.startNode(t, handlerAuthority, clientAuthority)

	dir := t.TempDir()
	write(t, dir, "tls", issue(t, clientAuthority, pki.Leaf{CommonName: "virtualization-api", Client: true}))
	service := "virtualization-api"
	write(t, dir, "serving", issue(t, serving, pki.Leaf{CommonName: service, DNSNames: []string{service + "." + s.namespace + ".svc"}, Server: true}))
	writeFile(t, filepath.Join(dir, "handler-ca.crt"), pki.Bundle(now, handlerAuthority.CertificatePEM()))

	listener := listen(t, s.address)
	port := listener.Addr().(*net.TCPAddr).Port
	s.direct = fmt.Sprintf("https://%s", listener.Addr())
	options := apiserver.NewOptions()
	options.Serving.Listener, options.Serving.BindAddress, options.Serving.BindPort = listener, s.address, port
	options.Serving.ServerCert.CertKey.CertFile = filepath.Join(dir, "serving.crt")
	options.Serving.ServerCert.CertKey.KeyFile = filepath.Join(dir, "serving.key")
	options.Authentication.RemoteKubeConfigFile = server.Kubeconfig()
	options.Authorization.RemoteKubeConfigFile = server.Kubeconfig()
	options.Handlers = apiserver.Handlers{Port: s.node.port, ClientCertificateDir: dir, AuthorityFile: filepath.Join(dir, "handler-ca.crt")}
	for _, change := range configure {
		change(options)
	}
	if err := options.Validate(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- options.Run(ctx, s.admin) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("aggregated API: %v", err)
		}
	})
	s.register(t, service, port, serving.CertificatePEM())
	return s
}

// register makes the Service without pods, and the APIService that leads to it.
func (s *site) register(t *testing.T, service string, port int, bundle []byte) {
	t.Helper()
	s.create(t, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: service},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "https", Port: 443}}},
	})
	s.create(t, &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: s.namespace, Name: service, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{s.address.String()}, Conditions: discoveryv1.EndpointConditions{Ready: new(true)}}},
		Ports:       []discoveryv1.EndpointPort{{Name: new("https"), Port: new(int32(port)), Protocol: new(corev1.ProtocolTCP)}},
	})
	api := &apiregistrationv1.APIService{
		ObjectMeta: metav1.ObjectMeta{Name: "v1alpha2.subresources.virtualization.deckhouse.io"},
		Spec: apiregistrationv1.APIServiceSpec{
			Group: "subresources.virtualization.deckhouse.io", Version: "v1alpha2",
			GroupPriorityMinimum: 1000, VersionPriority: 15, CABundle: bundle,
			Service: &apiregistrationv1.ServiceReference{Namespace: s.namespace, Name: service, Port: new(int32(443))},
		},
	}
	s.create(t, api)
	t.Cleanup(func() { _ = s.admin.Delete(context.Background(), api) })
	testkit.Eventually(t, patience, "the APIService is available", func() error {
		if err := s.admin.Get(t.Context(), client.ObjectKeyFromObject(api), api); err != nil {
			return err
		}
		for _, condition := range api.Status.Conditions {
			if condition.Type == apiregistrationv1.Available && condition.Status == apiregistrationv1.ConditionTrue {
				return nil
			}
		}
		return fmt.Errorf("conditions %v", api.Status.Conditions)
	})
}

func (s *site) startNode(t *testing.T, handlers, clients *pki.Authority) {
	t.Helper()
	listener := listen(t, s.address)
	s.node = &node{
		name: s.namespace + "-node", port: listener.Addr().(*net.TCPAddr).Port, authority: handlers,
		serve: map[string]http.HandlerFunc{},
	}
	s.node.certify(t, handlers, s.node.name)
	var trust pki.Held
	if err := trust.SetRoots(clients.CertificatePEM()); err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/v1/namespaces/{namespace}/instances/{name}/{rest...}", func(w http.ResponseWriter, r *http.Request) {
		s.node.mutex.Lock()
		serve := s.node.serve[r.PathValue("name")]
		s.node.headers = append(s.node.headers, r.Header.Clone())
		s.node.mutex.Unlock()
		if serve == nil || r.PathValue("namespace") != s.namespace {
			http.Error(w, "the instance is not on this node", http.StatusNotFound)
			return
		}
		serve(w, r)
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: patience, ErrorLog: log.New(io.Discard, "", 0)}
	go func() { _ = server.Serve(tls.NewListener(listener, pki.ServerConfig(&s.node.identity, &trust))) }()
	t.Cleanup(func() { _ = server.Close() })

	object := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: s.node.name}}
	s.create(t, object)
	object.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: s.node.name}, {Type: corev1.NodeInternalIP, Address: s.address.String()}}
	if err := s.admin.Status().Update(t.Context(), object); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.admin.Delete(context.Background(), object) })
}

// certify gives the node's handler another certificate.
func (n *node) certify(t *testing.T, by *pki.Authority, name string) {
	t.Helper()
	if err := n.identity.SetPair(issue(t, by, pki.Leaf{CommonName: "virt-handler:" + name, DNSNames: []string{name}, Server: true})); err != nil {
		t.Fatal(err)
	}
}

// seen returns the headers of all requests that reached the handler.
func (n *node) seen() []http.Header {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	return append([]http.Header(nil), n.headers...)
}

// machine creates a virtual machine in a phase, with its instance on the node.
func (s *site) machine(t *testing.T, name string, phase v1alpha2.MachinePhase, serve http.HandlerFunc) *v1alpha2.VirtualMachine {
	t.Helper()
	vm := testkit.VM(name).Namespace(s.namespace).Disk(name).Fresh()
	s.create(t, vm)
	i := &instancev1alpha1.Instance{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: instanceOf(name)},
		Spec: instancev1alpha1.InstanceSpec{
			VirtualMachine: instancev1alpha1.VirtualMachineReference{Name: name, UID: vm.UID},
			NodeName:       s.node.name,
			Machine: instancev1alpha1.Machine{
				Type: "pc-q35-10.0", UUID: "7e8ab7b5-7f1c-4d4c-9d1c-2f4f8c6f8a11", Hostname: name,
				CPU:    instancev1alpha1.CPU{Model: "max", Sockets: 1, CoresPerSocket: 1},
				Memory: instancev1alpha1.Memory{Size: resource.MustParse("256Mi")},
			},
		},
	}
	s.create(t, i)
	s.node.mutex.Lock()
	s.node.serve[i.Name] = serve
	s.node.mutex.Unlock()
	s.phase(t, vm, phase)
	return vm
}

func instanceOf(vm string) string { return "virt-launcher-" + vm + "-1" }

// phase plays the machine controller.
func (s *site) phase(t *testing.T, vm *v1alpha2.VirtualMachine, phase v1alpha2.MachinePhase) {
	t.Helper()
	vm.Status.Phase = phase
	vm.Status.Instance = &v1alpha2.InstanceRecord{Counter: 1, Name: instanceOf(vm.Name)}
	if err := s.admin.Status().Update(t.Context(), vm); err != nil {
		t.Fatal(err)
	}
}

// user makes an account with the rights of a role and returns its configuration,
// with a token as the only credential.
func (s *site) user(t *testing.T, name string, rules ...rbacv1.PolicyRule) *rest.Config {
	t.Helper()
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: name}}
	s.create(t, account)
	s.create(t, &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: name}, Rules: rules})
	s.create(t, &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: s.namespace, Name: name}},
	})
	token := &authenticationv1.TokenRequest{}
	if err := s.admin.SubResource("token").Create(t.Context(), account, token); err != nil {
		t.Fatal(err)
	}
	config := rest.AnonymousClientConfig(s.server.Config())
	config.BearerToken = token.Status.Token
	return config
}

// The access levels of the chart that these tests are about.
var (
	userRules = []rbacv1.PolicyRule{
		{APIGroups: []string{"virtualization.deckhouse.io"}, Resources: []string{"virtualmachines", "virtualmachineoperations"}, Verbs: []string{"get", "list", "watch"}},
		{APIGroups: []string{"subresources.virtualization.deckhouse.io"}, Resources: []string{"virtualmachines"}, Verbs: []string{"get", "list", "watch"}},
	}
	privilegedUserRules = append([]rbacv1.PolicyRule{
		{APIGroups: []string{"subresources.virtualization.deckhouse.io"}, Resources: []string{"virtualmachines/console", "virtualmachines/vnc", "virtualmachines/portforward"}, Verbs: []string{"get", "create", "update"}},
	}, userRules...)
	editorRules = append([]rbacv1.PolicyRule{
		{APIGroups: []string{"virtualization.deckhouse.io"}, Resources: []string{"virtualmachines", "virtualmachineoperations"}, Verbs: []string{"create", "delete", "deletecollection", "patch", "update"}},
	}, privilegedUserRules...)
)

// path is the address of a machine below a server's.
func (s *site) path(vm, rest string) string {
	return "/apis/subresources.virtualization.deckhouse.io/v1alpha2/namespaces/" + s.namespace + "/virtualmachines/" + vm + rest
}

// dial opens a stream through kube-apiserver.
func (s *site) dial(t *testing.T, config *rest.Config, vm, rest string) (*stream.Conn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return stream.Dial(ctx, upgrading(t, config), config.Host+s.path(vm, rest), nil)
}

func (s *site) mustDial(t *testing.T, config *rest.Config, vm, rest string) *stream.Conn {
	t.Helper()
	conn, err := s.dial(t, config, vm, rest)
	if err != nil {
		t.Fatalf("open %s of %s: %v\n%s", rest, vm, err, answer(err))
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func upgrading(t *testing.T, config *rest.Config) *http.Client {
	t.Helper()
	config = rest.CopyConfig(config)
	config.NextProtos = []string{"http/1.1"}
	c, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (s *site) create(t *testing.T, object client.Object) {
	t.Helper()
	if err := s.admin.Create(t.Context(), object); err != nil {
		t.Fatalf("create %T %s: %v", object, object.GetName(), err)
	}
}

// kubeconfig writes the configuration of a user for the command line.
func (s *site) kubeconfig(t *testing.T, user *rest.Config) string {
	t.Helper()
	file := clientcmdapi.NewConfig()
	file.Clusters["test"] = &clientcmdapi.Cluster{Server: user.Host, CertificateAuthorityData: user.CAData}
	file.AuthInfos["user"] = &clientcmdapi.AuthInfo{Token: user.BearerToken}
	file.Contexts["test"] = &clientcmdapi.Context{Cluster: "test", AuthInfo: "user", Namespace: s.namespace}
	file.CurrentContext = "test"
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*file, path); err != nil {
		t.Fatal(err)
	}
	return path
}

func authority(t *testing.T, name string) *pki.Authority {
	t.Helper()
	a, err := pki.NewAuthority(name, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func issue(t *testing.T, by *pki.Authority, leaf pki.Leaf) pki.Pair {
	t.Helper()
	pair, err := by.Issue(leaf, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

func write(t *testing.T, dir, name string, pair pki.Pair) {
	t.Helper()
	writeFile(t, filepath.Join(dir, name+".crt"), pair.Certificate)
	writeFile(t, filepath.Join(dir, name+".key"), pair.Key)
}

func writeFile(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func listen(t *testing.T, address net.IP) net.Listener {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", net.JoinHostPort(address.String(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	return listener
}

// localAddress returns an address of this machine that an EndpointSlice may have:
// loopback ones are refused.
func localAddress(t *testing.T) net.IP {
	t.Helper()
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range addresses {
		if network, ok := address.(*net.IPNet); ok && network.IP.To4() != nil && network.IP.IsGlobalUnicast() {
			return network.IP.To4()
		}
	}
	t.Skip("this machine has no IPv4 address but loopback ones")
	return nil
}

// echo is a guest that sends back what it gets, and hangs up after the end of it.
func echo(w http.ResponseWriter, r *http.Request) {
	conn, err := stream.Accept(w, r)
	if err != nil {
		return
	}
	_, _ = io.Copy(conn, conn)
	_ = conn.CloseWrite()
	<-conn.Departed()
	_ = conn.Close()
}

// screen is a guest's output, or a command's, that a test waits for.
type screen struct {
	mutex sync.Mutex
	data  bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.data.Write(p)
}

func (s *screen) String() string {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.data.String()
}

func (s *screen) shows(t *testing.T, text string) {
	t.Helper()
	testkit.Eventually(t, patience, fmt.Sprintf("output has %q", text), func() error {
		if got := s.String(); !bytes.Contains([]byte(got), []byte(text)) {
			return fmt.Errorf("output is %q", got)
		}
		return nil
	})
}
