package stream_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"orlop.dev/orlop/internal/stream"
)

// serve starts a server that hands each accepted stream to handle.
func serve(t *testing.T, handle func(*stream.Conn)) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, err := stream.Accept(w, r)
		if err != nil {
			return
		}
		handle(conn)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

func dial(t *testing.T, url string) *stream.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := stream.Dial(ctx, http.DefaultClient, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func TestHalfCloseKeepsTheAnswerComing(t *testing.T) {
	t.Parallel()
	url := serve(t, func(conn *stream.Conn) {
		request, err := io.ReadAll(conn)
		if err != nil {
			t.Errorf("read request: %v", err)
		}
		_, _ = conn.Write(append([]byte("echo "), request...))
		_ = conn.Close()
	})
	conn := dial(t, url)
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("echo hello", string(answer)); diff != "" {
		t.Error(diff)
	}
}

func TestCopyIsByteExact(t *testing.T) {
	t.Parallel()
	backend, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = backend.Close() }()
	go func() {
		conn, err := backend.Accept()
		if err != nil {
			return
		}
		_, _ = io.Copy(conn, conn)
		_ = conn.Close()
	}()
	url := serve(t, func(conn *stream.Conn) {
		upstream, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", backend.Addr().String())
		if err != nil {
			t.Errorf("dial backend: %v", err)
			return
		}
		if err := stream.Copy(conn, upstream.(*net.TCPConn)); err != nil {
			t.Errorf("copy: %v", err)
		}
	})

	payload := make([]byte, 8<<20)
	_, _ = rand.Read(payload)
	conn := dial(t, url)
	go func() {
		_, _ = io.Copy(struct{ io.Writer }{conn}, bytes.NewReader(payload))
		_ = conn.CloseWrite()
	}()
	got, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, payload) {
		t.Errorf("got %d bytes back that differ from the %d sent", len(got), len(payload))
	}
}

func TestEndsAreToldApart(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		end  func(*stream.Conn)
		want error
	}{
		"an orderly close is the end of the bytes":      {func(c *stream.Conn) { _ = c.Close() }, io.EOF},
		"a take-over is named, so clients do not retry": {func(c *stream.Conn) { _ = c.TakeOver("bye") }, stream.ErrTakenOver},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := dial(t, serve(t, test.end))
			if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

func TestRefusalCarriesTheServersWords(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "the virtual machine is not running", http.StatusConflict)
	}))
	defer server.Close()
	_, err := stream.Dial(context.Background(), http.DefaultClient, server.URL, nil)
	var refused *stream.HandshakeError
	if !errors.As(err, &refused) {
		t.Fatalf("got %v, want a HandshakeError", err)
	}
	if refused.StatusCode != http.StatusConflict || !bytes.Contains(refused.Body, []byte("not running")) {
		t.Errorf("got %d %q", refused.StatusCode, refused.Body)
	}
}

// TestCopyEndsWhenAPeerIsGone has a guest's service that ignores the end of its input:
// it must not be held, with a goroutine, for a client that has left.
func TestCopyEndsWhenAPeerIsGone(t *testing.T) {
	t.Parallel()
	tests := map[string]func(*stream.Conn){
		"a client that just leaves":                          func(*stream.Conn) {},
		"a client that said before that it has sent its all": func(c *stream.Conn) { _ = c.CloseWrite() },
	}
	for name, before := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			guest := newDeaf()
			copied := make(chan error, 1)
			conn := dial(t, serve(t, func(conn *stream.Conn) { copied <- stream.Copy(conn, guest) }))
			before(conn)
			if err := conn.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
			select {
			case err := <-copied:
				if err != nil {
					t.Errorf("copy: %v", err)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("still copying for a client that has left")
			}
			select {
			case <-guest.closed:
			default:
				t.Error("the guest's side is still open")
			}
		})
	}
}

// deaf never sends, and ignores that its peer has stopped sending.
type deaf struct {
	closed chan struct{}
	once   sync.Once
}

func newDeaf() *deaf { return &deaf{closed: make(chan struct{})} }

func (d *deaf) Read([]byte) (int, error) {
	<-d.closed
	return 0, net.ErrClosed
}

func (d *deaf) Write(p []byte) (int, error) { return len(p), nil }
func (d *deaf) CloseWrite() error           { return nil }

func (d *deaf) Close() error {
	d.once.Do(func() { close(d.closed) })
	return nil
}

func TestCloseDoesNotWaitForASilentPeer(t *testing.T) {
	t.Parallel()
	hung := make(chan struct{})
	conn := dial(t, serve(t, func(*stream.Conn) { <-hung }))
	defer close(hung)
	go func() { _, _ = conn.Read(make([]byte, 1)) }()
	began := time.Now()
	if err := conn.Close(); err == nil {
		t.Error("closed in order by a peer that says nothing")
	}
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("closing took %s", took)
	}
}
