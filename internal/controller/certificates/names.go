package certificates

import (
	"orlop.dev/orlop/internal/pki"
)

// Secrets and ConfigMaps in the module's namespace.
const (
	AuthoritySecret        = "virtualization-ca"
	ControllerSecret       = "virtualization-controller-tls"
	APISecret              = "virtualization-api-tls"
	RegistrySecret         = "dvcr-tls"
	APIClientAuthority     = "virtualization-api-ca"
	APIClientSecret        = "virtualization-api-client-tls"
	HandlerAuthority       = "virt-handler-ca"
	TokenSecret            = "dvcr-token"
	RegistryTrustConfigMap = "dvcr-ca"
	HandlerTrustConfigMap  = "virt-handler-trust"
	TokenKeysConfigMap     = "dvcr-jwks"
)

// Keys in them.
const (
	// KeyCertificate, KeyPrivate and KeyBundle are in every Secret of type kubernetes.io/tls.
	KeyCertificate = "tls.crt"
	KeyPrivate     = "tls.key"
	KeyBundle      = "ca.crt"
	// keyNextCertificate and keyNextPrivate are in an authority's Secret while its successor is announced.
	keyNextCertificate = "next.crt"
	keyNextPrivate     = "next.key"
	// KeyToken is the key that signs registry tokens.
	KeyToken = "token.key"
	// KeyTokenKeys is the public half of it.
	KeyTokenKeys = "jwks.json"
	// KeyAPITrust and KeyHandlerTrust are in the handlers' ConfigMap.
	KeyAPITrust     = "api-ca.crt"
	KeyHandlerTrust = "handler-ca.crt"
)

// Names of other objects that get the bundle.
const (
	// WebhookConfiguration is the name of the mutating and the validating one.
	WebhookConfiguration = "virtualization-controller"
	// APIService of the aggregated API.
	APIService = "v1alpha2.subresources.virtualization.deckhouse.io"
)

// HandlerSigner is the signer name of certificate requests by handlers.
const HandlerSigner = "virtualization.deckhouse.io/handler"

// HandlerServiceAccount is the only account whose requests are signed.
const HandlerServiceAccount = "virt-handler"

// HandlerCommonName is the subject of the certificate of a node's handler.
func HandlerCommonName(node string) string { return "virt-handler:" + node }

// serving is one leaf and where it is kept.
type serving struct {
	secret    string
	authority string
	leaf      pki.Leaf
}

// leaves returns the leaves that are kept in Secrets.
func leaves(namespace string) []serving {
	server := func(service string) pki.Leaf {
		host := service + "." + namespace
		return pki.Leaf{CommonName: host + ".svc", DNSNames: []string{host + ".svc", host, host + ".svc.cluster.local"}, Server: true}
	}
	return []serving{
		{secret: ControllerSecret, authority: AuthoritySecret, leaf: server("virtualization-controller")},
		{secret: APISecret, authority: AuthoritySecret, leaf: server("virtualization-api")},
		{secret: RegistrySecret, authority: AuthoritySecret, leaf: server("dvcr")},
		{secret: APIClientSecret, authority: APIClientAuthority, leaf: pki.Leaf{CommonName: "virtualization-api", Client: true}},
	}
}
