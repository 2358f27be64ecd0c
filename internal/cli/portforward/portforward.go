package portforward

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	"orlop.dev/orlop/internal/cli/access"
	"orlop.dev/orlop/internal/stream"
)

// datagram is the largest UDP payload forwarded, in bytes.
const datagram = 1500

// idle is how long a UDP peer may be silent before its stream is closed.
const idle = 2 * time.Minute

// port is one forwarded port.
type port struct {
	protocol string
	local    uint16
	target   uint16
}

// parsePort reads [PROTOCOL/]LOCAL[:TARGET]; ports are 1–65535, a local 0 asks the
// system for a free one and then needs a target.
func parsePort(text string) (port, error) {
	p := port{protocol: "tcp"}
	rest := text
	if protocol, after, found := strings.Cut(text, "/"); found {
		p.protocol, rest = strings.ToLower(protocol), after
	}
	if p.protocol != "tcp" && p.protocol != "udp" {
		return port{}, fmt.Errorf("%q: protocol must be tcp or udp", text)
	}
	local, target, both := strings.Cut(rest, ":")
	if !both {
		target = local
	}
	var err error
	if p.local, err = parseNumber(local); err != nil {
		return port{}, fmt.Errorf("%q: local port: %w", text, err)
	}
	if p.target, err = parseNumber(target); err != nil {
		return port{}, fmt.Errorf("%q: target port: %w", text, err)
	}
	if p.target == 0 {
		return port{}, fmt.Errorf("%q: the target port must be 1 to 65535", text)
	}
	return p, nil
}

func parseNumber(text string) (uint16, error) {
	number, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("%q is not a port number from 0 to 65535", text)
	}
	return uint16(number), nil
}

type options struct {
	streams genericiooptions.IOStreams
	stdio   bool
	address string

	cluster *access.Cluster
	target  access.Target
	listen  netip.Addr
	ports   []port
}

func (o *options) complete(flags *access.Flags, args []string) error {
	for _, text := range args[1:] {
		p, err := parsePort(text)
		if err != nil {
			return err
		}
		o.ports = append(o.ports, p)
	}
	if o.stdio && len(o.ports) != 1 {
		return fmt.Errorf("--stdio takes exactly one port, not %d", len(o.ports))
	}
	var err error
	if o.listen, err = netip.ParseAddr(o.address); err != nil {
		return fmt.Errorf("--address: %w", err)
	}
	if o.cluster, err = flags.Connect(); err != nil {
		return err
	}
	o.target, err = access.ParseTarget(args[0], o.cluster.Namespace)
	return err
}

func (o *options) run(ctx context.Context) error {
	if o.stdio {
		return o.joinStandard(ctx, o.ports[0])
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, p := range o.ports {
		group.Go(func() error {
			if p.protocol == "udp" {
				return o.forwardDatagrams(ctx, p)
			}
			return o.forwardConnections(ctx, p)
		})
	}
	if err := group.Wait(); err != nil && ctx.Err() == nil {
		return err
	}
	return context.Cause(ctx)
}

func (o *options) open(ctx context.Context, p port) (*stream.Conn, error) {
	query := url.Values{"protocol": {p.protocol}, "port": {strconv.Itoa(int(p.target))}}
	return o.cluster.Open(ctx, o.target, "portforward", query)
}

func (o *options) say(format string, args ...any) {
	fmt.Fprintf(o.streams.ErrOut, format+"\n", args...)
}

// joinStandard copies until the guest's side ends, as netcat does: a read of
// standard input cannot be interrupted and must not keep the command alive.
func (o *options) joinStandard(ctx context.Context, p port) error {
	conn, err := o.open(ctx, p)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	go func() {
		if _, err := io.Copy(conn, o.streams.In); err == nil {
			_ = conn.CloseWrite()
		}
	}()
	if _, err := io.Copy(o.streams.Out, conn); err != nil {
		return fmt.Errorf("receive from %s: %w", o.target, err)
	}
	return nil
}

// forwardConnections serves one local TCP port until the context ends.
func (o *options) forwardConnections(ctx context.Context, p port) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", netip.AddrPortFrom(o.listen, p.local).String())
	if err != nil {
		return fmt.Errorf("listen on local port %d: %w", p.local, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer stop()
	o.say("Forwarding tcp %s -> %s:%d", listener.Addr(), o.target.Name, p.target)

	var connections sync.WaitGroup
	defer connections.Wait()
	for {
		local, err := listener.Accept()
		if err != nil {
			return fmt.Errorf("accept on local port %d: %w", p.local, err)
		}
		connections.Go(func() {
			if err := o.forwardConnection(ctx, p, local.(*net.TCPConn)); err != nil && ctx.Err() == nil {
				o.say("Connection from %s: %v", local.RemoteAddr(), err)
			}
		})
	}
}

func (o *options) forwardConnection(ctx context.Context, p port, local *net.TCPConn) error {
	defer func() { _ = local.Close() }()
	conn, err := o.open(ctx, p)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close(); _ = local.Close() })
	defer stop()
	return stream.Copy(conn, local)
}

