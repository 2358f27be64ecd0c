package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// progress tells the person in front of the terminal what happens. It writes whole
// lines only, so that the output is as good in a log.
type progress struct {
	out io.Writer
	now func() time.Time
}

// step announces something that takes a while; the returned function says how it ended.
func (p progress) step(format string, args ...any) (done func(format string, args ...any)) {
	what := fmt.Sprintf(format, args...)
	start := p.now()
	fmt.Fprintf(p.out, "• %s …\n", what)
	return func(format string, args ...any) {
		fmt.Fprintf(p.out, "✓ %s: %s (%.1f s)\n", what, fmt.Sprintf(format, args...), p.now().Sub(start).Seconds())
	}
}

func (p progress) note(format string, args ...any) { fmt.Fprintf(p.out, format+"\n", args...) }

// explainedError is an error whose cause is likely in the log of these components.
type explainedError struct {
	error

	box        string
	components []string
}

func (e *explainedError) Unwrap() error { return e.error }

// explained says where to look for the reason of an error.
func explained(err error, box string, components ...string) error {
	if err == nil {
		return nil
	}
	return &explainedError{error: err, box: box, components: components}
}

// poll tries until it works, the time is over, or the error is not one of those that
// pass; without a function to tell, all do. It returns the last error.
func poll(ctx context.Context, patience time.Duration, try func(context.Context) error, passes func(error) bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := try(ctx)
		if err == nil || (passes != nil && !passes(err)) {
			return err
		}
		select {
		case <-ctx.Done():
			if errors.Is(err, context.DeadlineExceeded) {
				return fmt.Errorf("no answer within %s: %w", patience, err)
			}
			return fmt.Errorf("after %s: %w", patience, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
