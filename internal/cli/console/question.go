package console

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode"

	"golang.org/x/term"
	"k8s.io/apimachinery/pkg/util/duration"

	"orlop.dev/orlop/api/subresources/v1alpha2"
)

// askWithin bounds the question who holds the console, which must never keep anybody
// from it.
const askWithin = 5 * time.Second

// maxClient bounds what is shown of a client's name, in characters.
const maxClient = 60

// errDeclined says that the user leaves the console to its holder.
var errDeclined = errors.New("left the console to its holder")

// permission asks the user when somebody else holds the console. Nil means: connect.
// A console that is free, the user's own or forced is not asked about, nor is one
// whose holder cannot be learnt; where nobody can answer, a warning has to do.
func (o *options) permission(ctx context.Context) error {
	if o.force {
		return nil
	}
	holder, other := o.otherHolder(ctx)
	if !other {
		return nil
	}
	if _, ok := terminal(o.streams.In); !ok {
		o.screen.say("Warning: taking over the console of %s from %s", o.target.Name, describe(holder, time.Now()))
		return nil
	}
	for {
		fmt.Fprintf(o.streams.ErrOut, "%s holds the console of %s. Take it over? [y/N/w] (w waits until it is free) ",
			describe(holder, time.Now()), o.target.Name)
		answer, err := readAnswer(ctx, o.streams.In)
		if err != nil {
			return err
		}
		switch strings.ToLower(answer) {
		case "y", "yes":
			return nil
		case "w", "wait":
			return o.untilFree(ctx)
		case "", "n", "no":
			return errDeclined
		}
	}
}

// otherHolder tells whether somebody else holds the console. Any error counts as no.
func (o *options) otherHolder(ctx context.Context) (v1alpha2.StreamHolder, bool) {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	holder, err := o.cluster.Probe(ctx, o.target, "console")
	if err != nil || holder.Holder == "" {
		return holder, false
	}
	self, err := o.cluster.User(ctx)
	return holder, err == nil && self != holder.Holder
}

// untilFree waits until nobody else holds the console.
func (o *options) untilFree(ctx context.Context) error {
	o.screen.say("Waiting until the console of %s is free; press Ctrl+C to leave", o.target.Name)
	tick := time.NewTicker(retryEvery)
	defer tick.Stop()
	for {
		if _, other := o.otherHolder(ctx); !other {
			return ctx.Err()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// describe names a holder: user, how long, with what.
func describe(holder v1alpha2.StreamHolder, now time.Time) string {
	text := shown(holder.Holder, 253)
	if holder.StartTime != nil {
		text += " (for " + duration.HumanDuration(max(0, now.Sub(holder.StartTime.Time)))
	} else {
		text += " (since an unknown time"
	}
	switch holder.Client {
	case "":
	case "d8":
		text += ", command line"
	case "console":
		text += ", web console"
	default:
		text += ", " + shown(holder.Client, maxClient)
	}
	return text + ")"
}

// shown keeps what a terminal may be sent of somebody else's text.
func shown(text string, limit int) string {
	kept := []rune(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, text))
	return string(kept[:min(len(kept), limit)])
}

// readAnswer reads one line. A terminal in its ordinary mode gives a line for a read,
// so nothing that belongs to the guest is swallowed. The end of input is a "no".
func readAnswer(ctx context.Context, in io.Reader) (string, error) {
	type answer struct {
		text string
		err  error
	}
	read := make(chan answer, 1)
	go func() {
		buffer := make([]byte, 1024)
		n, err := in.Read(buffer)
		if n > 0 || errors.Is(err, io.EOF) {
			err = nil
		}
		read <- answer{strings.TrimSpace(string(buffer[:n])), err}
	}()
	select {
	case <-ctx.Done():
		return "", ctx.Err()
	case a := <-read:
		if a.err != nil {
			return "", fmt.Errorf("read the answer: %w", a.err)
		}
		return a.text, nil
	}
}

// terminal returns the terminal that input comes from, if it does.
func terminal(in io.Reader) (*os.File, bool) {
	file, ok := in.(*os.File)
	return file, ok && term.IsTerminal(int(file.Fd()))
}
