package testkit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	corev1alpha2 "orlop.dev/orlop/api/core/v1alpha2"
	deckhousev1alpha1 "orlop.dev/orlop/api/deckhouse/v1alpha1"
	instancev1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/pki"
)

// startTimeout is how long etcd and the API server may take together; 3 s is usual.
const startTimeout = 90 * time.Second

// Options of an API server.
type Options struct {
	// WithoutCRDs leaves the cluster as bare as Kubernetes ships it.
	WithoutCRDs bool
	// Binary is the multi-call binary; bin/embedded/orlop-kube of the repository if empty.
	Binary string
	// Flags are appended to those of the API server.
	Flags []string
}

// Server is a running API server with its own etcd.
type Server struct {
	dir       string
	config    *rest.Config
	processes []*process
	stop      sync.Once
	namespace int
	mutex     sync.Mutex
}

// process is one child, with the end of its output for error messages.
type process struct {
	name    string
	command *exec.Cmd
	output  *tail
	done    chan struct{}
}

// Scheme knows every kind our tests touch.
func Scheme() *runtime.Scheme {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		clientgoscheme.AddToScheme, apiextensionsv1.AddToScheme, apiregistrationv1.AddToScheme,
		corev1alpha2.AddToScheme, deckhousev1alpha1.AddToScheme, instancev1alpha1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			panic(fmt.Sprintf("bug: add kinds to scheme: %v", err))
		}
	}
	return scheme
}

// Root returns the repository's root, found upwards from the working directory.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("get working directory: %w", err)
	}
	for {
		data, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(data), "module orlop.dev/orlop\n") {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("not inside the repository")
		}
		dir = parent
	}
}

// Start starts etcd and an API server and applies our CRDs. The caller stops it.
func Start(options Options) (*Server, error) {
	root, err := Root()
	if err != nil {
		return nil, err
	}
	if options.Binary == "" {
		options.Binary = filepath.Join(root, "bin", "embedded", "orlop-kube")
	}
	if _, err := os.Stat(options.Binary); err != nil {
		return nil, fmt.Errorf("find the embedded Kubernetes (make embedded builds it): %w", err)
	}
	dir, err := os.MkdirTemp("", "orlop-test-")
	if err != nil {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	s := &Server{dir: dir}
	if err := s.run(options, filepath.Join(root, "config", "crd")); err != nil {
		s.Stop()
		return nil, err
	}
	return s, nil
}

func (s *Server) run(options Options, crds string) error {
	ports, err := freePorts(3)
	if err != nil {
		return err
	}
	flags, err := s.credentials(ports[2])
	if err != nil {
		return err
	}
	clientURL, peerURL := fmt.Sprintf("http://127.0.0.1:%d", ports[0]), fmt.Sprintf("http://127.0.0.1:%d", ports[1])
	if err := s.spawn(options.Binary, "etcd",
		"--data-dir="+filepath.Join(s.dir, "etcd"), "--unsafe-no-fsync", "--log-level=error",
		"--listen-client-urls="+clientURL, "--advertise-client-urls="+clientURL,
		"--listen-peer-urls="+peerURL, "--initial-advertise-peer-urls="+peerURL, "--initial-cluster=default="+peerURL); err != nil {
		return err
	}
	flags = append(flags,
		"--etcd-servers="+clientURL, "--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", ports[2]),
		"--service-cluster-ip-range=10.222.0.0/24", "--authorization-mode=RBAC", "--allow-privileged=true",
		// No controller makes the default service accounts here.
		"--disable-admission-plugins=ServiceAccount",
		"--enable-aggregator-routing=true",
	)
	if err := s.spawn(options.Binary, "kube-apiserver", append(flags, options.Flags...)...); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if err := s.ready(ctx); err != nil {
		return err
	}
	if options.WithoutCRDs {
		return nil
	}
	return s.applyCRDs(ctx, crds)
}

