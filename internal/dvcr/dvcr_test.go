package dvcr

import (
	"encoding/pem"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"orlop.dev/orlop/internal/registry"
	"orlop.dev/orlop/internal/registry/token"
)

const (
	namespace  = "d8-virtualization"
	repository = "vi/default/debian"
)

// newAccess is the access to a real registry, with key and bundle where the module keeps them.
func newAccess(t *testing.T) (*Access, *httptest.Server) {
	t.Helper()
	authority, err := token.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	keys, err := authority.JWKS()
	if err != nil {
		t.Fatal(err)
	}
	keyFile := filepath.Join(t.TempDir(), "jwks.json")
	if err := os.WriteFile(keyFile, keys, 0o600); err != nil {
		t.Fatal(err)
	}
	h, err := registry.New(t.Context(), registry.Config{Dir: t.TempDir(), Keys: token.NewKeys(keyFile), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewTLSServer(h)
	t.Cleanup(server.Close)
	private, err := authority.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	reader := fake.NewClientBuilder().WithObjects(
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: tokenSecret}, Data: map[string][]byte{tokenKey: private}},
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: caConfigMap}, Data: map[string]string{caKey: string(ca)}},
	).Build()
	// The test server's certificate is for example.com.
	return &Access{Host: "example.com", Address: strings.TrimPrefix(server.URL, "https://"), Namespace: namespace, Reader: reader,
		Tokens: &SecretTokens{Reader: reader, Namespace: namespace, Clock: clock.RealClock{}}}, server
}

func TestRemove(t *testing.T) {
	access, server := newAccess(t)
	granted, err := access.Grant(t.Context(), repository, ":uid", Pull, Push)
	if err != nil {
		t.Fatal(err)
	}
	if want := "example.com/" + repository + ":uid"; granted.Reference != want {
		t.Errorf("reference %q, want %q", granted.Reference, want)
	}
	with := []remote.Option{remote.WithAuth(authn.FromConfig(authn.AuthConfig{RegistryToken: granted.Token})), remote.WithTransport(server.Client().Transport)}
	ref, err := name.ParseReference(access.Address + "/" + repository + ":uid")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, empty.Image, with...); err != nil {
		t.Fatal(err)
	}
	if _, err := remote.Head(ref, with...); err != nil {
		t.Fatalf("the image was not stored: %v", err)
	}
	if err := access.Remove(t.Context(), repository, "uid"); err != nil {
		t.Fatal(err)
	}
	if _, err := remote.Head(ref, with...); !isNotFound(err) {
		t.Errorf("after its removal the image gives %v", err)
	}
	if err := access.Remove(t.Context(), repository, "uid"); err != nil {
		t.Errorf("a repeated removal fails: %v", err)
	}
	if err := access.Remove(t.Context(), "vi/default/none", "uid"); err != nil {
		t.Errorf("the removal of what never was fails: %v", err)
	}
}

func isNotFound(err error) bool {
	e, ok := err.(*transport.Error) //nolint:errorlint // the library returns it bare
	return ok && e.StatusCode == http.StatusNotFound
}

func TestMissingPieces(t *testing.T) {
	cases := map[string]struct {
		drop client.Object
		want string
	}{
		"no bundle yet":    {&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: caConfigMap}}, "read ConfigMap d8-virtualization/dvcr-ca"},
		"no token key yet": {&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: tokenSecret}}, "read Secret d8-virtualization/dvcr-token"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			access, _ := newAccess(t)
			if err := access.Reader.(client.Client).Delete(t.Context(), c.drop); err != nil {
				t.Fatal(err)
			}
			if _, err := access.Grant(t.Context(), repository, ":uid", Pull); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}
