// Package class reconciles VirtualMachineClasses: which nodes can run machines of a
// class, whether a machine uses it, and what the processor offers.
//
// It only tells; placement itself is the scheduler's, by what package plan puts on
// the pod. The two must agree on what a suitable node is: policy.Suitable is the one
// place.
package class

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"orlop.dev/orlop/api/core/v1alpha2"
	deckhousev1alpha1 "orlop.dev/orlop/api/deckhouse/v1alpha1"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/settings"
	"orlop.dev/orlop/internal/steps"
)

// fieldOwner marks what this controller writes.
const fieldOwner = "virtualization-class"

// machinesByClass is the field index this controller reads by.
const machinesByClass = "class.machine"

// world is everything a pass knows.
type world struct {
	now   time.Time
	class *v1alpha2.VirtualMachineClass
	// suitable are the nodes that can run machines of the class, by name.
	suitable []corev1.Node
	// user is a machine that names the class, empty if there is none.
	user string
}

var all = []steps.Step[*world]{
	{Condition: v1alpha2.ClassConditionReady, Decide: ready},
	{Condition: v1alpha2.ClassConditionDiscovered, Decide: discovered},
	{Condition: v1alpha2.ClassConditionInUse, Decide: inUse},
	{Decide: finalizer},
}

// hostModel says that the processor is the node's own, whichever that is.
func (w *world) hostModel() bool {
	t := w.class.Spec.CPU.Type
	return t == v1alpha2.CPUTypeHost || t == v1alpha2.CPUTypeHostPassthrough
}

func ready(w *world) (steps.Outcome, steps.Act) {
	if w.class.Spec.CPU.Type == v1alpha2.CPUTypeDiscovery {
		return steps.Failed(v1alpha2.ClassReasonNoCPUFeaturesEnabled, "Type Discovery is not supported in this release"), nil
	}
	if len(w.suitable) == 0 {
		return steps.Waiting(v1alpha2.ClassReasonNoSuitableNodesFound, "No node can run machines of this class"), nil
	}
	return steps.Done(v1alpha2.ClassReasonSuitableNodesFound, "There are nodes that can run machines of this class"), nil
}

func discovered(*world) (steps.Outcome, steps.Act) {
	return steps.Done(v1alpha2.ClassReasonDiscoverySkip, "Nothing is discovered for this type of processor").As(metav1.ConditionFalse), nil
}

func inUse(w *world) (steps.Outcome, steps.Act) {
	if w.user == "" {
		return steps.Absent(), nil
	}
	// No name: it would change with every machine that comes and goes.
	return steps.Done(v1alpha2.ClassReasonVirtualMachineClassInUse, "Machines use this class"), nil
}

// finalizer holds the class while a machine names it.
func finalizer(w *world) (steps.Outcome, steps.Act) {
	if w.class.DeletionTimestamp == nil || w.user != "" {
		return steps.Outcome{}, nil
	}
	return steps.Outcome{}, steps.Release{Object: w.class, Finalizer: v1alpha2.FinalizerVirtualMachineClassCleanup}
}

// status is the only writer of a class's status.
func status(w *world, d steps.Decision, errs steps.Errors) v1alpha2.VirtualMachineClassStatus {
	s := *w.class.Status.DeepCopy()
	s.ObservedGeneration = w.class.Generation
	s.Conditions = steps.Conditions(s.Conditions, d, errs, w.class.Generation, w.now)
	s.AvailableNodes, s.MaxAllocatableResources = nil, nil
	for _, n := range w.suitable {
		if !w.hostModel() {
			s.AvailableNodes = append(s.AvailableNodes, n.Name)
		}
		s.MaxAllocatableResources = greater(s.MaxAllocatableResources, n.Status.Allocatable)
	}
	s.CPUFeatures = v1alpha2.CPUFeatures{}
	if w.class.Spec.CPU.Type == v1alpha2.CPUTypeFeatures {
		s.CPUFeatures.Enabled = w.class.Spec.CPU.Features
	}
	switch {
	case w.class.DeletionTimestamp != nil:
		s.Phase = v1alpha2.VirtualMachineClassTerminating
	case w.hostModel() || d.Outcome(v1alpha2.ClassConditionReady).State == steps.DoneState:
		s.Phase = v1alpha2.VirtualMachineClassReady
	default:
		s.Phase = v1alpha2.VirtualMachineClassPending
	}
	return s
}

func greater(a, b corev1.ResourceList) corev1.ResourceList {
	result := corev1.ResourceList{}
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		q, other := a[name], b[name]
		if other.Cmp(q) > 0 {
			q = other
		}
		result[name] = q
	}
	return result
}

// Options are what the reconciler needs.
type Options struct {
	Client   client.Client
	Recorder events.EventRecorder
	Clock    clock.PassiveClock
}

// Reconciler tells about VirtualMachineClasses.
type Reconciler struct{ Options }

// +kubebuilder:rbac:groups="",resources=nodes,verbs=get;list;watch
// +kubebuilder:rbac:groups=deckhouse.io,resources=moduleconfigs,verbs=get;list;watch
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualmachineclasses,verbs=get;list;watch;patch
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualmachineclasses/status,verbs=patch
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualmachines,verbs=get;list;watch

