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

	"golang.org/x/sync/errgroup"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	"orlop.dev/orlop/internal/cli/access"
	"orlop.dev/orlop/internal/stream"
)

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

	speaking sync.Mutex
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

// run forwards until it is interrupted, which is how it is meant to end.
func (o *options) run(ctx context.Context) error {
	if o.stdio {
		return o.joinStandard(ctx, o.ports[0])
	}
	group, groupCtx := errgroup.WithContext(ctx)
	for _, p := range o.ports {
		group.Go(func() error {
			if p.protocol == "udp" {
				return o.forwardDatagrams(groupCtx, p)
			}
			return o.forwardConnections(groupCtx, p)
		})
	}
	err := group.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (o *options) open(ctx context.Context, p port) (*stream.Conn, error) {
	query := url.Values{"protocol": {p.protocol}, "port": {strconv.Itoa(int(p.target))}}
	return o.cluster.Open(ctx, o.target, "portforward", query)
}

// say writes a line to standard error; connections speak at the same time.
func (o *options) say(format string, args ...any) {
	o.speaking.Lock()
	defer o.speaking.Unlock()
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
	_, err = io.Copy(o.streams.Out, conn)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return fmt.Errorf("receive from %s: %w", o.target, err)
	default:
		return nil
	}
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
