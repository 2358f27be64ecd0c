package importer

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"orlop.dev/orlop/internal/registry"
	"orlop.dev/orlop/internal/registry/token"
)

const (
	mib        = 1 << 20
	repository = "vi/default/debian"
	tag        = "4f0c"
)

// rig is a registry, and the folders of a pod.
type rig struct {
	t         *testing.T
	authority *token.Authority
	host      string
	ca        []byte
}

func newRig(t *testing.T, reserve int64) *rig {
	t.Helper()
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("needs qemu-img")
	}
	a, err := token.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	keys, err := a.JWKS()
	if err != nil {
		t.Fatal(err)
	}
	keyFile := write(t, filepath.Join(t.TempDir(), "jwks.json"), keys)
	h, err := registry.New(t.Context(), registry.Config{
		Dir: t.TempDir(), Keys: token.NewKeys(keyFile), Reserve: reserve, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewTLSServer(h)
	t.Cleanup(s.Close)
	return &rig{t: t, authority: a, host: strings.TrimPrefix(s.URL, "https://"), ca: certificate(s)}
}

func certificate(s *httptest.Server) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
}

func (r *rig) repository(actions ...string) Repository {
	r.t.Helper()
	raw, err := r.authority.Mint(repository, actions, time.Now(), time.Hour)
	if err != nil {
		r.t.Fatal(err)
	}
	return Repository{Reference: r.host + "/" + repository + ":" + tag, Token: raw, CABundle: r.ca}
}

// do runs the importer and checks that it left nothing in its scratch folder.
func (r *rig) do(c Config, target string) (*Result, error) {
	r.t.Helper()
	raw, err := c.Marshal()
	if err != nil {
		r.t.Fatal(err)
	}
	config, err := ReadConfig(write(r.t, filepath.Join(r.t.TempDir(), "config.json"), raw))
	if err != nil {
		r.t.Fatal(err)
	}
	scratch := r.t.TempDir()
	result, err := (&Run{Config: config, Scratch: scratch, Target: target, Meter: NewMeter(time.Now), Now: time.Now}).Do(r.t.Context())
	if left, _ := os.ReadDir(scratch); len(left) > 0 {
		r.t.Errorf("left in scratch: %v", left)
	}
	return result, err
}

func (r *rig) importFrom(s HTTPSource, change func(*Import)) (*Result, error) {
	r.t.Helper()
	c := Import{Source: s, Destination: r.repository("pull", "push"), StallTimeoutSeconds: 1}
	if change != nil {
		change(&c)
	}
	return r.do(Config{Import: &c}, "")
}

func write(t *testing.T, path string, content []byte) string {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// disk is a raw image: a boot signature, noise and zeros.
func disk(size int) []byte {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(b[:size/3])
	b[510], b[511] = 0x55, 0xaa
	return b
}

func packed(t *testing.T, content []byte, wrap func(io.Writer) (io.WriteCloser, error)) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := wrap(&out)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func gz(w io.Writer) (io.WriteCloser, error)   { return gzip.NewWriter(w), nil }
func xzip(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) }
func zst(w io.Writer) (io.WriteCloser, error)  { return zstd.NewWriter(w) }

func tool(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "qemu-img", args...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img %v: %v\n%s", args, err, out)
	}
}

