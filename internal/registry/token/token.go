// Package token signs and checks the bearer tokens of the cluster's registry: JSON
// web tokens (ES256) that give the right to do a few things with one repository
// for a limited time.
//
// The controller holds the key (Authority), the registry only the public half as
// a JSON web key set (Keys), which it reads again whenever its file changes. A
// token says nothing about who holds it.
//
// It is not a token server: nobody can ask for a token over the network.
package token

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/distribution/reference"
	"github.com/golang-jwt/jwt/v5"
)

const (
	// Issuer is the iss claim.
	Issuer = "virtualization-controller"
	// Service is the aud claim.
	Service = "dvcr"
	// Lifetime is how long a token for a pod is valid.
	Lifetime = 24 * time.Hour

	// ActionPull allows to read a repository.
	ActionPull = "pull"
	// ActionPush allows to add to a repository.
	ActionPush = "push"
	// ActionDelete allows to remove from a repository.
	ActionDelete = "delete"

	typeRepository = "repository"
	// backdate and leeway allow for clocks that differ between nodes.
	backdate = time.Minute
	leeway   = time.Minute

	pemType = "PRIVATE KEY"
)

// Access is a right on one resource.
type Access struct {
	Type    string   `json:"type"`
	Name    string   `json:"name"`
	Actions []string `json:"actions"`
}

type claims struct {
	jwt.RegisteredClaims

	Access []Access `json:"access"`
}

// Authority mints tokens.
type Authority struct {
	key *ecdsa.PrivateKey
	id  string
}

// NewAuthority makes a new key.
func NewAuthority() (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate token key: %w", err)
	}
	return withKey(key)
}

// LoadAuthority reads the key that KeyPEM wrote.
func LoadAuthority(keyPEM []byte) (*Authority, error) {
	block, _ := pem.Decode(keyPEM)
	if block == nil || block.Type != pemType {
		return nil, errors.New("token key is not PEM of a private key")
	}
	any, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse token key: %w", err)
	}
	key, ok := any.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("token key is not an ECDSA key on P-256")
	}
	return withKey(key)
}

func withKey(key *ecdsa.PrivateKey) (*Authority, error) {
	id, err := thumbprint(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	return &Authority{key: key, id: id}, nil
}

// KeyPEM is the private key, for a Secret.
func (a *Authority) KeyPEM() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		return nil, fmt.Errorf("encode token key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der}), nil
}

// Mint makes a token for actions on one repository that is valid from now on for
// the time given.
func (a *Authority) Mint(repository string, actions []string, now time.Time, life time.Duration) (string, error) {
	if _, err := reference.WithName(repository); err != nil {
		return "", fmt.Errorf("repository %q: %w", repository, err)
	}
	for _, action := range actions {
		if !slices.Contains([]string{ActionPull, ActionPush, ActionDelete}, action) {
			return "", fmt.Errorf("action %q is not known", action)
		}
	}
	t := jwt.NewWithClaims(jwt.SigningMethodES256, claims{
		RegisteredClaims: jwt.RegisteredClaims{
			Issuer: Issuer, Audience: jwt.ClaimStrings{Service},
			IssuedAt:  jwt.NewNumericDate(now),
			NotBefore: jwt.NewNumericDate(now.Add(-backdate)),
			ExpiresAt: jwt.NewNumericDate(now.Add(life)),
		},
		Access: []Access{{Type: typeRepository, Name: repository, Actions: actions}},
	})
	t.Header["kid"] = a.id
	signed, err := t.SignedString(a.key)
	if err != nil {
		return "", fmt.Errorf("sign token: %w", err)
	}
	return signed, nil
}

// key is one entry of a JSON web key set.
type key struct {
	Type      string `json:"kty"`
	Curve     string `json:"crv"`
	X         string `json:"x"`
	Y         string `json:"y"`
	ID        string `json:"kid,omitempty"`
	Use       string `json:"use,omitempty"`
	Algorithm string `json:"alg,omitempty"`
}

type keySet struct {
	Keys []key `json:"keys"`
}

// JWKS is the public half of the authorities' keys as a JSON web key set. While a
// key is replaced, both the old and the new one are in it.
func JWKS(authorities ...*Authority) ([]byte, error) {
	set := keySet{}
	for _, a := range authorities {
		k, err := publicKey(&a.key.PublicKey)
		if err != nil {
			return nil, err
		}
		k.ID, k.Use, k.Algorithm = a.id, "sig", "ES256"
		set.Keys = append(set.Keys, k)
	}
	raw, err := json.Marshal(set)
	if err != nil {
		return nil, fmt.Errorf("encode key set: %w", err)
	}
	return raw, nil
}

// JWKS is the public half of the key as a JSON web key set.
func (a *Authority) JWKS() ([]byte, error) { return JWKS(a) }

// coordinateSize of a point on P-256, in bytes.
const coordinateSize = 32

func publicKey(pub *ecdsa.PublicKey) (key, error) {
	point, err := pub.Bytes() // 4, X, Y
	if err != nil {
		return key{}, fmt.Errorf("encode public key: %w", err)
	}
	return key{
		Type: "EC", Curve: "P-256",
		X: base64.RawURLEncoding.EncodeToString(point[1 : 1+coordinateSize]),
		Y: base64.RawURLEncoding.EncodeToString(point[1+coordinateSize:]),
	}, nil
}

// thumbprint names a key as RFC 7638 says: the members in this order, no more.
func thumbprint(pub *ecdsa.PublicKey) (string, error) {
	k, err := publicKey(pub)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(fmt.Appendf(nil, `{"crv":%q,"kty":%q,"x":%q,"y":%q}`, k.Curve, k.Type, k.X, k.Y))
	return base64.RawURLEncoding.EncodeToString(sum[:]), nil
}

func (k key) parse() (*ecdsa.PublicKey, error) {
	if k.Type != "EC" || k.Curve != "P-256" {
		return nil, fmt.Errorf("key %q is not an EC key on P-256", k.ID)
	}
	point := []byte{4}
	for _, coordinate := range []string{k.X, k.Y} {
		raw, err := base64.RawURLEncoding.DecodeString(coordinate)
		if err != nil || len(raw) != coordinateSize {
			return nil, fmt.Errorf("key %q has a malformed coordinate", k.ID)
		}
		point = append(point, raw...)
	}
	pub, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	if err != nil {
		return nil, fmt.Errorf("key %q: %w", k.ID, err)
	}
	return pub, nil
}
