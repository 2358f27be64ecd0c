package console

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"golang.org/x/term"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/cli/access"
	"orlop.dev/orlop/internal/stream"
)

// escape is Ctrl+], byte 29, which leaves the console.
const escape = 29

// retryEvery is the pause between two attempts to connect.
const retryEvery = 2 * time.Second

// backlog is how much is kept for a guest that does not read, in bytes.
const backlog = 64 << 10

// errLeft says that the user pressed Ctrl+].
var errLeft = errors.New("left the console")

type options struct {
	streams genericiooptions.IOStreams
	timeout time.Duration
	force   bool

	cluster *access.Cluster
	target  access.Target
	// terminal tells whether a person types; else input is a script's, of which
	// nothing may get lost.
	terminal bool
	screen   *screen
}

func (o *options) complete(flags *access.Flags, argument string) error {
	cluster, err := flags.Connect()
	if err != nil {
		return err
	}
	o.cluster = cluster
	o.screen = newScreen(o.streams.ErrOut)
	o.target, err = access.ParseTarget(argument, cluster.Namespace)
	return err
}

func (o *options) run(ctx context.Context) error {
	switch err := o.permission(ctx); {
	case errors.Is(err, errDeclined):
		o.screen.say("Left the console of %s to its holder", o.target.Name)
		return nil
	case err != nil:
		return err
	}
	restore, err := o.rawTerminal()
	if err != nil {
		return err
	}
	defer restore()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	err = o.converse(ctx, readKeys(ctx, o.streams.In))
	switch {
	case errors.Is(err, errLeft):
		o.screen.say("Left the console of %s", o.target.Name)
		return nil
	case errors.Is(err, stream.ErrTakenOver):
		o.screen.say("Another client took over the console of %s", o.target.Name)
		return nil
	case ctx.Err() != nil:
		o.screen.clear()
		return ctx.Err()
	default:
		o.screen.clear()
		return err
	}
}

// converse connects, and connects again, until the user leaves, somebody else
// takes the console, or the guest stays down for the time-out.
func (o *options) converse(ctx context.Context, keys <-chan keystroke) error {
	var down time.Time
	for {
		conn, err := o.connect(ctx, o.heard(keys))
		if err == nil {
			down = time.Time{}
			o.screen.say("Connected to the console of %s; press Ctrl+] to leave", o.target.Name)
			err = o.attach(ctx, conn, keys)
		}
		if ctx.Err() != nil || final(err) {
			return err
		}
		if down.IsZero() {
			down = time.Now()
		}
		if waited := time.Since(down); waited > o.timeout {
			return fmt.Errorf("virtual machine %s gave no console within %s: %w", o.target.Name, o.timeout, err)
		}
		if err := o.wait(ctx, o.heard(keys), err); err != nil {
			return err
		}
	}
}

// heard are the keys listened to without a connection: all that a person types then
// is Ctrl+], while a script's input waits for the guest.
func (o *options) heard(keys <-chan keystroke) <-chan keystroke {
	if o.terminal {
		return keys
	}
	return nil
}

// final tells errors that no second attempt can mend.
func final(err error) bool {
	if errors.Is(err, errLeft) || errors.Is(err, stream.ErrTakenOver) {
		return true
	}
	var refused *access.RefusedError
	return errors.As(err, &refused) && !refused.Temporary()
}

// connect opens the console, unless the user leaves before it answers.
func (o *options) connect(ctx context.Context, keys <-chan keystroke) (*stream.Conn, error) {
	type answer struct {
		conn *stream.Conn
		err  error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	opened := make(chan answer, 1)
	go func() {
		conn, err := o.cluster.Open(ctx, o.target, "console", nil)
		opened <- answer{conn, err}
	}()
	for {
		select {
		case a := <-opened:
			return a.conn, a.err
		case key, open := <-keys:
			switch {
			case !open || key.err != nil:
				keys = nil // input has ended; the guest may still have something to say
			case key.leaves():
				cancel()
				if a := <-opened; a.err == nil {
					_ = a.conn.Close()
				}
				return nil, errLeft
			}
		}
	}
}

// wait shows what the virtual machine does until the next attempt.
func (o *options) wait(ctx context.Context, keys <-chan keystroke, cause error) error {
	o.screen.status("%s", o.reason(ctx, cause))
	pause := time.NewTimer(retryEvery)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-pause.C:
			return nil
		case key, open := <-keys:
			switch {
			case !open || key.err != nil:
				keys = nil
			case key.leaves():
				return errLeft
			}
		}
	}
}

