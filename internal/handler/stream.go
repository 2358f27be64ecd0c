package handler

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"orlop.dev/orlop/internal/handler/network"
	"orlop.dev/orlop/internal/stream"
)

// dialTimeout bounds how long a port of the guest may take to answer.
const dialTimeout = 10 * time.Second

// Sockets of QEMU in the run directory.
const (
	serialSocket = "serial"
	vncSocket    = "vnc"
)

// Streams serves consoles, displays and ports of this node's guests to the API
// component. Who may use them was settled there; here only its certificate counts
// (see tlsConfig).
func (n *Node) Streams() http.Handler {
	const base = "/v1/namespaces/{namespace}/instances/{name}"
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+base+"/console", n.withWorker(func(w *worker, rw http.ResponseWriter, r *http.Request) {
		w.serveSerial(rw, r)
	}))
	mux.HandleFunc("GET "+base+"/vnc", n.withWorker(func(w *worker, rw http.ResponseWriter, r *http.Request) {
		w.serveSocket(rw, r, vncSocket)
	}))
	mux.HandleFunc("GET "+base+"/portforward/{port}/{protocol}", n.withWorker(func(w *worker, rw http.ResponseWriter, r *http.Request) {
		w.servePort(rw, r)
	}))
	mux.HandleFunc("PUT "+base+"/freeze", n.withWorker((*worker).serveFreeze))
	mux.HandleFunc("PUT "+base+"/unfreeze", n.withWorker((*worker).serveUnfreeze))
	return mux
}

func (n *Node) withWorker(serve func(*worker, http.ResponseWriter, *http.Request)) http.HandlerFunc {
	return func(rw http.ResponseWriter, r *http.Request) {
		key := types.NamespacedName{Namespace: r.PathValue("namespace"), Name: r.PathValue("name")}
		w := n.find(key)
		if w == nil {
			http.Error(rw, fmt.Sprintf("instance %s is not on node %s", key, n.Name), http.StatusNotFound)
			return
		}
		serve(w, rw, r)
	}
}

// session is the one holder of a serial console.
type session struct {
	// evicted is closed when another client takes the console over, done when the
	// holder has let go of it.
	evicted, done chan struct{}
}

// serveSerial gives the serial console to the newest client: QEMU has one, and a
// terminal left open somewhere must not lock everybody out.
func (w *worker) serveSerial(rw http.ResponseWriter, r *http.Request) {
	mine, tookOver := w.takeConsole()
	if tookOver {
		rw.Header().Set(stream.TookOver, "true")
	}
	release := sync.OnceFunc(func() { close(mine.done) })
	defer release()
	qemu, client := w.open(rw, r, serialSocket)
	if client == nil {
		return
	}
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		select {
		case <-mine.evicted:
			// The successor waits for QEMU's socket only, not for the goodbyes of
			// a client that may not be there any more.
			_ = qemu.Close()
			release()
			_ = client.TakeOver("another client has opened the console")
		case <-ended:
		}
	}()
	w.copy(evictable{client, mine.evicted}, qemu, "console")
}

// evictable leaves the last word to an eviction: a close in good order would tell
// the client to come back.
type evictable struct {
	*stream.Conn
	evicted <-chan struct{}
}

// Close closes the stream unless that is being done already.
func (c evictable) Close() error {
	select {
	case <-c.evicted:
		return nil
	default:
		return c.Conn.Close()
	}
}

// takeConsole makes the caller the holder and waits until the former one has let
// go of QEMU's socket, which serves one connection at a time. It tells whether there
// was one.
func (w *worker) takeConsole() (mine *session, tookOver bool) {
	mine = &session{evicted: make(chan struct{}), done: make(chan struct{})}
	w.mu.Lock()
	former := w.console
	w.console = mine
	w.mu.Unlock()
	if former == nil {
		return mine, false
	}
	select {
	case <-former.done:
		return mine, false
	default:
	}
	close(former.evicted)
	select {
	case <-former.done:
	case <-time.After(dialTimeout):
	}
	return mine, true
}

