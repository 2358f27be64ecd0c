package registry

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// uploadPath matches the address of an upload: repository and session, the latter
// empty while it begins. Neither can lead out of the folder of the blobs.
var uploadPath = regexp.MustCompile(`^/v2/([a-z0-9]+(?:[._/-]+[a-z0-9]+)*)/blobs/uploads/([0-9a-f-]*)$`)

// recheck is after how many bytes of an upload the free space is looked at again.
const recheck = 32 << 20

var (
	errTooLarge = errors.New("blob is larger than this registry takes")
	errFull     = errors.New("registry has no room left")
)

// limits bounds uploads: each blob, and all of them together by the volume.
type limits struct {
	dir              string
	maxBlob, reserve int64
	log              *slog.Logger
}

// guard puts the limits before the protocol engine.
func (l limits) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m := uploadPath.FindStringSubmatch(r.URL.Path)
		if m == nil || r.Method == http.MethodGet || r.Method == http.MethodDelete || r.Method == http.MethodHead {
			next.ServeHTTP(w, r)
			return
		}
		have := l.uploaded(m[1], m[2])
		body := &boundedBody{ReadCloser: r.Body, limits: l, left: l.maxBlob - have}
		switch {
		case r.ContentLength > body.left:
			body.broken = errTooLarge
		case l.free() < r.ContentLength || l.free() <= 0:
			body.broken = errFull
		}
		if body.broken != nil {
			refuse(w, r.Body, body.broken)
			return
		}
		r.Body = body
		next.ServeHTTP(&overruling{ResponseWriter: w, body: body}, r)
	})
}

// uploaded is how much a session has received already, in bytes.
func (l limits) uploaded(repository, session string) int64 {
	if session == "" {
		return 0
	}
	st, err := l.stat(filepath.Join("docker/registry/v2/repositories", repository, "_uploads", session, "data"))
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			l.log.Warn("look at upload", "error", err)
		}
		return 0
	}
	return st.Size()
}

// stat looks at a file of the volume, and at nothing outside of it: the names come
// from clients.
func (l limits) stat(name string) (fs.FileInfo, error) {
	root, err := os.OpenRoot(l.dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return root.Stat(name)
}

// free is how much uploads may still take, in bytes.
func (l limits) free() int64 {
	var st unix.Statfs_t
	if err := unix.Statfs(l.dir, &st); err != nil {
		l.log.Error("measure volume", "error", err)
		return 0
	}
	return int64(st.Bavail)*st.Bsize - l.reserve
}

// boundedBody is the body of an upload; it breaks off at a limit.
type boundedBody struct {
	io.ReadCloser

	limits    limits
	left      int64
	unchecked int64
	broken    error
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if b.broken != nil {
		return 0, b.broken
	}
	n, err := b.ReadCloser.Read(p)
	b.left -= int64(n)
	b.unchecked += int64(n)
	if b.left < 0 {
		b.broken = errTooLarge
		return 0, b.broken
	}
	if b.unchecked >= recheck {
		b.unchecked = 0
		if b.limits.free() <= 0 {
			b.broken = errFull
			return 0, b.broken
		}
	}
	return n, err
}

// overruling answers a broken upload itself: the engine would call it an unknown
// error, and the client must know that trying again at once is useless.
type overruling struct {
	http.ResponseWriter

	body    *boundedBody
	refused bool
}

// WriteHeader implements http.ResponseWriter.
func (o *overruling) WriteHeader(code int) {
	if o.body.broken != nil {
		o.refused = true
		refuse(o.ResponseWriter, o.body.ReadCloser, o.body.broken)
		return
	}
	o.ResponseWriter.WriteHeader(code)
}

// Write implements http.ResponseWriter.
func (o *overruling) Write(p []byte) (int, error) {
	if o.refused {
		return len(p), nil
	}
	return o.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController through.
func (o *overruling) Unwrap() http.ResponseWriter { return o.ResponseWriter }

// drainTime is how long a client that was refused may go on sending.
const drainTime = 5 * time.Second

// refuse answers in the form the protocol has for errors. The client is still
// sending then: if we closed the connection at once, it would find it reset before
// it reads why.
func refuse(w http.ResponseWriter, body io.Reader, cause error) {
	status, code := http.StatusRequestEntityTooLarge, "SIZE_INVALID"
	if errors.Is(cause, errFull) {
		status, code = http.StatusInsufficientStorage, "DENIED"
	}
	type entry struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	raw, _ := json.Marshal(map[string][]entry{"errors": {{Code: code, Message: cause.Error()}}}) // cannot fail
	stream := http.NewResponseController(w)
	duplex := stream.EnableFullDuplex() == nil
	h := w.Header()
	h.Set("Content-Length", strconv.Itoa(len(raw)))
	h.Set("Content-Type", "application/json")
	h.Set("Connection", "close")
	w.WriteHeader(status)
	_, _ = w.Write(raw) // the client has gone: nothing to do
	if !duplex || stream.Flush() != nil || stream.SetReadDeadline(time.Now().Add(drainTime)) != nil {
		return
	}
	_, _ = io.Copy(io.Discard, body)
}
