package registry

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote"

	"orlop.dev/orlop/internal/pki"
	"orlop.dev/orlop/internal/registry/token"
)

// A node agent pulls what it likes with its certificate, and can do nothing else.
func TestHandlersCertificate(t *testing.T) {
	r := newRig(t, 0, 1)
	if err := remote.Write(r.ref(repository+":1"), artifact(t, []byte("content")), r.with(r.mint(repository, time.Now(), "pull", "push"))...); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	handlers, strangers := authority(t, "handlers", now), authority(t, "strangers", now)
	h, err := New(t.Context(), Config{Dir: r.dir, Keys: token.NewKeys(r.keyFile), Reserve: 1, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	var identity, trust pki.Held
	serving, err := handlers.Issue(pki.Leaf{CommonName: "dvcr", DNSNames: []string{"dvcr"}, Server: true}, now)
	if err != nil {
		t.Fatal(err)
	}
	if err := identity.SetPair(serving); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(h)
	server.TLS = tlsConfig(&identity, &trust)
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	server.StartTLS()
	t.Cleanup(server.Close)

	const manifest, upload, tags = "/v2/" + repository + "/manifests/1", "/v2/" + repository + "/blobs/uploads/", "/v2/_catalog"
	cases := map[string]struct {
		authority    *pki.Authority
		name, method string
		path         string
		want         int // 0: no connection
	}{
		"pull":                           {handlers, "virt-handler:node-1", http.MethodGet, manifest, 200},
		"push":                           {handlers, "virt-handler:node-1", http.MethodPost, upload, 401},
		"delete":                         {handlers, "virt-handler:node-1", http.MethodDelete, manifest, 401},
		"list everything":                {handlers, "virt-handler:node-1", http.MethodGet, tags, 401},
		"another name of that authority": {handlers, "somebody", http.MethodGet, manifest, 401},
		"another authority":              {strangers, "virt-handler:node-1", http.MethodGet, manifest, 0},
		"no certificate":                 {nil, "", http.MethodGet, manifest, 401},
	}
	get := func(t *testing.T, a *pki.Authority, name, method, path string) int {
		t.Helper()
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(handlers.CertificatePEM())
		config := &tls.Config{RootCAs: roots, ServerName: "dvcr", MinVersion: tls.VersionTLS13}
		if a != nil {
			pair, err := a.Issue(pki.Leaf{CommonName: name, Client: true}, now)
			if err != nil {
				t.Fatal(err)
			}
			certificate, err := tls.X509KeyPair(pair.Certificate, pair.Key)
			if err != nil {
				t.Fatal(err)
			}
			config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certificate, nil }
		}
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
		request, err := http.NewRequestWithContext(t.Context(), method, server.URL+path, bytes.NewReader(nil))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Accept", "application/vnd.oci.image.manifest.v1+json")
		response, err := client.Do(request)
		if err != nil {
			t.Log(err)
			return 0
		}
		defer response.Body.Close()
		_, _ = io.Copy(io.Discard, response.Body)
		return response.StatusCode
	}
	if got := get(t, nil, "", http.MethodGet, manifest); got != 401 {
		t.Errorf("before the authority is known, without a certificate: %d", got)
	}
	if err := trust.SetRoots(handlers.CertificatePEM()); err != nil {
		t.Fatal(err)
	}
	for name, tc := range cases {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			if got := get(t, tc.authority, tc.name, tc.method, tc.path); got != tc.want {
				t.Errorf("got %d, want %d", got, tc.want)
			}
		})
	}
}

func authority(t *testing.T, name string, now time.Time) *pki.Authority {
	t.Helper()
	a, err := pki.NewAuthority(name, now)
	if err != nil {
		t.Fatal(err)
	}
	return a
}
