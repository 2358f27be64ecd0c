package portforward

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"orlop.dev/orlop/internal/stream"
)

// datagram is the largest UDP payload forwarded, in bytes.
const datagram = 1500

// queued is how many datagrams of one peer wait for its stream; more are lost, as
// networks do.
const queued = 64

// idle is how long a UDP peer may be silent before its stream is closed.
const idle = 2 * time.Minute

// penance is how long datagrams of a peer are dropped after its stream could not be
// opened, so that a chatty one does not flood API server and terminal.
const penance = 2 * time.Second

// forwardDatagrams serves one local UDP port: each peer address gets a stream of
// its own, so that answers find their way back. This goroutine alone knows the
// peers; each of them is served by another one, so that none waits for the others.
func (o *options) forwardDatagrams(ctx context.Context, p port) error {
	socket, err := (&net.ListenConfig{}).ListenPacket(ctx, "udp", netip.AddrPortFrom(o.listen, p.local).String())
	if err != nil {
		return fmt.Errorf("listen on local port %d: %w", p.local, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	var serving sync.WaitGroup
	defer serving.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = socket.Close() })()
	o.say("Forwarding udp %s -> %s:%d", socket.LocalAddr(), o.target.Name, p.target)

	peers := map[string]*peer{}
	buffer := make([]byte, datagram)
	for {
		n, from, err := socket.ReadFrom(buffer)
		if err != nil {
			_ = socket.Close()
			return fmt.Errorf("receive on local port %d: %w", p.local, err)
		}
		one := peers[from.String()]
		if one == nil || one.over() {
			one = &peer{address: from, socket: socket, datagrams: make(chan []byte, queued), done: make(chan struct{})}
			peers[from.String()] = one
			forget(peers)
			serving.Go(func() {
				defer close(one.done)
				o.servePeer(ctx, p, one)
			})
		}
		select {
		case one.datagrams <- append([]byte(nil), buffer[:n]...):
		default:
		}
	}
}

// forget drops the peers that are served no more.
func forget(peers map[string]*peer) {
	for address, one := range peers {
		if one.over() {
			delete(peers, address)
		}
	}
}

// peer is one sender of datagrams.
type peer struct {
	address   net.Addr
	socket    net.PacketConn
	datagrams chan []byte
	done      chan struct{}
}

func (p *peer) over() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// servePeer opens a stream and relays until one side is silent for too long or breaks.
func (o *options) servePeer(ctx context.Context, p port, one *peer) {
	conn, err := o.open(ctx, p)
	if err != nil {
		if ctx.Err() == nil {
			o.say("Datagrams from %s: %v", one.address, err)
			rest(ctx, penance)
		}
		return
	}
	answered := make(chan struct{}, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		one.answer(conn, answered)
	}()
	one.send(ctx, conn, answered, ended)
	_ = conn.Close()
	<-ended
}

func rest(ctx context.Context, pause time.Duration) {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// send passes datagrams to the guest until it breaks or both sides are silent.
func (p *peer) send(ctx context.Context, conn *stream.Conn, answered, ended <-chan struct{}) {
	silence := time.NewTimer(idle)
	defer silence.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-silence.C:
			return
		case <-ended:
			return
		case <-answered:
		case message := <-p.datagrams:
			if _, err := conn.Write(message); err != nil {
				return
			}
		}
		silence.Reset(idle)
	}
}

// answer passes the guest's datagrams to the peer until the stream ends. One that
// the peer cannot take is lost, as it would be on a network.
func (p *peer) answer(conn *stream.Conn, answered chan<- struct{}) {
	for {
		message, err := conn.ReadMessage()
		if err != nil {
			return
		}
		_, _ = p.socket.WriteTo(message, p.address)
		select {
		case answered <- struct{}{}:
		default:
		}
	}
}
