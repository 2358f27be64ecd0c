package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

// Bounds: the longest line (query-block of many disks is some 10 KiB) and the most
// events that wait for a reader.
const (
	maxLine   = 4 << 20
	maxEvents = 4096
)

// ErrClosed is returned when the connection ended: usually, QEMU has.
var ErrClosed = errors.New("QMP connection closed")

// Error is QEMU's refusal of a command.
type Error struct {
	Class       string `json:"class"`
	Description string `json:"desc"`
}

// Error implements error.
func (e *Error) Error() string { return e.Description }

// Event is something that happened in QEMU.
type Event struct {
	Name string
	Data json.RawMessage
	Time time.Time
}

// Decode reads the event's data into out; an event without data leaves it alone.
func (e Event) Decode(out any) error {
	if len(e.Data) == 0 {
		return nil
	}
	if err := json.Unmarshal(e.Data, out); err != nil {
		return fmt.Errorf("decode event %s: %w", e.Name, err)
	}
	return nil
}

// Client is one connection. Its methods may be called from several goroutines.
type Client struct {
	conn    net.Conn
	version string
	events  chan Event
	done    chan struct{}
	group   sync.WaitGroup

	sending sync.Mutex

	mu      sync.Mutex
	lastID  uint64
	pending map[uint64]chan response
	queue   []Event
	wake    chan struct{}
	err     error
}

// response is any line QEMU sends.
type response struct {
	ID     uint64          `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *Error          `json:"error"`

	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`

	Greeting *struct {
		Version Version `json:"version"`
	} `json:"QMP"`
}

// Dial connects to a monitor's socket.
func Dial(ctx context.Context, path string) (*Client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("connect to monitor: %w", err)
	}
	return New(ctx, conn)
}

// New takes over a connection, reads the greeting and leaves negotiation mode. It
// closes the connection if that fails.
func New(ctx context.Context, conn net.Conn) (*Client, error) {
	c := &Client{
		conn:    conn,
		events:  make(chan Event),
		done:    make(chan struct{}),
		pending: map[uint64]chan response{},
		wake:    make(chan struct{}, 1),
	}
	greeting := make(chan string, 1)
	c.group.Add(2)
	go c.read(greeting)
	go c.deliver()
	if err := c.negotiate(ctx, greeting); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

func (c *Client) negotiate(ctx context.Context, greeting <-chan string) error {
	select {
	case <-ctx.Done():
		return fmt.Errorf("wait for greeting: %w", ctx.Err())
	case <-c.done:
		return fmt.Errorf("wait for greeting: %w", c.reason())
	case c.version = <-greeting:
	}
	return c.Execute(ctx, "qmp_capabilities", nil, nil)
}

// Version is QEMU's, such as "10.0.2".
func (c *Client) Version() string { return c.version }

// Events yields QEMU's events in order. It is closed with the connection, after the
// last event that was received.
func (c *Client) Events() <-chan Event { return c.events }

// Done is closed when the connection has ended.
func (c *Client) Done() <-chan struct{} { return c.done }

// Close ends the connection and waits for its goroutines. Events not yet read are lost.
func (c *Client) Close() error {
	err := c.conn.Close()
	<-c.done
	for range c.events { // drained, so that deliver can end
	}
	c.group.Wait()
	return err
}

// Execute runs a command with its arguments (a struct or map, or nil) and decodes
// what it returns into out, unless that is nil.
func (c *Client) Execute(ctx context.Context, command string, arguments, out any) error {
	return c.exchange(ctx, command, arguments, nil, out)
}

// exchange sends one command, with a file's descriptor unless that is nil, and waits
// for its answer.
func (c *Client) exchange(ctx context.Context, command string, arguments any, f *os.File, out any) error {
	id, answer, err := c.expect()
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	defer c.forget(id)
	if err := c.send(ctx, id, command, arguments, f); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", command, ctx.Err())
	case r := <-answer:
		return r.decode(command, out)
	case <-c.done:
	}
	select {
	case r := <-answer: // came just before the end, as that of quit does
		return r.decode(command, out)
	default:
		return fmt.Errorf("%s: %w", command, c.reason())
	}
}

// decode reads the answer to a command.
func (r response) decode(command string, out any) error {
	if r.Error != nil {
		return fmt.Errorf("%s: %w", command, r.Error)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(r.Return, out); err != nil {
		return fmt.Errorf("decode answer to %s: %w", command, err)
	}
	return nil
}

func (c *Client) send(ctx context.Context, id uint64, command string, arguments any, f *os.File) error {
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, arguments, id})
	if err != nil {
		return fmt.Errorf("encode %s: %w", command, err)
	}
	c.sending.Lock()
	defer c.sending.Unlock()
	deadline, _ := ctx.Deadline()
	if err := writeWithFile(c.conn, append(line, '\n'), f, deadline); err != nil {
		select {
		case <-c.done:
			return fmt.Errorf("%s: %w", command, c.reason())
		default:
			return fmt.Errorf("%s: %w: %w", command, ErrClosed, err)
		}
	}
	return nil
}

func (c *Client) expect() (uint64, <-chan response, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, nil, c.err
	}
	c.lastID++
	ch := make(chan response, 1)
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

// read distributes lines until the connection ends.
func (c *Client) read(greeting chan<- string) {
	defer c.group.Done()
	lines := bufio.NewScanner(c.conn)
	lines.Buffer(make([]byte, 0, 4096), maxLine)
	err := ErrClosed
	for lines.Scan() {
		if len(lines.Bytes()) == 0 {
			continue
		}
		var r response
		if jsonErr := json.Unmarshal(lines.Bytes(), &r); jsonErr != nil {
			err = fmt.Errorf("%w: decode line: %w", ErrClosed, jsonErr)
			break
		}
		if r.Greeting != nil {
			select {
			case greeting <- r.Greeting.Version.String():
			default:
			}
			continue
		}
		c.take(r)
	}
	if errors.Is(lines.Err(), bufio.ErrTooLong) {
		err = fmt.Errorf("%w: line of more than %d bytes", ErrClosed, maxLine)
	}
	_ = c.conn.Close()
	c.mu.Lock()
	c.err = err
	c.mu.Unlock()
	close(c.done)
}

func (c *Client) take(r response) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.Event != "" {
		if len(c.queue) < maxEvents {
			at := time.Unix(r.Timestamp.Seconds, r.Timestamp.Microseconds*1000)
			c.queue = append(c.queue, Event{Name: r.Event, Data: r.Data, Time: at})
		}
		select {
		case c.wake <- struct{}{}:
		default:
		}
		return
	}
	if ch := c.pending[r.ID]; ch != nil {
		delete(c.pending, r.ID)
		ch <- r
	}
}

// deliver hands queued events to their reader, so that a slow one does not hold up
// answers.
func (c *Client) deliver() {
	defer c.group.Done()
	defer close(c.events)
	for {
		c.mu.Lock()
		batch, ended := c.queue, c.err != nil
		c.queue = nil
		c.mu.Unlock()
		for _, e := range batch {
			c.events <- e
		}
		if len(batch) > 0 {
			continue
		}
		if ended {
			return
		}
		select {
		case <-c.wake:
		case <-c.done:
		}
	}
}