func qemuImage(t *testing.T, args ...string) []byte {
	t.Helper()
	dir := t.TempDir()
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "DIR", dir)
	}
	write(t, dir+"/raw", disk(3*mib))
	tool(t, args...)
	raw, err := os.ReadFile(dir + "/image")
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// TestRoundTrip imports an image, fills a volume from it and compares every byte.
func TestRoundTrip(t *testing.T) {
	content := disk(3 * mib)
	for why, c := range map[string]struct {
		serve      func(t *testing.T) []byte
		wantSource string
	}{
		"raw":       {serve: func(*testing.T) []byte { return content }, wantSource: "raw"},
		"raw, gzip": {serve: func(t *testing.T) []byte { return packed(t, content, gz) }, wantSource: "raw"},
		"raw, xz":   {serve: func(t *testing.T) []byte { return packed(t, content, xzip) }, wantSource: "raw"},
		"raw, zstd": {serve: func(t *testing.T) []byte { return packed(t, content, zst) }, wantSource: "raw"},
		"qcow2": {serve: func(t *testing.T) []byte {
			return qemuImage(t, "convert", "-f", "raw", "-O", "qcow2", "DIR/raw", "DIR/image")
		}, wantSource: "qcow2"},
		"qcow2, compressed": {serve: func(t *testing.T) []byte {
			return qemuImage(t, "convert", "-c", "-f", "raw", "-O", "qcow2", "DIR/raw", "DIR/image")
		}, wantSource: "qcow2"},
		"qcow2 of version 2": {serve: func(t *testing.T) []byte {
			return qemuImage(t, "convert", "-o", "compat=0.10", "-f", "raw", "-O", "qcow2", "DIR/raw", "DIR/image")
		}, wantSource: "qcow2"},
		"vmdk": {serve: func(t *testing.T) []byte {
			return qemuImage(t, "convert", "-f", "raw", "-O", "vmdk", "DIR/raw", "DIR/image")
		}, wantSource: "vmdk"},
		"vdi": {serve: func(t *testing.T) []byte {
			return qemuImage(t, "convert", "-f", "raw", "-O", "vdi", "DIR/raw", "DIR/image")
		}, wantSource: "vdi"},
		"several gzip members": {serve: func(t *testing.T) []byte {
			return append(packed(t, content[:mib], gz), packed(t, content[mib:], gz)...)
		}, wantSource: "raw"},
	} {
		t.Run(why, func(t *testing.T) {
			r := newRig(t, 0)
			served := c.serve(t)
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
				http.ServeContent(w, q, "image", time.Time{}, bytes.NewReader(served))
			}))
			defer s.Close()
			sum := sha256.Sum256(served)
			got, err := r.importFrom(HTTPSource{URL: s.URL, Checksums: Checksums{SHA256: strings.ToUpper(hex.EncodeToString(sum[:]))}}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got.Format != "qcow2" || got.SourceFormat != c.wantSource || got.VirtualSize != 3*mib || got.SourceSize != int64(len(served)) || got.Checksums.SHA256 != hex.EncodeToString(sum[:]) {
				t.Errorf("result %+v", got)
			}
			r.checkVolume(got.Digest, content, 5*mib)
		})
	}
}

// checkVolume fills a volume from the image and reads it back.
func (r *rig) checkVolume(digest string, want []byte, size int64) {
	r.t.Helper()
	target := r.t.TempDir()
	from := r.repository("pull")
	made, err := r.do(Config{Populate: &Populate{VirtualSize: size, Image: &from}}, target)
	if err != nil {
		r.t.Fatal(err)
	}
	if made.VirtualSize != size || made.Digest != digest || made.StoredSize <= 0 {
		r.t.Errorf("result %+v", made)
	}
	tool(r.t, "convert", "-f", "qcow2", "-O", "raw", target+"/"+DiskFile, target+"/raw")
	got, err := os.ReadFile(target + "/raw")
	if err != nil {
		r.t.Fatal(err)
	}
	if int64(len(got)) != size || !bytes.Equal(got[:len(want)], want) || len(bytes.TrimRight(got[len(want):], "\x00")) > 0 {
		r.t.Error("the volume has other bytes than the image")
	}
}

func TestISOIsKeptAsItIs(t *testing.T) {
	r := newRig(t, 0)
	iso := make([]byte, mib)
	copy(iso[32769:], "CD001")
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(iso) }))
	defer s.Close()
	got, err := r.importFrom(HTTPSource{URL: s.URL}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got.Format != "iso" || !got.CDROM || got.StoredSize != mib || got.VirtualSize != mib {
		t.Errorf("result %+v", got)
	}
	from := r.repository("pull")
	_, err = r.do(Config{Populate: &Populate{VirtualSize: 2 * mib, Image: &from}}, t.TempDir())
	checkFailure(t, err, ReasonUnsupported, "CD-ROM", false)
}

func checkFailure(t *testing.T, err error, want Reason, word string, retry bool) {
	t.Helper()
	var f *Failure
	if !errors.As(err, &f) {
		t.Fatalf("got %v, want a failure %s", err, want)
	}
	if f.Reason != want || !strings.Contains(f.Message, word) || f.Retry != retry {
		t.Errorf("failed with %s (retry %v): %q; want %s (retry %v) and the word %q", f.Reason, f.Retry, f.Message, want, retry, word)
	}
}