func (o *options) reason(ctx context.Context, cause error) string {
	ctx, cancel := context.WithTimeout(ctx, retryEvery)
	defer cancel()
	var vm v1alpha2.VirtualMachine
	if err := o.cluster.Client.Get(ctx, client.ObjectKey{Namespace: o.target.Namespace, Name: o.target.Name}, &vm); err != nil {
		return fmt.Sprintf("Waiting for virtual machine %s: %v", o.target.Name, cause)
	}
	if phase := vm.Status.Phase; phase != "" && phase != v1alpha2.MachineRunning {
		return fmt.Sprintf("Waiting for virtual machine %s (%s); press Ctrl+] to leave", o.target.Name, phase)
	}
	return fmt.Sprintf("Waiting for the console of %s: %v", o.target.Name, cause)
}

// attach joins terminal and guest until one of them ends. The carriage return at
// the start makes a waiting getty print its prompt.
//
// What was typed goes to the guest from a goroutine of its own, because a guest that
// does not read its serial port stops the writer, and Ctrl+] must work then too.
func (o *options) attach(ctx context.Context, conn *stream.Conn, keys <-chan keystroke) error {
	defer func() { _ = conn.Close() }()
	output, failed, typed := make(chan error, 1), make(chan error, 1), make(chan []byte)
	defer close(typed)
	go func() { output <- o.show(conn) }()
	go func() {
		for bytes := range typed {
			if _, err := conn.Write(bytes); err != nil {
				failed <- err
				return
			}
		}
	}()
	pending := []byte{'\r'}
	for {
		send, take := typed, keys
		if len(pending) == 0 {
			send = nil
		}
		if len(pending) > backlog && !o.terminal {
			take = nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-output:
			return err
		case err := <-failed:
			return verdict(output, err)
		case send <- pending:
			pending = nil
		case key, open := <-take:
			switch {
			case !open || errors.Is(key.err, io.EOF):
				keys = nil // a script's input has ended; its output still comes
			case key.err != nil:
				return fmt.Errorf("read input: %w", key.err)
			case key.leaves():
				return errLeft
			case len(pending) > backlog:
				o.screen.bell()
			default:
				pending = append(pending, key.bytes...)
			}
		}
	}
}

// show prints what the guest sends. Its end is never in order: a guest does not hang up.
func (o *options) show(conn *stream.Conn) error {
	if _, err := io.Copy(o.streams.Out, conn); err != nil {
		return err
	}
	return &access.RefusedError{Code: http.StatusServiceUnavailable, Message: "the console was closed"}
}

// verdict is why a connection broke that could not be written to: the reading side
// knows whether somebody took the console over, and then it must not be taken back.
func verdict(output <-chan error, broken error) error {
	patience := time.NewTimer(retryEvery)
	defer patience.Stop()
	select {
	case err := <-output:
		return err
	case <-patience.C:
		return broken
	}
}

// keystroke is one read of the terminal.
type keystroke struct {
	bytes []byte
	err   error
}

// leaves tells whether the read begins with Ctrl+].
func (k keystroke) leaves() bool { return len(k.bytes) > 0 && k.bytes[0] == escape }

// readKeys reads input for the life of the command: a terminal read cannot be
// interrupted, so one goroutine serves all connections.
func readKeys(ctx context.Context, in io.Reader) <-chan keystroke {
	keys := make(chan keystroke)
	go func() {
		defer close(keys)
		buffer := make([]byte, 4096)
		for {
			n, err := in.Read(buffer)
			if n > 0 {
				select {
				case keys <- keystroke{bytes: bytes.Clone(buffer[:n])}:
				case <-ctx.Done():
					return
				}
			}
			if err != nil {
				select {
				case keys <- keystroke{err: err}:
				case <-ctx.Done():
				}
				return
			}
		}
	}()
	return keys
}

// rawTerminal switches a terminal to raw mode and returns what undoes it; input
// that is no terminal is left as it is.
func (o *options) rawTerminal() (func(), error) {
	file, ok := terminal(o.streams.In)
	if !ok {
		return func() {}, nil
	}
	state, err := term.MakeRaw(int(file.Fd()))
	if err != nil {
		return nil, fmt.Errorf("switch the terminal to raw mode: %w", err)
	}
	o.terminal = true
	return func() { _ = term.Restore(int(file.Fd()), state) }, nil
}
