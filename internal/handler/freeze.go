package handler

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"orlop.dev/orlop/internal/guestagent"
)

// maxFreeze is the longest time that file systems may be frozen.
const maxFreeze = time.Hour

// obey carries out an order. Every way out of a freeze that is not its success leaves
// a thaw behind that is due at once.
func (c *conversation) obey(o *order) error {
	if o.ctx.Err() != nil {
		return o.ctx.Err() // nobody waits for it any more
	}
	if o.freeze == 0 {
		return c.thaw()
	}
	if !c.thawAt.IsZero() {
		return errFrozen
	}
	err := c.freeze(o.freeze)
	if err == nil && o.ctx.Err() != nil {
		err = o.ctx.Err() // the one who would thaw them was told nothing
		c.thawAt = c.now()
	}
	return err
}

func (c *conversation) freeze(length time.Duration) error {
	ctx, cancel := context.WithTimeout(c.ctx, c.pace.freeze)
	defer cancel()
	err := c.connect(ctx)
	if err == nil {
		err = c.client.Sync(ctx)
	}
	if err != nil {
		c.failed(err)
		return err // nothing was asked for yet
	}
	c.thawAt, c.retryAt = c.now(), time.Time{}
	count, err := c.client.Freeze(ctx)
	switch {
	case err != nil:
		if !refused(err) {
			c.hangUp() // what comes later belongs to nobody
		}
		return err
	case count == 0:
		return errNothing
	}
	c.thawAt = c.now().Add(length)
	c.log.Info("the guest's file systems are frozen", "count", count, "seconds", length.Seconds())
	c.setFrozen(true)
	return nil
}

// thaw lets the guest write again. A guest that is not frozen is no error.
func (c *conversation) thaw() error {
	ctx, cancel := context.WithTimeout(c.ctx, c.pace.thaw)
	defer cancel()
	if err := c.thawWithin(ctx); err != nil {
		c.hangUp()
		return err
	}
	if !c.thawAt.IsZero() {
		c.log.Info("the guest's file systems are thawed")
	}
	c.thawAt, c.retryAt = time.Time{}, time.Time{}
	c.setFrozen(false)
	return nil
}

func (c *conversation) thawWithin(ctx context.Context) error {
	if err := c.connect(ctx); err != nil {
		return err
	}
	if err := c.client.Sync(ctx); err != nil {
		return err
	}
	frozen, err := c.client.Frozen(ctx)
	if err == nil && !frozen {
		return nil
	}
	if err != nil && !refused(err) {
		return err
	}
	_, err = c.client.Thaw(ctx)
	return err
}

// setFrozen tells of a change at once.
func (c *conversation) setFrozen(frozen bool) {
	if c.guest == nil || c.guest.Frozen == frozen {
		return
	}
	g := c.guest.DeepCopy()
	g.Frozen = frozen
	c.tell(g)
}

// lastThaw is for a handler that is told to stop: the next one may be a while.
func (c *conversation) lastThaw(ctx context.Context) {
	if c.thawAt.IsZero() || ctx.Err() == nil {
		return // the guest has gone away, not we
	}
	c.hangUp() // its time is over
	short, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.pace.last)
	defer cancel()
	if err := c.thawWithin(short); err != nil {
		c.log.Info("the guest's file systems stay frozen until the next handler", "reason", err.Error())
	}
}

func refused(err error) bool {
	var e *guestagent.Error
	return errors.As(err, &e)
}

// serveFreeze freezes the guest's file systems for at most ?timeout= seconds.
func (w *worker) serveFreeze(rw http.ResponseWriter, r *http.Request) {
	seconds, err := strconv.ParseInt(r.URL.Query().Get("timeout"), 10, 32)
	length := time.Duration(seconds) * time.Second
	if err != nil || length <= 0 || length > maxFreeze {
		http.Error(rw, fmt.Sprintf("the time-out must be from 1 to %d seconds", int(maxFreeze.Seconds())), http.StatusBadRequest)
		return
	}
	w.answerOrder(rw, "freeze", w.agent.command(r.Context(), length))
}

// serveUnfreeze thaws the guest's file systems.
func (w *worker) serveUnfreeze(rw http.ResponseWriter, r *http.Request) {
	w.answerOrder(rw, "unfreeze", w.agent.command(r.Context(), 0))
}

// answerOrder tells the API component what came of an order.
func (w *worker) answerOrder(rw http.ResponseWriter, what string, err error) {
	switch {
	case err == nil:
		rw.WriteHeader(http.StatusOK)
		return
	case errors.Is(err, errNoAgent), errors.Is(err, errFrozen), errors.Is(err, errNothing):
		http.Error(rw, err.Error(), http.StatusConflict)
	case refused(err):
		http.Error(rw, err.Error(), http.StatusBadGateway)
	case errors.Is(err, context.DeadlineExceeded):
		http.Error(rw, "the guest agent does not answer in time", http.StatusGatewayTimeout)
	default:
		http.Error(rw, "the guest agent cannot be reached", http.StatusBadGateway)
	}
	w.log.Info("cannot carry out", "order", what, "reason", err.Error())
}
