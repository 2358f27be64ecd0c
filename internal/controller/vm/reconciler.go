package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/plan"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/settings"
	"orlop.dev/orlop/internal/steps"
)

// fieldOwner marks what this controller writes.
const fieldOwner = "virtualization-vm"

// Options are what the reconciler needs.
type Options struct {
	Client client.Client
	// Reader reads without a cache: Secrets, and what decides over life and death.
	Reader   client.Reader
	Recorder events.EventRecorder
	Clock    clock.PassiveClock
	Platform settings.Platform
}

// Reconciler runs VirtualMachines.
type Reconciler struct {
	Options
	gate      gate
	landscape landscape
}

// New returns a reconciler.
func New(o Options) *Reconciler { return &Reconciler{Options: o} }

// +kubebuilder:rbac:groups="",resources=nodes,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=persistentvolumeclaims,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=pods,verbs=get;list;watch;create;patch;delete
// +kubebuilder:rbac:groups="",resources=secrets,verbs=get;list;watch;create
// +kubebuilder:rbac:groups=deckhouse.io,resources=moduleconfigs,verbs=get;list;watch
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch
// +kubebuilder:rbac:groups=internal.virtualization.deckhouse.io,resources=instances,verbs=get;list;watch;create;patch;delete
// +kubebuilder:rbac:groups=internal.virtualization.deckhouse.io,resources=instances/finalizers,verbs=update
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualdisks,verbs=get;list;watch;patch
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualmachineclasses,verbs=get;list;watch
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualmachineipaddresses,verbs=get;list;watch;create
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualmachineoperations,verbs=get;list;watch
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualmachines,verbs=get;list;watch;patch
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualmachines/finalizers,verbs=update
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualmachines/status,verbs=patch

