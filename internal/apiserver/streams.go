package apiserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	apirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"

	"orlop.dev/orlop/api/subresources/v1alpha2"
	"orlop.dev/orlop/internal/pki"
	"orlop.dev/orlop/internal/stream"
)

const (
	// dialTimeout bounds reaching a handler, and then its TLS handshake.
	dialTimeout = 10 * time.Second
	// answerTimeout bounds its answer. A handler waits 10 s for the former holder of
	// a console and 10 s for a guest's port.
	answerTimeout = 30 * time.Second
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
	files := &pki.Files{
		CertFile:  filepath.Join(h.ClientCertificateDir, "tls.crt"),
		KeyFile:   filepath.Join(h.ClientCertificateDir, "tls.key"),
		RootsFile: h.AuthorityFile,
	}
	config, err := pki.ClientConfig(files, files, node)
	if err != nil {
		return nil, fmt.Errorf("read handler authority: %w", err)
	}
	return config, nil
}

// streams proxies WebSockets to handlers. It must not embed machines: a subresource
// that has a Get is served as an object, not as a connection.
type streams struct {
	machines machines
	handlers Handlers
	sessions *sessions
}

// Destroy frees nothing.
func (streams) Destroy() {}

// ConnectMethods are the methods of a stream subresource.
func (streams) ConnectMethods() []string { return []string{http.MethodGet, http.MethodPost} }

// relay joins a client's WebSocket to the one of a machine's node.
type relay struct {
	name      string
	where     place
	location  *url.URL
	transport *http.Transport
	responder rest.Responder
}

// relayTo returns a relay to a path below the machine's instance.
func (s streams) relayTo(name string, where place, responder rest.Responder, path ...string) (*relay, error) {
	config, err := s.handlers.tlsConfig(where.node)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	location := &url.URL{Scheme: "https", Host: net.JoinHostPort(where.address, strconv.Itoa(s.handlers.Port)), Path: "/"}
	location = location.JoinPath(append([]string{"v1", "namespaces", where.namespace, "instances", where.instance}, path...)...)
	transport := &http.Transport{
		DialContext:           (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSClientConfig:       config,
		TLSHandshakeTimeout:   dialTimeout,
		ResponseHeaderTimeout: answerTimeout,
		DisableKeepAlives:     true,
		DisableCompression:    true, // a stream is not a document
	}
	return &relay{name: name, where: where, location: location, transport: transport, responder: responder}, nil
}

// ServeHTTP serves one stream until it ends.
func (r *relay) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	r.serve(w, request, func(*http.Response) {})
}

// serve calls opened once the handler has accepted the stream.
func (r *relay) serve(w http.ResponseWriter, request *http.Request, opened func(*http.Response)) {
	if !isWebSocket(request) {
		r.responder.Error(apierrors.NewBadRequest("a WebSocket upgrade is required"))
		return
	}
	proxy := &httputil.ReverseProxy{
		Transport: r.transport,
		Rewrite:   func(p *httputil.ProxyRequest) { p.Out = outgoing(p.In, r.location) },
		ModifyResponse: func(response *http.Response) error { //nolint:bodyclose // the proxy closes it
			if err := refusal(r.name, response); err != nil {
				return err
			}
			opened(response)
			return nil
		},
		ErrorHandler: func(_ http.ResponseWriter, _ *http.Request, err error) {
			r.responder.Error(explain(r.where.node, err))
		},
		// What the copying of a broken connection says helps nobody.
		ErrorLog: log.New(io.Discard, "", 0),
	}
	proxy.ServeHTTP(w, request)
}

// recorded is a relay whose stream has one holder at a time, which is recorded for as
// long as it is open.
type recorded struct {
	*relay
	stream   string
	sessions *sessions
}

// ServeHTTP serves one stream until it ends.
func (r recorded) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	mine := r.sessions.begin(request, r.where, r.stream)
	ctx, cancel := context.WithCancel(request.Context())
	var record sync.WaitGroup
	defer func() {
		cancel()
		record.Wait()
	}()
	r.serve(w, request, func(response *http.Response) {
		mine.note(response)
		record.Go(func() { r.sessions.keep(ctx, mine) })
	})
}

func isWebSocket(r *http.Request) bool {
	return lists(r.Header, "Connection", "upgrade") && lists(r.Header, "Upgrade", "websocket")
}

