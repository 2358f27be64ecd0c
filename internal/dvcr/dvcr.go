// Package dvcr is what the controllers need of the module's registry: the right for
// a pod to use one repository, and the removal of an image that nobody wants any more.
//
// It is not the registry (internal/registry) and moves no image data. It asks for
// tokens as narrow as possible: one repository, only the actions that are needed.
// Removing what is not there succeeds, so that a removal can be repeated.
package dvcr

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"orlop.dev/orlop/internal/importer"
	"orlop.dev/orlop/internal/registry/token"
)

// The bundle that DVCR's certificate is checked with, in the module's namespace.
const (
	caConfigMap = "dvcr-ca"
	caKey       = "ca.crt"
)

// timeout bounds one request to the registry.
const timeout = 15 * time.Second

// The actions a token may allow.
const (
	Pull   = token.ActionPull
	Push   = token.ActionPush
	Delete = token.ActionDelete
)

// Tokens mints bearer tokens for one repository.
type Tokens interface {
	Token(ctx context.Context, repository string, actions ...string) (string, error)
}

// The Secret, in the module's namespace, that holds the key tokens are signed with.
const (
	tokenSecret = "dvcr-token"
	tokenKey    = "token.key"
)

// SecretTokens signs with the key in the Secret of the module. The Secret is read
// each time: tokens are rare, and a replaced key is in force at once.
type SecretTokens struct {
	Reader    client.Reader
	Namespace string
	Clock     clock.PassiveClock
}

// Token mints a token that lives as long as a pod may run.
func (s *SecretTokens) Token(ctx context.Context, repository string, actions ...string) (string, error) {
	secret := &corev1.Secret{}
	if err := s.Reader.Get(ctx, types.NamespacedName{Namespace: s.Namespace, Name: tokenSecret}, secret); err != nil {
		return "", fmt.Errorf("read Secret %s/%s: %w", s.Namespace, tokenSecret, err)
	}
	authority, err := token.LoadAuthority(secret.Data[tokenKey])
	if err != nil {
		return "", fmt.Errorf("read Secret %s/%s: %w", s.Namespace, tokenSecret, err)
	}
	return authority.Mint(repository, actions, s.Clock.Now(), token.Lifetime)
}

// Access grants and uses rights on repositories.
type Access struct {
	// Host of the registry with port, as it stands in references.
	Host string
	// Address to connect to instead of Host, for a controller outside of the cluster's DNS; usually empty.
	Address string
	// Namespace of the module.
	Namespace string
	// Reader reads the ConfigMap of the certificate bundle.
	Reader client.Reader
	Tokens Tokens
}

// New returns the access of a controller that reads with reader.
func New(reader client.Reader, namespace, host string) *Access {
	return &Access{Host: host, Namespace: namespace, Reader: reader,
		Tokens: &SecretTokens{Reader: reader, Namespace: namespace, Clock: clock.RealClock{}}}
}

// Grant returns a reference together with the right to do the actions on its
// repository. suffix is ":tag" or "@digest".
func (a *Access) Grant(ctx context.Context, repository, suffix string, actions ...string) (importer.Repository, error) {
	ca, err := a.bundle(ctx)
	if err != nil {
		return importer.Repository{}, err
	}
	signed, err := a.Tokens.Token(ctx, repository, actions...)
	if err != nil {
		return importer.Repository{}, fmt.Errorf("mint token for %s: %w", repository, err)
	}
	return importer.Repository{Reference: a.Host + "/" + repository + suffix, Token: signed, CABundle: ca}, nil
}

// Remove deletes the manifest behind a tag; its blobs go with the next garbage collection.
func (a *Access) Remove(ctx context.Context, repository, tag string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*timeout)
	defer cancel()
	granted, err := a.Grant(ctx, repository, ":"+tag, Pull, Delete)
	if err != nil {
		return err
	}
	web, err := a.web(granted.CABundle)
	if err != nil {
		return err
	}
	defer web.CloseIdleConnections()
	head, err := a.request(ctx, web, http.MethodHead, repository, tag, granted.Token)
	if err != nil {
		return fmt.Errorf("look up %s:%s: %w", repository, tag, err)
	}
	if head.code == http.StatusNotFound {
		return nil
	}
	if head.code != http.StatusOK || head.digest == "" {
		return fmt.Errorf("look up %s:%s: the registry answered %s", repository, tag, head.status)
	}
	gone, err := a.request(ctx, web, http.MethodDelete, repository, head.digest, granted.Token)
	if err != nil {
		return fmt.Errorf("delete %s@%s: %w", repository, head.digest, err)
	}
	switch gone.code {
	case http.StatusAccepted, http.StatusOK, http.StatusNoContent, http.StatusNotFound:
		return nil
	}
	return fmt.Errorf("delete %s@%s: the registry answered %s", repository, head.digest, gone.status)
}

// answer is what the registry said, without the body.
type answer struct {
	code           int
	status, digest string
}

func (a *Access) request(ctx context.Context, web *http.Client, method, repository, reference, bearer string) (answer, error) {
	address := a.Address
	if address == "" {
		address = a.Host
	}
	r, err := http.NewRequestWithContext(ctx, method, "https://"+address+"/v2/"+repository+"/manifests/"+reference, nil)
	if err != nil {
		return answer{}, err
	}
	r.Host = a.Host
	r.Header.Set("Authorization", "Bearer "+bearer)
	for _, accept := range []string{"application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"} {
		r.Header.Add("Accept", accept)
	}
	response, err := web.Do(r)
	if err != nil {
		return answer{}, err
	}
	_, err = io.Copy(io.Discard, io.LimitReader(response.Body, 1<<20))
	said := answer{code: response.StatusCode, status: response.Status, digest: response.Header.Get("Docker-Content-Digest")}
	return said, errors.Join(err, response.Body.Close())
}

func (a *Access) web(ca []byte) (*http.Client, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("ConfigMap %s/%s holds no certificate", a.Namespace, caConfigMap)
	}
	name := a.Host
	if host, _, err := net.SplitHostPort(a.Host); err == nil {
		name = host
	}
	return &http.Client{Timeout: timeout, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: name, MinVersion: tls.VersionTLS12},
	}}, nil
}

func (a *Access) bundle(ctx context.Context) ([]byte, error) {
	bundle := &corev1.ConfigMap{}
	if err := a.Reader.Get(ctx, types.NamespacedName{Namespace: a.Namespace, Name: caConfigMap}, bundle); err != nil {
		return nil, fmt.Errorf("read ConfigMap %s/%s: %w", a.Namespace, caConfigMap, err)
	}
	if bundle.Data[caKey] == "" {
		return nil, fmt.Errorf("ConfigMap %s/%s has no %s yet", a.Namespace, caConfigMap, caKey)
	}
	return []byte(bundle.Data[caKey]), nil
}
