package disk

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"orlop.dev/orlop/api/core/v1alpha2"
	deckhousev1alpha1 "orlop.dev/orlop/api/deckhouse/v1alpha1"
	instancev1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/attempt"
	"orlop.dev/orlop/internal/dvcr"
	"orlop.dev/orlop/internal/plan"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/settings"
)

// Names of the field indexes of this controller.
const (
	machinesByDisk    = "disk.name"
	attachmentsByDisk = "disk.attachment"
	instancesByClaim  = "disk.claim"
	volumesByClaim    = "disk.claimRef"
	disksByImage      = "disk.image"
	disksByClass      = "disk.class"
)

// unsettled is the key in disksByClass of every disk that is not ready yet: those
// may be waiting for a class, or for a default.
const unsettled = "?"

// workers is how many disks are reconciled at a time; a pass that asks a pod for its
// progress may take a second.
const workers = 4

// Setup registers the controller with a manager.
func Setup(ctx context.Context, m ctrl.Manager, platform settings.Platform) error {
	return setup(ctx, m, Options{
		Clock: clock.RealClock{}, Registry: dvcr.New(m.GetAPIReader(), platform.Namespace, platform.DVCRHost), Prober: attempt.HTTPProber{},
		Host: platform.DVCRHost, ImporterImage: platform.ImporterImage,
	})
}

// setup takes Client, APIReader and Recorder from the manager where they are nil.
func setup(ctx context.Context, m ctrl.Manager, o Options) error {
	if o.Client == nil {
		o.Client = m.GetClient()
	}
	if o.APIReader == nil {
		o.APIReader = m.GetAPIReader()
	}
	if o.Recorder == nil {
		o.Recorder = m.GetEventRecorder("virtualization-controller")
	}
	for _, index := range []struct {
		of    client.Object
		name  string
		value client.IndexerFunc
	}{
		{&v1alpha2.VirtualMachine{}, machinesByDisk, disksOf},
		{&v1alpha2.VirtualMachineBlockDeviceAttachment{}, attachmentsByDisk, attachedDiskOf},
		{&instancev1.Instance{}, instancesByClaim, claimsOf},
		{&corev1.PersistentVolume{}, volumesByClaim, claimRefOf},
		{&v1alpha2.VirtualDisk{}, disksByImage, imageOf},
		{&v1alpha2.VirtualDisk{}, disksByClass, classOf},
	} {
		if err := m.GetFieldIndexer().IndexField(ctx, index.of, index.name, index.value); err != nil {
			return err
		}
	}
	r := New(o)
	return ctrl.NewControllerManagedBy(m).
		Named("virtualdisk").
		For(&v1alpha2.VirtualDisk{}).
		Owns(&corev1.PersistentVolumeClaim{}).
		Owns(&corev1.Pod{}).
		WithOptions(controller.Options{MaxConcurrentReconciles: workers}).
		Watches(&corev1.PersistentVolume{}, handler.EnqueueRequestsFromMapFunc(r.ofVolume)).
		Watches(&v1alpha2.VirtualImage{}, handler.EnqueueRequestsFromMapFunc(r.ofImage)).
		Watches(&v1alpha2.ClusterVirtualImage{}, handler.EnqueueRequestsFromMapFunc(r.ofImage)).
		Watches(&storagev1.StorageClass{}, handler.EnqueueRequestsFromMapFunc(r.ofClass)).
		Watches(&deckhousev1alpha1.ModuleConfig{}, handler.EnqueueRequestsFromMapFunc(r.ofClass)).
		Watches(&v1alpha2.VirtualMachine{}, handler.EnqueueRequestsFromMapFunc(r.ofMachine)).
		Watches(&v1alpha2.VirtualMachineBlockDeviceAttachment{}, handler.EnqueueRequestsFromMapFunc(ofAttachment)).
		Watches(&instancev1.Instance{}, handler.EnqueueRequestsFromMapFunc(r.ofInstance)).
		Watches(&corev1.Node{}, handler.EnqueueRequestsFromMapFunc(r.ofNode), builder.WithPredicates(fencing())).
		Complete(r)
}

func (r *Reconciler) ofVolume(ctx context.Context, obj client.Object) []reconcile.Request {
	ref := obj.(*corev1.PersistentVolume).Spec.ClaimRef
	if ref == nil {
		return nil
	}
	return r.ofClaim(ctx, ref.Namespace, ref.Name)
}

func (r *Reconciler) ofClaim(ctx context.Context, namespace, name string) []reconcile.Request {
	c := &corev1.PersistentVolumeClaim{}
	if err := r.Client.Get(ctx, types.NamespacedName{Namespace: namespace, Name: name}, c); err != nil {
		return nil // a claim that is gone has told its own story
	}
	if disk := claimOf(c); disk != "" {
		return []reconcile.Request{request(namespace, disk)}
	}
	return nil
}

