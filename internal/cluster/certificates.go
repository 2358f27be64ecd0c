package cluster

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"
)

const (
	// authorityLife and leafLife are the lives of certificates. The embedded cluster's
	// leaves are renewed by the next up in the last renewBefore of their life, not by a daemon.
	authorityLife = 10 * 365 * 24 * time.Hour
	leafLife      = 365 * 24 * time.Hour
	renewBefore   = 60 * 24 * time.Hour
)

// authority signs certificates. Cluster and front proxy have one each: if they were
// the same, every client certificate of the cluster could pretend to be the
// aggregation layer.
type authority struct {
	certificate *x509.Certificate
	key         crypto.Signer
	pem         []byte
}

// subject is what a leaf certificate says.
type subject struct {
	name      string
	groups    []string
	dns       []string
	addresses []netip.Addr
	server    bool
	client    bool
}

// openAuthority reads the authority <name>.crt and .key in dir, or makes it.
func openAuthority(dir, name string, now time.Time) (*authority, error) {
	certFile, keyFile := filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	certPEM, err := os.ReadFile(certFile)
	if err == nil {
		keyPEM, err := os.ReadFile(keyFile)
		if err != nil {
			return nil, fmt.Errorf("read key of authority %s: %w", name, err)
		}
		return parseAuthority(certPEM, keyPEM)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read authority %s: %w", name, err)
	}
	key, keyPEM, err := newKey()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "orlop-" + name}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(authorityLife),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
	}
	certPEM, err = sign(template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	// The key first: a certificate without its key would be taken for the authority.
	if err := writeFile(keyFile, keyPEM, 0o600); err != nil {
		return nil, err
	}
	if err := writeFile(certFile, certPEM, 0o644); err != nil {
		return nil, err
	}
	return parseAuthority(certPEM, keyPEM)
}

func parseAuthority(certPEM, keyPEM []byte) (*authority, error) {
	certificate, err := parseCertificate(certPEM)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(keyPEM)
	if block == nil {
		return nil, errors.New("key of authority is not PEM")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse key of authority: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("key of authority cannot sign")
	}
	return &authority{certificate: certificate, key: signer, pem: certPEM}, nil
}

// issue makes sure that <base>.crt and .key are a leaf for that subject with enough
// life left.
func (a *authority) issue(base string, s subject, now time.Time) error {
	if a.current(base, s, now) {
		return nil
	}
	key, keyPEM, err := newKey()
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		Subject:   pkix.Name{CommonName: s.name, Organization: s.groups},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(leafLife),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		DNSNames: s.dns, IPAddresses: addressesOf(s),
	}
	if s.server {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	if s.client {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	certPEM, err := sign(template, a.certificate, key.Public(), a.key)
	if err != nil {
		return fmt.Errorf("issue certificate of %s: %w", s.name, err)
	}
	if err := writeFile(base+".key", keyPEM, 0o600); err != nil {
		return err
	}
	return writeFile(base+".crt", certPEM, 0o644)
}

// current says whether the leaf on disk still is what is wanted.
func (a *authority) current(base string, s subject, now time.Time) bool {
	text, err := os.ReadFile(base + ".crt")
	if err != nil {
		return false
	}
	keyPEM, err := os.ReadFile(base + ".key")
	if err != nil {
		return false
	}
	leaf, err := parseCertificate(text)
	if err != nil || leaf.CheckSignatureFrom(a.certificate) != nil || !keyMatches(leaf, keyPEM) {
		return false
	}
	return now.Add(renewBefore).Before(leaf.NotAfter) &&
		leaf.Subject.CommonName == s.name && slices.Equal(leaf.Subject.Organization, s.groups) &&
		slices.Equal(leaf.DNSNames, s.dns) &&
		slices.EqualFunc(leaf.IPAddresses, addressesOf(s), net.IP.Equal)
}

// keyMatches guards against a crash between writing a key and its certificate.
func keyMatches(leaf *x509.Certificate, keyPEM []byte) bool {
	block, _ := pem.Decode(keyPEM)
	if block == nil {
		return false
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return false
	}
	signer, ok := key.(*ecdsa.PrivateKey)
	return ok && signer.PublicKey.Equal(leaf.PublicKey)
}

func addressesOf(s subject) []net.IP {
	var list []net.IP
	for _, address := range s.addresses {
		list = append(list, address.AsSlice())
	}
	return list
}

// ensureSigningKey makes the key pair of service account tokens.
func ensureSigningKey(dir string) error {
	keyFile, publicFile := filepath.Join(dir, "sa.key"), filepath.Join(dir, "sa.pub")
	if _, err := os.Stat(publicFile); err == nil {
		return nil
	}
	key, keyPEM, err := newKey()
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return fmt.Errorf("encode public key: %w", err)
	}
	if err := writeFile(keyFile, keyPEM, 0o600); err != nil {
		return err
	}
	return writeFile(publicFile, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o644)
}

func newKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("generate key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("encode key: %w", err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func sign(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("choose serial number: %w", err)
	}
	template.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

func parseCertificate(text []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("certificate is not PEM")
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse certificate: %w", err)
	}
	return certificate, nil
}