// serveSocket relays a socket of QEMU that takes any number of clients.
func (w *worker) serveSocket(rw http.ResponseWriter, r *http.Request, name string) {
	if qemu, client := w.open(rw, r, name); client != nil {
		w.copy(client, qemu, name)
	}
}

// open connects to a socket of QEMU and only then accepts the client, so that a
// refusal is still an HTTP status.
func (w *worker) open(rw http.ResponseWriter, r *http.Request, socket string) (*net.UnixConn, *stream.Conn) {
	ctx, cancel := context.WithTimeout(r.Context(), dialTimeout)
	defer cancel()
	qemu, err := dialSocket(ctx, w.node.FS, *w.podUID.Load(), socket)
	if err != nil {
		w.log.Info("cannot open stream", "socket", socket, "reason", err.Error())
		http.Error(rw, "the virtual machine is not running", http.StatusConflict)
		return nil, nil
	}
	client, err := stream.Accept(rw, r)
	if err != nil {
		_ = qemu.Close()
		return nil, nil // answered
	}
	return qemu, client
}

func (w *worker) copy(client, guest stream.Duplex, kind string) {
	streams.WithLabelValues(kind).Inc()
	defer streams.WithLabelValues(kind).Dec()
	if err := stream.Copy(client, guest); err != nil && !errors.Is(err, stream.ErrTakenOver) {
		w.log.V(1).Info("stream ended", "stream", kind, "reason", err.Error())
	}
}

// servePort connects to a port of the guest from inside its pod's namespace, so
// that no policy or route of the node comes between.
func (w *worker) servePort(rw http.ResponseWriter, r *http.Request) {
	port, err := strconv.ParseUint(r.PathValue("port"), 10, 16)
	protocol := r.PathValue("protocol")
	if err != nil || port == 0 || protocol != "tcp" && protocol != "udp" {
		http.Error(rw, "the port or the protocol is invalid", http.StatusBadRequest)
		return
	}
	guest, err := w.dialGuest(r.Context(), protocol, uint16(port))
	if err != nil {
		http.Error(rw, err.Error(), http.StatusBadGateway)
		return
	}
	client, err := stream.Accept(rw, r)
	if err != nil {
		_ = guest.Close()
		return // answered
	}
	if tcp, ok := guest.(*net.TCPConn); ok {
		w.copy(client, tcp, "portforward")
		return
	}
	streams.WithLabelValues("portforward").Inc()
	defer streams.WithLabelValues("portforward").Dec()
	datagrams(client, guest)
}

func (w *worker) dialGuest(ctx context.Context, protocol string, port uint16) (net.Conn, error) {
	w.mu.Lock()
	ns, guest := w.net, w.plan.Guest.Addr()
	if ns == nil {
		w.mu.Unlock()
		return nil, errors.New("the virtual machine is not running")
	}
	// A copy of our own: a port that does not answer must hold up nobody else.
	ns, err := ns.Copy()
	w.mu.Unlock()
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	return dialIn(ctx, ns, protocol, net.JoinHostPort(guest.String(), strconv.Itoa(int(port))))
}

func dialIn(ctx context.Context, ns *network.Namespace, protocol, address string) (conn net.Conn, err error) {
	d := net.Dialer{Timeout: dialTimeout}
	err = ns.Do(func() error {
		conn, err = d.DialContext(ctx, protocol, address)
		return err
	})
	return conn, err
}

// datagrams relays UDP, one frame for one datagram.
func datagrams(client *stream.Conn, guest net.Conn) {
	var wg sync.WaitGroup
	wg.Go(func() {
		defer guest.Close()
		for {
			message, err := client.ReadMessage()
			if err != nil {
				return
			}
			// What a closed port answers is an error here, and passes.
			_, _ = guest.Write(message)
		}
	})
	buffer := make([]byte, 64<<10)
	for {
		n, err := guest.Read(buffer)
		if errors.Is(err, net.ErrClosed) {
			break
		}
		if err != nil {
			continue // refused; the next datagram may be welcome
		}
		if _, err := client.Write(buffer[:n]); err != nil {
			break
		}
	}
	_ = client.Close()
	wg.Wait()
}
