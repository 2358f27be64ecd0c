package disk

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	kubeevents "k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"orlop.dev/orlop/api/core/v1alpha2"
	instancev1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/attempt"
	"orlop.dev/orlop/internal/importer"
	"orlop.dev/orlop/internal/plan"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/settings"
	"orlop.dev/orlop/internal/steps"
	"orlop.dev/orlop/internal/storageclass"
)

// fieldOwner marks what this controller writes.
const fieldOwner = "virtualization-disk"

// Registry is what the controller needs of DVCR; *dvcr.Access is one.
type Registry interface {
	Grant(ctx context.Context, repository, suffix string, actions ...string) (importer.Repository, error)
}

// Prober asks a running pod how far it is.
type Prober interface {
	Progress(ctx context.Context, podIP string) (*importer.Progress, error)
}

// Options are what the reconciler needs.
type Options struct {
	Client client.Client
	// APIReader reads without a cache, for Secrets.
	APIReader client.Reader
	Recorder  kubeevents.EventRecorder
	Clock     clock.PassiveClock
	Registry  Registry
	Prober    Prober
	// Host of DVCR with port, as it stands in references.
	Host string
	// ImporterImage is the container image of populating pods.
	ImporterImage string
}

// Reconciler makes disks.
type Reconciler struct{ Options }

// New returns the reconciler of VirtualDisk.
func New(o Options) *Reconciler { return &Reconciler{Options: o} }

// +kubebuilder:rbac:groups="",resources=configmaps,verbs=get
// +kubebuilder:rbac:groups="",resources=persistentvolumeclaims,verbs=get;list;watch;create;delete;patch
// +kubebuilder:rbac:groups="",resources=persistentvolumes,verbs=get;list;watch;patch
// +kubebuilder:rbac:groups="",resources=nodes,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=pods,verbs=get;list;watch;create;delete;patch
// +kubebuilder:rbac:groups="",resources=secrets,verbs=get;create
// +kubebuilder:rbac:groups=deckhouse.io,resources=moduleconfigs,verbs=get;list;watch
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch
// +kubebuilder:rbac:groups=internal.virtualization.deckhouse.io,resources=instances,verbs=get;list;watch
// +kubebuilder:rbac:groups=storage.k8s.io,resources=storageclasses,verbs=get;list;watch
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=clustervirtualimages,verbs=get;list;watch
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualdisks,verbs=get;list;watch;patch
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualdisks/finalizers,verbs=update
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualdisks/status,verbs=patch
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualimages,verbs=get;list;watch
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualmachineblockdeviceattachments,verbs=get;list;watch
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualmachines,verbs=get;list;watch

// Reconcile makes one pass: observe, decide, act, status, patch.
func (r *Reconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	disk := &v1alpha2.VirtualDisk{}
	if err := r.Client.Get(ctx, request.NamespacedName, disk); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if disk.DeletionTimestamp != nil && !slices.Contains(disk.Finalizers, v1alpha2.FinalizerVirtualDiskCleanup) {
		return ctrl.Result{}, nil
	}
	if added, err := steps.EnsureFinalizer(ctx, r.Client, disk, v1alpha2.FinalizerVirtualDiskCleanup); added || err != nil {
		// The patch comes back as a watch event.
		return steps.Result(nil, nil, err)
	}
	w, err := r.observe(ctx, disk)
	if err != nil {
		return ctrl.Result{}, err
	}
	d := steps.Decide(w, all()...)
	errs := steps.Perform(ctx, r.Client, fieldOwner, d)
	d, errs = quota(d, errs)
	if r.remembered(w, d, errs) {
		// The object has changed under us; the watch event of the patch brings the next pass.
		return ctrl.Result{}, nil
	}
	if released(d, errs) {
		return ctrl.Result{}, nil
	}
	after := disk.DeepCopy()
	after.Status = show(w, d, errs)
	err = steps.PatchStatus(ctx, r.Client, disk, after)
	if err == nil {
		steps.Emit(r.Recorder, disk, events(steps.Transitions(disk.Status.Conditions, after.Status.Conditions, withoutGrowth(d))))
		steps.Emit(r.Recorder, disk, growthEvents(disk, after))
	}
	return steps.Result(d, errs, err)
}

