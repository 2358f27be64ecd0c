package registry

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"orlop.dev/orlop/internal/registry/token"
)

const diskType types.MediaType = "application/vnd.orlop.disk.qcow2"

// rig is a registry with its token authority.
type rig struct {
	t         *testing.T
	host      string
	dir       string
	keyFile   string
	authority *token.Authority
	server    *httptest.Server
}

func newRig(t *testing.T, maxBlob, reserve int64) *rig {
	t.Helper()
	a, err := token.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, dir: t.TempDir(), keyFile: filepath.Join(t.TempDir(), "jwks.json"), authority: a}
	r.trust(a)
	h, err := New(t.Context(), Config{Dir: r.dir, Keys: token.NewKeys(r.keyFile), MaxBlob: maxBlob, Reserve: reserve, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	r.server = httptest.NewTLSServer(h)
	t.Cleanup(r.server.Close)
	r.host = strings.TrimPrefix(r.server.URL, "https://")
	return r
}

func (r *rig) trust(all ...*token.Authority) {
	r.t.Helper()
	raw, err := token.JWKS(all...)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(r.keyFile, raw, 0o600); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) mint(repository string, now time.Time, actions ...string) string {
	r.t.Helper()
	raw, err := r.authority.Mint(repository, actions, now, time.Hour)
	if err != nil {
		r.t.Fatal(err)
	}
	return raw
}

func (r *rig) ref(s string) name.Reference {
	r.t.Helper()
	ref, err := name.ParseReference(r.host + "/" + s)
	if err != nil {
		r.t.Fatal(err)
	}
	return ref
}

func (r *rig) with(bearer string) []remote.Option {
	return []remote.Option{
		remote.WithAuth(authn.FromConfig(authn.AuthConfig{RegistryToken: bearer})),
		remote.WithTransport(r.server.Client().Transport),
		remote.WithRetryPredicate(func(error) bool { return false }),
	}
}

func artifact(t *testing.T, content []byte) v1.Image {
	t.Helper()
	img, err := mutate.Append(mutate.MediaType(empty.Image, types.OCIManifestSchema1), mutate.Addendum{Layer: static.NewLayer(content, diskType)})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

const repository = "vi/default/debian"

// TestProtocol is what a client of the registry may and may not do.
func TestProtocol(t *testing.T) {
	const limit = 1 << 20
	content := bytes.Repeat([]byte("orlop"), 1000)
	push := func(r *rig, bearer string, to string, size int) error {
		body := content
		if size > 0 {
			body = make([]byte, size)
		}
		return remote.Write(r.ref(to), artifact(r.t, body), r.with(bearer)...)
	}
	for why, c := range map[string]struct {
		do         func(r *rig) error
		wantStatus int // of the error; 0 for success
	}{
		"push and pull with a token for the repository return the same bytes": {
			do: func(r *rig) error {
				if err := push(r, r.mint(repository, time.Now(), "pull", "push"), repository+":1", 0); err != nil {
					return err
				}
				img, err := remote.Image(r.ref(repository+":1"), r.with(r.mint(repository, time.Now(), "pull"))...)
				if err != nil {
					return err
				}
				layers, err := img.Layers()
				if err != nil {
					return err
				}
				rc, err := layers[0].Compressed()
				if err != nil {
					return err
				}
				defer rc.Close()
				got, err := io.ReadAll(rc)
				if err != nil {
					return err
				}
				if !bytes.Equal(got, content) {
					return errors.New("pulled bytes differ")
				}
				return nil
			},
		},
		"nothing works without a token": {
			do: func(r *rig) error {
				_, err := remote.Get(r.ref(repository+":1"), remote.WithTransport(r.server.Client().Transport))
				return err
			},
			wantStatus: http.StatusNotFound, // of the token service that does not exist
		},
		"a token that allows pull does not push": {
			do:         func(r *rig) error { return push(r, r.mint(repository, time.Now(), "pull"), repository+":1", 0) },
			wantStatus: http.StatusUnauthorized,
		},
		"a token for one repository does not open another": {
			do: func(r *rig) error {
				return push(r, r.mint(repository, time.Now(), "pull", "push"), "vi/other/debian:1", 0)
			},
			wantStatus: http.StatusUnauthorized,
		},
		"a token for a repository does not open one whose name it begins": {
			do: func(r *rig) error {
				return push(r, r.mint(repository, time.Now(), "pull", "push"), repository+"-2:1", 0)
			},
			wantStatus: http.StatusUnauthorized,
		},
		"an expired token is refused": {
			do: func(r *rig) error {
				return push(r, r.mint(repository, time.Now().Add(-2*time.Hour), "pull", "push"), repository+":1", 0)
			},
			wantStatus: http.StatusUnauthorized,
		},
		"a token of an authority that is not trusted is refused": {
			do: func(r *rig) error {
				foreign, err := token.NewAuthority()
				if err != nil {
					return err
				}
				raw, err := foreign.Mint(repository, []string{"pull", "push"}, time.Now(), time.Hour)
				if err != nil {
					return err
				}
				return push(r, raw, repository+":1", 0)
			},
			wantStatus: http.StatusUnauthorized,
		},
		"after the keys were exchanged old and new tokens work while both keys are listed": {
			do: func(r *rig) error {
				old := r.mint(repository, time.Now(), "pull", "push")
				fresh, err := token.NewAuthority()
				if err != nil {
					return err
				}
				r.trust(r.authority, fresh)
				if err := push(r, old, repository+":1", 0); err != nil {
					return err
				}
				r.authority = fresh
				return push(r, r.mint(repository, time.Now(), "pull", "push"), repository+":2", 0)
			},
		},
		"a blob over the limit is refused": {
			do: func(r *rig) error {
				return push(r, r.mint(repository, time.Now(), "pull", "push"), repository+":1", limit+1)
			},
			wantStatus: http.StatusRequestEntityTooLarge,
		},
		"a manifest can be deleted with the right to delete": {
			do: func(r *rig) error {
				bearer := r.mint(repository, time.Now(), "pull", "push", "delete")
				if err := push(r, bearer, repository+":1", 0); err != nil {
					return err
				}
				d, err := remote.Head(r.ref(repository+":1"), r.with(bearer)...)
				if err != nil {
					return err
				}
				if err := remote.Delete(r.ref(repository+"@"+d.Digest.String()), r.with(bearer)...); err != nil {
					return err
				}
				_, err = remote.Head(r.ref(repository+":1"), r.with(bearer)...)
				return err
			},
			wantStatus: http.StatusNotFound,
		},
		"a manifest cannot be deleted without it": {
			do: func(r *rig) error {
				bearer := r.mint(repository, time.Now(), "pull", "push")
				if err := push(r, bearer, repository+":1", 0); err != nil {
					return err
				}
				d, err := remote.Head(r.ref(repository+":1"), r.with(bearer)...)
				if err != nil {
					return err
				}
				return remote.Delete(r.ref(repository+"@"+d.Digest.String()), r.with(bearer)...)
			},
			wantStatus: http.StatusUnauthorized,
		},
		"the catalogue is nobody's": {
			do: func(r *rig) error {
				reg, err := name.NewRegistry(r.host)
				if err != nil {
					return err
				}
				_, err = remote.Catalog(r.t.Context(), reg, r.with(r.mint(repository, time.Now(), "pull"))...)
				return err
			},
			wantStatus: http.StatusUnauthorized,
		},
	} {
		t.Run(why, func(t *testing.T) {
			err := c.do(newRig(t, limit, 0))
			if got := statusOf(err); got != c.wantStatus {
				t.Errorf("status %d, want %d; error: %v", got, c.wantStatus, err)
			}
		})
	}
}

func statusOf(err error) int {
	var te *transport.Error
	switch {
	case err == nil:
		return 0
	case errors.As(err, &te):
		return te.StatusCode
	}
	return -1
}

// TestRawUploads sends what a well-behaved client never would.
func TestRawUploads(t *testing.T) {
	for why, c := range map[string]struct {
		reserve    int64
		upload     func(r *rig, location string) *http.Request
		wantStatus int
	}{
		"a digest that is not that of the bytes": {
			upload: func(r *rig, location string) *http.Request {
				return r.request(http.MethodPut, location+"&digest=sha256:"+strings.Repeat("0", 64), strings.NewReader("abc"))
			},
			wantStatus: http.StatusBadRequest,
		},
		"a chunk that makes the session too large": {
			upload: func(r *rig, location string) *http.Request {
				for range 3 {
					q := r.request(http.MethodPatch, location, strings.NewReader(strings.Repeat("x", 400<<10)))
					q.Header.Set("Content-Type", "application/octet-stream")
					resp := r.send(q)
					if resp.StatusCode != http.StatusAccepted {
						break
					}
					location = resp.Header.Get("Location")
				}
				return r.request(http.MethodPatch, location, strings.NewReader(strings.Repeat("x", 400<<10)))
			},
			wantStatus: http.StatusRequestEntityTooLarge,
		},
		"a body of unknown length over the limit": {
			upload: func(r *rig, location string) *http.Request {
				q := r.request(http.MethodPatch, location, io.LimitReader(zeros{}, 8<<20))
				q.ContentLength = -1
				return q
			},
			wantStatus: http.StatusRequestEntityTooLarge,
		},
		"a volume with less than its reserve left": {
			reserve: 1 << 60,
			upload: func(r *rig, _ string) *http.Request {
				return r.request(http.MethodPost, "/v2/"+repository+"/blobs/uploads/", nil)
			},
			wantStatus: http.StatusInsufficientStorage,
		},
	} {
		t.Run(why, func(t *testing.T) {
			r := newRig(t, 1<<20, c.reserve)
			location := ""
			if c.reserve == 0 {
				resp := r.send(r.request(http.MethodPost, "/v2/"+repository+"/blobs/uploads/", nil))
				if resp.StatusCode != http.StatusAccepted {
					t.Fatalf("begin upload: %s", resp.Status)
				}
				location = resp.Header.Get("Location")
			}
			if got := r.send(c.upload(r, location)).StatusCode; got != c.wantStatus {
				t.Errorf("status %d, want %d", got, c.wantStatus)
			}
		})
	}
}

// TestUploadOutlivesTheProcess begins an upload, starts a new process on the same
// volume and goes on.
func TestUploadOutlivesTheProcess(t *testing.T) {
	r := newRig(t, 1<<20, 0)
	begun := r.send(r.request(http.MethodPost, "/v2/"+repository+"/blobs/uploads/", nil))
	first := r.request(http.MethodPatch, begun.Header.Get("Location"), strings.NewReader("first half, "))
	location := r.send(first).Header.Get("Location")

	h, err := New(t.Context(), Config{Dir: r.dir, Keys: token.NewKeys(r.keyFile), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	r.server.Config.Handler = h
	digest, _, err := v1.SHA256(strings.NewReader("first half, second half"))
	if err != nil {
		t.Fatal(err)
	}
	last := r.request(http.MethodPut, location+"&digest="+digest.String(), strings.NewReader("second half"))
	if got := r.send(last).StatusCode; got != http.StatusCreated {
		t.Errorf("status %d, want %d", got, http.StatusCreated)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func (r *rig) request(method, path string, body io.Reader) *http.Request {
	r.t.Helper()
	if !strings.HasPrefix(path, "http") {
		path = r.server.URL + path
	}
	q, err := http.NewRequestWithContext(r.t.Context(), method, path, body)
	if err != nil {
		r.t.Fatal(err)
	}
	q.Header.Set("Authorization", "Bearer "+r.mint(repository, time.Now(), "pull", "push"))
	return q
}

func (r *rig) send(q *http.Request) *http.Response {
	r.t.Helper()
	resp, err := r.server.Client().Do(q)
	if err != nil {
		r.t.Fatal(err)
	}
	resp.Body.Close()
	return resp
}

func TestAuthorityOutlivesItsKey(t *testing.T) {
	a, err := token.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := a.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	again, err := token.LoadAuthority(raw)
	if err != nil {
		t.Fatal(err)
	}
	one, _ := a.JWKS()
	two, _ := again.JWKS()
	if !bytes.Equal(one, two) {
		t.Errorf("key set changed: %s, then %s", one, two)
	}
	if _, err := a.Mint("../etc", []string{"pull"}, time.Now(), time.Hour); err == nil {
		t.Error("minted a token for a name that is no repository")
	}
}
