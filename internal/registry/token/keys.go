package token

import (
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// Keys are the public keys in a file, read again when the file changes.
type Keys struct {
	path string

	mutex    sync.Mutex
	modified time.Time
	size     int64
	byID     map[string]*ecdsa.PublicKey
}

// NewKeys follows the key set in a file. The file may come later: until then every
// token is refused.
func NewKeys(path string) *Keys { return &Keys{path: path} }

// Check returns what a token allows, or why it is not valid.
func (k *Keys) Check(raw string, now time.Time) ([]Access, error) {
	byID, err := k.current()
	if err != nil {
		return nil, err
	}
	c := &claims{}
	_, err = jwt.ParseWithClaims(raw, c, func(t *jwt.Token) (any, error) {
		id, _ := t.Header["kid"].(string)
		pub, known := byID[id]
		if !known {
			return nil, fmt.Errorf("signed by unknown key %q", id)
		}
		return pub, nil
	},
		jwt.WithValidMethods([]string{jwt.SigningMethodES256.Alg()}),
		jwt.WithIssuer(Issuer), jwt.WithAudience(Service), jwt.WithExpirationRequired(),
		jwt.WithLeeway(leeway), jwt.WithTimeFunc(func() time.Time { return now }),
	)
	if err != nil {
		return nil, fmt.Errorf("check token: %w", err)
	}
	return c.Access, nil
}

// Allows tells whether the rights include an action on a resource.
func Allows(rights []Access, kind, name, action string) bool {
	return slices.ContainsFunc(rights, func(a Access) bool {
		return a.Type == kind && a.Name == name && slices.Contains(a.Actions, action)
	})
}

// current returns the keys; a file that has become unreadable or malformed leaves
// the former ones in force.
func (k *Keys) current() (map[string]*ecdsa.PublicKey, error) {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	info, err := os.Stat(k.path)
	if err == nil && info.ModTime().Equal(k.modified) && info.Size() == k.size && k.byID != nil {
		return k.byID, nil
	}
	byID, err := readKeys(k.path)
	switch {
	case err == nil:
		k.byID = byID
		if info != nil {
			k.modified, k.size = info.ModTime(), info.Size()
		}
	case k.byID == nil:
		return nil, err
	}
	return k.byID, nil
}

func readKeys(path string) (map[string]*ecdsa.PublicKey, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read token keys: %w", err)
	}
	var set keySet
	if err := json.Unmarshal(raw, &set); err != nil {
		return nil, fmt.Errorf("parse token keys: %w", err)
	}
	byID := map[string]*ecdsa.PublicKey{}
	for _, one := range set.Keys {
		pub, err := one.parse()
		if err != nil {
			return nil, fmt.Errorf("parse token keys: %w", err)
		}
		byID[one.ID] = pub
	}
	if len(byID) == 0 {
		return nil, errors.New("key set holds no key")
	}
	return byID, nil
}
