package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"time"
)

// Lives of certificates. Both are renewed at half life.
const (
	// AuthorityLife is how long an authority is valid.
	AuthorityLife = 365 * 24 * time.Hour
	// LeafLife is how long a leaf is valid.
	LeafLife = 24 * time.Hour
	// backdate makes a new certificate valid on machines whose clock is behind.
	backdate = 5 * time.Minute
)

// Pair is a certificate and its private key, each in PEM.
type Pair struct {
	Certificate []byte
	Key         []byte
}

// Authority signs leaves.
type Authority struct {
	pair        Pair
	certificate *x509.Certificate
	key         crypto.Signer
}

// Leaf says what a certificate is for.
type Leaf struct {
	// CommonName is the user name where the certificate authenticates a client.
	CommonName string
	// Organization has the groups where the certificate authenticates a client.
	Organization []string
	// DNSNames and IPs are what a server may be called.
	DNSNames []string
	IPs      []net.IP
	// Server and Client are the permitted uses.
	Server bool
	Client bool
	// Life of the certificate; LeafLife if zero.
	Life time.Duration
}

// NewAuthority makes an authority that is valid from now for AuthorityLife.
func NewAuthority(name string, now time.Time) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(AuthorityLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign authority %s: %w", name, err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return LoadAuthority(Pair{Certificate: encodeCertificate(der), Key: keyPEM})
}

// LoadAuthority reads an authority made by NewAuthority.
func LoadAuthority(pair Pair) (*Authority, error) {
	certificate, err := ParseCertificate(pair.Certificate)
	if err != nil {
		return nil, err
	}
	if !certificate.IsCA {
		return nil, fmt.Errorf("certificate %q is not an authority", certificate.Subject.CommonName)
	}
	key, err := parseKey(pair.Key)
	if err != nil {
		return nil, err
	}
	if err := keyMatches(certificate, key); err != nil {
		return nil, err
	}
	return &Authority{pair: pair, certificate: certificate, key: key}, nil
}

// Pair returns the authority's own certificate and key.
func (a *Authority) Pair() Pair { return a.pair }

// CertificatePEM returns the authority's own certificate.
func (a *Authority) CertificatePEM() []byte { return a.pair.Certificate }

// Issue makes a key and a certificate for it.
func (a *Authority) Issue(leaf Leaf, now time.Time) (Pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, fmt.Errorf("generate key: %w", err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return Pair{}, err
	}
	certificate, err := a.sign(key.Public(), leaf, now)
	if err != nil {
		return Pair{}, err
	}
	return Pair{Certificate: certificate, Key: keyPEM}, nil
}

// SignRequest makes a certificate for the key in a request, whose signature is
// checked. Everything but the key comes from leaf: the request's own wishes count
// for nothing.
func (a *Authority) SignRequest(request *x509.CertificateRequest, leaf Leaf, now time.Time) ([]byte, error) {
	if err := request.CheckSignature(); err != nil {
		return nil, fmt.Errorf("check request signature: %w", err)
	}
	return a.sign(request.PublicKey, leaf, now)
}

func (a *Authority) sign(public crypto.PublicKey, leaf Leaf, now time.Time) ([]byte, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	life := leaf.Life
	if life == 0 {
		life = LeafLife
	}
	notAfter := now.Add(life)
	if notAfter.After(a.certificate.NotAfter) {
		notAfter = a.certificate.NotAfter
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: leaf.CommonName, Organization: leaf.Organization},
		NotBefore:             now.Add(-backdate),
		NotAfter:              notAfter,
		DNSNames:              leaf.DNSNames,
		IPAddresses:           leaf.IPs,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
	}
	if leaf.Server {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	if leaf.Client {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, public, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", leaf.CommonName, err)
	}
	return encodeCertificate(der), nil
}

// NewRequest makes a key and a certificate request for it.
func NewRequest(leaf Leaf) (request, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("generate key: %w", err)
	}
	key, err = encodeKey(private)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:     pkix.Name{CommonName: leaf.CommonName, Organization: leaf.Organization},
		DNSNames:    leaf.DNSNames,
		IPAddresses: leaf.IPs,
	}, private)
	if err != nil {
		return nil, nil, fmt.Errorf("create certificate request: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), key, nil
}

// ParseRequest reads a certificate request in PEM.
func ParseRequest(data []byte) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errors.New("no certificate request in PEM data")
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse certificate request: %w", err)
	}
	return request, nil
}

// ParseCertificate reads the first certificate in PEM data.
func ParseCertificate(data []byte) (*x509.Certificate, error) {
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parse certificate: %w", err)
		}
		return certificate, nil
	}
	return nil, errors.New("no certificate in PEM data")
}

// RenewAt is when a certificate should be replaced: at half of its life.
func RenewAt(certificate *x509.Certificate) time.Time {
	return certificate.NotBefore.Add(certificate.NotAfter.Sub(certificate.NotBefore) / 2)
}

// Bundle joins authorities' certificates into one PEM bundle, newest first, without
// repetitions and without those that have expired. It is what peers trust: while an
// authority is being replaced, leaves of the old one are still around.
func Bundle(now time.Time, certificates ...[]byte) []byte {
	var bundle bytes.Buffer
	seen := map[string]bool{}
	for _, data := range certificates {
		for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
			if block.Type != "CERTIFICATE" || seen[string(block.Bytes)] {
				continue
			}
			seen[string(block.Bytes)] = true
			if certificate, err := x509.ParseCertificate(block.Bytes); err != nil || now.After(certificate.NotAfter) {
				continue
			}
			bundle.Write(encodeCertificate(block.Bytes))
		}
	}
	return bundle.Bytes()
}

// Check reports why a pair may not be used for leaf any longer: it cannot be read,
// its key does not fit, it is not signed by the authority, it has other names, or
// half of its life is over. Nil means that it is good.
func (a *Authority) Check(pair Pair, leaf Leaf, now time.Time) error {
	certificate, err := ParseCertificate(pair.Certificate)
	if err != nil {
		return err
	}
	key, err := parseKey(pair.Key)
	if err != nil {
		return err
	}
	if err := keyMatches(certificate, key); err != nil {
		return err
	}
	if err := certificate.CheckSignatureFrom(a.certificate); err != nil {
		return fmt.Errorf("certificate is not signed by %s: %w", a.certificate.Subject.CommonName, err)
	}
	if certificate.Subject.CommonName != leaf.CommonName {
		return fmt.Errorf("certificate is for %q", certificate.Subject.CommonName)
	}
	for _, name := range leaf.DNSNames {
		if err := certificate.VerifyHostname(name); err != nil {
			return err
		}
	}
	if now.After(RenewAt(certificate)) {
		return errors.New("half of the certificate's life is over")
	}
	return nil
}

// RenewAt returns when the authority should be replaced.
func (a *Authority) RenewAt() time.Time { return RenewAt(a.certificate) }

// NotBefore is the beginning of the authority's life.
func (a *Authority) NotBefore() time.Time { return a.certificate.NotBefore }

// NotAfter is the end of the authority's life.
func (a *Authority) NotAfter() time.Time { return a.certificate.NotAfter }

func keyMatches(certificate *x509.Certificate, key crypto.Signer) error {
	public, ok := certificate.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(key.Public()) {
		return errors.New("private key does not belong to the certificate")
	}
	return nil
}

func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("generate serial number: %w", err)
	}
	return serial, nil
}

func encodeCertificate(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func parseKey(data []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, errors.New("no private key in PEM data")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse key: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("key of type %T cannot sign", key)
	}
	return signer, nil
}
