package tunnel

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Port is where handlers listen, on every node.
const Port = 4135

// version of the header.
const version = 1

// commonName precedes the node's name in a handler's certificate.
const commonName = "virt-handler:"

const (
	// handshakeTimeout bounds everything before the first byte of a channel.
	handshakeTimeout = 10 * time.Second
	// silence is how long a peer may leave sent bytes unacknowledged. A guest stands
	// still for at most that long when a node vanishes in the switch-over.
	silence = 8 * time.Second
	// maxLine bounds header and answer, in bytes.
	maxLine = 4 << 10
	// copyBuffer is read at once, in bytes.
	copyBuffer = 256 << 10
)

// The channels.
const (
	// Memory leads to the target's QEMU.
	Memory = "memory"
	// Control carries lines of JSON from the source's handler.
	Control = "control"
)

// Header says where a channel is to lead.
type Header struct {
	Version int `json:"version"`
	// Namespace and Target name the Instance at the other end.
	Namespace string `json:"namespace"`
	Target    string `json:"target"`
	// ID of the migration.
	ID string `json:"id"`
	// Channel is Memory, Control or "disk:<id>".
	Channel string `json:"channel"`
}

// answer is the target's.
type answer struct {
	Error string `json:"error,omitempty"`
}

// Refusal is the other end's word on why it does not open a channel.
type Refusal struct{ Reason string }

// Error implements error.
func (r *Refusal) Error() string { return "the other node refuses: " + r.Reason }

// Dial opens a channel to the handler of a node.
func Dial(ctx context.Context, address, node string, config *tls.Config, h Header) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	raw, err := (&net.Dialer{Control: control}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("connect to node %s: %w", node, err)
	}
	config = config.Clone()
	config.ServerName = node
	config.NextProtos = nil
	config.DynamicRecordSizingDisabled = true
	conn := tls.Client(raw, config)
	if err := open(ctx, conn, node, h); err != nil {
		_ = raw.Close()
		return nil, err
	}
	return conn, nil
}

// open does everything on a new connection that comes before the channel's bytes.
func open(ctx context.Context, conn *tls.Conn, node string, h Header) error {
	if err := conn.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("greet node %s: %w", node, err)
	}
	if peer := nodeOf(conn); peer != node {
		return fmt.Errorf("the other end is node %q instead of %s", peer, node)
	}
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	h.Version = version
	if err := WriteLine(conn, h); err != nil {
		return err
	}
	var a answer
	if err := ReadLine(conn, &a); err != nil {
		return fmt.Errorf("wait for node %s: %w", node, err)
	}
	if a.Error != "" {
		return &Refusal{Reason: a.Error}
	}
	return conn.SetDeadline(time.Time{})
}

// nodeOf is the name in the peer's verified certificate.
func nodeOf(conn *tls.Conn) string {
	certificates := conn.ConnectionState().PeerCertificates
	if len(certificates) == 0 {
		return ""
	}
	node, found := strings.CutPrefix(certificates[0].Subject.CommonName, commonName)
	if !found {
		return ""
	}
	return node
}

// Server takes channels of other nodes.
type Server struct {
	// Config shows this node's certificate and insists on one of a handler.
	Config *tls.Config
	// Admit decides whether a node may open a channel. If so, the function it returns
	// serves the connection, and owns it.
	Admit func(ctx context.Context, node string, h Header) (func(net.Conn), error)
	// Refused hears of those who were not let in.
	Refused func(node string, h Header, err error)
}

// Serve accepts until the context ends, and then waits until the last channel is closed.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	var group sync.WaitGroup
	defer group.Wait()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("accept: %w", err)
		}
		if err != nil {
			continue // the peer left between connect and accept
		}
		group.Go(func() { s.serve(ctx, conn) })
	}
}

func (s *Server) serve(ctx context.Context, raw net.Conn) {
	defer context.AfterFunc(ctx, func() { _ = raw.Close() })()
	if tcp, ok := raw.(*net.TCPConn); ok {
		if c, err := tcp.SyscallConn(); err == nil {
			_ = control("", "", c)
		}
	}
	conn := tls.Server(raw, s.Config)
	serve, node, h, err := s.admit(ctx, conn)
	if err != nil {
		s.Refused(node, h, err)
		_ = raw.Close()
		return
	}
	serve(conn)
}

func (s *Server) admit(ctx context.Context, conn *tls.Conn) (func(net.Conn), string, Header, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, "", Header{}, fmt.Errorf("greet: %w", err)
	}
	node := nodeOf(conn)
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	var h Header
	err := ReadLine(conn, &h)
	if err != nil {
		return nil, node, h, err
	}
	var serve func(net.Conn)
	switch {
	case node == "":
		err = errors.New("the certificate is not a handler's")
	case h.Version != version:
		err = fmt.Errorf("version %d is not known here", h.Version)
	default:
		serve, err = s.Admit(ctx, node, h)
	}
	if err != nil {
		_ = WriteLine(conn, answer{Error: err.Error()})
		return nil, node, h, err
	}
	if err := WriteLine(conn, answer{}); err != nil {
		_ = conn.NetConn().Close() // whoever serves it finds its end, and tidies up
		return serve, node, h, nil
	}
	return serve, node, h, conn.SetDeadline(time.Time{})
}

// control makes a vanished peer an error soon.
func control(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(silence.Milliseconds()))
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 3)
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 2)
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 3)
	})
}

// WriteLine sends a value as one line of JSON.
func WriteLine(w io.Writer, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode line: %w", err)
	}
	if _, err := w.Write(append(data, '\n')); err != nil {
		return fmt.Errorf("send line: %w", err)
	}
	return nil
}

// ReadLine reads one line of JSON and not a byte more, since others may follow it.
func ReadLine(r io.Reader, v any) error {
	var line []byte
	one := make([]byte, 1)
	for {
		if _, err := io.ReadFull(r, one); err != nil {
			return fmt.Errorf("read line: %w", err)
		}
		if one[0] == '\n' {
			break
		}
		if line = append(line, one[0]); len(line) > maxLine {
			return errors.New("read line: it does not end")
		}
	}
	if err := json.Unmarshal(line, v); err != nil {
		return fmt.Errorf("decode line: %w", err)
	}
	return nil
}

// halfCloser can say that it will send no more.
type halfCloser interface{ CloseWrite() error }

// Relay copies between two connections, in both directions, until both have ended or
// one has failed. It closes both.
func Relay(a, b net.Conn) error {
	var group sync.WaitGroup
	errs := make([]error, 2)
	one := func(i int, to, from net.Conn) {
		_, err := io.CopyBuffer(plainWriter{to}, plainReader{from}, make([]byte, copyBuffer))
		if err == nil {
			if h, ok := to.(halfCloser); ok {
				err = h.CloseWrite()
			} else {
				err = to.Close() // else its other half would be waited for without end
			}
		}
		if err != nil {
			errs[i] = err
			_, _ = a.Close(), b.Close()
		}
	}
	group.Go(func() { one(0, a, b) })
	group.Go(func() { one(1, b, a) })
	group.Wait()
	_, _ = a.Close(), b.Close()
	return errors.Join(errs...)
}

// plainReader and plainWriter hide other ways to copy, whose buffers are small.
type (
	plainReader struct{ io.Reader }
	plainWriter struct{ io.Writer }
)
