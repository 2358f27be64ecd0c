package images

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr/testr"
	"github.com/google/go-cmp/cmp"
)

const patience = 20 * time.Second

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// registry serves blobs and manifests by their digests, over TLS.
type registry struct {
	server *httptest.Server
	reads  atomic.Int64
	hold   chan struct{} // a blob is not answered before it is closed
	mangle atomic.Bool

	mu      sync.Mutex
	content map[string][]byte
}

func newRegistry(t *testing.T) *registry {
	r := &registry{content: map[string][]byte{}, hold: make(chan struct{})}
	close(r.hold)
	r.server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		r.mu.Lock()
		data, hold := r.content[q.URL.Path[strings.LastIndex(q.URL.Path, ":")+1:]], r.hold
		r.mu.Unlock()
		if data == nil {
			http.Error(w, "no such thing", http.StatusNotFound)
			return
		}
		if strings.Contains(q.URL.Path, "/blobs/") {
			r.reads.Add(1)
			_, _ = w.Write(data[:len(data)/2])
			w.(http.Flusher).Flush()
			select {
			case <-hold:
			case <-q.Context().Done():
			}
			data = data[len(data)/2:]
			if r.mangle.Load() {
				data = bytes.ToUpper(data)
			}
		}
		_, _ = w.Write(data)
	}))
	t.Cleanup(r.server.Close)
	return r
}

// add stores an image and returns its reference.
func (r *registry) add(content string) string {
	manifest := []byte(fmt.Sprintf(`{"layers":[{"digest":"sha256:%s","size":%d}]}`, digest([]byte(content)), len(content)))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.content[digest([]byte(content))], r.content[digest(manifest)] = []byte(content), manifest
	return strings.TrimPrefix(r.server.URL, "https://") + "/vi/demo/image@sha256:" + digest(manifest)
}

// rig is a cache of a registry.
type rig struct {
	*Cache

	t     *testing.T
	inUse []string
	clock atomic.Int64
	stop  func()
}

func newRig(t *testing.T, r *registry, dir string, limit int64) *rig {
	t.Helper()
	g := &rig{t: t}
	g.Cache = &Cache{
		Dir: dir, Limit: limit, Log: testr.New(t), InUse: func() []string { return g.inUse },
		Now: func() time.Time { return time.Unix(1_900_000_000+g.clock.Add(1), 0) },
		Source: Registry{TLS: func(context.Context, string) (*tls.Config, error) {
			return r.server.Client().Transport.(*http.Transport).TLSClientConfig.Clone(), nil
		}},
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- g.Start(ctx) }()
	g.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(g.stop)
	return g
}

// read fetches an image and returns its content.
func (g *rig) read(ref string) (string, error) {
	g.t.Helper()
	deadline := time.After(patience)
	for {
		ready := make(chan struct{}, 1)
		disk, err := g.Open(ref, func() { ready <- struct{}{} })
		var coming *Fetching
		switch {
		case err == nil:
			defer disk.File.Close()
			data, err := os.ReadFile(disk.File.Name())
			return string(data), err
		case strings.Contains(err.Error(), "cannot be fetched now"): // it has not begun yet
			time.Sleep(time.Millisecond)
		case !errors.As(err, &coming):
			return "", err
		default:
			select {
			case <-ready:
			case <-deadline:
				g.t.Fatal("the image does not come")
			}
		}
	}
}

