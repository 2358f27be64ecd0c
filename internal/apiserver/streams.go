package apiserver

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/proxy"
	apirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"

	"orlop.dev/orlop/api/subresources/v1alpha2"
)

// Handlers says how the nodes' handlers are reached. The files are read for every
// stream, so a rotated certificate needs no restart.
type Handlers struct {
	// Port of the handlers' stream server.
	Port int
	// ClientCertificateDir holds tls.crt and tls.key of this component.
	ClientCertificateDir string
	// AuthorityFile is a PEM bundle that handlers' certificates are checked against.
	AuthorityFile string
}

func (h Handlers) validate() error {
	if h.ClientCertificateDir == "" || h.AuthorityFile == "" {
		return errors.New("--handler-client-cert-dir and --handler-ca-file are required")
	}
	return nil
}

// tlsConfig trusts exactly the handler of one node, whose certificate names it.
func (h Handlers) tlsConfig(node string) (*tls.Config, error) {
	certificate, err := tls.LoadX509KeyPair(filepath.Join(h.ClientCertificateDir, "tls.crt"), filepath.Join(h.ClientCertificateDir, "tls.key"))
	if err != nil {
		return nil, fmt.Errorf("read client certificate: %w", err)
	}
	bundle, err := os.ReadFile(h.AuthorityFile)
	if err != nil {
		return nil, fmt.Errorf("read handler authority: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(bundle) {
		return nil, fmt.Errorf("%s holds no certificate", h.AuthorityFile)
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{certificate},
		RootCAs:      roots,
		ServerName:   node,
		NextProtos:   []string{"http/1.1"},
	}, nil
}

// streams proxies WebSockets to handlers. It must not embed machines: a subresource
// that has a Get is served as an object, not as a connection.
type streams struct {
	machines machines
	handlers Handlers
}

// Destroy frees nothing.
func (streams) Destroy() {}

// ConnectMethods are the methods of a stream subresource.
func (streams) ConnectMethods() []string { return []string{http.MethodGet, http.MethodPost} }

// proxyTo returns a handler that forwards one upgrade request to the machine's node.
func (s streams) proxyTo(ctx context.Context, name string, responder rest.Responder, path ...string) (http.Handler, error) {
	where, err := s.machines.locate(ctx, name)
	if err != nil {
		return nil, err
	}
	config, err := s.handlers.tlsConfig(where.node)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	location := &url.URL{Scheme: "https", Host: net.JoinHostPort(where.address, strconv.Itoa(s.handlers.Port))}
	location = location.JoinPath(append([]string{"v1", "namespaces", where.namespace, "instances", where.instance}, path...)...)
	transport := &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}
	upgrade := proxy.NewUpgradeAwareHandler(location, transport, false, true, proxy.NewErrorResponder(responder))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		upgrade.ServeHTTP(w, sanitize(r))
	}), nil
}

// sanitize drops the caller's credentials and says who called, for the handler's log.
func sanitize(r *http.Request) *http.Request {
	r = r.Clone(r.Context())
	for name := range r.Header {
		if name == "Authorization" || name == "Cookie" || name == "Origin" || strings.HasPrefix(name, "Impersonate-") || strings.HasPrefix(name, "X-Remote-") {
			r.Header.Del(name)
		}
	}
	if user, ok := apirequest.UserFrom(r.Context()); ok {
		r.Header.Set("X-Remote-User", user.GetName())
	}
	return r
}

// longRunning exempts streams from the request time-out.
func longRunning(_ *http.Request, info *apirequest.RequestInfo) bool {
	return info.Subresource == "console" || info.Subresource == "portforward" || info.Verb == "watch"
}

// refuseProbe answers the question "who holds it", which nobody can answer yet.
func refuseProbe(probe bool) error {
	if probe {
		return apierrors.NewBadRequest("probe is not supported yet: connect without it")
	}
	return nil
}

// console is virtualmachines/console.
type console struct{ streams }

var _ rest.Connecter = console{}

// New returns the options, the only type of this subresource.
func (console) New() runtime.Object { return &v1alpha2.VirtualMachineConsole{} }

// NewConnectOptions returns the query parameters.
func (console) NewConnectOptions() (runtime.Object, bool, string) {
	return &v1alpha2.VirtualMachineConsole{}, false, ""
}

// Connect opens the serial console.
func (c console) Connect(ctx context.Context, name string, options runtime.Object, responder rest.Responder) (http.Handler, error) {
	asked, ok := options.(*v1alpha2.VirtualMachineConsole)
	if !ok {
		return nil, apierrors.NewInternalError(fmt.Errorf("bug: console options are %T", options))
	}
	if err := refuseProbe(asked.Probe); err != nil {
		return nil, err
	}
	return c.proxyTo(ctx, name, responder, "console")
}

// portForward is virtualmachines/portforward.
type portForward struct{ streams }

var _ rest.Connecter = portForward{}

// New returns the options, the only type of this subresource.
func (portForward) New() runtime.Object { return &v1alpha2.VirtualMachinePortForward{} }

// NewConnectOptions returns the query parameters.
func (portForward) NewConnectOptions() (runtime.Object, bool, string) {
	return &v1alpha2.VirtualMachinePortForward{}, false, ""
}

// Connect opens a connection to a port of the guest.
func (p portForward) Connect(ctx context.Context, name string, options runtime.Object, responder rest.Responder) (http.Handler, error) {
	asked, ok := options.(*v1alpha2.VirtualMachinePortForward)
	if !ok {
		return nil, apierrors.NewInternalError(fmt.Errorf("bug: portforward options are %T", options))
	}
	protocol, err := checkPort(asked)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	return p.proxyTo(ctx, name, responder, "portforward", strconv.Itoa(int(asked.Port)), protocol)
}

// checkPort returns the protocol to use.
func checkPort(asked *v1alpha2.VirtualMachinePortForward) (string, error) {
	if asked.Port < 1 || asked.Port > 65535 {
		return "", fmt.Errorf("port %d is not from 1 to 65535", asked.Port)
	}
	switch asked.Protocol {
	case "", "tcp":
		return "tcp", nil
	case "udp":
		return "udp", nil
	default:
		return "", fmt.Errorf("protocol %q is not tcp or udp", asked.Protocol)
	}
}