func (r *Reconciler) observe(ctx context.Context, disk *v1alpha2.VirtualDisk) (*world, error) {
	w := &world{now: r.Clock.Now(), disk: disk, importerImage: r.ImporterImage,
		record: attempt.Parse(disk.Annotations[attempt.Annotation])}
	w.run = runner{r: r, w: w}
	return w, errors.Join(
		r.observeClaims(ctx, w),
		r.observeClass(ctx, w),
		r.observeSource(ctx, w),
		r.observePods(ctx, w),
		r.observeMachines(ctx, w),
	)
}

func (r *Reconciler) observeClaims(ctx context.Context, w *world) error {
	var err error
	if w.claim, err = r.claim(ctx, w.disk, plan.DiskClaimName(w.disk.Name, w.disk.UID)); err != nil {
		return err
	}
	if w.prime, err = r.claim(ctx, w.disk, plan.DiskPrimeName(w.disk.Name, w.disk.UID)); err != nil {
		return err
	}
	for _, c := range []*corev1.PersistentVolumeClaim{w.claim, w.prime} {
		if c == nil {
			continue
		}
		list := &corev1.PersistentVolumeList{}
		if err := r.Client.List(ctx, list, client.MatchingFields{volumesByClaim: c.Namespace + "/" + c.Name}); err != nil {
			return err
		}
		w.volumes = append(w.volumes, list.Items...)
	}
	return nil
}

// claim reads a claim of the disk; one that somebody else made under its name is an error.
func (r *Reconciler) claim(ctx context.Context, disk *v1alpha2.VirtualDisk, name string) (*corev1.PersistentVolumeClaim, error) {
	c := &corev1.PersistentVolumeClaim{}
	err := r.Client.Get(ctx, types.NamespacedName{Namespace: disk.Namespace, Name: name}, c)
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, err
	case claimOf(c) != disk.Name:
		return nil, fmt.Errorf("PersistentVolumeClaim %s does not belong to the disk", name)
	}
	return c, nil
}

// observeClass finds the class in effect: that of the claim once there is one, for a
// new default must not move a disk that is being made.
func (r *Reconciler) observeClass(ctx context.Context, w *world) error {
	config, err := settings.Load(ctx, r.Client)
	switch {
	case err == nil:
		w.rules = storageclass.Rules{Default: config.VirtualDisks.DefaultStorageClassName, Allowed: config.VirtualDisks.AllowedStorageClassNames}
	case !errors.Is(err, settings.ErrNotFound):
		return err
	}
	classes := &storagev1.StorageClassList{}
	if err := r.Client.List(ctx, classes); err != nil {
		return err
	}
	named := ""
	if n := w.disk.Spec.PersistentVolumeClaim.StorageClassName; n != nil {
		named = *n
	}
	w.className = storageclass.Name(named, w.rules, classes.Items)
	if w.claim != nil && w.claim.Spec.StorageClassName != nil && (named == "" || w.record.Result != nil) {
		w.className = *w.claim.Spec.StorageClassName
	}
	if i := slices.IndexFunc(classes.Items, func(c storagev1.StorageClass) bool { return c.Name == w.className }); i >= 0 {
		w.class = &classes.Items[i]
	}
	return nil
}

