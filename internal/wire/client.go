package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"

	"orlop.dev/orlop/api/instance/v1alpha1"
)

// Client is the handler's end of a connection. Its methods may be called from
// several goroutines.
type Client struct {
	conn   *Conn
	events chan State
	done   chan struct{}

	mu      sync.Mutex
	lastID  uint64
	pending map[uint64]chan Message
	err     error
}

// NewClient takes over a connection and begins to read it.
func NewClient(c *Conn) *Client {
	client := &Client{
		conn:    c,
		events:  make(chan State, 1),
		done:    make(chan struct{}),
		pending: map[uint64]chan Message{},
	}
	go client.read()
	return client
}

// Close ends the connection and waits until the reader is gone.
func (c *Client) Close() error {
	err := c.conn.Close()
	<-c.done
	return err
}

// Peer is the launcher's identity.
func (c *Client) Peer() (Peer, error) { return c.conn.Peer() }

// Events yields the launcher's state after each change. A reader that is slow
// misses intermediate states, never the last one. It is closed with the connection.
func (c *Client) Events() <-chan State { return c.events }

// Hello exchanges versions and returns the launcher's, with its whole state.
func (c *Client) Hello(ctx context.Context) (Hello, error) {
	var h Hello
	if err := c.call(ctx, TypeHello, Hello{Version: Version}, nil, &h); err != nil {
		return Hello{}, err
	}
	if h.State == nil {
		return Hello{}, errors.New("hello: answer without state")
	}
	return h, nil
}

// Start starts QEMU and returns once it runs. The descriptors stay the caller's,
// who should close them in any case.
func (c *Client) Start(ctx context.Context, s Start, fds []*os.File) error {
	return c.call(ctx, TypeStart, s, fds, nil)
}

// Shutdown asks the guest to power off; the launcher kills QEMU after the grace
// period, in seconds.
func (c *Client) Shutdown(ctx context.Context, gracePeriodSeconds int64) error {
	return c.call(ctx, TypeShutdown, Shutdown{GracePeriodSeconds: gracePeriodSeconds}, nil, nil)
}

// Kill ends QEMU at once.
func (c *Client) Kill(ctx context.Context) error {
	return c.call(ctx, TypeKill, nil, nil, nil)
}

// SetRebootAction changes what a guest reset does.
func (c *Client) SetRebootAction(ctx context.Context, a v1alpha1.RebootAction) error {
	return c.call(ctx, TypeRebootAction, SetRebootAction{Action: a}, nil, nil)
}

// Resume lets a guest run that was paused by an I/O error.
func (c *Client) Resume(ctx context.Context) error {
	return c.call(ctx, TypeResume, nil, nil, nil)
}

// ResumeIncoming lets a guest run that has arrived by a migration. It is refused
// while its memory is not complete.
func (c *Client) ResumeIncoming(ctx context.Context) error {
	return c.call(ctx, TypeResumeIncoming, nil, nil, nil)
}

// Resize shows the guest the new size of a disk, in bytes.
func (c *Client) Resize(ctx context.Context, disk string, bytes int64) error {
	return c.call(ctx, TypeResize, Resize{Disk: disk, Bytes: bytes}, nil, nil)
}

// Bye lets the launcher exit once QEMU is gone: its exit cause has been recorded.
func (c *Client) Bye(ctx context.Context) error {
	return c.call(ctx, TypeBye, nil, nil, nil)
}

// call sends a request and waits for its answer.
func (c *Client) call(ctx context.Context, t Type, body any, fds []*os.File, out any) error {
	var data json.RawMessage
	if body != nil {
		var err error
		if data, err = json.Marshal(body); err != nil {
			return fmt.Errorf("encode %s: %w", t, err)
		}
	}
	id, answer, err := c.expect()
	if err != nil {
		return fmt.Errorf("%s: %w", t, err)
	}
	defer c.forget(id)
	if err := c.conn.Send(Message{Type: t, ID: id, Body: data}, fds); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", t, ctx.Err())
	case m := <-answer:
		return decodeAnswer(t, m, out)
	case <-c.done:
	}
	select {
	case m := <-answer: // came just before the end
		return decodeAnswer(t, m, out)
	default:
		return fmt.Errorf("%s: %w", t, c.reason())
	}
}

func decodeAnswer(t Type, m Message, out any) error {
	if m.Error != nil {
		return fmt.Errorf("%s: %w", t, m.Error)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(m.Body, out); err != nil {
		return fmt.Errorf("decode answer to %s: %w", t, err)
	}
	return nil
}

// expect registers a new request.
func (c *Client) expect() (uint64, <-chan Message, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, nil, c.err
	}
	c.lastID++
	ch := make(chan Message, 1)
	c.pending[c.lastID] = ch
	return c.lastID, ch, nil
}

func (c *Client) forget(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, id)
}

func (c *Client) reason() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// read distributes what the launcher sends until the connection ends.
func (c *Client) read() {
	defer close(c.done)
	defer close(c.events)
	for {
		m, files, err := c.conn.Receive()
		CloseFiles(files) // a launcher has nothing to give
		if err == nil {
			err = c.take(m)
		}
		if err != nil {
			c.mu.Lock()
			c.err = err
			c.mu.Unlock()
			_ = c.conn.Close()
			return
		}
	}
}

func (c *Client) take(m Message) error {
	switch m.Type {
	case TypeAnswer:
		c.mu.Lock()
		ch := c.pending[m.ID]
		delete(c.pending, m.ID)
		c.mu.Unlock()
		if ch != nil {
			ch <- m
		}
		return nil
	case TypeState:
		var s State
		if err := json.Unmarshal(m.Body, &s); err != nil {
			return fmt.Errorf("decode state: %w", err)
		}
		c.publish(s)
		return nil
	default:
		return nil // of a newer launcher
	}
}

// publish leaves only the newest state in the channel. Only the reader sends, so
// that after taking the old one there is room.
func (c *Client) publish(s State) {
	select {
	case <-c.events:
	default:
	}
	c.events <- s
}
