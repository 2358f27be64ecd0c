package handler

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/handler/images"
	"orlop.dev/orlop/internal/handler/migration"
	"orlop.dev/orlop/internal/handler/network"
	"orlop.dev/orlop/internal/wire"
)

// Limits on what one act may take. None is a pace: they only keep a worker from
// hanging on a launcher that does not answer.
const (
	callTimeout  = 10 * time.Second
	startTimeout = 2 * time.Minute
)

// worker brings about one Instance.
type worker struct {
	node *Node
	log  logr.Logger
	// uid of the Instance.
	uid    string
	memory *memory
	link   *link

	// loop is the migration's, if there is one, and end ends it.
	loop *migration.Loop
	end  func()
	told migration.View

	// inbox holds the newest version of the Instance, nudge says that the node's
	// route to the guest has gone.
	inbox chan *v1alpha1.Instance
	nudge chan struct{}
	// poked says that something that disks wait for has happened.
	poked chan struct{}
	// agent talks to the guest.
	agent *agent
	// stopped is closed when run has returned.
	stopped chan struct{}
	// podUID is the pod's, for streams. address is the guest's if it is leased, peer
	// the tunnel endpoint of the migration's other end, admitting its loop: for other
	// nodes' handlers and the loop itself.
	podUID    atomic.Pointer[types.UID]
	address4  atomic.Pointer[netip.Addr]
	peer      atomic.Pointer[string]
	admitting atomic.Pointer[migration.Loop]
	// images are the references that the Instance names, for the node's cache.
	images atomic.Pointer[[]string]

	// mu guards what streams use from other goroutines.
	mu      sync.Mutex
	net     *network.Namespace
	plan    network.Plan
	dhcp    *network.Server
	console *session
}

func newWorker(n *Node, in *v1alpha1.Instance) *worker {
	w := &worker{
		node:    n,
		log:     n.Log.WithValues("instance", in.Namespace+"/"+in.Name, "vm", in.Spec.VirtualMachine.Name),
		uid:     string(in.UID),
		memory:  newMemory(in),
		inbox:   make(chan *v1alpha1.Instance, 1),
		nudge:   make(chan struct{}, 1),
		poked:   make(chan struct{}, 1),
		stopped: make(chan struct{}),
	}
	w.publish(in)
	w.agent = newAgent(w.dialAgent, n.Now, w.log)
	w.images.Store(imagesOf(in))
	return w
}

// publish lets other goroutines know what they may need of the Instance.
func (w *worker) publish(in *v1alpha1.Instance) {
	w.podUID.Store(&in.Spec.PodUID)
	endpoint := ""
	if in.Spec.Migration != nil {
		endpoint = in.Spec.Migration.Endpoint
	}
	w.peer.Store(&endpoint)
	if n := in.Spec.Network; n != nil && n.AddressSource == v1alpha1.AddressFromLease {
		if a, err := netip.ParseAddr(n.Address); err == nil {
			w.address4.Store(&a)
		}
	}
}

// tell gives the worker a newer version of its Instance. Only one goroutine calls it.
func (w *worker) tell(in *v1alpha1.Instance) {
	w.publish(in)
	w.images.Store(imagesOf(in))
	select {
	case <-w.inbox:
	default:
	}
	w.inbox <- in
}

func (w *worker) routeRemoved() {
	select {
	case w.nudge <- struct{}{}:
	default:
	}
}

// run works until the context ends. The machine goes on without it.
func (w *worker) run(ctx context.Context) {
	var talk sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	talk.Go(func() { w.agent.run(ctx) })
	defer talk.Wait()
	defer cancel()
	defer w.disconnect()
	for ctx.Err() == nil {
		w.attendAgent(ctx)
		w.migrate(ctx)
		next, wake := decide(w.memory, w.node.Now())
		if next != "" {
			w.perform(ctx, next)
			w.drain()
			continue
		}
		if w.memory.farewell {
			w.disconnect()
		}
		w.wait(ctx, wake)
	}
}

