package vm

import (
	"context"
	"errors"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"orlop.dev/orlop/api/core/v1alpha2"
	deckhousev1alpha1 "orlop.dev/orlop/api/deckhouse/v1alpha1"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/settings"
)

// Names of the field indexes of this controller.
const (
	machinesByClass     = "vm.class"
	machinesByAddress   = "vm.address"
	machinesBySecret    = "vm.secret"
	machinesByNode      = "vm.node"
	disksByHolder       = "vm.holder"
	operationsByMachine = "vm.operation"
)

// workers is how many machines are reconciled at a time.
const workers = 8

// Setup registers the controller with a manager.
func Setup(ctx context.Context, m ctrl.Manager, platform settings.Platform) error {
	if err := Index(ctx, m.GetFieldIndexer()); err != nil {
		return err
	}
	r := New(Options{Client: m.GetClient(), Reader: m.GetAPIReader(), Recorder: m.GetEventRecorder(fieldOwner),
		Clock: clock.RealClock{}, Platform: platform})
	return ctrl.NewControllerManagedBy(m).
		Named("vm").
		For(&v1alpha2.VirtualMachine{}).
		WithOptions(controller.Options{MaxConcurrentReconciles: workers}).
		Watches(&v1alpha1.Instance{}, handler.EnqueueRequestsFromMapFunc(ofInstance)).
		Watches(&corev1.Pod{}, handler.EnqueueRequestsFromMapFunc(ofPod)).
		Watches(&v1alpha2.VirtualMachineIPAddress{}, r.related(machinesByAddress), builder.WithPredicates(predicate.ResourceVersionChangedPredicate{})).
		Watches(&v1alpha2.VirtualMachineIPAddress{}, handler.EnqueueRequestForOwner(m.GetScheme(), m.GetRESTMapper(), &v1alpha2.VirtualMachine{})).
		Watches(&v1alpha2.VirtualDisk{}, handler.EnqueueRequestsFromMapFunc(r.ofDevice(v1alpha2.DiskDevice))).
		Watches(&v1alpha2.VirtualImage{}, handler.EnqueueRequestsFromMapFunc(r.ofDevice(v1alpha2.ImageDevice))).
		Watches(&v1alpha2.ClusterVirtualImage{}, handler.EnqueueRequestsFromMapFunc(r.ofDevice(v1alpha2.ClusterImageDevice))).
		Watches(&v1alpha2.VirtualMachineBlockDeviceAttachment{}, handler.EnqueueRequestsFromMapFunc(ofAttachment)).
		Watches(&v1alpha2.VirtualMachineClass{}, r.related(machinesByClass)).
		Watches(&v1alpha2.VirtualMachineOperation{}, handler.EnqueueRequestsFromMapFunc(ofOperation)).
		WatchesMetadata(&corev1.Secret{}, r.related(machinesBySecret)).
		Watches(&corev1.PersistentVolumeClaim{}, handler.EnqueueRequestsFromMapFunc(r.ofClaim)).
		Watches(&corev1.Node{}, r.related(machinesByNode), builder.WithPredicates(nodeMatters())).
		Watches(&corev1.Node{}, r.offers(), builder.WithPredicates(offersMatter())).
		Watches(&v1alpha2.VirtualMachine{}, r.turns(), builder.WithPredicates(moved())).
		Watches(&policyv1.PodDisruptionBudget{}, handler.EnqueueRequestForOwner(m.GetScheme(), m.GetRESTMapper(), &v1alpha2.VirtualMachine{})).
		Watches(&deckhousev1alpha1.ModuleConfig{}, handler.EnqueueRequestsFromMapFunc(r.waiting)).
		Complete(r)
}

