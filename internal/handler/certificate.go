package handler

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"github.com/go-logr/logr"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"orlop.dev/orlop/internal/pki"
)

// Names that handlers, the API component and the controller agree on.
const (
	// TrustConfigMap says whom handlers and the API component trust.
	TrustConfigMap = "virt-handler-trust"

	keyAPITrust     = "api-ca.crt"
	keyHandlerTrust = "handler-ca.crt"
	signerName      = "virtualization.deckhouse.io/handler"
	apiName         = "virtualization-api"
)

const (
	// signTimeout is how long a request may wait for the controller, which may be
	// starting itself; then a new one is made.
	signTimeout = 5 * time.Minute
	// requestSeconds is the life of a certificate that is asked for.
	requestSeconds = 24 * 3600
)

// Certificate keeps this node's serving certificate and the authorities of its
// clients. Both live in memory only: a restarted handler asks again.
type Certificate struct {
	NodeName string
	Cache    cache.Cache
	// Client makes the request and watches for its signature.
	Client client.WithWatch
	Now    func() time.Time
	Log    logr.Logger

	held pki.Held
	// peers are the authorities of other nodes' handlers.
	peers pki.Held
}

// The Role of the chart lets the handler read TrustConfigMap.
//
// +kubebuilder:rbac:groups=certificates.k8s.io,resources=certificatesigningrequests,verbs=create;get;list;watch

// Start keeps both fresh until the context ends. It is a manager.Runnable.
func (c *Certificate) Start(ctx context.Context) error {
	trust, err := c.Cache.GetInformer(ctx, &corev1.ConfigMap{})
	if err != nil {
		return fmt.Errorf("watch %s: %w", TrustConfigMap, err)
	}
	if _, err := trust.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { c.trust(obj.(*corev1.ConfigMap)) },
		UpdateFunc: func(_, obj any) { c.trust(obj.(*corev1.ConfigMap)) },
	}); err != nil {
		return fmt.Errorf("watch %s: %w", TrustConfigMap, err)
	}
	again := retry{first: time.Second, most: time.Minute}
	for ctx.Err() == nil {
		renew, err := c.renew(ctx)
		now := c.Now()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			again.failed(now)
			renew = again.next
			c.Log.Info("cannot get a serving certificate, will try again", "reason", err.Error())
		} else {
			again.succeeded()
		}
		timer := time.NewTimer(renew.Sub(now))
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
	return nil
}

// trust takes over the authorities of clients.
func (c *Certificate) trust(m *corev1.ConfigMap) {
	if err := c.held.SetRoots([]byte(m.Data[keyAPITrust])); err != nil {
		c.Log.Info("cannot use the authorities of clients", "configMap", m.Name, "reason", err.Error())
	}
	if err := c.peers.SetRoots([]byte(m.Data[keyHandlerTrust])); err != nil {
		c.Log.Info("cannot use the authorities of other handlers", "configMap", m.Name, "reason", err.Error())
	}
}

// renew gets a new certificate and says when to replace it.
func (c *Certificate) renew(ctx context.Context) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	// The signer fills in the node's addresses; names in the request count for nothing.
	request, key, err := pki.NewRequest(pki.Leaf{CommonName: Owner + ":" + c.NodeName, DNSNames: []string{c.NodeName}})
	if err != nil {
		return time.Time{}, err
	}
	life := int32(requestSeconds)
	csr := &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{GenerateName: Owner + "-"},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			Request:           request,
			SignerName:        signerName,
			ExpirationSeconds: &life,
			Usages:            []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageServerAuth, certificatesv1.UsageClientAuth},
		},
	}
	if err := c.Client.Create(ctx, csr); err != nil {
		return time.Time{}, fmt.Errorf("create certificate request: %w", err)
	}
	signed, err := c.await(ctx, csr)
	if err != nil {
		return time.Time{}, fmt.Errorf("await certificate request %s: %w", csr.Name, err)
	}
	leaf, err := pki.ParseCertificate(signed)
	if err != nil {
		return time.Time{}, err
	}
	if err := c.held.SetPair(pki.Pair{Certificate: signed, Key: key}); err != nil {
		return time.Time{}, err
	}
	certificateExpiry.Set(float64(leaf.NotAfter.Unix()))
	c.Log.Info("serving certificate is new", "until", leaf.NotAfter)
	return pki.RenewAt(leaf), nil
}

// await watches a request until it is signed or denied.
func (c *Certificate) await(ctx context.Context, csr *certificatesv1.CertificateSigningRequest) ([]byte, error) {
	w, err := c.Client.Watch(ctx, &certificatesv1.CertificateSigningRequestList{}, &client.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("metadata.name", csr.Name),
	})
	if err != nil {
		return nil, fmt.Errorf("watch: %w", err)
	}
	defer w.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil, errors.New("nobody has signed it")
		case e, open := <-w.ResultChan():
			if !open || e.Type == watch.Error || e.Type == watch.Deleted {
				return nil, errors.New("the watch has ended")
			}
			now, ok := e.Object.(*certificatesv1.CertificateSigningRequest)
			if !ok {
				continue
			}
			if len(now.Status.Certificate) > 0 {
				return now.Status.Certificate, nil
			}
			for _, cond := range now.Status.Conditions {
				if cond.Type == certificatesv1.CertificateDenied || cond.Type == certificatesv1.CertificateFailed {
					return nil, fmt.Errorf("%s: %s", cond.Reason, cond.Message)
				}
			}
		}
	}
}

// ServerConfig lets in the API component and nobody else.
func (c *Certificate) ServerConfig() *tls.Config {
	config := pki.ServerConfig(&c.held, &c.held)
	config.VerifyConnection = func(s tls.ConnectionState) error {
		if len(s.PeerCertificates) == 0 || s.PeerCertificates[0].Subject.CommonName != apiName {
			return errors.New("the client is not the API component")
		}
		return nil
	}
	return config
}

// TunnelServer lets in handlers of other nodes. Which node may do what is not decided
// by TLS.
func (c *Certificate) TunnelServer() *tls.Config {
	config := pki.ServerConfig(&c.held, &c.peers)
	config.DynamicRecordSizingDisabled = true // streams of gigabytes
	return config
}

// TunnelClient is for one connection to the handler of a node.
func (c *Certificate) TunnelClient(node string) (*tls.Config, error) {
	return pki.ClientConfig(&c.held, &c.peers, node)
}
