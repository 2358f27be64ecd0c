// Package stream carries raw bytes over a WebSocket, the way consoles, displays
// and forwarded ports travel between the d8 command, the API component and the
// node's handler.
//
// It is not a terminal and knows nothing of virtual machines. The sub-protocol is
// plain.virtualization.deckhouse.io: every binary frame is payload, byte for byte.
// Two things must not break: a frame boundary is kept (a UDP datagram is one
// frame), and an empty binary frame means "no more bytes from this side", so that
// a TCP half-close survives the trip. Peers that do not know the empty frame see
// a frame without bytes, which changes nothing.
package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
)

// Protocol is the WebSocket sub-protocol of every stream.
const Protocol = "plain.virtualization.deckhouse.io"

// TookOver is the header of an accepted handshake for which another client's stream
// was ended.
const TookOver = "Orlop-Took-Over"

// MaxMessage bounds one received frame, in bytes.
const MaxMessage = 1 << 20

// maxWrite is the largest frame we send, in bytes: any UDP datagram fits in one.
const maxWrite = 64 << 10

// closePatience is how long Close waits for the peer's answer.
const closePatience = 2 * time.Second

// errNoGoodbye is returned by Close after the peer did not answer in time.
var errNoGoodbye = errors.New("the peer did not answer the close")

// ErrTakenOver is returned by Read and Write after another client took the
// stream (close status 1001, going away).
var ErrTakenOver = errors.New("stream was taken over by another client")

// HandshakeError is a server's refusal to open a stream.
type HandshakeError struct {
	// StatusCode is the HTTP status the server answered, 0 if it did not answer.
	StatusCode int
	// Body is the beginning of the answer, at most 1 KiB.
	Body []byte
	// Err is what the WebSocket library said.
	Err error
}

func (e *HandshakeError) Error() string { return fmt.Sprintf("open stream: %v", e.Err) }

// Unwrap returns the library's error.
func (e *HandshakeError) Unwrap() error { return e.Err }

// Conn is one open stream. Read and Write may be used by one goroutine each;
// the other methods by any.
type Conn struct {
	socket *websocket.Conn
	ctx    context.Context
	cancel context.CancelFunc

	// These belong to the reading goroutine: the frame being read, and whether the
	// peer has said that no more bytes come.
	reader io.Reader
	ended  bool

	// gone tells that the peer has closed both directions.
	gone  atomic.Bool
	close sync.Once
}

// Dial opens a stream at a ws(s) or http(s) URL. The client's transport must speak
// HTTP/1.1. The context bounds the handshake only. A refusal is a *HandshakeError.
func Dial(ctx context.Context, client *http.Client, url string, header http.Header) (*Conn, error) {
	socket, response, err := websocket.Dial(ctx, url, &websocket.DialOptions{
		HTTPClient:   client,
		HTTPHeader:   header,
		Subprotocols: []string{Protocol},
	})
	if err != nil {
		return nil, refusal(response, err)
	}
	if got := socket.Subprotocol(); got != Protocol {
		_ = socket.Close(websocket.StatusProtocolError, "unexpected sub-protocol")
		return nil, &HandshakeError{StatusCode: response.StatusCode, Err: fmt.Errorf("server chose sub-protocol %q", got)}
	}
	return newConn(socket), nil
}

func refusal(response *http.Response, err error) error {
	refused := &HandshakeError{Err: err}
	if response != nil {
		refused.StatusCode = response.StatusCode
		if response.Body != nil {
			refused.Body, _ = io.ReadAll(io.LimitReader(response.Body, 1<<10))
			_ = response.Body.Close()
		}
	}
	return refused
}

// Accept answers a client's handshake. On error the answer has been written.
// Origins are not checked: who may connect is settled before, by TLS or by the
// API server's authorization.
func Accept(w http.ResponseWriter, r *http.Request) (*Conn, error) {
	socket, err := websocket.Accept(w, r, &websocket.AcceptOptions{
		Subprotocols:       []string{Protocol},
		InsecureSkipVerify: true,
	})
	if err != nil {
		return nil, fmt.Errorf("accept stream: %w", err)
	}
	return newConn(socket), nil
}