// Index makes the field indexes that the controller reads by.
func Index(ctx context.Context, indexer client.FieldIndexer) error {
	indexes := []struct {
		object client.Object
		name   string
		keys   client.IndexerFunc
	}{
		{&v1alpha2.VirtualMachine{}, machinesByClass, func(o client.Object) []string {
			return some(o.(*v1alpha2.VirtualMachine).Spec.VirtualMachineClassName)
		}},
		{&v1alpha2.VirtualMachine{}, machinesByAddress, func(o client.Object) []string {
			return some(claimName(o.(*v1alpha2.VirtualMachine)))
		}},
		{&v1alpha2.VirtualMachine{}, machinesBySecret, func(o client.Object) []string {
			vm := o.(*v1alpha2.VirtualMachine)
			var names []string
			if p := vm.Spec.Provisioning; p != nil && p.UserDataRef != nil {
				names = append(names, p.UserDataRef.Name)
			}
			if vm.Status.Instance != nil {
				names = append(names, some(vm.Status.Instance.Name)...)
				if t := vm.Status.Instance.Target; t != nil {
					names = append(names, t.Name)
				}
			}
			return names
		}},
		{&v1alpha2.VirtualMachine{}, machinesByNode, func(o client.Object) []string {
			return nodesOf(o.(*v1alpha2.VirtualMachine).Status.Instance)
		}},
		{&v1alpha2.VirtualDisk{}, disksByHolder, func(o client.Object) []string {
			return some(o.GetAnnotations()[policy.HolderAnnotation])
		}},
		{&v1alpha2.VirtualMachineOperation{}, operationsByMachine, func(o client.Object) []string {
			return some(o.(*v1alpha2.VirtualMachineOperation).Spec.VirtualMachineName)
		}},
	}
	for _, i := range indexes {
		if err := indexer.IndexField(ctx, i.object, i.name, i.keys); err != nil {
			return err
		}
	}
	return errors.Join(indexDevices(ctx, indexer), indexMigration(ctx, indexer))
}

func some(value string) []string {
	if value == "" {
		return nil
	}
	return []string{value}
}

func request(namespace, name string) []reconcile.Request {
	return []reconcile.Request{{NamespacedName: types.NamespacedName{Namespace: namespace, Name: name}}}
}

func ofInstance(_ context.Context, o client.Object) []reconcile.Request {
	return request(o.GetNamespace(), o.(*v1alpha1.Instance).Spec.VirtualMachine.Name)
}

// ofPod goes by the owning Instance's label, which the pod carries too.
func ofPod(_ context.Context, o client.Object) []reconcile.Request {
	if r := ofAttachmentPod(o); r != nil {
		return r
	}
	name := o.GetLabels()[v1alpha2.LabelVirtualMachineName]
	if name == "" || o.GetLabels()[v1alpha2.LabelLauncher] != v1alpha2.LauncherValue {
		return nil
	}
	return request(o.GetNamespace(), name)
}

func ofOperation(_ context.Context, o client.Object) []reconcile.Request {
	return request(o.GetNamespace(), o.(*v1alpha2.VirtualMachineOperation).Spec.VirtualMachineName)
}

// related wakes the machines that name an object.
func (r *Reconciler) related(index string) handler.EventHandler {
	return handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, o client.Object) []reconcile.Request {
		return r.machines(ctx, client.InNamespace(o.GetNamespace()), client.MatchingFields{index: o.GetName()})
	})
}

func (r *Reconciler) machines(ctx context.Context, options ...client.ListOption) []reconcile.Request {
	list := &v1alpha2.VirtualMachineList{}
	if r.Client.List(ctx, list, options...) != nil {
		return nil // the cache answers; it fails only when it is being stopped
	}
	requests := make([]reconcile.Request, 0, len(list.Items))
	for i := range list.Items {
		requests = append(requests, request(list.Items[i].Namespace, list.Items[i].Name)...)
	}
	return requests
}

// ofClaim follows a claim to its disk, by owner, and on to the machines.
func (r *Reconciler) ofClaim(ctx context.Context, o client.Object) []reconcile.Request {
	owner := metav1.GetControllerOf(o)
	if owner == nil || owner.Kind != v1alpha2.VirtualDiskKind {
		return nil
	}
	return r.devicesUsers(ctx, v1alpha2.DiskDevice, o.GetNamespace(), owner.Name)
}

// waiting wakes machines that are not running, when the settings have changed.
func (r *Reconciler) waiting(ctx context.Context, _ client.Object) []reconcile.Request {
	list := &v1alpha2.VirtualMachineList{}
	if r.Client.List(ctx, list) != nil {
		return nil
	}
	var requests []reconcile.Request
	for i := range list.Items {
		if list.Items[i].Status.Phase == v1alpha2.MachinePending || list.Items[i].Status.Phase == "" {
			requests = append(requests, request(list.Items[i].Namespace, list.Items[i].Name)...)
		}
	}
	return requests
}

// nodeMatters lets only those node updates through that can change a decision: the
// kubelet reports far more often than that.
func nodeMatters() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		before, after := e.ObjectOld.(*corev1.Node), e.ObjectNew.(*corev1.Node)
		return policy.OutOfService(before) != policy.OutOfService(after) || nodeReady(before) != nodeReady(after) ||
			policy.Leaving(before) != policy.Leaving(after) || before.Labels[v1alpha2.LabelNodeAccelerator] != after.Labels[v1alpha2.LabelNodeAccelerator]
	}}
}
