package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// sendTimeout bounds how long a peer that does not read can hold up a sender.
const sendTimeout = 10 * time.Second

// Peer is who is at the other end, as the kernel knows it.
type Peer struct {
	// PID in the reader's PID namespace; 0 if the peer is not visible in it.
	PID int32
	UID uint32
	GID uint32
}

// Conn is one end of a connection. Send may be called from several goroutines,
// Receive from one at a time.
type Conn struct {
	conn *net.UnixConn
	raw  interface {
		Read(func(fd uintptr) bool) error
		Control(func(fd uintptr)) error
	}
	sending sync.Mutex
}

// NewConn wraps a connected SOCK_SEQPACKET socket and owns it from then on.
func NewConn(c *net.UnixConn) (*Conn, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("use socket: %w", err)
	}
	_ = raw.Control(func(fd uintptr) {
		// A packet must fit the send buffer. The forced form needs CAP_NET_ADMIN,
		// which the handler, the only sender of big packets, has.
		if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 2*MaxMessage) != nil {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, 2*MaxMessage)
		}
	})
	return &Conn{conn: c, raw: raw}, nil
}

// Close ends the connection; a blocked Receive returns ErrClosed.
func (c *Conn) Close() error { return c.conn.Close() }

// Peer asks the kernel for the peer's credentials, as they were when it connected
// or began to listen.
func (c *Conn) Peer() (Peer, error) {
	var cred *unix.Ucred
	var credErr error
	if err := c.raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return Peer{}, fmt.Errorf("read peer credentials: %w", err)
	}
	if credErr != nil {
		return Peer{}, fmt.Errorf("read peer credentials: %w", credErr)
	}
	return Peer{PID: cred.Pid, UID: cred.Uid, GID: cred.Gid}, nil
}

// Send writes one message. The descriptors stay open and belong to the caller.
func (c *Conn) Send(m Message, fds []*os.File) error {
	data, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode message %s: %w", m.Type, err)
	}
	if len(data) > MaxMessage || len(fds) > MaxFDs {
		return fmt.Errorf("send message %s: %d bytes and %d descriptors exceed the limits", m.Type, len(data), len(fds))
	}
	var oob []byte
	if len(fds) > 0 {
		numbers := make([]int, len(fds))
		for i, f := range fds {
			numbers[i] = int(f.Fd())
		}
		oob = unix.UnixRights(numbers...)
	}
	c.sending.Lock()
	defer c.sending.Unlock()
	// The kernel's clock, not ours to inject: it bounds a system call.
	if err := c.conn.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return fmt.Errorf("send message %s: %w", m.Type, err)
	}
	if _, _, err := c.conn.WriteMsgUnix(data, oob, nil); err != nil {
		return fmt.Errorf("send message %s: %w", m.Type, err)
	}
	return nil
}

// Receive waits for one message. The descriptors belong to the caller and are
// closed on exec. It returns ErrClosed once either side has closed; after any other
// error the connection is of no more use.
func (c *Conn) Receive() (Message, []*os.File, error) {
	size, err := c.peek()
	if err != nil {
		return Message{}, nil, err
	}
	if size > MaxMessage {
		return Message{}, nil, fmt.Errorf("receive message: %d bytes exceed the limit", size)
	}
	data, files, err := c.read(size)
	if err != nil {
		CloseFiles(files)
		return Message{}, nil, err
	}
	var m Message
	if err := json.Unmarshal(data, &m); err != nil {
		CloseFiles(files)
		return Message{}, nil, fmt.Errorf("decode message: %w", err)
	}
	return m, files, nil
}

// peek waits for a packet and returns its size without taking it, so that the
// buffer is never larger than what was sent.
func (c *Conn) peek() (int, error) {
	var n int
	var err error
	waitErr := c.raw.Read(func(fd uintptr) bool {
		// Without room for control data the kernel installs no descriptors here.
		n, _, _, _, err = unix.Recvmsg(int(fd), make([]byte, 1), nil, unix.MSG_PEEK|unix.MSG_TRUNC)
		return !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR)
	})
	return n, closedError(n, errors.Join(waitErr, err))
}