// TestRefusals is what a server may do to us, and what the user hears of it.
func TestRefusals(t *testing.T) {
	good := disk(mib)
	serve := func(b []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(b) }
	}
	for why, c := range map[string]struct {
		handler http.HandlerFunc
		source  func(t *testing.T) []byte
		sums    Checksums
		change  func(*Import)
		url     string
		want    Reason
		word    string
		retry   bool
	}{
		"no such file":               {handler: http.NotFound, want: ReasonNotFound, word: "404", retry: true},
		"an error of the server":     {handler: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }, want: ReasonRefused, word: "503", retry: true},
		"a login is needed":          {handler: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403) }, want: ReasonRefused, word: "403", retry: true},
		"nobody listens":             {url: "http://127.0.0.1:1/x", want: ReasonUnreachable, word: "refused", retry: true},
		"a name that does not exist": {url: "http://no-such-host.invalid/x", want: ReasonUnreachable, word: "no-such-host.invalid", retry: true},
		"another scheme":             {url: "file:///etc/passwd", want: ReasonInvalidConfig, word: "http"},
		"redirects without an end":   {handler: func(w http.ResponseWriter, q *http.Request) { http.Redirect(w, q, "/again", http.StatusFound) }, want: ReasonUnreachable, word: "redirects", retry: true},
		"a redirect to a file": {
			handler: func(w http.ResponseWriter, q *http.Request) {
				http.Redirect(w, q, "file:///etc/passwd", http.StatusFound)
			},
			want: ReasonUnreachable, word: "scheme", retry: true,
		},
		"a server that never answers": {
			handler: func(_ http.ResponseWriter, q *http.Request) { <-q.Context().Done() },
			want:    ReasonUnreachable, word: "does not answer", retry: true,
		},
		"a server that stops in the middle": {
			handler: func(w http.ResponseWriter, q *http.Request) {
				w.Header().Set("Content-Length", strconv.Itoa(len(good)))
				_, _ = w.Write(good[:len(good)/2])
				_ = http.NewResponseController(w).Flush()
				<-q.Context().Done()
			},
			want: ReasonUnreachable, word: "stalled", retry: true,
		},
		"a transfer that is cut": {
			handler: func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Length", strconv.Itoa(len(good)))
				_, _ = w.Write(good[:len(good)/2])
				panic(http.ErrAbortHandler)
			},
			want: ReasonTruncated, word: fmt.Sprintf("of %d bytes", len(good)), retry: true,
		},
		"a transfer of unknown length that is cut": {
			handler: func(w http.ResponseWriter, _ *http.Request) {
				_, _ = w.Write(good[:len(good)/2])
				_ = http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			},
			want: ReasonTruncated, retry: true,
		},
		"a gzip file that was cut before it reached the server": {
			source: func(t *testing.T) []byte { b := packed(t, good, gz); return b[:len(b)/2] },
			want:   ReasonTruncated, word: "gzip", retry: true,
		},
		"an xz file that was cut": {
			source: func(t *testing.T) []byte { b := packed(t, good, xzip); return b[:len(b)/2] },
			want:   ReasonTruncated, word: "xz", retry: true,
		},
		"a gzip file with a wrong byte": {
			source: func(t *testing.T) []byte { b := packed(t, good, gz); b[len(b)-6] ^= 1; return b },
			want:   ReasonNotAnImage, word: "damaged",
		},
		"an HTML page": {handler: serve([]byte("<!doctype html><html>Sign in</html>")), want: ReasonNotAnImage, word: "HTML page"},
		"nothing":      {handler: serve(nil), want: ReasonNotAnImage, word: "empty"},
		"a backing file": {
			source: func(t *testing.T) []byte {
				return qemuImage(t, "create", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd", "DIR/image", "1M")
			},
			want: ReasonBackingFile, word: "backing file",
		},
		"external data": {
			source: func(t *testing.T) []byte {
				return qemuImage(t, "create", "-f", "qcow2", "-o", "data_file=DIR/data", "DIR/image", "1M")
			},
			want: ReasonExternalData, word: "another file",
		},
		"an absurd size": {
			source: func(t *testing.T) []byte { return qemuImage(t, "create", "-f", "qcow2", "DIR/image", "900T") },
			want:   ReasonTooLarge, word: "limit",
		},
		"a decompression bomb": {
			source: func(t *testing.T) []byte { return packed(t, bytes.Repeat([]byte{1}, 64*mib), gz) },
			change: func(c *Import) { c.ScratchLimit = 8 * mib }, want: ReasonTooLarge, word: "limit",
		},
		"a bomb of zeros, which would take no room on disk": {
			source: func(t *testing.T) []byte { return packed(t, make([]byte, 64*mib), gz) },
			change: func(c *Import) { c.MaxVirtualSize = 8 * mib }, want: ReasonTooLarge, word: "limit",
		},
		"an xz file that wants gigabytes of memory": {
			source: func(t *testing.T) []byte { b := packed(t, good, xzip); b[16] = 40; return b },
			want:   ReasonTooLarge, word: "memory",
		},
		"a wrong checksum": {
			handler: serve(good), sums: Checksums{SHA512: strings.Repeat("0", 2*sha512.Size)},
			want: ReasonChecksumMismatch, word: "sha512",
		},
		"a checksum that is right beside one that is wrong": {
			handler: serve(good), sums: Checksums{SHA256: hexSum(good), MD5: strings.Repeat("0", 32)},
			want: ReasonChecksumMismatch, word: "md5",
		},
		"streebog does not exist yet and must not be skipped in silence": {
			handler: serve(good), sums: Checksums{Streebog256: strings.Repeat("0", 64)}, want: ReasonUnsupported, word: "streebog",
		},
		"a token that cannot push": {
			handler: serve(good), change: func(c *Import) { c.Destination.Token = "x" }, want: ReasonRegistryUnavailable, word: "token", retry: true,
		},
		"a registry that is away": {
			handler: serve(good), change: func(c *Import) { c.Destination.Reference = "127.0.0.1:1/a/b:c" }, want: ReasonRegistryUnavailable, word: "reached", retry: true,
		},
	} {
		t.Run(why, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, 0)
			url := c.url
			if url == "" {
				h := c.handler
				if h == nil {
					h = serve(c.source(t))
				}
				s := httptest.NewServer(h)
				t.Cleanup(s.Close)
				url = s.URL
			}
			_, err := r.importFrom(HTTPSource{URL: url, Checksums: c.sums}, c.change)
			checkFailure(t, err, c.want, c.word, c.retry)
			if _, err := find(t.Context(), r.repository("pull")); err == nil {
				t.Error("an image is in the registry all the same")
			}
		})
	}
}

