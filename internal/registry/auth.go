package registry

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/distribution/distribution/v3/registry/auth"
	"github.com/sirupsen/logrus"

	"orlop.dev/orlop/internal/registry/token"
)

// The name under which our token check is known to the protocol engine, and the
// key of its only option.
const (
	authName = "orlop"
	authKeys = "keys"
)

// setUp introduces our parts to the engine, which keeps them in its own globals.
var setUp = sync.OnceValue(func() error {
	// The engine logs each request; only what fails is of interest here.
	logrus.SetLevel(logrus.ErrorLevel)
	logrus.SetOutput(io.Discard)
	logrus.AddHook(errorHook{})
	return auth.Register(authName, newGatekeeper)
})

// gatekeeper decides what a request may do.
type gatekeeper struct{ keys *token.Keys }

func newGatekeeper(options map[string]any) (auth.AccessController, error) {
	keys, ok := options[authKeys].(*token.Keys)
	if !ok {
		return nil, errors.New("option keys is missing")
	}
	return &gatekeeper{keys: keys}, nil
}

// Authorized implements auth.AccessController.
func (g *gatekeeper) Authorized(r *http.Request, wanted ...auth.Access) (*auth.Grant, error) {
	scheme, raw, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if raw == "" && isHandler(r.TLS) {
		return handlerGrant(wanted)
	}
	if !strings.EqualFold(scheme, "bearer") || raw == "" {
		return nil, &challenge{wanted: wanted, reason: "a token is needed"}
	}
	rights, err := g.keys.Check(raw, time.Now())
	if err != nil {
		return nil, &challenge{wanted: wanted, code: "invalid_token", reason: err.Error()}
	}
	grant := &auth.Grant{User: auth.UserInfo{Name: "token"}}
	for _, w := range wanted {
		if !token.Allows(rights, w.Type, w.Name, w.Action) {
			return nil, &challenge{wanted: wanted, code: "insufficient_scope", reason: fmt.Sprintf("the token does not allow %s on %s", w.Action, w.Name)}
		}
		grant.Resources = append(grant.Resources, w.Resource)
	}
	return grant, nil
}

// handlerName is how the common name of a node agent's certificate begins; the node
// follows.
const handlerName = "virt-handler:"

// isHandler says whether a request came with the certificate of a node agent. That its
// authority is the handlers' own was checked when the connection was made.
func isHandler(s *tls.ConnectionState) bool {
	return s != nil && len(s.VerifiedChains) > 0 && strings.HasPrefix(s.PeerCertificates[0].Subject.CommonName, handlerName)
}

// handlerGrant lets a node agent read every image, since every machine may come to its
// node, and do nothing else.
func handlerGrant(wanted []auth.Access) (*auth.Grant, error) {
	grant := &auth.Grant{User: auth.UserInfo{Name: "handler"}}
	for _, w := range wanted {
		if w.Type != "repository" || w.Action != "pull" {
			return nil, &challenge{wanted: wanted, code: "insufficient_scope", reason: fmt.Sprintf("a handler's certificate does not allow %s on %s", w.Action, w.Name)}
		}
		grant.Resources = append(grant.Resources, w.Resource)
	}
	return grant, nil
}

// challenge is the answer to a request without sufficient right.
type challenge struct {
	wanted       []auth.Access
	code, reason string
}

// Error implements error.
func (c *challenge) Error() string { return c.reason }

// Status is the HTTP status: the request may be repeated with another token.
func (c *challenge) Status() int { return http.StatusUnauthorized }

// SetHeaders implements auth.Challenge. The realm is required by the protocol, but
// nothing is served there: clients have their token already.
func (c *challenge) SetHeaders(r *http.Request, w http.ResponseWriter) {
	h := fmt.Sprintf("Bearer realm=%q,service=%q", "https://"+r.Host+"/token", token.Service)
	var scopes []string
	for _, a := range c.wanted {
		scopes = append(scopes, a.Type+":"+a.Name+":"+a.Action)
	}
	if len(scopes) > 0 {
		h += fmt.Sprintf(",scope=%q", strings.Join(scopes, " "))
	}
	if c.code != "" {
		h += fmt.Sprintf(",error=%q", c.code)
	}
	w.Header().Set("WWW-Authenticate", h)
}