// read takes the packet that peek has seen. It returns descriptors even with an
// error, for the caller to close.
func (c *Conn) read(size int) ([]byte, []*os.File, error) {
	data := make([]byte, size)
	oob := make([]byte, unix.CmsgSpace(4*MaxFDs))
	var n, oobn, flags int
	var err error
	waitErr := c.raw.Read(func(fd uintptr) bool {
		n, oobn, flags, _, err = unix.Recvmsg(int(fd), data, oob, unix.MSG_CMSG_CLOEXEC)
		return !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR)
	})
	if err := closedError(n, errors.Join(waitErr, err)); err != nil {
		return nil, nil, err
	}
	files, err := parseFiles(oob[:oobn])
	if err != nil {
		return nil, files, err
	}
	if flags&(unix.MSG_CTRUNC|unix.MSG_TRUNC) != 0 {
		return nil, files, errors.New("receive message: truncated, too many descriptors")
	}
	return data[:n], files, nil
}

// closedError turns the several ways a socket ends into ErrClosed.
func closedError(n int, err error) error {
	switch {
	case err == nil && n > 0:
		return nil
	case err == nil, errors.Is(err, net.ErrClosed), errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET):
		return ErrClosed
	default:
		return fmt.Errorf("receive message: %w", err)
	}
}

// parseFiles takes every descriptor out of control data, whatever else is in it.
func parseFiles(oob []byte) ([]*os.File, error) {
	controls, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("parse control data: %w", err)
	}
	var files []*os.File
	for i := range controls {
		numbers, err := unix.ParseUnixRights(&controls[i])
		if err != nil {
			continue // not descriptors
		}
		for _, n := range numbers {
			files = append(files, os.NewFile(uintptr(n), "received-"+strconv.Itoa(n)))
		}
	}
	return files, nil
}

// CloseFiles closes all files; their errors tell nobody anything.
func CloseFiles(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// OpenSocketAt opens a socket file in dir (O_PATH) without following symbolic links
// or leaving the directory, since the pod can write there. Connect to it by
// SocketPath.
func OpenSocketAt(dir *os.File, name string) (*os.File, error) {
	fd, err := unix.Openat2(int(dir.Fd()), name, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return nil, fmt.Errorf("open socket %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("stat socket %s: %w", name, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		_ = f.Close()
		return nil, fmt.Errorf("open socket %s: not a socket", name)
	}
	return f, nil
}

// SocketPath is a path for connect(2) that reaches an open socket file, however
// long its real path is. It is valid while f is open.
func SocketPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// Dial connects to the launcher socket of a run directory.
func Dial(ctx context.Context, dir *os.File) (*Conn, error) {
	sock, err := OpenSocketAt(dir, SocketName)
	if err != nil {
		return nil, err
	}
	defer func() { _ = sock.Close() }()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unixpacket", SocketPath(sock))
	if err != nil {
		return nil, fmt.Errorf("connect to launcher: %w", err)
	}
	return NewConn(c.(*net.UnixConn))
}

// Listener accepts connections of handlers.
type Listener struct {
	inner *net.UnixListener
}

// Listen makes the launcher socket in a run directory. What lies there under its
// name from an earlier life of the container is removed.
func Listen(dir *os.File) (*Listener, error) {
	path := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), SocketName)
	if err := unix.Unlinkat(int(dir.Fd()), SocketName, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("remove old socket: %w", err)
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if err := unix.Fchmodat(int(dir.Fd()), SocketName, 0o600, 0); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("restrict socket: %w", err)
	}
	return &Listener{inner: l}, nil
}

// Accept waits for the next connection.
func (l *Listener) Accept() (*Conn, error) {
	c, err := l.inner.AcceptUnix()
	if err != nil {
		return nil, fmt.Errorf("accept: %w", err)
	}
	return NewConn(c)
}

// Close stops listening and removes the socket.
func (l *Listener) Close() error { return l.inner.Close() }