func (r *Reconciler) ofImage(ctx context.Context, obj client.Object) []reconcile.Request {
	kind := v1alpha2.VirtualImageKind
	if _, cluster := obj.(*v1alpha2.ClusterVirtualImage); cluster {
		kind = v1alpha2.ClusterVirtualImageKind
	}
	return r.disks(ctx, obj.GetNamespace(), client.MatchingFields{disksByImage: kind + "/" + obj.GetName()})
}

// ofClass wakes the disks that may wait for a class: a new default, a class that
// appears or becomes allowed.
func (r *Reconciler) ofClass(ctx context.Context, _ client.Object) []reconcile.Request {
	return r.disks(ctx, "", client.MatchingFields{disksByClass: unsettled})
}

func (r *Reconciler) disks(ctx context.Context, namespace string, fields client.MatchingFields) []reconcile.Request {
	list := &v1alpha2.VirtualDiskList{}
	if err := r.Client.List(ctx, list, fields, client.InNamespace(namespace)); err != nil {
		log.FromContext(ctx).Error(err, "cannot list disks")
		return nil
	}
	var requests []reconcile.Request
	for i := range list.Items {
		requests = append(requests, request(list.Items[i].Namespace, list.Items[i].Name))
	}
	return requests
}

func (r *Reconciler) ofMachine(_ context.Context, obj client.Object) []reconcile.Request {
	var requests []reconcile.Request
	for _, name := range disksOf(obj) {
		requests = append(requests, request(obj.GetNamespace(), name))
	}
	return requests
}

func (r *Reconciler) ofInstance(ctx context.Context, obj client.Object) []reconcile.Request {
	var requests []reconcile.Request
	for _, name := range claimsOf(obj) {
		requests = append(requests, r.ofClaim(ctx, obj.GetNamespace(), name)...)
	}
	return requests
}

// fencing lets those node updates through by which somebody vouches for its death.
func fencing() predicate.Predicate {
	return predicate.Funcs{
		UpdateFunc: func(e event.UpdateEvent) bool {
			return policy.OutOfService(e.ObjectOld.(*corev1.Node)) != policy.OutOfService(e.ObjectNew.(*corev1.Node))
		},
		DeleteFunc: func(event.DeleteEvent) bool { return false },
	}
}

// ofNode wakes the disks whose populating pods are or were on a node.
func (r *Reconciler) ofNode(ctx context.Context, obj client.Object) []reconcile.Request {
	if !policy.OutOfService(obj.(*corev1.Node)) {
		return nil
	}
	pods := &corev1.PodList{}
	if err := r.Client.List(ctx, pods, client.MatchingLabels{"app": plan.DataPodApp}); err != nil {
		log.FromContext(ctx).Error(err, "cannot list populating pods")
		return nil
	}
	var requests []reconcile.Request
	for i := range pods.Items {
		p := &pods.Items[i]
		if owner := metav1.GetControllerOf(p); p.Spec.NodeName == obj.GetName() && owner != nil && owner.Kind == v1alpha2.VirtualDiskKind {
			requests = append(requests, request(p.Namespace, owner.Name))
		}
	}
	return requests
}

func request(namespace, name string) reconcile.Request {
	return reconcile.Request{NamespacedName: types.NamespacedName{Namespace: namespace, Name: name}}
}

// disksOf are the disks a machine refers to.
func disksOf(obj client.Object) []string {
	var names []string
	for _, ref := range obj.(*v1alpha2.VirtualMachine).Spec.BlockDeviceRefs {
		if ref.Kind == v1alpha2.DiskDevice {
			names = append(names, ref.Name)
		}
	}
	return names
}

// claimsOf are the claims a process holds.
func claimsOf(obj client.Object) []string {
	var names []string
	for _, d := range obj.(*instancev1.Instance).Spec.Machine.Disks {
		if c := d.Source.PersistentVolumeClaim; c != nil {
			names = append(names, c.ClaimName)
		}
	}
	return names
}

func claimRefOf(obj client.Object) []string {
	ref := obj.(*corev1.PersistentVolume).Spec.ClaimRef
	if ref == nil {
		return nil
	}
	return []string{ref.Namespace + "/" + ref.Name}
}

func imageOf(obj client.Object) []string {
	source := obj.(*v1alpha2.VirtualDisk).Spec.DataSource
	if source == nil || source.ObjectRef == nil {
		return nil
	}
	return []string{string(source.ObjectRef.Kind) + "/" + source.ObjectRef.Name}
}

func classOf(obj client.Object) []string {
	d := obj.(*v1alpha2.VirtualDisk)
	var keys []string
	if d.Status.Phase != v1alpha2.DiskReady {
		keys = append(keys, unsettled)
	}
	if d.Status.StorageClassName != "" {
		keys = append(keys, d.Status.StorageClassName)
	}
	return keys
}
