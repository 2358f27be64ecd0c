package image

import (
	"context"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"orlop.dev/orlop/api/core/v1alpha2"
	instancev1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/attempt"
	"orlop.dev/orlop/internal/importer"
	"orlop.dev/orlop/internal/plan"
	"orlop.dev/orlop/internal/steps"
)

// fieldOwner marks what this controller writes.
const fieldOwner = "virtualization-image"

// Registry is what the controller needs of DVCR; *dvcr.Access is one.
type Registry interface {
	Grant(ctx context.Context, repository, suffix string, actions ...string) (importer.Repository, error)
	Remove(ctx context.Context, repository, tag string) error
}

// Prober asks a running importer how far it is.
type Prober interface {
	Progress(ctx context.Context, podIP string) (*importer.Progress, error)
}

// Options are what both reconcilers need.
type Options struct {
	Client client.Client
	// APIReader reads without a cache, for Secrets.
	APIReader client.Reader
	Recorder  events.EventRecorder
	Clock     clock.PassiveClock
	Registry  Registry
	Prober    Prober
	// Namespace of the module, where cluster-wide images are imported.
	Namespace string
	// Host of DVCR with port, as it stands in references.
	Host string
	// ImporterImage is the container image of importer pods.
	ImporterImage string
}

// Reconciler brings images of one kind into DVCR.
type Reconciler struct {
	Options
	kind kind
}

// New returns the reconciler of VirtualImage.
func New(o Options) *Reconciler { return &Reconciler{Options: o, kind: virtualImage{}} }

// NewCluster returns the reconciler of ClusterVirtualImage.
func NewCluster(o Options) *Reconciler { return &Reconciler{Options: o, kind: clusterVirtualImage{}} }

// +kubebuilder:rbac:groups="",resources=configmaps,verbs=get
// +kubebuilder:rbac:groups="",resources=pods,verbs=get;list;watch;create;delete
// +kubebuilder:rbac:groups="",resources=secrets,verbs=get;create
// +kubebuilder:rbac:groups=deckhouse.io,resources=moduleconfigs,verbs=get;list;watch
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch
// +kubebuilder:rbac:groups=internal.virtualization.deckhouse.io,resources=instances,verbs=get;list;watch
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=clustervirtualimages,verbs=get;list;watch;patch
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=clustervirtualimages/finalizers,verbs=update
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=clustervirtualimages/status,verbs=patch
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualdisks,verbs=get;list;watch
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualimages,verbs=get;list;watch;patch
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualimages/finalizers,verbs=update
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualimages/status,verbs=patch

// Reconcile makes one pass: observe, decide, act, status, patch.
func (r *Reconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	obj := r.kind.New()
	if err := r.Client.Get(ctx, request.NamespacedName, obj); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if obj.GetDeletionTimestamp() != nil && !slices.Contains(obj.GetFinalizers(), r.kind.Finalizer()) {
		return ctrl.Result{}, nil
	}
	if added, err := steps.EnsureFinalizer(ctx, r.Client, obj, r.kind.Finalizer()); added || err != nil {
		// The patch comes back as a watch event.
		return steps.Result(nil, nil, err)
	}
	w, err := r.observe(ctx, obj)
	if err != nil {
		return ctrl.Result{}, err
	}
	d := steps.Decide(w, all(r.kind)...)
	errs := steps.Perform(ctx, r.Client, fieldOwner, d)
	d, errs = quota(d, errs)
	if r.remembered(w, d, errs) {
		// The object has changed under us; the watch event of the patch brings the next pass.
		return ctrl.Result{}, nil
	}
	if w.released(d, errs) {
		return ctrl.Result{}, nil
	}
	s := show(w, d, errs)
	err = steps.PatchStatus(ctx, r.Client, obj, r.kind.Store(obj, s))
	if err == nil {
		steps.Emit(r.Recorder, obj, steps.Transitions(w.image.status.Conditions, s.Conditions, d))
	}
	return steps.Result(d, errs, err)
}

func (r *Reconciler) observe(ctx context.Context, obj client.Object) (*world, error) {
	w := &world{now: r.Clock.Now(), image: r.kind.View(obj, r.Namespace), host: r.Host, importerImage: r.ImporterImage,
		record: attempt.Parse(obj.GetAnnotations()[attempt.Annotation])}
	w.run = runner{r: r, w: w}
	pods := &corev1.PodList{}
	err := r.Client.List(ctx, pods, client.InNamespace(w.image.podNamespace), client.MatchingLabels{plan.OwnerUIDLabel: string(obj.GetUID())})
	if err != nil {
		return nil, err
	}
	w.pods = pods.Items
	if w.holders, err = r.holders(ctx, w); err != nil {
		return nil, err
	}
	if w.disks, err = r.disks(ctx, obj); err != nil {
		return nil, err
	}
	verdict := attempt.Judge(w.pod())
	if verdict.State == attempt.Starting {
		err := r.APIReader.Get(ctx, client.ObjectKeyFromObject(w.pod()), &corev1.Secret{})
		if client.IgnoreNotFound(err) != nil {
			return nil, err
		}
		w.configMissing = apierrors.IsNotFound(err)
	}
	if verdict.State == attempt.Running && w.pod().Status.PodIP != "" {
		// Progress is decoration: a pod that does not answer is no error.
		p, err := r.Prober.Progress(ctx, w.pod().Status.PodIP)
		if err != nil {
			log.FromContext(ctx).V(1).Info("importer does not answer", "pod", w.podName(), "error", err.Error())
		} else {
			w.progress = p
		}
	}
	return w, nil
}

