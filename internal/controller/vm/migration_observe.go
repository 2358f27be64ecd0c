package vm

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/plan"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/settings"
)

// Names of the field indexes that migration adds.
const (
	machinesMoving   = "vm.moving"
	operationsMoving = "vm.operation.moving"
	yes              = "yes"
)

// +kubebuilder:rbac:groups=policy,resources=poddisruptionbudgets,verbs=get;list;watch;create;delete

// observeBeside completes what is known about processes beside the present one. What
// the cache does not show is looked for past it, and so are both ends once the source
// may have been told: a word that the cache has not heard must not be taken for none.
func (r *Reconciler) observeBeside(ctx context.Context, w *world) error {
	if t := w.record.Target; t != nil {
		if err := r.observeEnd(ctx, w, &w.target, t.Name, t.NodeName, t.Syncing); err != nil {
			return err
		}
		if t.Syncing || w.target.instance == nil {
			// The target is made from its source: that must be the newest, too.
			if err := r.fresh(ctx, w.vm.Namespace, w.record.Name, &w.instance); err != nil {
				return err
			}
		}
	}
	for i, f := range w.record.Former {
		if err := r.observeEnd(ctx, w, &w.former[i], f.Name, f.NodeName, false); err != nil {
			return err
		}
	}
	return nil
}

func (r *Reconciler) observeEnd(ctx context.Context, w *world, p *process, name, node string, fresh bool) error {
	if p.instance == nil || fresh {
		if err := r.fresh(ctx, w.vm.Namespace, name, &p.instance); err != nil {
			return err
		}
	}
	if p.pod == nil {
		o := &corev1.Pod{}
		found, err := get(ctx, r.Reader, w.vm.Namespace, name, o)
		if err != nil {
			return err
		}
		if found {
			p.pod = o
		}
	}
	if node == "" && p.pod != nil {
		node = p.pod.Spec.NodeName
	}
	if node == "" {
		return nil
	}
	o := &corev1.Node{}
	found, err := get(ctx, r.Client, "", node, o)
	if found {
		p.node = o
	}
	return err
}

// fresh reads an Instance past the cache.
func (r *Reconciler) fresh(ctx context.Context, namespace, name string, to **v1alpha1.Instance) error {
	o := &v1alpha1.Instance{}
	found, err := get(ctx, r.Reader, namespace, name, o)
	if err != nil {
		return err
	}
	*to = nil
	if found {
		*to = o
	}
	return nil
}

// observeMigration reads what decides whether, when and where to the machine moves.
func (r *Reconciler) observeMigration(ctx context.Context, w *world) error {
	for _, look := range []func(context.Context, *world) error{r.observeClaims, r.observeNodes, r.observeTargetFirstBoot, r.observeBudget} {
		if err := look(ctx, w); err != nil {
			return err
		}
	}
	return r.observeTurn(ctx, w)
}

func (r *Reconciler) observeClaims(ctx context.Context, w *world) error {
	if !w.live() || w.instance == nil {
		return nil
	}
	w.claims = map[string]*corev1.PersistentVolumeClaim{}
	for _, d := range w.instance.Spec.Machine.Disks {
		source := d.Source.PersistentVolumeClaim
		if source == nil {
			continue
		}
		claim := &corev1.PersistentVolumeClaim{}
		found, err := get(ctx, r.Client, w.vm.Namespace, source.ClaimName, claim)
		if err != nil {
			return err
		}
		if found {
			w.claims[source.ClaimName] = claim
		}
	}
	return nil
}