func newConn(socket *websocket.Conn) *Conn {
	socket.SetReadLimit(MaxMessage)
	ctx, cancel := context.WithCancel(context.Background())
	return &Conn{socket: socket, ctx: ctx, cancel: cancel}
}

// Read fills p from the peer's frames. It returns io.EOF after the peer's
// CloseWrite or an orderly close, ErrTakenOver after going away.
func (c *Conn) Read(p []byte) (int, error) {
	for {
		if c.ended {
			return 0, io.EOF
		}
		if c.reader == nil {
			_, reader, err := c.socket.Reader(c.ctx)
			if err != nil {
				c.gone.Store(true)
				return 0, closeError(err)
			}
			c.reader = &counted{Reader: reader}
		}
		n, err := c.reader.Read(p)
		if errors.Is(err, io.EOF) {
			c.ended = c.reader.(*counted).n == 0
			c.reader, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, closeError(err)
		}
	}
}

// counted tells an empty frame from one that was read to its end.
type counted struct {
	io.Reader
	n int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n += int64(n)
	return n, err
}

// ReadMessage returns the next whole frame, at most MaxMessage bytes.
func (c *Conn) ReadMessage() ([]byte, error) {
	_, message, err := c.socket.Read(c.ctx)
	return message, closeError(err)
}

// Write sends p, as one frame if it has at most 64 KiB.
func (c *Conn) Write(p []byte) (int, error) {
	sent := 0
	for chunk := range slices.Chunk(p, maxWrite) {
		if err := c.socket.Write(c.ctx, websocket.MessageBinary, chunk); err != nil {
			return sent, closeError(err)
		}
		sent += len(chunk)
	}
	return sent, nil
}

// CloseWrite tells the peer that no more bytes come from this side; reading goes on.
func (c *Conn) CloseWrite() error {
	return closeError(c.socket.Write(c.ctx, websocket.MessageBinary, nil))
}

// Close ends the stream in order. It returns after two seconds at the latest.
func (c *Conn) Close() error { return c.closeWith(websocket.StatusNormalClosure, "") }

// TakeOver ends the stream because another client takes it; the peer sees ErrTakenOver.
func (c *Conn) TakeOver(reason string) error {
	return c.closeWith(websocket.StatusGoingAway, reason)
}

// Fail ends the stream because its far end broke; the peer may try again.
func (c *Conn) Fail(reason string) error {
	return c.closeWith(websocket.StatusInternalError, truncate(reason, 120))
}

// closeWith says goodbye and waits a little for the peer's: one that is cut off must
// not hold up whoever leaves.
func (c *Conn) closeWith(status websocket.StatusCode, reason string) error {
	var err error
	c.close.Do(func() {
		done := make(chan error, 1)
		go func() { done <- c.socket.Close(status, reason) }() // at most some seconds
		patience := time.NewTimer(closePatience)
		defer patience.Stop()
		select {
		case err = <-done:
		case <-patience.C:
			err = errNoGoodbye
		}
		c.cancel()
	})
	return err
}

// Departed is closed once the peer is gone altogether. To be called after Read has
// returned io.EOF: from then on nothing but the peer's close is expected.
func (c *Conn) Departed() <-chan struct{} {
	if c.gone.Load() {
		departed := make(chan struct{})
		close(departed)
		return departed
	}
	return c.socket.CloseRead(c.ctx).Done()
}

// truncate keeps a close reason within the 123 bytes of RFC 6455 section 5.5.
func truncate(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	return s[:limit]
}

func closeError(err error) error {
	switch websocket.CloseStatus(err) {
	case websocket.StatusNormalClosure:
		return io.EOF
	case websocket.StatusGoingAway:
		return ErrTakenOver
	default:
		return err
	}
}