func (g *rig) files() []string {
	g.t.Helper()
	entries, err := os.ReadDir(g.Dir)
	if err != nil {
		g.t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestFetchOnceForAll(t *testing.T) {
	r := newRegistry(t)
	ref := r.add("an image of some bytes")
	r.hold = make(chan struct{})
	g := newRig(t, r, t.TempDir(), 1<<20)
	var group sync.WaitGroup
	for range 5 {
		group.Go(func() {
			if got, err := g.read(ref); got != "an image of some bytes" || err != nil {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
	time.AfterFunc(50*time.Millisecond, func() { close(r.hold) })
	group.Wait()
	if n := r.reads.Load(); n != 1 {
		t.Errorf("it was fetched %d times", n)
	}
	g.stop()
	r.server.Close() // what is here needs no registry
	if got, err := newRig(t, r, g.Dir, 1<<20).read(ref); got == "" || err != nil {
		t.Errorf("after a restart: %q, %v", got, err)
	}
}

func TestOnlyTrueContentIsKept(t *testing.T) {
	r := newRegistry(t)
	ref := r.add("an image of some bytes")
	g := newRig(t, r, t.TempDir(), 1<<20)
	r.mangle.Store(true)
	if _, err := g.read(ref); !errors.Is(err, ErrCorrupt) {
		t.Errorf("got %v", err)
	}
	if files := g.files(); len(files) != 0 {
		t.Errorf("left behind: %v", files)
	}
	r.mangle.Store(false)
	if got, err := g.read(ref); got != "an image of some bytes" || err != nil {
		t.Errorf("the next time: %q, %v", got, err)
	}
	for name, ref := range map[string]string{
		"a tag":               "host/vi/demo/image:latest",
		"a path out of there": "host/../../x@sha256:" + strings.Repeat("0", 64),
		"another digest":      "host/vi/demo/image@sha512:" + strings.Repeat("0", 64),
		"nothing":             "",
	} {
		if _, err := g.Open(ref, func() {}); err == nil || !strings.Contains(err.Error(), "does not name a digest") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	missing := strings.Split(ref, "@")[0] + "@sha256:" + strings.Repeat("0", 64)
	if _, err := g.read(missing); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("an image that is not there: %v", err)
	}
}

func TestCrashLeavesNothing(t *testing.T) {
	r := newRegistry(t)
	ref := r.add("an image of some bytes")
	r.hold = make(chan struct{}) // never: the fetch hangs in the middle
	g := newRig(t, r, t.TempDir(), 1<<20)
	for {
		if _, err := g.Open(ref, func() {}); errors.As(err, new(*Fetching)) {
			break
		}
		time.Sleep(time.Millisecond)
	}
	g.stop()
	if err := os.WriteFile(filepath.Join(g.Dir, partial+"of-a-crash"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	r.hold = make(chan struct{})
	close(r.hold)
	r.mu.Unlock()
	again := newRig(t, r, g.Dir, 1<<20)
	if got, err := again.read(ref); got != "an image of some bytes" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if files := again.files(); len(files) != 1 {
		t.Errorf("got %v", files)
	}
}

func TestLimit(t *testing.T) {
	r := newRegistry(t)
	var refs []string
	for i := range 5 {
		refs = append(refs, r.add(fmt.Sprintf("%d%s", i, strings.Repeat("x", 99))))
	}
	g := newRig(t, r, t.TempDir(), 300)
	must := func(i int) {
		t.Helper()
		if _, err := g.read(refs[i]); err != nil {
			t.Fatal(err)
		}
	}
	has := func(want ...int) {
		t.Helper()
		var names []string
		for _, i := range want {
			ref, _ := ParseReference(refs[i])
			names = append(names, ref.file())
		}
		slices.Sort(names)
		if diff := cmp.Diff(names, g.files()); diff != "" {
			t.Error(diff)
		}
	}
	must(0)
	must(1)
	must(2)
	must(0) // used again: 1 is the oldest now
	must(3)
	has(0, 2, 3)
	g.inUse = []string{refs[2], refs[0]}
	must(4)
	has(0, 2, 4)
	g.inUse = []string{refs[0], refs[2], refs[4]}
	if _, err := g.read(refs[1]); err == nil || !strings.Contains(err.Error(), "no room for 100 bytes") {
		t.Errorf("got %v", err)
	}
	has(0, 2, 4)
}

func TestFileCannotBeWritten(t *testing.T) {
	r := newRegistry(t)
	ref := r.add("an image of some bytes")
	g := newRig(t, r, t.TempDir(), 1<<20)
	if _, err := g.read(ref); err != nil {
		t.Fatal(err)
	}
	disk, err := g.Open(ref, func() {})
	if err != nil {
		t.Fatal(err)
	}
	defer disk.File.Close()
	if _, err := io.WriteString(disk.File, "x"); err == nil {
		t.Error("it can be written")
	}
}
