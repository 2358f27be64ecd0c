package migration

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/handler/tunnel"
)

// wordTimeout is how long the source waits for the answer to its word. The target lets
// the guest run before it answers; a host that swaps may take a while.
const wordTimeout = 30 * time.Second

// errClosed answers those who asked a Loop that has ended, or begun something else.
var errClosed = errors.New("the handler has let go of this migration")

// word is a line of the control channel.
type word struct {
	// Completed says that the source's QEMU has reported it.
	Completed bool `json:"completed,omitempty"`
	// Failed says why the guest stays at the source.
	Failed string `json:"failed,omitempty"`
}

// reply answers a word.
type reply struct {
	Error string `json:"error,omitempty"`
}

// tell tells the target's handler how the migration has ended.
func (l *Loop) tell(ctx context.Context) error {
	m := l.memory
	o := m.view.Order
	m.goodbyes++
	w := word{Completed: m.report.Phase == v1alpha1.MigrationCompleted}
	if !w.Completed {
		w.Failed = m.report.Reason + ": " + m.report.Message
	}
	conn, err := l.config.DialPeer(ctx, o.Endpoint, o.PeerNode, l.header(o.Peer, o.ID, tunnel.Control))
	if err == nil {
		err = say(conn, w)
		_ = conn.Close()
	}
	if _, refused := errors.AsType[*tunnel.Refusal](err); refused && !w.Completed {
		err = nil // there is no such target (any more), so nobody to be told
	}
	if err == nil {
		m.told = true
	}
	return err
}

// say sends a word and waits for its answer.
func say(conn net.Conn, w word) error {
	_ = conn.SetDeadline(time.Now().Add(wordTimeout)) // of a socket, which has no other clock
	if err := tunnel.WriteLine(conn, w); err != nil {
		return err
	}
	var r reply
	if err := tunnel.ReadLine(conn, &r); err != nil {
		return err
	}
	if r.Error != "" {
		return fmt.Errorf("tell the target: %s", r.Error)
	}
	return nil
}

// Admit decides whether the handler of a node may open a channel here.
func (l *Loop) Admit(ctx context.Context, node string, h tunnel.Header) (func(net.Conn), error) {
	l.mu.Lock()
	o, shut := l.order, l.shut
	l.mu.Unlock()
	switch {
	case o.Role != v1alpha1.MigrationTarget || o.ID != h.ID:
		return nil, errors.New("no such migration is expected here")
	case o.PeerNode != node:
		return nil, fmt.Errorf("the guest is to come from node %s", o.PeerNode)
	case h.Channel == tunnel.Control:
		return l.listenTo, nil
	case h.Channel != tunnel.Memory:
		return nil, fmt.Errorf("channel %q is not supported by this release", h.Channel)
	case shut:
		return nil, errClosed
	}
	qemu, err := l.config.DialQEMU(ctx)
	if err != nil {
		return nil, fmt.Errorf("reach QEMU: %w", err)
	}
	return func(peer net.Conn) {
		err := l.relay(qemu, peer)
		l.config.Log.V(1).Info("memory's channel ended", "migration", h.ID, "reason", fmt.Sprint(err))
		l.post(func(m *memory) { m.qemu = nil })
	}, nil
}

// listenTo takes the words of a source's handler.
func (l *Loop) listenTo(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	stop := make(chan struct{})
	defer close(stop)
	go func() { // a channel that is idle must not outlive us
		select {
		case <-l.done:
			_ = conn.Close()
		case <-stop:
		}
	}()
	for {
		var w word
		if tunnel.ReadLine(conn, &w) != nil {
			return
		}
		var r reply
		if err := l.take(w); err != nil {
			r.Error = err.Error()
		}
		if tunnel.WriteLine(conn, r) != nil {
			return
		}
	}
}

// take passes a word on and waits until something has come of it.
func (l *Loop) take(w word) error {
	if w.Completed == (w.Failed != "") {
		return errors.New("this says neither that the source has completed nor that it has failed")
	}
	answer := make(chan error, 1)
	if !l.post(func(m *memory) {
		l.waiting = append(l.waiting, waiter{completed: w.Completed, answer: answer})
		switch {
		case w.Completed && m.sourceFailed == "":
			m.sourceCompleted, m.qemu = true, nil
		case !w.Completed && !m.word():
			m.sourceFailed = w.Failed
		}
	}) {
		return errClosed
	}
	return <-answer
}
