package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// ErrNotReady means that a source has nothing to offer yet.
var ErrNotReady = errors.New("no certificate yet")

// Identity is a certificate that may be replaced at any time.
type Identity interface {
	// Current returns the certificate to show now, or ErrNotReady.
	Current() (*tls.Certificate, error)
}

// Trust is a set of authorities that may be replaced at any time.
type Trust interface {
	// Roots returns the authorities to trust now, or ErrNotReady.
	Roots() (*x509.CertPool, error)
}

// Held is an Identity and a Trust kept in memory, for whoever reads Secrets and
// ConfigMaps through a client. The zero value is not ready.
type Held struct {
	certificate atomic.Pointer[tls.Certificate]
	roots       atomic.Pointer[x509.CertPool]
}

// SetPair replaces the certificate.
func (h *Held) SetPair(pair Pair) error {
	certificate, err := tls.X509KeyPair(pair.Certificate, pair.Key)
	if err != nil {
		return fmt.Errorf("read key pair: %w", err)
	}
	h.certificate.Store(&certificate)
	return nil
}

// SetRoots replaces the trusted authorities.
func (h *Held) SetRoots(bundle []byte) error {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(bundle) {
		return errors.New("no certificate in the bundle of authorities")
	}
	h.roots.Store(pool)
	return nil
}

// Current implements Identity.
func (h *Held) Current() (*tls.Certificate, error) {
	if certificate := h.certificate.Load(); certificate != nil {
		return certificate, nil
	}
	return nil, ErrNotReady
}

// Roots implements Trust.
func (h *Held) Roots() (*x509.CertPool, error) {
	if roots := h.roots.Load(); roots != nil {
		return roots, nil
	}
	return nil, ErrNotReady
}

// Files is an Identity and a Trust that follow files, as kubelet writes them for a
// Secret or ConfigMap volume. They are read again when one of them has changed,
// which is looked up at each handshake; a half-written set is not taken over.
type Files struct {
	// CertFile and KeyFile have the certificate and its key, RootsFile the trusted
	// authorities. Leave empty what is not needed.
	CertFile, KeyFile, RootsFile string

	mutex       sync.Mutex
	pairStamp   [2]stamp
	rootsStamp  stamp
	certificate *tls.Certificate
	roots       *x509.CertPool
}

// stamp tells one version of a file from another.
type stamp struct {
	modified time.Time
	size     int64
}

// Current implements Identity.
func (f *Files) Current() (*tls.Certificate, error) {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	stamps := [2]stamp{stampOf(f.CertFile), stampOf(f.KeyFile)}
	if stamps == f.pairStamp && f.certificate != nil {
		return f.certificate, nil
	}
	certificate, err := tls.LoadX509KeyPair(f.CertFile, f.KeyFile)
	if err != nil {
		return f.certificate, orNotReady(err, f.certificate != nil)
	}
	f.certificate, f.pairStamp = &certificate, stamps
	return f.certificate, nil
}

// Roots implements Trust.
func (f *Files) Roots() (*x509.CertPool, error) {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	current := stampOf(f.RootsFile)
	if current == f.rootsStamp && f.roots != nil {
		return f.roots, nil
	}
	data, err := os.ReadFile(f.RootsFile)
	if err != nil {
		return f.roots, orNotReady(err, f.roots != nil)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return f.roots, orNotReady(fmt.Errorf("no certificate in %s", f.RootsFile), f.roots != nil)
	}
	f.roots, f.rootsStamp = pool, current
	return f.roots, nil
}

// orNotReady forgives an error where the former content can serve a while longer.
func orNotReady(err error, former bool) error {
	if former {
		return nil
	}
	return errors.Join(ErrNotReady, err)
}

func stampOf(path string) stamp {
	info, err := os.Stat(path)
	if err != nil {
		return stamp{}
	}
	return stamp{modified: info.ModTime(), size: info.Size()}
}

// ServerConfig makes a TLS configuration for a server. With clients set, every
// client must show a certificate of one of these authorities.
func ServerConfig(identity Identity, clients Trust) *tls.Config {
	config := &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return identity.Current()
		},
	}
	if clients == nil {
		return config
	}
	config.ClientAuth = tls.RequireAndVerifyClientCert
	config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		roots, err := clients.Roots()
		if err != nil {
			return nil, err
		}
		now := config.Clone()
		now.GetConfigForClient = nil
		now.ClientCAs = roots
		return now, nil
	}
	return config
}

// ClientConfig makes a TLS configuration for one connection to a server of the given
// name; identity may be nil. It trusts what servers says at this moment, so make a
// new one for each connection.
func ClientConfig(identity Identity, servers Trust, serverName string) (*tls.Config, error) {
	roots, err := servers.Roots()
	if err != nil {
		return nil, err
	}
	config := &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"http/1.1"},
		RootCAs:    roots,
		ServerName: serverName,
	}
	if identity != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return identity.Current()
		}
	}
	return config, nil
}
