package image

import (
	"context"
	"strings"

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
	instancev1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/attempt"
	"orlop.dev/orlop/internal/dvcr"
	"orlop.dev/orlop/internal/settings"
)

// Names of the field indexes of this controller.
const (
	instancesByImage = "image.repository"
	disksByImage     = "image.source"
)

// workers is how many images are reconciled at a time; a pass that asks an importer
// for its progress may take a second.
const workers = 4

// Setup registers the controllers of both kinds with a manager.
func Setup(ctx context.Context, m ctrl.Manager, platform settings.Platform) error {
	return setup(ctx, m, Options{
		Clock: clock.RealClock{}, Registry: dvcr.New(m.GetAPIReader(), platform.Namespace, platform.DVCRHost), Prober: attempt.HTTPProber{},
		Namespace: platform.Namespace, Host: platform.DVCRHost, ImporterImage: platform.ImporterImage,
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
	indexer := m.GetFieldIndexer()
	if err := indexer.IndexField(ctx, &instancev1.Instance{}, instancesByImage, repositoriesOf); err != nil {
		return err
	}
	if err := indexer.IndexField(ctx, &v1alpha2.VirtualDisk{}, disksByImage, sourceOf); err != nil {
		return err
	}
	for _, r := range []*Reconciler{New(o), NewCluster(o)} {
		if err := r.watch(m); err != nil {
			return err
		}
	}
	return nil
}

func (r *Reconciler) watch(m ctrl.Manager) error {
	return ctrl.NewControllerManagedBy(m).
		Named(strings.ToLower(r.kind.Name())).
		For(r.kind.New()).
		WithOptions(controller.Options{MaxConcurrentReconciles: workers}).
		Watches(&corev1.Pod{}, handler.EnqueueRequestsFromMapFunc(r.ofPod)).
		Watches(&instancev1.Instance{}, handler.EnqueueRequestsFromMapFunc(r.ofInstance)).
		Watches(&v1alpha2.VirtualDisk{}, handler.EnqueueRequestsFromMapFunc(r.ofDisk)).
		Complete(r)
}

func (r *Reconciler) ofPod(_ context.Context, pod client.Object) []reconcile.Request {
	owner := metav1.GetControllerOf(pod)
	if owner == nil || owner.Kind != r.kind.Name() || !strings.HasPrefix(owner.APIVersion, v1alpha2.GroupVersion.Group+"/") {
		return nil
	}
	return r.request(pod.GetNamespace(), owner.Name)
}

// ofInstance follows from the repositories of a machine's images back to the
// objects. A shortened name cannot be followed; such an image notices its holders
// with its own next event.
func (r *Reconciler) ofInstance(_ context.Context, obj client.Object) []reconcile.Request {
	var requests []reconcile.Request
	for _, reference := range repositoriesOf(obj) {
		path, found := strings.CutPrefix(reference, r.Host+"/"+r.kind.Short()+"/")
		if !found {
			continue
		}
		namespace, name, namespaced := strings.Cut(path, "/")
		if !namespaced {
			namespace, name = "", path
		}
		requests = append(requests, r.request(namespace, name)...)
	}
	return requests
}

func (r *Reconciler) ofDisk(_ context.Context, obj client.Object) []reconcile.Request {
	var requests []reconcile.Request
	for _, source := range sourceOf(obj) {
		if name, found := strings.CutPrefix(source, r.kind.Name()+"/"); found {
			requests = append(requests, r.request(obj.GetNamespace(), name)...)
		}
	}
	return requests
}

func (r *Reconciler) request(namespace, name string) []reconcile.Request {
	if r.kind.Name() == v1alpha2.ClusterVirtualImageKind {
		namespace = ""
	}
	return []reconcile.Request{{NamespacedName: types.NamespacedName{Namespace: namespace, Name: name}}}
}

// repositoriesOf are the repositories (with host) of the images a process holds.
func repositoriesOf(obj client.Object) []string {
	var found []string
	for _, d := range obj.(*instancev1.Instance).Spec.Machine.Disks {
		if d.Source.Image != nil {
			repository, _, _ := strings.Cut(d.Source.Image.Reference, "@")
			found = append(found, repository)
		}
	}
	return found
}

// sourceOf is the image a disk is made from, as kind/name.
func sourceOf(obj client.Object) []string {
	source := obj.(*v1alpha2.VirtualDisk).Spec.DataSource
	if source == nil || source.ObjectRef == nil {
		return nil
	}
	return []string{string(source.ObjectRef.Kind) + "/" + source.ObjectRef.Name}
}
