package handler

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"reflect"

	"k8s.io/apimachinery/pkg/types"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/handler/migration"
	"orlop.dev/orlop/internal/handler/network"
	"orlop.dev/orlop/internal/handler/tunnel"
	"orlop.dev/orlop/internal/qemu"
	"orlop.dev/orlop/internal/qmp"
	"orlop.dev/orlop/internal/wire"
)

// runDirInPod is where QEMU sees the pod's run directory.
const runDirInPod = "/run/orlop"

// leftReason is the launcher's word that a guest has left its process for good.
const leftReason = "Migrated"

// Tunnel is how handlers reach each other.
type Tunnel struct {
	// Endpoint is this node's, as address and port.
	Endpoint string
	// Client makes the configuration for one connection to a node.
	Client func(node string) (*tls.Config, error)
}

// arriving says whether the guest of an Instance comes by a migration: then it must
// never be started from its disks.
func arriving(in *v1alpha1.Instance) bool {
	return in.Spec.Migration != nil && in.Spec.Migration.Role == v1alpha1.MigrationTarget
}

// Admit decides whether the handler of another node may open a channel to an Instance
// of this one.
func (n *Node) Admit(ctx context.Context, node string, h tunnel.Header) (func(net.Conn), error) {
	w := n.find(types.NamespacedName{Namespace: h.Namespace, Name: h.Target})
	if w == nil {
		return nil, fmt.Errorf("instance %s/%s is not on node %s", h.Namespace, h.Target, n.Name)
	}
	loop := w.admitting.Load()
	if loop == nil {
		return nil, fmt.Errorf("instance %s/%s expects no migration", h.Namespace, h.Target)
	}
	return loop.Admit(ctx, node, h)
}

// migrate keeps the migration's loop informed, and begins it when there is an order.
func (w *worker) migrate(ctx context.Context) {
	m := w.memory
	order := m.instance.Spec.Migration
	if w.link == nil || order == nil || !m.started() || w.node.Tunnel == nil {
		m.unsettled = false
		return
	}
	view := migration.View{Order: *order, Launcher: *m.launcher}
	if m.status.Migration != nil {
		view.Accepted = *m.status.Migration
	}
	if w.loop == nil {
		w.beginMigration(ctx, view)
	} else if !reflect.DeepEqual(view, w.told) {
		w.loop.Tell(view)
	}
	w.told = view
	// A process that has ended owes its last word before it is let go.
	m.unsettled = !w.loop.Settled()
}

func (w *worker) beginMigration(ctx context.Context, view migration.View) {
	pod := w.memory.instance.Spec.PodUID
	fs := w.node.FS
	loop := migration.New(migration.Config{
		Namespace: w.memory.instance.Namespace,
		Launcher:  w.link.client,
		Monitor: func(ctx context.Context) (*qmp.Client, error) {
			conn, err := dialSocket(ctx, fs, pod, qemu.HandlerMonitorSocket)
			if err != nil {
				return nil, err
			}
			return qmp.New(ctx, conn)
		},
		Socket: runDirInPod + "/" + qemu.MigrateSocket,
		Listen: func() (net.Listener, error) { return fs.Listen(pod, qemu.MigrateSocket, launcherUID) },
		Check:  func(c net.Conn) error { return checkPeer(c, pod) },
		DialQEMU: func(ctx context.Context) (net.Conn, error) {
			return dialSocket(ctx, fs, pod, qemu.MigrateSocket)
		},
		DialPeer: w.node.Tunnel.dial,
		Endpoint: w.node.Tunnel.Endpoint,
		Moved:    w.moved,
		Now:      w.node.Now,
		Log:      w.log,
	}, view)
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	w.node.wg.Go(func() {
		defer close(done)
		loop.Run(ctx)
	})
	w.loop, w.end = loop, func() { cancel(); <-done }
	w.admitting.Store(loop)
}

// endMigration ends the loop. The migration does not survive that, unless it is over.
func (w *worker) endMigration() {
	if w.loop == nil {
		return
	}
	w.admitting.Store(nil)
	w.end()
	w.loop, w.end = nil, nil
}

func (w *worker) reports() <-chan v1alpha1.MigrationStatus {
	if w.loop == nil {
		return nil
	}
	return w.loop.Reports()
}

// dial opens a channel to another node's handler.
func (t *Tunnel) dial(ctx context.Context, endpoint, node string, h tunnel.Header) (net.Conn, error) {
	config, err := t.Client(node)
	if err != nil {
		return nil, err
	}
	return tunnel.Dial(ctx, endpoint, node, config, h)
}

// checkPeer refuses whoever is not a process of the pod.
func checkPeer(c net.Conn, pod types.UID) error {
	conn, ok := c.(*net.UnixConn)
	if !ok {
		return errors.New("bug: not a unix socket")
	}
	peer, err := peerOf(conn)
	if err != nil {
		return err
	}
	proc, err := provePeer(peer, pod)
	if err != nil {
		return err
	}
	return proc.Close()
}

// moved is told by the migration's loop, from its own goroutine, when the guest's
// traffic should lead here, or to where it has gone. The worker comes to the same
// conclusion later, from the launcher's state; the guest stands still until then.
func (w *worker) moved(here bool) {
	where, err := network.Nowhere, error(nil)
	if here {
		w.mu.Lock()
		if w.net != nil {
			where, err = w.net.Here()
		}
		w.mu.Unlock()
	} else {
		where = gone(*w.peer.Load())
	}
	if err != nil {
		w.log.Info("cannot steer the guest's traffic", "reason", err.Error())
		return
	}
	w.node.steer(w, where)
}

// steer makes the node's routing follow what the launcher says.
func (w *worker) steer() {
	in, l := w.memory.instance, w.memory.launcher
	order := in.Spec.Migration
	if order == nil || l == nil || !w.memory.started() {
		return
	}
	switch {
	case left(l):
		w.node.steer(w, gone(order.Endpoint))
	case l.Exit != nil:
		w.node.steer(w, network.Nowhere)
	case order.Role == v1alpha1.MigrationTarget && l.StartTime != nil:
		w.moved(true)
	}
}

// left says whether the guest has left its process for another.
func left(l *wire.State) bool {
	return l.PauseReason == leftReason || l.Exit != nil && l.Exit.Cause == v1alpha1.ExitMigrated
}

// gone is the node of a tunnel's endpoint.
func gone(endpoint string) network.Where {
	at, err := netip.ParseAddrPort(endpoint)
	if err != nil {
		return network.Nowhere
	}
	return network.Where{Via: at.Addr()}
}

// steer leads a guest's address where its worker wants it.
func (n *Node) steer(w *worker, where network.Where) {
	address := w.address4.Load()
	if address == nil {
		return
	}
	if err := n.steering.Set(*address, w.uid, where); err != nil {
		n.Log.Info("cannot steer a guest's traffic", "address", address.String(), "reason", err.Error())
	}
}