// drain takes in what happened meanwhile, without waiting for it.
func (w *worker) drain() {
	for {
		select {
		case in := <-w.inbox:
			w.memory.instance = in
		case s, ok := <-w.events():
			w.heard(s, ok)
		case r := <-w.agent.news:
			w.memory.hearGuest(r)
		case s := <-w.reports():
			w.memory.migration = &s
		default:
			return
		}
	}
}

// wait waits for anything to happen.
func (w *worker) wait(ctx context.Context, wake time.Time) {
	var alarm <-chan time.Time
	if !wake.IsZero() {
		timer := time.NewTimer(wake.Sub(w.node.Now()))
		defer timer.Stop()
		alarm = timer.C
	}
	select {
	case <-ctx.Done():
	case <-alarm:
	case in := <-w.inbox:
		w.memory.instance = in
	case s, ok := <-w.events():
		w.heard(s, ok)
	case r := <-w.agent.news:
		w.memory.hearGuest(r)
	case s := <-w.reports():
		w.memory.migration = &s
	case <-w.nudge:
		w.memory.wired = false
	case <-w.poked:
		w.memory.hurry()
	}
}

func (w *worker) events() <-chan wire.State {
	if w.link == nil {
		return nil
	}
	return w.link.client.Events()
}

func (w *worker) heard(s wire.State, ok bool) {
	if !ok {
		w.log.Info("launcher has gone")
		w.disconnect()
		return
	}
	w.memory.hear(w.node.Now(), &s)
	w.steer()
	if s.Exit != nil {
		// The guest is no more: its network must not hold the pod's namespace.
		w.unwire()
	}
}

func (w *worker) disconnect() {
	w.endMigration()
	if w.link != nil {
		w.unwire()
		w.link.close()
		w.link = nil
	}
	w.memory.disconnected()
}

