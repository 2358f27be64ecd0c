package migration

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"orlop.dev/orlop/internal/handler/tunnel"
	"orlop.dev/orlop/internal/qmp"
	"orlop.dev/orlop/internal/wire"
)

const (
	// callTimeout bounds every act; none of them waits for anything but an answer.
	callTimeout = 10 * time.Second
	// unlimited stands for no limit of bandwidth, in bytes per second: QEMU's own
	// default is 128 MiB/s.
	unlimited = 1 << 40
)

// perform does one act and remembers how it went.
func (l *Loop) perform(ctx context.Context, a act) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err := l.do(ctx, a)
	m := l.memory
	switch {
	case err == nil && (a == actEnd || a == actRun):
		m.failed(a, l.config.Now()) // what comes of it is heard of, or it is asked for again
		return
	case err == nil:
		m.succeeded(a)
		return
	}
	if errors.Is(err, qmp.ErrClosed) {
		m.qemu = nil
	}
	if m.failures[a] == 0 {
		l.config.Log.Info("cannot carry out yet", "act", string(a), "migration", m.view.Order.ID, "reason", err.Error())
	}
	m.failed(a, l.config.Now())
}

// do carries out one act.
func (l *Loop) do(ctx context.Context, a act) error {
	m := l.memory
	switch a {
	case actObserve:
		return l.observe(ctx)
	case actListen:
		return l.listen()
	case actSend:
		return l.send(ctx)
	case actContinue:
		m.qemu = nil
		return l.monitor.MigrateContinue(ctx)
	case actCancel:
		m.qemu = nil
		return l.monitor.MigrateCancel(ctx)
	case actResume:
		m.qemu = nil
		return l.config.Launcher.Resume(ctx)
	case actTell:
		return l.tell(ctx)
	case actEnd:
		if err := l.config.Launcher.Kill(ctx); err != nil && !errors.Is(err, wire.ErrNotRunning) {
			return err
		}
		return nil
	case actReceive:
		return l.receive(ctx)
	case actCut:
		l.shutRelays()
		m.cut, m.qemu = true, nil
		return nil
	case actRun:
		m.qemu = nil
		return l.config.Launcher.ResumeIncoming(ctx)
	default:
		return fmt.Errorf("bug: no way to %s", a)
	}
}

// observe asks QEMU how it is.
func (l *Loop) observe(ctx context.Context) error {
	if l.monitor == nil {
		monitor, err := l.config.Monitor(ctx)
		if err != nil {
			return err
		}
		l.monitor = monitor
	}
	migrate, err := l.monitor.QueryMigrate(ctx)
	if err != nil {
		return err
	}
	status, err := l.monitor.QueryStatus(ctx)
	if err != nil {
		return err
	}
	l.memory.qemu = &observed{migrate: migrate, run: status.Status}
	return nil
}

// send orders QEMU to migrate. What it refuses outright it will refuse again.
func (l *Loop) send(ctx context.Context) error {
	m := l.memory
	o := m.view.Order
	bandwidth := o.BandwidthBytes
	if bandwidth <= 0 {
		bandwidth = unlimited
	}
	err := l.monitor.SetMigrationCapabilities(ctx, map[string]bool{
		qmp.CapabilityReturnPath: true, qmp.CapabilityPauseBeforeSwitchover: true, qmp.CapabilityEvents: true,
		qmp.CapabilityAutoConverge: o.AutoConverge,
	})
	if err == nil {
		err = l.monitor.SetMigrationParameters(ctx, qmp.MigrationParameters{MaxBandwidth: bandwidth})
	}
	if err == nil {
		m.issued, m.broken, m.qemu = true, "", nil
		err = l.monitor.Migrate(ctx, "unix:"+l.config.Socket)
	}
	if _, refused := errors.AsType[*qmp.Error](err); refused {
		m.issued, m.refused = false, err.Error()
	} else if err != nil {
		m.issued, m.adopted = false, true // whether it has begun is seen later
	}
	return err
}

// receive orders QEMU to listen.
func (l *Loop) receive(ctx context.Context) error {
	m := l.memory
	err := l.monitor.SetMigrationCapabilities(ctx, map[string]bool{
		qmp.CapabilityReturnPath: true, qmp.CapabilityLateBlockActivate: true, qmp.CapabilityEvents: true,
	})
	if err == nil {
		m.qemu = nil
		err = l.monitor.MigrateIncoming(ctx, "unix:"+l.config.Socket)
	}
	if _, refused := errors.AsType[*qmp.Error](err); refused {
		m.refused = err.Error()
	}
	return err
}

// listen opens the socket that QEMU's memory comes through.
func (l *Loop) listen() error {
	listener, err := l.config.Listen()
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.listener = listener
	l.mu.Unlock()
	l.memory.listening = true
	o := l.memory.view.Order
	l.group.Go(func() {
		for {
			conn, err := listener.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue
			}
			if err := l.config.Check(conn); err != nil {
				l.config.Log.Info("refused a connection to the memory's socket", "reason", err.Error())
				_ = conn.Close()
				continue
			}
			l.group.Go(func() { l.carry(o.Endpoint, o.PeerNode, l.header(o.Peer, o.ID, tunnel.Memory), conn) })
		}
	})
	return nil
}

func (l *Loop) unlisten() {
	l.mu.Lock()
	listener := l.listener
	l.listener = nil
	l.mu.Unlock()
	if listener != nil {
		_ = listener.Close()
	}
	l.memory.listening = false
}

func (l *Loop) header(target, id, channel string) tunnel.Header {
	return tunnel.Header{Namespace: l.config.Namespace, Target: target, ID: id, Channel: channel}
}

// carry takes a connection of the source's QEMU to the target, until either has had enough.
func (l *Loop) carry(endpoint, node string, h tunnel.Header, qemu net.Conn) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-l.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	peer, err := l.config.DialPeer(ctx, endpoint, node, h)
	if err != nil {
		_ = qemu.Close()
	} else {
		err = l.relay(qemu, peer)
	}
	message := "The connection to the target has ended"
	if err != nil {
		message = fmt.Sprintf("The connection to the target was lost: %v", err)
	}
	l.post(func(m *memory) {
		if m.view.Order.ID == h.ID {
			m.broken, m.qemu = message, nil
		}
	})
}

// relay copies until the end, unless that has been called for all relays.
func (l *Loop) relay(a, b net.Conn) error {
	r := &relay{a: a, b: b, done: make(chan struct{})}
	l.mu.Lock()
	if l.shut {
		l.mu.Unlock()
		_, _ = a.Close(), b.Close()
		return errClosed
	}
	l.relays[r] = true
	l.mu.Unlock()
	err := tunnel.Relay(a, b)
	l.mu.Lock()
	delete(l.relays, r)
	l.mu.Unlock()
	close(r.done)
	return err
}

// shutRelays ends all channels of memory, for good. When it returns no byte moves in
// either direction any more.
func (l *Loop) shutRelays() {
	l.mu.Lock()
	l.shut = true
	var all []*relay
	for r := range l.relays {
		all = append(all, r)
	}
	l.mu.Unlock()
	for _, r := range all {
		_, _ = r.a.Close(), r.b.Close()
		<-r.done
	}
}
