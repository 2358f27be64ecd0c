package networkpolicy

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
)

// patience is how long a change waits for others, so that a burst is one pass.
const patience = 50 * time.Millisecond

// Agent keeps the table of its node in step with the API.
type Agent struct {
	Node     string
	Client   client.Reader
	Firewall *Firewall
	Now      func() time.Time

	ready atomic.Bool
}

// Ready is nil once the table has been right for the first time.
func (a *Agent) Ready() error {
	if !a.ready.Load() {
		return errors.New("policies have not been applied yet")
	}
	return nil
}

// SetupWithManager makes every change that matters lead to one and the same request.
// Nothing is reconciled before all three kinds have been listed, so the first table
// is complete.
func (a *Agent) SetupWithManager(m ctrl.Manager) error {
	return ctrl.NewControllerManagedBy(m).
		Named("network-policy").
		Watches(&networkingv1.NetworkPolicy{}, whole, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&corev1.Namespace{}, whole, builder.WithPredicates(predicate.LabelChangedPredicate{})).
		Watches(&corev1.Pod{}, whole, builder.WithPredicates(podChanged)).
		Complete(a)
}

// podChanged lets through pods that are something else to policies than before.
var podChanged = predicate.Funcs{
	CreateFunc: func(e event.CreateEvent) bool { return matters(e.Object) },
	DeleteFunc: func(e event.DeleteEvent) bool { return matters(e.Object) },
	UpdateFunc: func(e event.UpdateEvent) bool {
		before, ok := e.ObjectOld.(*corev1.Pod)
		after, also := e.ObjectNew.(*corev1.Pod)
		if !ok || !also {
			return false
		}
		old, had := PodOf(before)
		now, has := PodOf(after)
		return had != has || !old.Equal(now)
	},
}

func matters(o client.Object) bool {
	pod, ok := o.(*corev1.Pod)
	if !ok {
		return false
	}
	_, ok = PodOf(pod)
	return ok
}

// whole asks, a moment later, for one pass over everything.
var whole = handler.Funcs{
	CreateFunc: func(_ context.Context, _ event.CreateEvent, q queue) { ask(q) },
	UpdateFunc: func(_ context.Context, _ event.UpdateEvent, q queue) { ask(q) },
	DeleteFunc: func(_ context.Context, _ event.DeleteEvent, q queue) { ask(q) },
}

type queue = workqueue.TypedRateLimitingInterface[ctrl.Request]

func ask(q queue) {
	q.AddAfter(ctrl.Request{NamespacedName: types.NamespacedName{Name: "table"}}, patience)
}

// Reconcile makes the table what it should be. If it cannot, the last one stays.
func (a *Agent) Reconcile(ctx context.Context, _ ctrl.Request) (ctrl.Result, error) {
	began := a.Now()
	world, err := a.observe(ctx)
	if err != nil {
		return ctrl.Result{}, err
	}
	table, err := Plan(world)
	if err != nil {
		failures.Inc()
		return ctrl.Result{}, fmt.Errorf("plan table: %w", err)
	}
	changed, err := a.Firewall.Apply(ctx, table)
	if err != nil {
		failures.Inc()
		return ctrl.Result{}, err
	}
	if changed {
		record(table, a.Now().Sub(began))
	}
	if !a.ready.Swap(true) {
		log.FromContext(ctx).Info("policies are enforced", "policies", len(world.Policies), "pods", len(world.Pods))
	}
	return ctrl.Result{}, nil
}

// observe reads everything. The objects stay the cache's: Plan changes none.
func (a *Agent) observe(ctx context.Context) (World, error) {
	var pods corev1.PodList
	var namespaces corev1.NamespaceList
	var policies networkingv1.NetworkPolicyList
	for _, list := range []client.ObjectList{&pods, &namespaces, &policies} {
		if err := a.Client.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
			return World{}, fmt.Errorf("list %T: %w", list, err)
		}
	}
	w := World{Node: a.Node, Namespaces: make(map[string]labels.Set, len(namespaces.Items)), Pods: make([]Pod, 0, len(pods.Items))}
	for i := range pods.Items {
		if pod, ok := PodOf(&pods.Items[i]); ok {
			w.Pods = append(w.Pods, pod)
		}
	}
	for i := range namespaces.Items {
		w.Namespaces[namespaces.Items[i].Name] = namespaces.Items[i].Labels
	}
	for i := range policies.Items {
		w.Policies = append(w.Policies, &policies.Items[i])
	}
	return w, nil
}
