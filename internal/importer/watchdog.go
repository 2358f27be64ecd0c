package importer

import (
	"context"
	"errors"
	"time"
)

// errStalled is the cause of a context that a watchdog has ended.
var errStalled = errors.New("no data arrived for too long")

// watchdog ends a context when it has not been fed for a while.
type watchdog struct {
	timer *time.Timer
	limit time.Duration
}

// watch returns a context with a watchdog; call the function at the end.
func watch(ctx context.Context, limit time.Duration) (context.Context, *watchdog, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &watchdog{limit: limit}
	w.timer = time.AfterFunc(limit, func() { cancel(errStalled) })
	return ctx, w, func() { w.timer.Stop(); cancel(nil) }
}

func (w *watchdog) feed() { w.timer.Reset(w.limit) }

func stalled(ctx context.Context) bool { return errors.Is(context.Cause(ctx), errStalled) }
