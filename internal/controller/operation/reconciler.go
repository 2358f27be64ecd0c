package operation

import (
	"context"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/steps"
)

// fieldOwner marks what this controller writes.
const fieldOwner = "virtualization-operation"

// byMachine is the field index this controller reads by.
const byMachine = "operation.machine"

// Options are what the reconciler needs.
type Options struct {
	Client   client.Client
	Recorder events.EventRecorder
	Clock    clock.PassiveClock
}

// Reconciler judges VirtualMachineOperations.
type Reconciler struct{ Options }

// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualmachineoperations,verbs=get;list;watch;delete;patch
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualmachineoperations/status,verbs=patch
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualmachines,verbs=get;list;watch

// Setup registers the controller with a manager.
func Setup(ctx context.Context, m ctrl.Manager) error {
	if err := Index(ctx, m.GetFieldIndexer()); err != nil {
		return err
	}
	r := &Reconciler{Options{Client: m.GetClient(), Recorder: m.GetEventRecorder(fieldOwner), Clock: clock.RealClock{}}}
	return ctrl.NewControllerManagedBy(m).
		Named("operation").
		For(&v1alpha2.VirtualMachineOperation{}).
		Watches(&v1alpha2.VirtualMachineOperation{}, handler.EnqueueRequestsFromMapFunc(r.siblings)).
		Watches(&v1alpha1.Instance{}, handler.EnqueueRequestsFromMapFunc(r.ofInstance)).
		Watches(&v1alpha2.VirtualMachine{}, handler.EnqueueRequestsFromMapFunc(r.ofMachine)).
		Complete(r)
}

// Index makes the field index that the controller reads by.
func Index(ctx context.Context, indexer client.FieldIndexer) error {
	return indexer.IndexField(ctx, &v1alpha2.VirtualMachineOperation{}, byMachine, func(o client.Object) []string {
		return []string{o.(*v1alpha2.VirtualMachineOperation).Spec.VirtualMachineName}
	})
}

// Reconcile makes one pass: observe, decide, act, status, patch.
func (r *Reconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	operation := &v1alpha2.VirtualMachineOperation{}
	if err := r.Client.Get(ctx, request.NamespacedName, operation); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	deleting := operation.DeletionTimestamp != nil
	if deleting && !slices.Contains(operation.Finalizers, v1alpha2.FinalizerVirtualMachineOperationCleanup) {
		return ctrl.Result{}, nil
	}
	if added, err := steps.EnsureFinalizer(ctx, r.Client, operation, v1alpha2.FinalizerVirtualMachineOperationCleanup); added || err != nil {
		return steps.Result(nil, nil, err)
	}
	w, err := r.observe(ctx, operation)
	if err != nil {
		return ctrl.Result{}, err
	}
	over := policy.OperationFinished(operation.Status.Phase) && !deleting
	d := steps.Decide(w, all...)
	if over {
		d = steps.Decide(w, past...) // its status is a record and does not change any more
	}
	errs := steps.Perform(ctx, r.Client, fieldOwner, d)
	if deleting || over {
		return steps.Result(d, errs, nil)
	}
	after := operation.DeepCopy()
	after.Status = status(w, d, errs)
	err = steps.PatchStatus(ctx, r.Client, operation, after)
	if err == nil {
		steps.Emit(r.Recorder, operation, phaseEvents(operation, after))
	}
	return steps.Result(d, errs, err)
}

func (r *Reconciler) observe(ctx context.Context, operation *v1alpha2.VirtualMachineOperation) (*world, error) {
	w := &world{now: r.Clock.Now(), operation: operation}
	vm := &v1alpha2.VirtualMachine{}
	err := r.Client.Get(ctx, client.ObjectKey{Namespace: operation.Namespace, Name: operation.Spec.VirtualMachineName}, vm)
	if client.IgnoreNotFound(err) != nil {
		return nil, fmt.Errorf("get machine %s: %w", operation.Spec.VirtualMachineName, err)
	}
	if err == nil {
		w.vm = vm
	}
	if err := r.observeMigration(ctx, w); err != nil {
		return nil, err
	}
	list, err := r.of(ctx, operation.Namespace, operation.Spec.VirtualMachineName)
	if err != nil {
		return nil, err
	}
	for _, o := range list {
		switch {
		case o.UID == operation.UID:
		case !policy.OperationFinished(o.Status.Phase):
			w.others = append(w.others, o)
		case o.DeletionTimestamp == nil:
			w.finished = append(w.finished, o)
		}
	}
	return w, nil
}

func (r *Reconciler) of(ctx context.Context, namespace, vm string) ([]v1alpha2.VirtualMachineOperation, error) {
	list := &v1alpha2.VirtualMachineOperationList{}
	if err := r.Client.List(ctx, list, client.InNamespace(namespace), client.MatchingFields{byMachine: vm}); err != nil {
		return nil, fmt.Errorf("list operations of machine %s: %w", vm, err)
	}
	return list.Items, nil
}

// requests are for the operations of a machine, the finished ones only if wanted.
func (r *Reconciler) requests(ctx context.Context, namespace, vm string, finished bool) []reconcile.Request {
	list, err := r.of(ctx, namespace, vm)
	if err != nil {
		return nil // the cache answers; it fails only when it is being stopped
	}
	var requests []reconcile.Request
	for i := range list {
		if finished || !policy.OperationFinished(list[i].Status.Phase) {
			requests = append(requests, reconcile.Request{NamespacedName: types.NamespacedName{Namespace: namespace, Name: list[i].Name}})
		}
	}
	return requests
}

func (r *Reconciler) ofMachine(ctx context.Context, o client.Object) []reconcile.Request {
	return r.requests(ctx, o.GetNamespace(), o.GetName(), false)
}

// siblings wakes the other operations of a machine: one that ends or begins changes
// what they may do, and one that has ended may take the place of an old record.
func (r *Reconciler) siblings(ctx context.Context, o client.Object) []reconcile.Request {
	operation := o.(*v1alpha2.VirtualMachineOperation)
	return r.requests(ctx, o.GetNamespace(), operation.Spec.VirtualMachineName, policy.OperationFinished(operation.Status.Phase))
}