// credentials writes the keys of the API server and returns its flags.
func (s *Server) credentials(port int) ([]string, error) {
	now := time.Now()
	write := func(name string, data []byte) string {
		path := filepath.Join(s.dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			return ""
		}
		return path
	}
	ca, err := pki.NewAuthority("orlop-test", now)
	if err != nil {
		return nil, err
	}
	frontProxyCA, err := pki.NewAuthority("orlop-test-front-proxy", now)
	if err != nil {
		return nil, err
	}
	serving, err := ca.Issue(pki.Leaf{CommonName: "kube-apiserver", DNSNames: []string{"localhost", "kubernetes.default.svc"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, Server: true}, now)
	if err != nil {
		return nil, err
	}
	admin, err := ca.Issue(pki.Leaf{CommonName: "admin", Organization: []string{"system:masters"}, Client: true}, now)
	if err != nil {
		return nil, err
	}
	frontProxy, err := frontProxyCA.Issue(pki.Leaf{CommonName: "front-proxy", Client: true}, now)
	if err != nil {
		return nil, err
	}
	tokens := write("sa.key", serving.Key)
	s.config = &rest.Config{
		Host:            fmt.Sprintf("https://127.0.0.1:%d", port),
		QPS:             -1,
		TLSClientConfig: rest.TLSClientConfig{CAData: ca.CertificatePEM(), CertData: admin.Certificate, KeyData: admin.Key},
	}
	if err := clientcmd.WriteToFile(*kubeconfig(s.config), s.Kubeconfig()); err != nil {
		return nil, fmt.Errorf("write kubeconfig: %w", err)
	}
	return []string{
		"--tls-cert-file=" + write("apiserver.crt", serving.Certificate), "--tls-private-key-file=" + write("apiserver.key", serving.Key),
		"--client-ca-file=" + write("ca.crt", ca.CertificatePEM()),
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + write("sa.crt", serving.Certificate), "--service-account-signing-key-file=" + tokens,
		"--requestheader-client-ca-file=" + write("front-proxy-ca.crt", frontProxyCA.CertificatePEM()),
		"--requestheader-allowed-names=front-proxy", "--requestheader-username-headers=X-Remote-User",
		"--requestheader-group-headers=X-Remote-Group", "--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file=" + write("front-proxy.crt", frontProxy.Certificate), "--proxy-client-key-file=" + write("front-proxy.key", frontProxy.Key),
	}, nil
}

func kubeconfig(config *rest.Config) *clientcmdapi.Config {
	file := clientcmdapi.NewConfig()
	file.Clusters["test"] = &clientcmdapi.Cluster{Server: config.Host, CertificateAuthorityData: config.CAData}
	file.AuthInfos["admin"] = &clientcmdapi.AuthInfo{ClientCertificateData: config.CertData, ClientKeyData: config.KeyData}
	file.Contexts["test"] = &clientcmdapi.Context{Cluster: "test", AuthInfo: "admin"}
	file.CurrentContext = "test"
	return file
}

// spawn starts a child that dies with us.
func (s *Server) spawn(binary, name string, args ...string) error {
	output := &tail{}
	command := exec.Command(binary, append([]string{name}, args...)...) // Stop ends it.
	command.Dir = s.dir
	command.Stdout, command.Stderr = output, output
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := command.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	p := &process{name: name, command: command, output: output, done: make(chan struct{})}
	go func() {
		_ = command.Wait()
		close(p.done)
	}()
	s.processes = append(s.processes, p)
	return nil
}

// ready waits until the API server answers, or tells why it never will.
func (s *Server) ready(ctx context.Context) error {
	httpClient, err := rest.HTTPClientFor(s.config)
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	for {
		request, err := newRequest(ctx, s.config.Host+"/readyz")
		if err != nil {
			return err
		}
		if response, err := httpClient.Do(request); err == nil {
			_, _ = io.Copy(io.Discard, response.Body)
			response.Body.Close()
			if response.StatusCode == 200 {
				return nil
			}
		}
		for _, p := range s.processes {
			select {
			case <-p.done:
				return fmt.Errorf("%s ended: %s", p.name, p.output)
			default:
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the API server: %w: %s", ctx.Err(), s.processes[len(s.processes)-1].output)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (s *Server) applyCRDs(ctx context.Context, dir string) error {
	c, err := client.New(s.config, client.Options{Scheme: Scheme()})
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(files) == 0 {
		return fmt.Errorf("find CRDs in %s: %w", dir, err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("read CRD: %w", err)
		}
		crd := &apiextensionsv1.CustomResourceDefinition{}
		if err := yaml.UnmarshalStrict(data, crd); err != nil {
			return fmt.Errorf("read CRD %s: %w", file, err)
		}
		if err := c.Create(ctx, crd); err != nil {
			return fmt.Errorf("create CRD %s: %w", crd.Name, err)
		}
	}
	for {
		if missing, err := unserved(ctx, c); err != nil || missing == "" {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for CRDs: %w", ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// unserved returns the name of a CRD that is not served yet.
func unserved(ctx context.Context, c client.Client) (string, error) {
	var crds apiextensionsv1.CustomResourceDefinitionList
	if err := c.List(ctx, &crds); err != nil {
		return "", fmt.Errorf("list CRDs: %w", err)
	}
	for _, crd := range crds.Items {
		established := false
		for _, condition := range crd.Status.Conditions {
			if condition.Type == apiextensionsv1.NamesAccepted && condition.Status == apiextensionsv1.ConditionFalse {
				return "", fmt.Errorf("names of CRD %s are not accepted: %s", crd.Name, condition.Message)
			}
			if condition.Type == apiextensionsv1.Established && condition.Status == apiextensionsv1.ConditionTrue {
				established = true
			}
		}
		if !established {
			return crd.Name, nil
		}
	}
	return "", nil
}

// Stop ends the server and removes what it wrote.
func (s *Server) Stop() {
	s.stop.Do(func() {
		for _, p := range slices.Backward(s.processes) {
			_ = p.command.Process.Kill()
			<-p.done
		}
		_ = os.RemoveAll(s.dir)
	})
}

// Config returns an administrator's client configuration.
func (s *Server) Config() *rest.Config { return rest.CopyConfig(s.config) }

// As returns the configuration of another user. Groups and extra attributes, such as
// the node claim of a bound token, are those given and nothing else.
func (s *Server) As(user string, groups []string, extra map[string][]string) *rest.Config {
	config := s.Config()
	config.Impersonate = rest.ImpersonationConfig{UserName: user, Groups: groups, Extra: extra}
	return config
}

// Kubeconfig returns the path of an administrator's kubeconfig.
func (s *Server) Kubeconfig() string { return filepath.Join(s.dir, "admin.kubeconfig") }

// Client returns an administrator's client.
func (s *Server) Client(t testing.TB) client.WithWatch {
	t.Helper()
	return s.ClientFor(t, s.Config())
}

// ClientFor returns a client for a configuration such as that of As.
func (s *Server) ClientFor(t testing.TB, config *rest.Config) client.WithWatch {
	t.Helper()
	c, err := client.NewWithWatch(config, client.Options{Scheme: Scheme()})
	if err != nil {
		t.Fatalf("make client: %v", err)
	}
	return c
}

// Namespace makes a namespace that no other test uses.
func (s *Server) Namespace(t testing.TB) string {
	t.Helper()
	s.mutex.Lock()
	s.namespace++
	name := fmt.Sprintf("test-%d", s.namespace)
	s.mutex.Unlock()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if err := s.Client(t).Create(t.Context(), namespace); err != nil {
		t.Fatalf("create namespace: %v", err)
	}
	return name
}

func freePorts(n int) ([]int, error) {
	ports := make([]int, 0, n)
	for range n {
		listener, err := net.Listen("tcp", "127.0.0.1:0") // closed at once
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		defer listener.Close()
		ports = append(ports, listener.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

// tail keeps the last output of a child.
type tail struct {
	mutex sync.Mutex
	data  []byte
}

// Write implements io.Writer.
func (t *tail) Write(p []byte) (int, error) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.data = append(t.data, p...)
	if len(t.data) > 16384 {
		t.data = bytes.Clone(t.data[len(t.data)-8192:])
	}
	return len(p), nil
}

// String returns the last output.
func (t *tail) String() string {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	return string(t.data)
}