func hexSum(b []byte) string { s := sha256.Sum256(b); return hex.EncodeToString(s[:]) }

func TestRegistryThatIsFull(t *testing.T) {
	r := newRig(t, 1<<60)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(disk(mib)) }))
	defer s.Close()
	_, err := r.importFrom(HTTPSource{URL: s.URL}, nil)
	checkFailure(t, err, ReasonRegistryFull, "room", true)
}

func TestPrivateAuthority(t *testing.T) {
	r := newRig(t, 0)
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(disk(mib)) }))
	defer s.Close()
	_, err := r.importFrom(HTTPSource{URL: s.URL}, nil)
	checkFailure(t, err, ReasonUnreachable, "certificate", true)
	if _, err := r.importFrom(HTTPSource{URL: s.URL, CABundle: certificate(s)}, nil); err != nil {
		t.Errorf("with its bundle: %v", err)
	}
}

func TestPopulate(t *testing.T) {
	for why, c := range map[string]struct {
		before func(t *testing.T, target string)
		size   int64
		image  bool
		want   Reason // empty for success
	}{
		"a blank disk":                           {size: 10 * mib},
		"a disk of the image's own size":         {size: 0, image: true},
		"a disk that is too small for its image": {size: 2 * mib, image: true, want: ReasonDiskTooSmall},
		"a size that is no number of sectors":    {size: 1000, want: ReasonInvalidConfig},
		"a blank disk without a size":            {size: 0, want: ReasonInvalidConfig},
		"what a killed run left is not taken for a disk": {
			before: func(t *testing.T, target string) { write(t, target+"/"+unfinished, []byte("half")) }, size: 10 * mib,
		},
		"a run killed after its last step is not repeated": {
			before: func(t *testing.T, target string) { tool(t, "create", "-q", "-f", "qcow2", target+"/"+DiskFile, "10M") }, size: 10 * mib,
		},
		"a volume with another disk is not touched": {
			before: func(t *testing.T, target string) { tool(t, "create", "-q", "-f", "qcow2", target+"/"+DiskFile, "20M") }, size: 10 * mib,
			want: ReasonInternal,
		},
	} {
		t.Run(why, func(t *testing.T) {
			r := newRig(t, 0)
			target := t.TempDir()
			if c.before != nil {
				c.before(t, target)
			}
			p := &Populate{VirtualSize: c.size}
			if c.image {
				s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(disk(3 * mib)) }))
				defer s.Close()
				if _, err := r.importFrom(HTTPSource{URL: s.URL}, nil); err != nil {
					t.Fatal(err)
				}
				from := r.repository("pull")
				p.Image = &from
			}
			got, err := r.do(Config{Populate: p}, target)
			if c.want != "" {
				checkFailure(t, err, c.want, "", c.want == ReasonInternal)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := max(c.size, 3*mib)
			if got.VirtualSize != want {
				t.Errorf("disk of %d bytes, want %d", got.VirtualSize, want)
			}
			entries, _ := os.ReadDir(target)
			if len(entries) != 1 || entries[0].Name() != DiskFile {
				t.Errorf("in the volume: %v", entries)
			}
		})
	}
}

