package handler

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/guestagent"
	"orlop.dev/orlop/internal/qemu"
)

// pace is how often the guest is asked, and how long it may take.
type pace struct {
	// soon is the time from the first facts to the second: the agent starts while the
	// guest is still booting. After that they are read again every so often.
	soon, often time.Duration
	// first and most are the waits after a failure.
	first, most time.Duration
	// round bounds one reading of all facts.
	round time.Duration
	// freeze and thaw bound one order. The guest writes out what it holds, and runs
	// hooks. Somebody waits for it over HTTP.
	freeze, thaw time.Duration
	// last is for the thaw of a handler that was told to stop.
	last time.Duration
}

var agentPace = pace{
	soon: 10 * time.Second, often: time.Minute, first: 5 * time.Second, most: time.Minute, round: 15 * time.Second,
	freeze: 20 * time.Second, thaw: 20 * time.Second, last: 3 * time.Second,
}

// agentPatience is how many readings in a row may fail before the agent counts as
// gone: a guest under load is late at times.
const agentPatience = 1

// Refusals of orders.
var (
	errNoAgent = errors.New("the guest agent is not connected: install and start qemu-guest-agent in the guest")
	errFrozen  = errors.New("the file systems are frozen already: unfreeze them first")
	errNothing = errors.New("the guest has no file system that can be frozen")
)

// agent talks to the program of that name inside one guest. It has a goroutine of its
// own, so that a guest which keeps it waiting delays nothing else about its machine.
//
// The worker says when there is somebody to talk to (attend, leave) and is told what
// the guest is like (news). Orders come from outside and are refused while there is
// nobody. The connection is kept while the guest listens: an agent whose channel has
// nobody at the other end wakes up ten times a second to look.
//
// It also owns the one thing that must not be forgotten: file systems that were frozen
// are thawed when their time is over. What the handler forgets by dying it finds again
// in the guest, and thaws then.
type agent struct {
	dial func(context.Context) (net.Conn, error)
	pace pace
	now  func() time.Time
	log  logr.Logger

	// news holds the newest report for the worker.
	news   chan guestReport
	orders chan *order
	kick   chan struct{}

	mu      sync.Mutex
	present *presence

	// The goroutine's own.
	thawAt time.Time // zero unless the file systems are frozen, or may be
	calm   time.Time // no facts before, or a guest that comes and goes would keep everybody busy
}

// presence is a time during which the guest listens.
type presence struct {
	ctx  context.Context
	stop context.CancelFunc
	// known is what the guest has told before, perhaps to another handler.
	known *v1alpha1.Guest
}

// guestReport is what the guest is like; nil means that it does not answer.
type guestReport struct {
	during *presence
	guest  *v1alpha1.Guest
}

// order is something to be done to the guest's file systems.
type order struct {
	ctx context.Context
	// freeze is how long they are to be frozen; 0 thaws them.
	freeze time.Duration
	done   chan error
}

func newAgent(dial func(context.Context) (net.Conn, error), now func() time.Time, log logr.Logger) *agent {
	return &agent{
		dial: dial, now: now, log: log, pace: agentPace,
		news: make(chan guestReport, 1), orders: make(chan *order), kick: make(chan struct{}, 1),
	}
}

// attend begins a conversation.
func (a *agent) attend(ctx context.Context, known *v1alpha1.Guest) *presence {
	p := &presence{known: known.DeepCopy()}
	p.ctx, p.stop = context.WithCancel(ctx)
	a.become(p)
	return p
}

// leave ends the conversation at once, whatever is under way.
func (a *agent) leave() { a.become(nil) }

func (a *agent) become(p *presence) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.present != nil {
		a.present.stop()
	}
	a.present = p
	select {
	case a.kick <- struct{}{}:
	default:
	}
}

func (a *agent) presence() *presence {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.present
}

