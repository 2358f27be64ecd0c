package console

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
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

// errLeft says that the user pressed Ctrl+].
var errLeft = errors.New("left the console")

type options struct {
	streams genericiooptions.IOStreams
	timeout time.Duration
	force   bool

	cluster *access.Cluster
	target  access.Target
}

func (o *options) complete(flags *access.Flags, argument string) error {
	cluster, err := flags.Connect()
	if err != nil {
		return err
	}
	o.cluster = cluster
	o.target, err = access.ParseTarget(argument, cluster.Namespace)
	return err
}

func (o *options) run(ctx context.Context) error {
	restore, err := rawTerminal(o.streams.In)
	if err != nil {
		return err
	}
	defer restore()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	err = o.converse(ctx, readKeys(ctx, o.streams.In))
	switch {
	case errors.Is(err, errLeft):
		o.say("Left the console of %s", o.target.Name)
		return nil
	case errors.Is(err, stream.ErrTakenOver):
		o.say("Another client took over the console of %s", o.target.Name)
		return nil
	default:
		return err
	}
}

// converse connects, and connects again, until the user leaves, somebody else
// takes the console, the guest stays down for the time-out, or input that is not
// a terminal ends.
func (o *options) converse(ctx context.Context, keys <-chan keystroke) error {
	var down time.Time
	for {
		conn, err := o.cluster.Open(ctx, o.target, "console", nil)
		if err == nil {
			down = time.Time{}
			o.say("Connected to the console of %s; press Ctrl+] to leave", o.target.Name)
			if err = o.attach(ctx, conn, keys); err == nil || final(err) {
				return err
			}
		}
		if final(err) {
			return err
		}
		if down.IsZero() {
			down = time.Now()
		}
		if waited := time.Since(down); waited > o.timeout {
			return fmt.Errorf("virtual machine %s gave no console within %s: %w", o.target.Name, o.timeout, err)
		}
		if err := o.wait(ctx, keys, err); err != nil {
			return err
		}
	}
}

// final tells errors that no second attempt can mend.
func final(err error) bool {
	if errors.Is(err, errLeft) || errors.Is(err, stream.ErrTakenOver) || errors.Is(err, context.Canceled) {
		return true
	}
	var refused *access.RefusedError
	return errors.As(err, &refused) && !refused.Temporary()
}

// wait shows what the virtual machine does until the next attempt.
func (o *options) wait(ctx context.Context, keys <-chan keystroke, cause error) error {
	o.status("%s", o.reason(ctx, cause))
	pause := time.NewTimer(retryEvery)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-pause.C:
			return nil
		case key, open := <-keys:
			if !open || key.err != nil {
				keys = nil // input has ended; waiting goes on
				continue
			}
			if key.leaves() {
				return errLeft
			}
		}
	}
}

func (o *options) reason(ctx context.Context, cause error) string {
	var vm v1alpha2.VirtualMachine
	if err := o.cluster.Client.Get(ctx, client.ObjectKey{Namespace: o.target.Namespace, Name: o.target.Name}, &vm); err != nil {
		return fmt.Sprintf("Waiting for virtual machine %s: %v", o.target.Name, cause)
	}
	if phase := vm.Status.Phase; phase != "" && phase != v1alpha2.MachineRunning {
		return fmt.Sprintf("Waiting for virtual machine %s (%s)", o.target.Name, phase)
	}
	return fmt.Sprintf("Waiting for the console of %s: %v", o.target.Name, cause)
}

// attach joins terminal and guest until one of them ends. The carriage return at
// the start makes a waiting getty print its prompt.
func (o *options) attach(ctx context.Context, conn *stream.Conn, keys <-chan keystroke) error {
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write([]byte{'\r'}); err != nil {
		return err
	}
	output := make(chan error, 1)
	go func() {
		_, err := io.Copy(o.streams.Out, conn)
		if err == nil {
			err = &access.RefusedError{Code: http.StatusServiceUnavailable, Message: "the console was closed"}
		}
		output <- err
	}()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-output:
			return err
		case key, open := <-keys:
			switch {
			case !open || errors.Is(key.err, io.EOF):
				keys = nil // a script's input has ended; its output still comes
			case key.err != nil:
				return key.err
			case key.leaves():
				return errLeft
			default:
				if _, err := conn.Write(key.bytes); err != nil {
					return err
				}
			}
		}
	}
}

// say writes a line of our own, apart from what the guest prints.
func (o *options) say(format string, args ...any) {
	fmt.Fprintf(o.streams.ErrOut, "\r\033[K"+format+"\r\n", args...)
}

// status rewrites the current line.
func (o *options) status(format string, args ...any) {
	fmt.Fprintf(o.streams.ErrOut, "\r\033[K"+format, args...)
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
func rawTerminal(in io.Reader) (func(), error) {
	file, ok := in.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) {
		return func() {}, nil
	}
	state, err := term.MakeRaw(int(file.Fd()))
	if err != nil {
		return nil, fmt.Errorf("switch the terminal to raw mode: %w", err)
	}
	return func() { _ = term.Restore(int(file.Fd()), state) }, nil
}