// lists tells whether a header, a list with commas, has an item. Case does not matter.
func lists(header http.Header, name, item string) bool {
	for one := range strings.SplitSeq(strings.Join(header.Values(name), ","), ",") {
		if strings.EqualFold(strings.TrimSpace(one), item) {
			return true
		}
	}
	return false
}

// outgoing is the request to the handler. It is made anew, so that nothing of the
// caller's (credentials, cookies, addresses, query parameters) can slip through:
// only the WebSocket handshake is taken over, and of the sub-protocols offered only
// ours, since clients may hide a bearer token among them.
func outgoing(in *http.Request, location *url.URL) *http.Request {
	out := (&http.Request{Method: http.MethodGet, URL: location, Host: location.Host, Header: http.Header{}}).WithContext(in.Context())
	out.Header.Set("Connection", "Upgrade")
	out.Header.Set("Upgrade", "websocket")
	for _, name := range []string{"Sec-Websocket-Key", "Sec-Websocket-Version", "Sec-Websocket-Extensions"} {
		if values := in.Header.Values(name); len(values) > 0 {
			out.Header[name] = values
		}
	}
	if lists(in.Header, "Sec-Websocket-Protocol", stream.Protocol) {
		out.Header.Set("Sec-Websocket-Protocol", stream.Protocol)
	}
	if user, ok := apirequest.UserFrom(in.Context()); ok {
		out.Header.Set("X-Remote-User", user.GetName()) // for the handler's log
	}
	return out
}

// refusal turns a handler's refusal into an API status. An instance that the handler
// does not know (yet, or any more) is a matter of time, so it is a conflict, not a
// missing machine.
func refusal(name string, response *http.Response) error {
	if body, ok := response.Body.(io.ReadWriteCloser); ok && response.StatusCode == http.StatusSwitchingProtocols {
		response.Body = whole{body}
		return nil
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(response.Body, 1<<10))
	message := strings.TrimSpace(string(body))
	switch code := response.StatusCode; {
	case code == http.StatusNotFound || code == http.StatusConflict:
		return notRunning(name, message)
	case code == http.StatusBadRequest:
		return apierrors.NewBadRequest(message)
	case code >= http.StatusInternalServerError && message != "":
		return status(int32(code), metav1.StatusReasonUnknown, name, message)
	default:
		return apierrors.NewInternalError(fmt.Errorf("the node's handler answered %s", response.Status))
	}
}

// whole is a connection that cannot be closed by halves. Halves are the business of
// the protocol inside; a client whose connection has ended is gone, and a handler that
// is stuck must not keep what was joined to it.
type whole struct{ io.ReadWriteCloser }

// explain tells what came of an attempt to reach a handler. Statuses pass as they are;
// the rest happens between the nodes, and may be better in a moment.
func explain(node string, err error) error {
	if status := apierrors.APIStatus(nil); errors.As(err, &status) {
		return err
	}
	return apierrors.NewServiceUnavailable(fmt.Sprintf("node %s does not answer: %v", node, err))
}

// longRunning exempts streams from the request time-out.
func longRunning(_ *http.Request, info *apirequest.RequestInfo) bool {
	return info.Subresource == "console" || info.Subresource == "portforward" || info.Verb == "watch"
}

// exclusive serves a stream that one client has at a time.
func (s streams) exclusive(ctx context.Context, name, stream string, probe bool, responder rest.Responder) (http.Handler, error) {
	where, err := s.machines.locate(ctx, name)
	if err != nil {
		return nil, err
	}
	if probe {
		return s.sessions.probe(ctx, where, stream)
	}
	relay, err := s.relayTo(name, where, responder, stream)
	if err != nil {
		return nil, err
	}
	return recorded{relay: relay, stream: stream, sessions: s.sessions}, nil
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

// Connect opens the serial console, or tells who holds it.
func (c console) Connect(ctx context.Context, name string, options runtime.Object, responder rest.Responder) (http.Handler, error) {
	asked, ok := options.(*v1alpha2.VirtualMachineConsole)
	if !ok {
		return nil, apierrors.NewInternalError(fmt.Errorf("bug: console options are %T", options))
	}
	return c.exclusive(ctx, name, "console", asked.Probe, responder)
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
	where, err := p.machines.locate(ctx, name)
	if err != nil {
		return nil, err
	}
	return p.relayTo(name, where, responder, "portforward", strconv.Itoa(int(asked.Port)), protocol)
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