// holders finds the machines whose process has the image as a device.
func (r *Reconciler) holders(ctx context.Context, w *world) ([]holder, error) {
	list := &instancev1.InstanceList{}
	if err := r.Client.List(ctx, list, client.MatchingFields{instancesByImage: w.host + "/" + w.repository()}); err != nil {
		return nil, err
	}
	var found []holder
	for i := range list.Items {
		found = append(found, holder{list.Items[i].Namespace, list.Items[i].Spec.VirtualMachine.Name})
	}
	return found, nil
}

// disks finds the disks that still need the image.
func (r *Reconciler) disks(ctx context.Context, obj client.Object) ([]string, error) {
	list := &v1alpha2.VirtualDiskList{}
	options := []client.ListOption{client.MatchingFields{disksByImage: r.kind.Name() + "/" + obj.GetName()}}
	if obj.GetNamespace() != "" {
		options = append(options, client.InNamespace(obj.GetNamespace()))
	}
	if err := r.Client.List(ctx, list, options...); err != nil {
		return nil, err
	}
	var found []string
	for i := range list.Items {
		if d := &list.Items[i]; d.Status.Phase == v1alpha2.DiskProvisioning {
			found = append(found, d.Namespace+"/"+d.Name)
		}
	}
	slices.Sort(found)
	return found, nil
}

// remembered tells that this pass has patched the attempt record, and says so to the user.
func (r *Reconciler) remembered(w *world, d steps.Decision, errs steps.Errors) bool {
	i := slices.IndexFunc(d, func(f steps.Finding) bool { return f.Condition == v1alpha2.ImageConditionReady })
	call, ok := d[i].Act.(steps.Call)
	if !ok || errs[i] != nil {
		return false
	}
	record := call.Args.(attempt.Record)
	switch {
	case record.Result != nil:
		r.event(w, corev1.EventTypeNormal, eventCompleted, "The image was imported by pod %s", w.podName())
	case record.FailedAt != nil:
		r.event(w, corev1.EventTypeWarning, eventFailed, "%s", record.Failure.Message)
	case w.record.Work != "" && w.record.Work != record.Work:
		r.event(w, corev1.EventTypeNormal, r.kind.Name()+"SpecHasBeenChanged", "The data source was changed: the import starts over")
	case record.Failures == 0:
		r.event(w, corev1.EventTypeNormal, eventStarted, "The import was started")
	}
	return true
}

// Event reasons of imports.
const (
	eventStarted   = "DataSourceImportStarted"
	eventCompleted = "DataSourceImportCompleted"
	eventFailed    = "DataSourceImportFailed"
)

func (r *Reconciler) event(w *world, kind, reason, format string, args ...any) {
	r.Recorder.Eventf(w.image.Object, nil, kind, reason, "Import", format, args...)
}

// released tells that this pass has let the object go.
func (w *world) released(d steps.Decision, errs steps.Errors) bool {
	if !w.deleting() {
		return false
	}
	i := slices.IndexFunc(d, func(f steps.Finding) bool { return f.Condition == v1alpha2.ImageConditionTerminating })
	return d[i].Act != nil && errs[i] == nil
}

// quotaPause is how soon a pod that a quota refused is tried again.
const quotaPause = 30 * time.Second

// quota turns a refusal of the importer pod by a ResourceQuota from an error into
// what it is: something the user must change.
func quota(d steps.Decision, errs steps.Errors) (steps.Decision, steps.Errors) {
	for i := range d {
		create, ok := d[i].Act.(steps.Create)
		if !ok || !apierrors.IsForbidden(errs[i]) {
			continue
		}
		ready := slices.IndexFunc(d, func(f steps.Finding) bool { return f.Condition == v1alpha2.ImageConditionReady })
		d = slices.Clone(d)
		d[ready].Outcome = steps.Failed(v1alpha2.ImageReasonQuotaExceeded.String(),
			"Pod %s was refused: %s", create.Object.GetName(), oneLine(errs[i].Error())).Within(quotaPause)
		delete(errs, i)
	}
	return d, errs
}