// forwardDatagrams serves one local UDP port: each peer address gets a stream of
// its own, so that answers find their way back.
func (o *options) forwardDatagrams(ctx context.Context, p port) error {
	socket, err := (&net.ListenConfig{}).ListenPacket(ctx, "udp", netip.AddrPortFrom(o.listen, p.local).String())
	if err != nil {
		return fmt.Errorf("listen on local port %d: %w", p.local, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = socket.Close() })
	defer stop()
	o.say("Forwarding udp %s -> %s:%d", socket.LocalAddr(), o.target.Name, p.target)

	peers := peers{open: map[string]*peer{}}
	defer peers.closeAll()
	buffer := make([]byte, datagram)
	for {
		n, from, err := socket.ReadFrom(buffer)
		if err != nil {
			return fmt.Errorf("receive on local port %d: %w", p.local, err)
		}
		one, err := peers.get(from, func() (*stream.Conn, error) { return o.open(ctx, p) })
		if err != nil {
			o.say("Datagram from %s: %v", from, err)
			continue
		}
		one.idle.Reset(idle)
		if _, err := one.conn.Write(buffer[:n]); err != nil {
			peers.drop(from)
			continue
		}
		one.answer.Do(func() { go peers.answers(socket, from, one) })
	}
}

// peer is one sender of datagrams and its stream.
type peer struct {
	conn   *stream.Conn
	idle   *time.Timer
	answer sync.Once
}

type peers struct {
	lock sync.Mutex
	open map[string]*peer
}

func (s *peers) get(from net.Addr, dial func() (*stream.Conn, error)) (*peer, error) {
	s.lock.Lock()
	defer s.lock.Unlock()
	if one, ok := s.open[from.String()]; ok {
		return one, nil
	}
	conn, err := dial()
	if err != nil {
		return nil, err
	}
	one := &peer{conn: conn, idle: time.AfterFunc(idle, func() { s.drop(from) })}
	s.open[from.String()] = one
	return one, nil
}

func (s *peers) drop(from net.Addr) {
	s.lock.Lock()
	defer s.lock.Unlock()
	if one, ok := s.open[from.String()]; ok {
		one.idle.Stop()
		_ = one.conn.Close()
		delete(s.open, from.String())
	}
}

func (s *peers) closeAll() {
	s.lock.Lock()
	defer s.lock.Unlock()
	for _, one := range s.open {
		one.idle.Stop()
		_ = one.conn.Close()
	}
}

func (s *peers) answers(socket net.PacketConn, to net.Addr, one *peer) {
	defer s.drop(to)
	for {
		message, err := one.conn.ReadMessage()
		if err != nil {
			return
		}
		one.idle.Reset(idle)
		if _, err := socket.WriteTo(message, to); err != nil {
			return
		}
	}
}