// command carries out an order and waits for its outcome.
func (a *agent) command(ctx context.Context, freeze time.Duration) error {
	p := a.presence()
	if p == nil {
		return errNoAgent
	}
	o := &order{ctx: ctx, freeze: freeze, done: make(chan error, 1)}
	select {
	case a.orders <- o:
	case <-p.ctx.Done():
		return errNoAgent
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-o.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// run works until the context ends.
func (a *agent) run(ctx context.Context) {
	for ctx.Err() == nil {
		if p := a.presence(); p != nil && p.ctx.Err() == nil {
			(&conversation{agent: a, presence: p, guest: p.known, factsAt: a.calm}).run(ctx)
			continue
		}
		select {
		case <-ctx.Done():
		case <-a.kick:
		}
	}
}

// conversation is one presence, as the goroutine sees it.
type conversation struct {
	*agent
	*presence
	client *guestagent.Client
	// guest is what was reported last; told is true once anything was.
	guest    *v1alpha1.Guest
	told     bool
	failures int
	rounds   int
	// factsAt is when facts are due, retryAt when a thaw that failed is.
	factsAt, retryAt time.Time
}

func (c *conversation) run(ctx context.Context) {
	defer c.hangUp()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		timer.Reset(c.due().Sub(c.now()))
		select {
		case <-c.ctx.Done():
			c.lastThaw(ctx)
			return
		case o := <-c.orders:
			o.done <- c.obey(o)
		case <-timer.C:
			c.turn()
		}
	}
}

// due is when there is something to do next.
func (c *conversation) due() time.Time {
	next := c.factsAt
	if c.thawAt.IsZero() {
		return next
	}
	thaw := c.thawAt
	if c.retryAt.After(thaw) {
		thaw = c.retryAt
	}
	if thaw.Before(next) {
		return thaw
	}
	return next
}

// turn does what is due.
func (c *conversation) turn() {
	now := c.now()
	if !c.thawAt.IsZero() && !now.Before(c.thawAt) && !now.Before(c.retryAt) {
		if err := c.thaw(); err != nil {
			c.retryAt = c.now().Add(c.pace.first)
			c.log.Info("cannot thaw the guest's file systems, will try again", "reason", err.Error())
			return
		}
		c.factsAt = c.now() // what it could not say while it was frozen
		return
	}
	if !now.Before(c.factsAt) {
		c.readFacts()
	}
}

// readFacts reads what the guest is like and tells it.
func (c *conversation) readFacts() {
	ctx, cancel := context.WithTimeout(c.ctx, c.pace.round)
	defer cancel()
	var g *v1alpha1.Guest
	err := c.connect(ctx)
	if err == nil {
		g, err = c.client.Facts(ctx, c.guest)
	}
	if c.ctx.Err() != nil {
		return
	}
	if err != nil {
		c.failed(err)
		return
	}
	c.failures = 0
	c.rounds++
	c.calm = c.now().Add(c.pace.soon)
	c.factsAt = c.calm
	if c.rounds > 1 {
		c.factsAt = c.now().Add(c.pace.often)
	}
	switch {
	case !g.Frozen:
		c.thawAt = time.Time{} // it was thawed, or rebooted
	case c.thawAt.IsZero():
		c.log.Info("the guest's file systems are frozen and nobody remembers why: thawing them")
		c.thawAt = c.now()
	}
	c.tell(g)
}

// failed takes in a reading that did not succeed.
func (c *conversation) failed(err error) {
	c.hangUp()
	wait := c.pace.first << min(c.failures, 10)
	c.factsAt = c.now().Add(min(wait, c.pace.most))
	c.failures++
	if c.failures <= agentPatience {
		return
	}
	if c.guest != nil || !c.told {
		c.log.Info("the guest agent does not answer", "reason", err.Error())
	}
	c.tell(nil)
}

// tell reports what has changed.
func (c *conversation) tell(g *v1alpha1.Guest) {
	if g != nil {
		g.Since = metav1Now(c.now())
		if c.guest != nil && c.guest.Since != nil {
			g.Since = c.guest.Since
		}
	}
	if c.told && equality.Semantic.DeepEqual(g, c.guest) {
		return
	}
	c.told, c.guest = true, g
	select {
	case <-c.news:
	default:
	}
	c.news <- guestReport{during: c.presence, guest: g.DeepCopy()}
}

func metav1Now(now time.Time) *metav1.Time {
	t := metav1.NewTime(now.Truncate(time.Second)) // what JSON keeps of it
	return &t
}

func (c *conversation) connect(ctx context.Context) error {
	if c.client != nil {
		return nil
	}
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	c.client = guestagent.New(conn)
	return nil
}

func (c *conversation) hangUp() {
	if c.client != nil {
		_ = c.client.Close()
		c.client = nil
	}
}

// dialAgent connects to the agent's channel in the pod.
func (w *worker) dialAgent(ctx context.Context) (net.Conn, error) {
	return dialSocket(ctx, w.node.FS, *w.podUID.Load(), qemu.GuestAgentSocket)
}

// attendAgent lets the conversation with the guest follow the launcher's word: only a
// guest that runs can answer.
func (w *worker) attendAgent(ctx context.Context) {
	m := w.memory
	l := m.launcher
	open := l != nil && m.started() && l.AgentConnected
	wanted := open && l.Phase == v1alpha1.InstanceRunning
	switch {
	case wanted && m.presence == nil:
		m.presence = w.agent.attend(ctx, m.status.Guest)
	case !wanted && m.presence != nil:
		w.agent.leave()
		m.presence = nil
	}
	if !open {
		m.guest, m.guestHeard = nil, false
	}
}

// hearGuest takes in what the agent says, unless it comes too late.
func (m *memory) hearGuest(r guestReport) {
	if r.during == m.presence {
		m.guest, m.guestHeard = r.guest, true
	}
}

// guestStatus is what the status should say of the guest. Facts outlive a pause, and a
// handler, but not the agent.
func guestStatus(m *memory) *v1alpha1.Guest {
	switch {
	case !m.launcher.AgentConnected || m.launcher.Exit != nil:
		return nil
	case m.guestHeard:
		return m.guest.DeepCopy()
	default:
		return m.status.Guest.DeepCopy()
	}
}
