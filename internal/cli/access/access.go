// Package access is what every `d8 v` command needs first: whom the user is
// talking to (kubeconfig flags), which virtual machine is meant (NAME or
// NAME.NAMESPACE), and how a stream to it is opened.
//
// It holds no command and prints nothing. Errors are sentences for the user.
package access

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/spf13/cobra"
	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/stream"
)

// userAgent is how the commands introduce themselves to the API server.
const userAgent = "d8"

// subresources is the root of the aggregated API's paths.
const subresources = "/apis/subresources.virtualization.deckhouse.io/v1alpha2"

// Flags are the kubeconfig flags (-n, --context, --kubeconfig …) of a command tree.
type Flags struct {
	config *genericclioptions.ConfigFlags
}

// NewFlags adds the kubeconfig flags to a command and all below it.
func NewFlags(command *cobra.Command) *Flags {
	config := genericclioptions.NewConfigFlags(true)
	config.AddFlags(command.PersistentFlags())
	return &Flags{config: config}
}

// Target is one virtual machine.
type Target struct{ Namespace, Name string }

// String is the form that ParseTarget reads back: NAME.NAMESPACE.
func (t Target) String() string { return t.Name + "." + t.Namespace }

// ParseTarget reads NAME or NAME.NAMESPACE; the namespace in the name wins over
// the default one. A leading or trailing dot is an error.
func ParseTarget(text, defaultNamespace string) (Target, error) {
	if text == "" {
		return Target{}, errors.New("the name of a virtual machine is missing")
	}
	if strings.HasPrefix(text, ".") || strings.HasSuffix(text, ".") {
		return Target{}, fmt.Errorf("%q is not NAME or NAME.NAMESPACE", text)
	}
	if dot := strings.LastIndexByte(text, '.'); dot >= 0 {
		return Target{Name: text[:dot], Namespace: text[dot+1:]}, nil
	}
	return Target{Name: text, Namespace: defaultNamespace}, nil
}

// Cluster is a connection to one API server as one user.
type Cluster struct {
	// Namespace is the one of -n, or of the current context.
	Namespace string
	// Client reads and writes API objects.
	Client client.WithWatch

	config *rest.Config
	http   *http.Client
}

// Connect resolves the flags. It talks to nobody yet.
func (f *Flags) Connect() (*Cluster, error) {
	config, err := f.config.ToRESTConfig()
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig: %w", err)
	}
	config.UserAgent = userAgent
	config.QPS, config.Burst = 50, 100
	namespace, _, err := f.config.ToRawKubeConfigLoader().Namespace()
	if err != nil {
		return nil, fmt.Errorf("read namespace: %w", err)
	}
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{v1alpha2.AddToScheme, authenticationv1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("bug: build scheme: %w", err)
		}
	}
	api, err := client.NewWithWatch(config, client.Options{Scheme: scheme})
	if err != nil {
		return nil, fmt.Errorf("connect to the cluster: %w", err)
	}
	upgrading, err := upgradeClient(config)
	if err != nil {
		return nil, err
	}
	return &Cluster{Namespace: namespace, Client: api, config: config, http: upgrading}, nil
}

// upgradeClient speaks HTTP/1.1 only: a WebSocket upgrade does not exist in HTTP/2
// as API servers serve it.
func upgradeClient(config *rest.Config) (*http.Client, error) {
	config = rest.CopyConfig(config)
	config.NextProtos = []string{"http/1.1"}
	upgrading, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("connect to the cluster: %w", err)
	}
	return upgrading, nil
}

// Passed returns the kubeconfig flags a child `d8` process needs to reach the same cluster.
func (f *Flags) Passed() []string {
	var args []string
	for _, flag := range []struct {
		name  string
		value *string
	}{{"context", f.config.Context}, {"server", f.config.APIServer}, {"kubeconfig", f.config.KubeConfig}} {
		if flag.value != nil && *flag.value != "" {
			args = append(args, "--"+flag.name+"="+*flag.value)
		}
	}
	return args
}

// Open opens a stream subresource ("console", "vnc", "portforward") of a virtual
// machine. A refusal is a *RefusedError.
func (c *Cluster) Open(ctx context.Context, target Target, subresource string, query url.Values) (*stream.Conn, error) {
	location, err := c.location(target, subresource, query)
	if err != nil {
		return nil, err
	}
	conn, err := stream.Dial(ctx, c.http, location, http.Header{"User-Agent": []string{userAgent}})
	if err != nil {
		return nil, refused(err)
	}
	return conn, nil
}

func (c *Cluster) location(target Target, subresource string, query url.Values) (string, error) {
	base, _, err := rest.DefaultServerUrlFor(c.config)
	if err != nil {
		return "", fmt.Errorf("read server address: %w", err)
	}
	location := base.JoinPath(subresources, "namespaces", target.Namespace, "virtualmachines", target.Name, subresource)
	location.RawQuery = query.Encode()
	return location.String(), nil
}

// RefusedError is the API's refusal to open a stream, in its own words.
type RefusedError struct {
	// Code is the HTTP status, 0 if the server was not reached.
	Code int32
	// Message is a sentence for the user.
	Message string

	err error
}

func (e *RefusedError) Error() string { return e.Message }

// Unwrap returns the transport's error.
func (e *RefusedError) Unwrap() error { return e.err }

// Temporary tells whether the same request may succeed in a moment: the guest is
// not running yet, or a component is being replaced.
func (e *RefusedError) Temporary() bool {
	switch e.Code {
	case 0:
		var untrusted *tls.CertificateVerificationError
		return !errors.As(e.err, &untrusted)
	case http.StatusConflict, http.StatusInternalServerError, http.StatusBadGateway,
		http.StatusServiceUnavailable, http.StatusGatewayTimeout, http.StatusTooManyRequests:
		return true
	default:
		return false
	}
}

// refused finds the sentence in a refusal of the API server, of one of its proxies,
// or of the network.
func refused(err error) error {
	var handshake *stream.HandshakeError
	if !errors.As(err, &handshake) {
		return err
	}
	refusal := &RefusedError{Code: int32(handshake.StatusCode), err: err}
	text := strings.TrimSpace(string(handshake.Body))
	switch message := statusMessage(handshake.Body); {
	case message != "":
		refusal.Message = message
	case handshake.StatusCode == http.StatusNotFound:
		refusal.Message = "the cluster does not serve consoles and ports of virtual machines: is the module virtualization installed there?"
	case handshake.StatusCode >= http.StatusBadRequest:
		refusal.Message = fmt.Sprintf("the API server answered %d: %s", handshake.StatusCode, text)
	default:
		refusal.Message = fmt.Sprintf("connect to the API server: %v", innermost(err))
	}
	return refusal
}

// statusMessage returns the message of a Status object. Only the beginning of an
// answer is kept, so the end of the object may be missing.
func statusMessage(body []byte) string {
	decoder := json.NewDecoder(bytes.NewReader(body))
	if open, err := decoder.Token(); err != nil || open != json.Delim('{') {
		return ""
	}
	for {
		key, err := decoder.Token()
		if err != nil {
			return ""
		}
		var value any
		if decoder.Decode(&value) != nil {
			return ""
		}
		if message, ok := value.(string); ok && key == "message" {
			return message
		}
	}
}

// innermost drops what the layers of HTTP say around a network's error.
func innermost(err error) error {
	if request, ok := errors.AsType[*url.Error](err); ok {
		return request.Err
	}
	return err
}