// observeNodes looks for another node. The list is the cache's own and only read.
func (r *Reconciler) observeNodes(ctx context.Context, w *world) error {
	if !w.live() || w.instance == nil || w.instance.Spec.NodeName == "" {
		return nil
	}
	nodes := &corev1.NodeList{}
	if err := r.Client.List(ctx, nodes, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	wanted := policy.TargetLabels(w.instance, w.node)
	for i := range nodes.Items {
		if policy.CanTake(&nodes.Items[i], w.instance.Spec.NodeName, wanted) {
			w.elsewhere = true
			return nil
		}
	}
	return nil
}

// observeTargetFirstBoot reads the source's Secret while the target's pod lacks its own.
func (r *Reconciler) observeTargetFirstBoot(ctx context.Context, w *world) error {
	t, i := w.record.Target, w.target.instance
	if t == nil || i == nil || i.Spec.FirstBoot == nil || i.Status.StartTime != nil {
		return nil
	}
	meta := &metav1.PartialObjectMetadata{}
	meta.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Secret"))
	if found, err := get(ctx, r.Client, w.vm.Namespace, t.Name, meta); err != nil || found {
		return err
	}
	secret := &corev1.Secret{}
	found, err := get(ctx, r.Reader, w.vm.Namespace, w.record.Name, secret)
	if err != nil {
		return err
	}
	if !found {
		w.firstBootGone = true
		return nil
	}
	w.firstBoot = secret.Data
	return nil
}

func (r *Reconciler) observeBudget(ctx context.Context, w *world) error {
	budget := &policyv1.PodDisruptionBudget{}
	found, err := get(ctx, r.Client, w.vm.Namespace, plan.MigrationBudgetName(w.vm), budget)
	if found {
		w.budget = budget
	}
	return err
}

// observeTurn asks the gate, if the machine wants to go on.
func (r *Reconciler) observeTurn(ctx context.Context, w *world) error {
	key := client.ObjectKeyFromObject(w.vm)
	recorded, moving := passageOf(w.vm)
	begins, syncs := !moving && w.mayBegin(&w.record), moving && w.record.Target.Reason == "" && !recorded.syncing && w.readyToSync() && !w.mustEnd()
	r.gate.shown(key, moving || begins, recorded)
	if !begins && !syncs {
		return nil
	}
	wish := recorded
	if begins {
		wish = passage{operation: w.migrationOperation().UID, from: w.record.NodeName}
	} else {
		wish.syncing = true
	}
	others, nodes, err := r.traffic(ctx, key)
	if err != nil {
		return err
	}
	w.turn, w.turnProblem = r.gate.enter(key, wish, others, w.migration, nodes)
	return nil
}

// traffic is what the other machines' records say, and how many nodes run machines.
func (r *Reconciler) traffic(ctx context.Context, but types.NamespacedName) (map[types.NamespacedName]passage, int, error) {
	list, nodes := &v1alpha2.VirtualMachineList{}, &corev1.NodeList{}
	err := errors.Join(r.Client.List(ctx, list, client.MatchingFields{machinesMoving: yes}), r.Client.List(ctx, nodes, client.UnsafeDisableDeepCopy))
	if err != nil {
		return nil, 0, fmt.Errorf("list migrations: %w", err)
	}
	all := map[types.NamespacedName]passage{}
	for i := range list.Items {
		key := client.ObjectKeyFromObject(&list.Items[i])
		if p, moving := passageOf(&list.Items[i]); moving && key != but {
			all[key] = p
		}
	}
	run := 0
	for i := range nodes.Items {
		if nodes.Items[i].Labels[v1alpha2.LabelNodeSchedulable] == "true" {
			run++
		}
	}
	return all, run, nil
}

// indexMigration adds the indexes of migration.
func indexMigration(ctx context.Context, indexer client.FieldIndexer) error {
	return errors.Join(
		indexer.IndexField(ctx, &v1alpha2.VirtualMachine{}, machinesMoving, func(o client.Object) []string {
			if _, moving := passageOf(o.(*v1alpha2.VirtualMachine)); moving {
				return []string{yes}
			}
			return nil
		}),
		indexer.IndexField(ctx, &v1alpha2.VirtualMachineOperation{}, operationsMoving, func(o client.Object) []string {
			if op := o.(*v1alpha2.VirtualMachineOperation); policy.Migrates(op.Spec.Type) && op.Status.Phase == v1alpha2.OperationInProgress {
				return []string{yes}
			}
			return nil
		}))
}

// turns wakes machines that wait for their turn when another one has moved.
func (r *Reconciler) turns() handler.EventHandler {
	return handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, _ client.Object) []reconcile.Request {
		list := &v1alpha2.VirtualMachineOperationList{}
		if r.Client.List(ctx, list, client.MatchingFields{operationsMoving: yes}) != nil {
			return nil // the cache answers; it fails only when it is being stopped
		}
		var requests []reconcile.Request
		for i := range list.Items {
			requests = append(requests, request(list.Items[i].Namespace, list.Items[i].Spec.VirtualMachineName)...)
		}
		return requests
	})
}

// moved lets only machines through that have ceased to be moved.
func moved() predicate.Predicate {
	gone := func(before, after client.Object) bool {
		_, was := passageOf(before.(*v1alpha2.VirtualMachine))
		if !was {
			return false
		}
		if after == nil {
			return true
		}
		_, is := passageOf(after.(*v1alpha2.VirtualMachine))
		return !is
	}
	return predicate.Funcs{
		CreateFunc:  func(event.CreateEvent) bool { return false },
		UpdateFunc:  func(e event.UpdateEvent) bool { return gone(e.ObjectOld, e.ObjectNew) },
		DeleteFunc:  func(e event.DeleteEvent) bool { return gone(e.Object, nil) },
		GenericFunc: func(event.GenericEvent) bool { return false },
	}
}

// nodesOf are the nodes of every process that a machine's record names.
func nodesOf(r *v1alpha2.InstanceRecord) []string {
	if r == nil {
		return nil
	}
	all := some(r.NodeName)
	if r.Target != nil {
		all = append(all, some(r.Target.NodeName)...)
	}
	for _, f := range r.Former {
		all = append(all, some(f.NodeName)...)
	}
	return all
}

// limitsOf are the settings, or what holds without any.
func limitsOf(s *settings.Settings) settings.Migration {
	if s == nil {
		return settings.DefaultMigration()
	}
	return s.Migration
}