// Reconcile makes one pass: observe, decide, act, status, patch.
func (r *Reconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	vm := &v1alpha2.VirtualMachine{}
	if err := r.Client.Get(ctx, request.NamespacedName, vm); err != nil {
		r.gate.shown(request.NamespacedName, false, passage{})
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if vm.DeletionTimestamp != nil && !slices.Contains(vm.Finalizers, v1alpha2.FinalizerVirtualMachineCleanup) {
		return ctrl.Result{}, nil
	}
	if added, err := steps.EnsureFinalizer(ctx, r.Client, vm, v1alpha2.FinalizerVirtualMachineCleanup); added || err != nil {
		return steps.Result(nil, nil, err)
	}
	w, err := r.observe(ctx, vm)
	if err != nil {
		return ctrl.Result{}, err
	}
	d := steps.Decide(w, all...)
	errs := steps.Perform(ctx, r.Client, fieldOwner, d)
	after := vm.DeepCopy()
	after.Status = status(w, d, errs)
	err = steps.PatchStatus(ctx, r.Client, vm, after)
	if err == nil {
		steps.Emit(r.Recorder, vm, transitions(vm.Status.Conditions, after.Status.Conditions, d))
		steps.Emit(r.Recorder, vm, powerEvents(vm, after))
		steps.Emit(r.Recorder, vm, changeEvents(vm, after))
	}
	return steps.Result(d, errs, err)
}

func (r *Reconciler) observe(ctx context.Context, vm *v1alpha2.VirtualMachine) (*world, error) {
	w := &world{now: r.Clock.Now(), vm: vm, platform: r.Platform, act: &actor{client: r.Client}}
	if vm.Status.Instance != nil {
		w.record = *vm.Status.Instance
	}
	for _, look := range []func(context.Context, *world) error{
		r.observeProcess, r.observeSettings, r.observeClass, r.observeAddress, r.observeDisks, r.observeAttachments, r.observeFirstBoot, r.observeOperations,
		r.observeMigration,
	} {
		if err := look(ctx, w); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// get reads into obj and says whether it exists.
func get(ctx context.Context, reader client.Reader, namespace, name string, obj client.Object) (bool, error) {
	err := reader.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, obj)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("get %s/%s: %w", namespace, name, err)
	}
	return true, nil
}

// observeProcess finds the Instance, pod and node of the recorded process and what
// else carries this machine's UID. While a process is recorded and not proven dead,
// absence is checked past the cache: a cache that lags must not make it look gone.
func (r *Reconciler) observeProcess(ctx context.Context, w *world) error {
	mine := []client.ListOption{client.InNamespace(w.vm.Namespace),
		client.MatchingLabels{v1alpha2.LabelVirtualMachineUID: string(w.vm.UID)}}
	instances, pods := &v1alpha1.InstanceList{}, &corev1.PodList{}
	if err := errors.Join(r.Client.List(ctx, instances, mine...), r.Client.List(ctx, pods, mine...)); err != nil {
		return fmt.Errorf("list the processes of machine %s: %w", w.vm.Name, err)
	}
	w.former = make([]process, len(w.record.Former))
	for i := range instances.Items {
		if o := &instances.Items[i]; o.Name == w.record.Name {
			w.instance = o
		} else if p := w.beside(o.Name); p != nil {
			p.instance = o
		} else {
			w.strayInstances = append(w.strayInstances, o)
		}
	}
	for i := range pods.Items {
		switch o := &pods.Items[i]; {
		case o.Labels[v1alpha2.LabelLauncher] == v1alpha2.HotplugValue:
			w.attachmentPods = append(w.attachmentPods, o)
		case o.Name == w.record.Name:
			w.pod = o
		case w.beside(o.Name) != nil:
			w.beside(o.Name).pod = o
		default:
			w.strayPods = append(w.strayPods, o)
		}
	}
	if w.live() {
		if err := r.observeLive(ctx, w); err != nil {
			return err
		}
	}
	if err := r.observeBeside(ctx, w); err != nil {
		return err
	}
	if err := w.readLastApplied(); err != nil {
		return err
	}
	return r.observeNode(ctx, w)
}

func (r *Reconciler) observeLive(ctx context.Context, w *world) error {
	if w.instance == nil {
		o := &v1alpha1.Instance{}
		found, err := get(ctx, r.Reader, w.vm.Namespace, w.record.Name, o)
		if err != nil {
			return err
		}
		if found {
			w.instance = o
		}
	}
	if w.pod == nil {
		o := &corev1.Pod{}
		found, err := get(ctx, r.Reader, w.vm.Namespace, w.record.Name, o)
		if err != nil {
			return err
		}
		if found {
			w.pod = o
		}
	}
	return nil
}

func (w *world) readLastApplied() error {
	if w.instance == nil {
		return nil
	}
	text := w.instance.Annotations[plan.LastAppliedSpecAnnotation]
	if text != "" {
		w.running = &v1alpha2.VirtualMachineSpec{}
		if err := json.Unmarshal([]byte(text), w.running); err != nil {
			return fmt.Errorf("bug: read last applied spec of instance %s: %w", w.instance.Name, err)
		}
	}
	if text := w.instance.Annotations[plan.LastAppliedClassSpecAnnotation]; text != "" {
		w.runningClass = &v1alpha2.VirtualMachineClassSpec{}
		if err := json.Unmarshal([]byte(text), w.runningClass); err != nil {
			return fmt.Errorf("bug: read last applied class spec of instance %s: %w", w.instance.Name, err)
		}
	}
	return nil
}

func (r *Reconciler) observeNode(ctx context.Context, w *world) error {
	name := w.record.NodeName
	if name == "" && w.pod != nil {
		name = w.pod.Spec.NodeName
	}
	if name == "" {
		return nil
	}
	node := &corev1.Node{}
	found, err := get(ctx, r.Client, "", name, node)
	if found {
		w.node = node
	}
	return err
}

func (r *Reconciler) observeSettings(ctx context.Context, w *world) error {
	s, err := settings.Load(ctx, r.Client)
	w.migration = limitsOf(s)
	if errors.Is(err, settings.ErrNotFound) {
		return nil
	}
	if err != nil && s == nil {
		return err
	}
	w.cidrs, w.allowEmulation = s.VirtualMachineCIDRs, s.AllowEmulation
	return nil
}

func (r *Reconciler) observeClass(ctx context.Context, w *world) error {
	class := &v1alpha2.VirtualMachineClass{}
	found, err := get(ctx, r.Client, "", w.vm.Spec.VirtualMachineClassName, class)
	if found {
		w.class = class
	}
	return err
}

func (r *Reconciler) observeAddress(ctx context.Context, w *world) error {
	address := &v1alpha2.VirtualMachineIPAddress{}
	found, err := get(ctx, r.Client, w.vm.Namespace, w.addressName(), address)
	if found {
		w.address = address
	}
	return err
}

func (r *Reconciler) observeDisks(ctx context.Context, w *world) error {
	for _, ref := range w.vm.Spec.BlockDeviceRefs {
		d, err := r.observeDisk(ctx, w, ref)
		if err != nil {
			return err
		}
		w.disks = append(w.disks, d)
	}
	held := &v1alpha2.VirtualDiskList{}
	err := r.Client.List(ctx, held, client.InNamespace(w.vm.Namespace), client.MatchingFields{disksByHolder: policy.Holder(w.vm)})
	if err != nil {
		return fmt.Errorf("list disks held by machine %s: %w", w.vm.Name, err)
	}
	for i := range held.Items {
		w.held = append(w.held, &held.Items[i])
	}
	return nil
}

func (r *Reconciler) observeDisk(ctx context.Context, w *world, ref v1alpha2.BlockDeviceSpecRef) (disk, error) {
	d := disk{ref: ref}
	if ref.Kind != v1alpha2.DiskDevice {
		var err error
		d.image, err = r.observeImage(ctx, w, ref)
		return d, err
	}
	object := &v1alpha2.VirtualDisk{}
	found, err := get(ctx, r.Client, w.vm.Namespace, ref.Name, object)
	if err != nil || !found {
		return d, err
	}
	d.object = object
	if name := object.Status.Target.PersistentVolumeClaimName; name != "" {
		claim := &corev1.PersistentVolumeClaim{}
		found, err := get(ctx, r.Client, w.vm.Namespace, name, claim)
		if err != nil {
			return d, err
		}
		if found {
			d.claim = claim
		}
	}
	d.holderGone, err = r.holderGone(ctx, w, object)
	return d, err
}

// holderGone checks, past the cache, whether another machine that holds a disk is
// gone for good: normally it lets go by itself, so this is about one whose finalizer
// somebody removed.
func (r *Reconciler) holderGone(ctx context.Context, w *world, object *v1alpha2.VirtualDisk) (bool, error) {
	name, uid := policy.DiskHolder(object)
	if name == "" || uid == w.vm.UID {
		return false, nil
	}
	holder := &v1alpha2.VirtualMachine{}
	found, err := get(ctx, r.Client, w.vm.Namespace, name, holder)
	if err != nil || (found && holder.UID == uid) {
		return false, err
	}
	found, err = get(ctx, r.Reader, w.vm.Namespace, name, holder)
	if err != nil || (found && holder.UID == uid) {
		return false, err
	}
	left := []client.ListOption{client.InNamespace(w.vm.Namespace), client.MatchingLabels{v1alpha2.LabelVirtualMachineUID: string(uid)}}
	instances, pods := &v1alpha1.InstanceList{}, &corev1.PodList{}
	if err := errors.Join(r.Reader.List(ctx, instances, left...), r.Reader.List(ctx, pods, left...)); err != nil {
		return false, err
	}
	return len(instances.Items)+len(pods.Items) == 0, nil
}

// observeFirstBoot reads the user's data while a start may need it, past any cache:
// user Secrets are watched by metadata only.
func (r *Reconciler) observeFirstBoot(ctx context.Context, w *world) error {
	p := w.vm.Spec.Provisioning
	if p == nil {
		return nil
	}
	if w.live() {
		meta := &metav1.PartialObjectMetadata{}
		meta.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Secret"))
		found, err := get(ctx, r.Client, w.vm.Namespace, w.record.Name, meta)
		if err != nil {
			return err
		}
		w.firstBootExists = found
	}
	switch {
	case p.Type == v1alpha2.ProvisioningUserData:
		w.userData = []byte(p.UserData)
	case p.Type == v1alpha2.ProvisioningUserDataRef && p.UserDataRef != nil:
		secret := &corev1.Secret{}
		found, err := get(ctx, r.Reader, w.vm.Namespace, p.UserDataRef.Name, secret)
		if err != nil {
			return err
		}
		if !found {
			w.userDataProblem = "Secret " + p.UserDataRef.Name + " does not exist"
			return nil
		}
		if w.userData, err = plan.UserData(secret); err != nil {
			w.userDataProblem = capital(err.Error())
		}
	default:
		w.userDataProblem = "Provisioning type " + string(p.Type) + " is not supported in this release"
	}
	return nil
}

func (r *Reconciler) observeOperations(ctx context.Context, w *world) error {
	list := &v1alpha2.VirtualMachineOperationList{}
	err := r.Client.List(ctx, list, client.InNamespace(w.vm.Namespace), client.MatchingFields{operationsByMachine: w.vm.Name})
	if err != nil {
		return fmt.Errorf("list operations of machine %s: %w", w.vm.Name, err)
	}
	w.operations = list.Items
	return nil
}

func capital(s string) string {
	if s == "" || s[0] < 'a' || s[0] > 'z' {
		return s
	}
	return string(s[0]-'a'+'A') + s[1:]
}
