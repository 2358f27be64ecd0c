package attachment

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/plan"
)

// Names of the field indexes of this controller.
const (
	attachmentsByMachine = "attachment.machine"
	attachmentsByDevice  = "attachment.device"
)

// workers is how many attachments are looked at at a time.
const workers = 4

// Setup registers the controller with a manager.
func Setup(ctx context.Context, m ctrl.Manager) error {
	for name, key := range map[string]client.IndexerFunc{attachmentsByMachine: machineOf, attachmentsByDevice: deviceOf} {
		if err := m.GetFieldIndexer().IndexField(ctx, &v1alpha2.VirtualMachineBlockDeviceAttachment{}, name, key); err != nil {
			return err
		}
	}
	r := New(Options{Client: m.GetClient(), Recorder: m.GetEventRecorder(fieldOwner), Clock: clock.RealClock{}})
	device := func(kind v1alpha2.BlockDeviceKind) handler.EventHandler {
		return handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, o client.Object) []reconcile.Request {
			return r.attachments(ctx, o.GetNamespace(), client.MatchingFields{attachmentsByDevice: string(kind) + "/" + o.GetName()})
		})
	}
	machine := func(name func(client.Object) string) handler.EventHandler {
		return handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, o client.Object) []reconcile.Request {
			if n := name(o); n != "" {
				return r.attachments(ctx, o.GetNamespace(), client.MatchingFields{attachmentsByMachine: n})
			}
			return nil
		})
	}
	return ctrl.NewControllerManagedBy(m).
		Named("attachment").
		For(&v1alpha2.VirtualMachineBlockDeviceAttachment{}).
		WithOptions(controller.Options{MaxConcurrentReconciles: workers}).
		Watches(&v1alpha2.VirtualMachineBlockDeviceAttachment{}, machine(func(o client.Object) string { return machineOf(o)[0] })).
		Watches(&v1alpha2.VirtualMachine{}, machine(client.Object.GetName)).
		Watches(&v1alpha1.Instance{}, machine(func(o client.Object) string { return o.(*v1alpha1.Instance).Spec.VirtualMachine.Name })).
		Watches(&corev1.Pod{}, machine(func(o client.Object) string { return o.GetAnnotations()[plan.AttachmentMachineAnnotation] })).
		Watches(&v1alpha2.VirtualDisk{}, device(v1alpha2.DiskDevice)).
		Watches(&v1alpha2.VirtualImage{}, device(v1alpha2.ImageDevice)).
		Watches(&v1alpha2.ClusterVirtualImage{}, device(v1alpha2.ClusterImageDevice)).
		Watches(&corev1.PersistentVolumeClaim{}, handler.EnqueueRequestsFromMapFunc(r.ofClaim)).
		Complete(r)
}

func machineOf(o client.Object) []string {
	return []string{o.(*v1alpha2.VirtualMachineBlockDeviceAttachment).Spec.VirtualMachineName}
}

func deviceOf(o client.Object) []string {
	ref := o.(*v1alpha2.VirtualMachineBlockDeviceAttachment).Spec.BlockDeviceRef
	return []string{string(ref.Kind) + "/" + ref.Name}
}

func (r *Reconciler) attachments(ctx context.Context, namespace string, fields client.MatchingFields) []reconcile.Request {
	list := &v1alpha2.VirtualMachineBlockDeviceAttachmentList{}
	if r.Client.List(ctx, list, client.InNamespace(namespace), fields) != nil {
		return nil // the cache answers; it fails only when it is being stopped
	}
	requests := make([]reconcile.Request, 0, len(list.Items))
	for i := range list.Items {
		requests = append(requests, reconcile.Request{NamespacedName: types.NamespacedName{Namespace: list.Items[i].Namespace, Name: list.Items[i].Name}})
	}
	return requests
}

// ofClaim follows a claim to its disk, by owner, and on to the attachments.
func (r *Reconciler) ofClaim(ctx context.Context, o client.Object) []reconcile.Request {
	owner := metav1.GetControllerOf(o)
	if owner == nil || owner.Kind != v1alpha2.VirtualDiskKind {
		return nil
	}
	return r.attachments(ctx, o.GetNamespace(), client.MatchingFields{attachmentsByDevice: string(v1alpha2.DiskDevice) + "/" + owner.Name})
}