// perform does one act and remembers how it went.
func (w *worker) perform(ctx context.Context, a act) {
	timeout := callTimeout
	if a == actStart {
		timeout = startTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err := w.do(ctx, a)
	now := w.node.Now()
	r := w.memory.retry(a)
	switch {
	case err == nil:
		w.memory.problems[a] = ""
		if a != actResume && !asksGuest(a) { // whether that has helped is seen later
			r.succeeded()
		}
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
	default:
		r.failed(now)
		was := w.memory.problems[a]
		w.memory.problems[a] = problem(a, w.memory.instance.Name, err)
		switch {
		case apierrors.IsConflict(err):
		case a == actConnect && r.failures <= patience(a), w.memory.problems[a] == was && r.failures > quiet:
			w.log.V(1).Info("cannot carry out yet", "act", string(a), "reason", err.Error())
		default:
			w.log.Info("cannot carry out, will try again", "act", string(a), "reason", err.Error())
		}
	}
}

// problem is a failure in words for the status.
func problem(a act, pod string, err error) string {
	switch a {
	case actConnect:
		return fmt.Sprintf("Launcher of pod %s cannot be reached: %v", pod, err)
	case actStart:
		if coming, ok := errors.AsType[*images.Fetching](err); ok {
			return "Waiting for an image: " + coming.Error()
		}
		return fmt.Sprintf("Cannot start QEMU: %v", err)
	case actWire:
		return fmt.Sprintf("Cannot connect the guest's network: %v", err)
	default:
		if _, _, ok := plugOf(a); ok {
			return plugFailure(a, err)
		}
		return fmt.Sprintf("Cannot %s: %v", a, err)
	}
}

// do carries out one act.
func (w *worker) do(ctx context.Context, a act) error {
	m := w.memory
	switch a {
	case actReport:
		return w.report(ctx)
	case actConnect:
		return w.connect(ctx)
	case actWire:
		return w.wire()
	case actStart:
		return w.start(ctx)
	case actKill:
		return w.ask(a, w.link.client.Kill(ctx))
	case actShutdown:
		return w.ask(a, w.link.client.Shutdown(ctx, m.instance.Spec.GracePeriodSeconds))
	case actReboot:
		action := rebootAction(m.instance.Spec.RebootAction)
		err := w.link.client.SetRebootAction(ctx, action)
		if err == nil {
			m.launcher.RebootAction = action
		}
		return err
	case actResume:
		now := w.node.Now()
		m.retries[a].failed(now) // the next one later, in case it does not help
		m.resumedAt = now
		return w.link.client.Resume(ctx)
	case actBye:
		if err := w.link.client.Bye(ctx); err != nil && !errors.Is(err, wire.ErrClosed) {
			return err
		}
		m.farewell = true
		return nil
	default:
		if _, _, ok := plugOf(a); ok {
			return w.plug(ctx, a)
		}
		return fmt.Errorf("bug: no way to %s", a)
	}
}

// ask remembers an order that the launcher has accepted.
func (w *worker) ask(a act, err error) error {
	if err == nil || errors.Is(err, wire.ErrNotRunning) {
		w.memory.asked[a] = true
		w.log.Info("launcher was told", "act", string(a))
		return nil
	}
	return err
}

// report writes the status.
func (w *worker) report(ctx context.Context) error {
	m := w.memory
	wanted := statusOf(m, w.node.Now())
	err := w.node.writeStatus(ctx, m.instance, wanted)
	if apierrors.IsNotFound(err) {
		m.farewell = true // the watch will say so, too
		return nil
	}
	if err != nil {
		return err
	}
	if m.status.Phase != wanted.Phase {
		w.log.Info("instance changed", "phase", string(wanted.Phase), "pauseReason", wanted.PauseReason)
		transitions.WithLabelValues(string(wanted.Phase)).Inc()
	}
	m.status = wanted
	return nil
}

// connect connects to the launcher and takes in its state.
func (w *worker) connect(ctx context.Context) error {
	m := w.memory
	pod := m.instance.Spec.PodUID
	if m.status.Phase == v1alpha1.InstanceStopped {
		// Only to say goodbye, if there still is somebody.
		if there, err := w.node.FS.Exists(pod); err == nil && !there {
			m.farewell = true
			return nil
		}
	}
	l, err := connect(ctx, w.node.FS, pod)
	if err != nil {
		return err
	}
	hello, err := l.client.Hello(ctx)
	if err != nil {
		l.close()
		return err
	}
	w.link = l
	m.disconnected()
	m.hear(w.node.Now(), hello.State)
	w.steer()
	connections.Inc()
	w.log.Info("connected to launcher", "phase", string(hello.State.Phase), "started", m.started())
	return nil
}

// wire applies the pod's network, as often as there is reason to.
func (w *worker) wire() error {
	if w.memory.instance.Spec.Network == nil {
		w.memory.wired = true
		return nil
	}
	request, err := networkRequest(w.memory.instance)
	if err != nil {
		return err
	}
	plan, err := w.link.net.Apply(request)
	if err != nil {
		return err
	}
	repaired, err := w.link.net.EnsureHostRoute(plan.Guest.Addr())
	if err != nil {
		return err
	}
	if repaired {
		w.log.Info("the node's route to the guest was missing", "address", plan.Guest.Addr().String())
	}
	if err := w.serveDHCP(plan); err != nil {
		return err
	}
	w.memory.wired = true
	return nil
}

// serveDHCP starts the pod's DHCP server unless it runs.
func (w *worker) serveDHCP(plan network.Plan) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.net, w.plan = w.link.net, plan
	if w.dhcp != nil {
		return nil
	}
	server, err := w.link.net.Serve(leaseOf(w.memory.instance, plan), func(err error) {
		w.log.Info("DHCP message was not answered", "reason", err.Error())
	})
	if err != nil {
		return err
	}
	w.dhcp = server
	return nil
}

// unwire lets go of the pod's namespace. What was configured in it stays.
func (w *worker) unwire() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dhcp != nil {
		_ = w.dhcp.Close()
		w.dhcp = nil
	}
	w.net = nil
	w.memory.wired = false
}

// address is the guest's address while its network is up.
func (w *worker) address() (netip.Addr, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.plan.Guest.Addr(), w.net != nil
}
