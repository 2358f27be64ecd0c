package guestagent

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"
)

const (
	// MaxAnswer bounds one answer, in bytes.
	MaxAnswer = 1 << 20
	// maxStale bounds what is thrown away in search of the delimiter, in bytes: an agent
	// whose late answers are longer than that is not one.
	maxStale = 4 * MaxAnswer
	// delimiter precedes the answer to guest-sync-delimited. In a request it makes the
	// agent's parser forget what it has read so far. It is part of no JSON text.
	delimiter = 0xFF
	// maxSyncs is how many answers to older synchronisations are passed over.
	maxSyncs = 64
	// bufferSize is what a connection costs while it is idle, in bytes.
	bufferSize = 4096
)

// CommandTimeout is how long the agent may take for a command, but for those that
// wait for the guest's disks: their time is that of the context.
const CommandTimeout = 5 * time.Second

// ErrAnswer is wrapped by errors about answers that no agent would give.
var ErrAnswer = errors.New("bad answer of the guest agent")

// Error is the agent's refusal of a command, as it tells it, cut and cleaned.
type Error struct {
	Class       string
	Description string
}

// Error implements error.
func (e *Error) Error() string { return "the guest agent says: " + e.Description }

// Client is one connection. One goroutine may use it at a time; Close may come from
// any.
type Client struct {
	conn   net.Conn
	reader *bufio.Reader
	// synced is true while the next line is sure to be the answer to the next command.
	synced bool
}

// New takes over a connection.
func New(conn net.Conn) *Client {
	return &Client{conn: conn, reader: bufio.NewReaderSize(conn, bufferSize)}
}

// Close ends the connection, and with it a command under way.
func (c *Client) Close() error { return c.conn.Close() }

// Sync makes sure that the agent is there and that its next answer belongs to our
// next command.
func (c *Client) Sync(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, CommandTimeout)
	defer cancel()
	err := c.sync(ctx)
	c.synced = err == nil
	if err != nil {
		return fmt.Errorf("synchronise with guest agent: %w", timeout(ctx, err))
	}
	return nil
}

func (c *Client) sync(ctx context.Context) error {
	id := number()
	stop := c.bound(ctx)
	defer stop()
	request, err := encode("guest-sync-delimited", map[string]int64{"id": id})
	if err != nil {
		return err
	}
	if _, err := c.conn.Write(append([]byte{delimiter}, request...)); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	stale := maxStale
	for range maxSyncs {
		if stale, err = c.skip(stale); err != nil {
			return err
		}
		line, err := c.line(MaxAnswer)
		if err != nil {
			return err
		}
		var answer struct {
			Return *int64 `json:"return"`
		}
		// What is not our number belongs to a synchronisation that was given up.
		if json.Unmarshal(line, &answer) == nil && answer.Return != nil && *answer.Return == id {
			return nil
		}
	}
	return fmt.Errorf("%w: too many old answers", ErrAnswer)
}

// skip throws away everything up to a delimiter and returns how much more may be.
func (c *Client) skip(most int) (int, error) {
	for most > 0 {
		chunk, err := c.reader.ReadSlice(delimiter)
		most -= len(chunk)
		if err == nil {
			return most, nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return 0, fmt.Errorf("read: %w", err)
		}
	}
	return 0, fmt.Errorf("%w: more than %d bytes without a delimiter", ErrAnswer, maxStale)
}

// line reads one line of at most so many bytes.
func (c *Client) line(most int) ([]byte, error) {
	var line []byte
	for {
		chunk, err := c.reader.ReadSlice('\n')
		if len(line)+len(chunk) > most {
			return nil, fmt.Errorf("%w: more than %d bytes", ErrAnswer, most)
		}
		line = append(line, chunk...)
		if err == nil {
			return line, nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return nil, fmt.Errorf("read: %w", err)
		}
	}
}

// execute runs a command that takes no time of its own.
func (c *Client) execute(ctx context.Context, command string, out any) error {
	ctx, cancel := context.WithTimeout(ctx, CommandTimeout)
	defer cancel()
	return c.run(ctx, command, out)
}

// run runs a command within the context's time and decodes what it returns.
func (c *Client) run(ctx context.Context, command string, out any) error {
	if !c.synced {
		if err := c.Sync(ctx); err != nil {
			return err
		}
	}
	c.synced = false // until the answer has been read
	stop := c.bound(ctx)
	defer stop()
	request, err := encode(command, nil)
	if err != nil {
		return err
	}
	if _, err := c.conn.Write(request); err != nil {
		return fmt.Errorf("%s: write: %w", command, timeout(ctx, err))
	}
	line, err := c.answer()
	if err != nil {
		return fmt.Errorf("%s: %w", command, timeout(ctx, err))
	}
	refusal, err := decode(line, out)
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	c.synced = true
	if refusal != nil {
		return fmt.Errorf("%s: %w", command, refusal)
	}
	return nil
}

// answer reads the next line that is not empty.
func (c *Client) answer() ([]byte, error) {
	for most := MaxAnswer; ; {
		line, err := c.line(most)
		if err != nil {
			return nil, err
		}
		if trimmed := bytes.TrimSpace(line); len(trimmed) > 0 {
			return trimmed, nil
		}
		most -= len(line)
	}
}

// bound gives reads and writes the context's deadline and ends them with it.
func (c *Client) bound(ctx context.Context) func() bool {
	deadline, _ := ctx.Deadline()
	_ = c.conn.SetDeadline(deadline)
	return context.AfterFunc(ctx, func() { _ = c.conn.SetDeadline(time.Unix(1, 0)) })
}

// timeout names the time-out where there was one: "i/o timeout" says less.
func timeout(ctx context.Context, err error) error {
	var n net.Error
	if !errors.As(err, &n) || !n.Timeout() {
		return err
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return context.Canceled
	}
	return fmt.Errorf("no answer in time: %w", context.DeadlineExceeded)
}

func encode(command string, arguments any) ([]byte, error) {
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, arguments})
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", command, err)
	}
	return append(line, '\n'), nil
}

// decode reads one answer: what the command returned, or the agent's refusal.
func decode(line []byte, out any) (*Error, error) {
	var answer struct {
		Return json.RawMessage `json:"return"`
		Error  *struct {
			Class       string `json:"class"`
			Description string `json:"desc"`
		} `json:"error"`
	}
	if err := json.Unmarshal(line, &answer); err != nil {
		return nil, fmt.Errorf("%w: %s", ErrAnswer, clean(err.Error()))
	}
	if e := answer.Error; e != nil {
		return &Error{Class: clean(e.Class), Description: clean(e.Description)}, nil
	}
	if answer.Return == nil {
		return nil, fmt.Errorf("%w: neither a result nor an error", ErrAnswer)
	}
	if out == nil {
		return nil, nil
	}
	if err := json.Unmarshal(answer.Return, out); err != nil {
		return nil, fmt.Errorf("%w: %s", ErrAnswer, clean(err.Error()))
	}
	return nil, nil
}

// number is one that no answer under way can carry by chance. Agents keep it in 64
// bits with a sign; JSON libraries are sure of 53.
func number() int64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return int64(binary.LittleEndian.Uint64(b[:]) >> 11)
}