func TestVolumeThatIsTooSmallForTheImage(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: a small file system")
	}
	r := newRig(t, 0)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(disk(12 * mib)) }))
	defer s.Close()
	if _, err := r.importFrom(HTTPSource{URL: s.URL}, nil); err != nil {
		t.Fatal(err)
	}
	target := t.TempDir()
	mountTmpfs(t, target, "2m")
	from := r.repository("pull")
	_, err := r.do(Config{Populate: &Populate{VirtualSize: 12 * mib, Image: &from}}, target)
	checkFailure(t, err, ReasonVolumeFull, "room", true)
	if entries, _ := os.ReadDir(target); len(entries) > 0 {
		t.Errorf("left in the volume: %v", entries)
	}
}

func TestTerminationMessage(t *testing.T) {
	long := fail(ReasonNotAnImage, nil, "%s", strings.Repeat("ж\"", 5000))
	for why, c := range map[string]struct {
		result  *Result
		failure *Failure
	}{
		"success":          {result: &Result{Format: "qcow2", VirtualSize: 7, Checksums: Checksums{MD5: "x"}}},
		"failure":          {failure: fail(ReasonTruncated, nil, "cut")},
		"a long complaint": {failure: long},
	} {
		t.Run(why, func(t *testing.T) {
			raw := terminationMessage(c.result, c.failure)
			if len(raw) > TerminationLimit {
				t.Fatalf("%d bytes", len(raw))
			}
			result, failure, err := ParseTermination(string(raw))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.result, result); diff != "" {
				t.Error(diff)
			}
			if (failure == nil) != (c.failure == nil) || (failure != nil && (failure.Reason != c.failure.Reason || failure.Retry != c.failure.Retry)) {
				t.Errorf("got %+v, want %+v", failure, c.failure)
			}
		})
	}
	if _, _, err := ParseTermination("OOMKilled"); err == nil {
		t.Error("a foreign message was understood")
	}
}

func TestProgressNeverFalls(t *testing.T) {
	now := time.Unix(0, 0)
	m := NewMeter(func() time.Time { return now })
	m.begin(PhaseDownloading, shareDownload, 100)
	now = now.Add(time.Second)
	m.add(50)
	got := m.Progress()
	want := Progress{Phase: PhaseDownloading, Percent: 30, BytesDone: 50, BytesTotal: 100, SpeedBytes: 50, AverageSpeedBytes: 50}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	m.begin(PhaseConverting, shareConvert, 0)
	m.fraction(0.5)
	m.fraction(0.25)
	if got := m.Progress().Percent; got != 70 {
		t.Errorf("percent %v, want 70", got)
	}
	m.end(PhaseDone)
	if got := m.Progress().Percent; got != 100 {
		t.Errorf("percent %v, want 100", got)
	}
	unknown := NewMeter(time.Now)
	unknown.begin(PhaseDownloading, shareDownload, 0)
	if got := unknown.Progress().Percent; got != -1 {
		t.Errorf("percent of an unknown total is %v, want -1", got)
	}
}