// Setup registers the controller with a manager.
func Setup(ctx context.Context, m ctrl.Manager) error {
	if err := Index(ctx, m.GetFieldIndexer()); err != nil {
		return err
	}
	r := &Reconciler{Options{Client: m.GetClient(), Recorder: m.GetEventRecorder(fieldOwner), Clock: clock.RealClock{}}}
	return ctrl.NewControllerManagedBy(m).
		Named("class").
		For(&v1alpha2.VirtualMachineClass{}).
		Watches(&corev1.Node{}, handler.EnqueueRequestsFromMapFunc(r.everything), builder.WithPredicates(nodeMatters())).
		Watches(&deckhousev1alpha1.ModuleConfig{}, handler.EnqueueRequestsFromMapFunc(r.everything)).
		Watches(&v1alpha2.VirtualMachine{}, handler.EnqueueRequestsFromMapFunc(ofMachine), builder.WithPredicates(usersMatter())).
		Complete(r)
}

// Index makes the field index that the controller reads by.
func Index(ctx context.Context, indexer client.FieldIndexer) error {
	return indexer.IndexField(ctx, &v1alpha2.VirtualMachine{}, machinesByClass, func(o client.Object) []string {
		return []string{o.(*v1alpha2.VirtualMachine).Spec.VirtualMachineClassName}
	})
}

// Reconcile makes one pass: observe, decide, act, status, patch.
func (r *Reconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	class := &v1alpha2.VirtualMachineClass{}
	if err := r.Client.Get(ctx, request.NamespacedName, class); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if class.DeletionTimestamp != nil && !slices.Contains(class.Finalizers, v1alpha2.FinalizerVirtualMachineClassCleanup) {
		return ctrl.Result{}, nil
	}
	if added, err := steps.EnsureFinalizer(ctx, r.Client, class, v1alpha2.FinalizerVirtualMachineClassCleanup); added || err != nil {
		return steps.Result(nil, nil, err)
	}
	w, err := r.observe(ctx, class)
	if err != nil {
		return ctrl.Result{}, err
	}
	d := steps.Decide(w, all...)
	errs := steps.Perform(ctx, r.Client, fieldOwner, d)
	after := class.DeepCopy()
	after.Status = status(w, d, errs)
	err = steps.PatchStatus(ctx, r.Client, class, after)
	if err == nil {
		steps.Emit(r.Recorder, class, steps.Transitions(class.Status.Conditions, after.Status.Conditions, d))
	}
	return steps.Result(d, errs, err)
}

func (r *Reconciler) observe(ctx context.Context, class *v1alpha2.VirtualMachineClass) (*world, error) {
	w := &world{now: r.Clock.Now(), class: class}
	s, err := settings.Load(ctx, r.Client)
	if err != nil && s == nil && !errors.Is(err, settings.ErrNotFound) {
		return nil, err
	}
	emulation := s != nil && s.AllowEmulation
	nodes := &corev1.NodeList{}
	if err := r.Client.List(ctx, nodes, client.MatchingLabels{v1alpha2.LabelNodeSchedulable: "true"}); err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	for i := range nodes.Items {
		if policy.Suitable(&nodes.Items[i], &class.Spec, emulation) {
			w.suitable = append(w.suitable, nodes.Items[i])
		}
	}
	slices.SortFunc(w.suitable, func(a, b corev1.Node) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	users := &v1alpha2.VirtualMachineList{}
	if err := r.Client.List(ctx, users, client.MatchingFields{machinesByClass: class.Name}, client.Limit(1)); err != nil {
		return nil, fmt.Errorf("list machines of class %s: %w", class.Name, err)
	}
	if len(users.Items) > 0 {
		w.user = users.Items[0].Namespace + "/" + users.Items[0].Name
	}
	return w, nil
}

func (r *Reconciler) everything(ctx context.Context, _ client.Object) []reconcile.Request {
	list := &v1alpha2.VirtualMachineClassList{}
	if r.Client.List(ctx, list) != nil {
		return nil // the cache answers; it fails only when it is being stopped
	}
	requests := make([]reconcile.Request, len(list.Items))
	for i := range list.Items {
		requests[i].Name = list.Items[i].Name
	}
	return requests
}

func ofMachine(_ context.Context, o client.Object) []reconcile.Request {
	return []reconcile.Request{{NamespacedName: types.NamespacedName{Name: o.(*v1alpha2.VirtualMachine).Spec.VirtualMachineClassName}}}
}

// usersMatter lets through only what changes who uses a class.
func usersMatter() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		return e.ObjectOld.(*v1alpha2.VirtualMachine).Spec.VirtualMachineClassName != e.ObjectNew.(*v1alpha2.VirtualMachine).Spec.VirtualMachineClassName
	}}
}

// nodeMatters drops the kubelet's frequent reports.
func nodeMatters() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		before, after := e.ObjectOld.(*corev1.Node), e.ObjectNew.(*corev1.Node)
		return !equality.Semantic.DeepEqual(before.Labels, after.Labels) || !equality.Semantic.DeepEqual(before.Spec, after.Spec) ||
			!equality.Semantic.DeepEqual(before.Status.Allocatable, after.Status.Allocatable)
	}}
}