func (r *Reconciler) observeSource(ctx context.Context, w *world) error {
	if w.unsupported() != "" || w.disk.Spec.DataSource == nil {
		return nil
	}
	ref := w.disk.Spec.DataSource.ObjectRef
	s := &source{kind: string(ref.Kind), name: ref.Name}
	w.source = s
	key := types.NamespacedName{Namespace: w.disk.Namespace, Name: ref.Name}
	var obj client.Object = &v1alpha2.VirtualImage{}
	if ref.Kind == v1alpha2.VirtualDiskFromClusterVirtualImage {
		key.Namespace, obj = "", &v1alpha2.ClusterVirtualImage{}
	}
	if err := r.Client.Get(ctx, key, obj); err != nil {
		return client.IgnoreNotFound(err)
	}
	s.found, s.uid = true, string(obj.GetUID())
	s.repository = plan.ImageRepository(r.Host, key.Namespace, ref.Name)
	var phase v1alpha2.ImagePhase
	var url, size string
	switch image := obj.(type) {
	case *v1alpha2.VirtualImage:
		phase, url, size = image.Status.Phase, image.Status.Target.RegistryURL, image.Status.Size.UnpackedBytes
	case *v1alpha2.ClusterVirtualImage:
		phase, url, size = image.Status.Phase, image.Status.Target.RegistryURL, image.Status.Size.UnpackedBytes
	}
	bytes, err := strconv.ParseInt(size, 10, 64)
	_, digest, found := strings.Cut(url, "@")
	s.ready = phase == v1alpha2.ImageReady && err == nil && found && obj.GetDeletionTimestamp() == nil
	s.size, s.digest = bytes, digest
	return nil
}

func (r *Reconciler) observePods(ctx context.Context, w *world) error {
	pods := &corev1.PodList{}
	err := r.Client.List(ctx, pods, client.InNamespace(w.disk.Namespace), client.MatchingLabels{plan.OwnerUIDLabel: string(w.disk.UID)})
	if err != nil {
		return err
	}
	w.pods = pods.Items
	if err := r.observeNodes(ctx, w); err != nil {
		return err
	}
	pod := w.pod()
	switch attempt.Judge(pod).State {
	case attempt.Starting:
		err := r.APIReader.Get(ctx, client.ObjectKeyFromObject(pod), &corev1.Secret{})
		w.configMissing = apierrors.IsNotFound(err)
		return client.IgnoreNotFound(err)
	case attempt.Running:
		if pod.Status.PodIP == "" {
			return nil
		}
		// Progress is decoration: a pod that does not answer is no error.
		p, err := r.Prober.Progress(ctx, pod.Status.PodIP)
		if err != nil {
			log.FromContext(ctx).V(1).Info("populating pod does not answer", "pod", pod.Name, "error", err.Error())
			return nil
		}
		w.progress = p
	case attempt.Missing, attempt.Succeeded, attempt.Failed:
	}
	return nil
}

// observeNodes reads the nodes that may vouch for pods which are on their way out.
func (r *Reconciler) observeNodes(ctx context.Context, w *world) error {
	w.nodes = map[string]*corev1.Node{}
	for i := range w.pods {
		name := w.pods[i].Spec.NodeName
		if name == "" || w.pods[i].DeletionTimestamp == nil || w.nodes[name] != nil {
			continue
		}
		node := &corev1.Node{}
		err := r.Client.Get(ctx, types.NamespacedName{Name: name}, node)
		switch {
		case apierrors.IsNotFound(err):
		case err != nil:
			return err
		default:
			w.nodes[name] = node
		}
	}
	return nil
}

// observeMachines finds who refers to the disk and who holds it: by a process that
// is not proven dead, or by the lock on the disk itself.
func (r *Reconciler) observeMachines(ctx context.Context, w *world) error {
	machines := &v1alpha2.VirtualMachineList{}
	err := r.Client.List(ctx, machines, client.InNamespace(w.disk.Namespace), client.MatchingFields{machinesByDisk: w.disk.Name})
	if err != nil {
		return err
	}
	for i := range machines.Items {
		w.machines = append(w.machines, machines.Items[i].Name)
	}
	if err := r.observeAttachments(ctx, w); err != nil {
		return err
	}
	instances := &instancev1.InstanceList{}
	err = r.Client.List(ctx, instances, client.InNamespace(w.disk.Namespace), client.MatchingFields{instancesByClaim: w.claimName()})
	if err != nil {
		return err
	}
	for i := range instances.Items {
		if in := &instances.Items[i]; in.Status.Exit == nil {
			w.processes = append(w.processes, in)
			w.holders = append(w.holders, in.Spec.VirtualMachine.Name)
		}
	}
	name, uid := policy.DiskHolder(w.disk)
	if name != "" {
		// A machine takes the disk before its process exists; one that is gone holds nothing.
		vm := &v1alpha2.VirtualMachine{}
		err := r.Client.Get(ctx, types.NamespacedName{Namespace: w.disk.Namespace, Name: name}, vm)
		if client.IgnoreNotFound(err) != nil {
			return err
		}
		if err == nil && vm.UID == uid {
			w.holders = append(w.holders, name)
		}
	}
	w.holders = sorted(w.holders)
	return nil
}

// Event reasons of disks.
const (
	eventStarted   = "DataSourceImportStarted"
	eventCompleted = "DataSourceImportCompleted"
	eventFailed    = "DataSourceImportFailed"
	eventQuota     = "DataSourceQuotaExceed"
	eventChanged   = "VirtualDiskSpecHasBeenChanged"
)

// remembered tells that this pass has patched the attempt record, and says so to the user.
func (r *Reconciler) remembered(w *world, d steps.Decision, errs steps.Errors) bool {
	i := slices.IndexFunc(d, func(f steps.Finding) bool { return f.Condition == v1alpha2.DiskConditionReady })
	call, ok := d[i].Act.(steps.Call)
	if !ok || errs[i] != nil {
		return false
	}
	record := call.Args.(attempt.Record)
	switch {
	case record.Result != nil:
		r.event(w, corev1.EventTypeNormal, eventCompleted, "The disk was filled by pod %s", w.podName())
	case record.FailedAt != nil:
		r.event(w, corev1.EventTypeWarning, eventFailed, "%s", record.Failure.Message)
	case w.record.Work != "" && w.record.Work != record.Work:
		r.event(w, corev1.EventTypeNormal, eventChanged, "The disk was changed: its creation starts over")
	case record.Failures == 0:
		r.event(w, corev1.EventTypeNormal, eventStarted, "The creation was started")
	}
	return true
}

func (r *Reconciler) event(w *world, kind, reason, format string, args ...any) {
	r.Recorder.Eventf(w.disk, nil, kind, reason, "Provision", format, args...)
}

// events gives those about quotas the reason users know.
func events(all []steps.Event) []steps.Event {
	for i := range all {
		if all[i].Reason == v1alpha2.DiskReasonQuotaExceeded.String() {
			all[i].Reason = eventQuota
		}
	}
	return all
}

// released tells that this pass has let the disk go.
func released(d steps.Decision, errs steps.Errors) bool {
	i := slices.IndexFunc(d, func(f steps.Finding) bool { return f.Condition == v1alpha2.DiskConditionTerminating })
	return d[i].Act != nil && errs[i] == nil
}

// quotaPause is how soon what a quota refused is tried again.
const quotaPause = 30 * time.Second

// quota turns a refusal by a ResourceQuota from an error into what it is: something
// the user must change.
func quota(d steps.Decision, errs steps.Errors) (steps.Decision, steps.Errors) {
	for i := range d {
		create, ok := d[i].Act.(steps.Create)
		if !ok || !apierrors.IsForbidden(errs[i]) {
			continue
		}
		ready := slices.IndexFunc(d, func(f steps.Finding) bool { return f.Condition == v1alpha2.DiskConditionReady })
		d = slices.Clone(d)
		d[ready].Outcome = steps.Failed(v1alpha2.DiskReasonQuotaExceeded.String(),
			"%s was refused: %s", create.Object.GetName(), oneLine(errs[i].Error())).Within(quotaPause)
		delete(errs, i)
	}
	return d, errs
}
