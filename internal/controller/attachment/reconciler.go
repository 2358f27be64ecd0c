package attachment

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/plan"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/steps"
)

// fieldOwner marks what this controller writes.
const fieldOwner = "virtualization-attachment"

// Options are what the reconciler needs.
type Options struct {
	Client   client.Client
	Recorder events.EventRecorder
	Clock    clock.PassiveClock
}

// Reconciler tells how far attachments are.
type Reconciler struct{ Options }

// New returns a reconciler.
func New(o Options) *Reconciler { return &Reconciler{o} }

// +kubebuilder:rbac:groups="",resources=persistentvolumeclaims,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=pods,verbs=get;list;watch
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch
// +kubebuilder:rbac:groups=internal.virtualization.deckhouse.io,resources=instances,verbs=get;list;watch
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=clustervirtualimages,verbs=get;list;watch
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualdisks,verbs=get;list;watch
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualimages,verbs=get;list;watch
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualmachineblockdeviceattachments,verbs=get;list;watch;patch
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualmachineblockdeviceattachments/finalizers,verbs=update
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualmachineblockdeviceattachments/status,verbs=patch
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualmachines,verbs=get;list;watch

// Reconcile makes one pass: observe, decide, act, status, patch.
func (r *Reconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	a := &v1alpha2.VirtualMachineBlockDeviceAttachment{}
	if err := r.Client.Get(ctx, request.NamespacedName, a); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if a.DeletionTimestamp != nil && !slices.Contains(a.Finalizers, v1alpha2.FinalizerAttachmentCleanup) {
		return ctrl.Result{}, nil
	}
	if added, err := steps.EnsureFinalizer(ctx, r.Client, a, v1alpha2.FinalizerAttachmentCleanup); added || err != nil {
		return steps.Result(nil, nil, err)
	}
	w, err := r.observe(ctx, a)
	if err != nil {
		return ctrl.Result{}, err
	}
	d := steps.Decide(w, all...)
	errs := steps.Perform(ctx, r.Client, fieldOwner, d)
	if released(d, errs) {
		return ctrl.Result{}, nil
	}
	after := a.DeepCopy()
	after.Status = status(w, d, errs)
	err = steps.PatchStatus(ctx, r.Client, a, after)
	if err == nil {
		steps.Emit(r.Recorder, a, steps.Transitions(a.Status.Conditions, after.Status.Conditions, told(d)))
	}
	return steps.Result(d, errs, err)
}

// released tells that this pass has let the attachment go.
func released(d steps.Decision, errs steps.Errors) bool {
	i := slices.IndexFunc(d, func(f steps.Finding) bool { return f.Condition == v1alpha2.AttachmentConditionTerminating })
	return d[i].Act != nil && errs[i] == nil
}

// told leaves out what is no news of the attachment: the machine tells itself when it
// starts and stops, and how full it is.
func told(d steps.Decision) steps.Decision {
	return slices.DeleteFunc(slices.Clone(d), func(f steps.Finding) bool {
		return f.Condition == v1alpha2.AttachmentConditionVirtualMachineReady ||
			f.Condition == v1alpha2.AttachmentConditionDiskAttachmentCapacityAvailable && f.Outcome.State != steps.FailedState
	})
}

func (r *Reconciler) observe(ctx context.Context, a *v1alpha2.VirtualMachineBlockDeviceAttachment) (*world, error) {
	w := &world{now: r.Clock.Now(), attachment: a}
	for _, look := range []func(context.Context, *world) error{r.observeMachine, r.observeDevice} {
		if err := look(ctx, w); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// get reads into obj and says whether it exists.
func (r *Reconciler) get(ctx context.Context, namespace, name string, obj client.Object) (bool, error) {
	err := r.Client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, obj)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("get %s/%s: %w", namespace, name, err)
	}
	return true, nil
}

// observeMachine finds the machine, its processes, its attachments and the pods that
// hold the volume for it.
func (r *Reconciler) observeMachine(ctx context.Context, w *world) error {
	vm := &v1alpha2.VirtualMachine{}
	found, err := r.get(ctx, w.attachment.Namespace, w.machine(), vm)
	if err != nil || !found {
		return err
	}
	w.vm = vm
	siblings := &v1alpha2.VirtualMachineBlockDeviceAttachmentList{}
	here := client.InNamespace(vm.Namespace)
	if err := r.Client.List(ctx, siblings, here, client.MatchingFields{attachmentsByMachine: vm.Name}); err != nil {
		return fmt.Errorf("list attachments of machine %s: %w", vm.Name, err)
	}
	w.judge(siblings.Items)
	mine := client.MatchingLabels{v1alpha2.LabelVirtualMachineUID: string(vm.UID)}
	instances, pods := &v1alpha1.InstanceList{}, &corev1.PodList{}
	if err := r.Client.List(ctx, instances, here, mine); err != nil {
		return fmt.Errorf("list the processes of machine %s: %w", vm.Name, err)
	}
	if err := r.Client.List(ctx, pods, here, mine); err != nil {
		return fmt.Errorf("list the pods of machine %s: %w", vm.Name, err)
	}
	for i := range instances.Items {
		in := &instances.Items[i]
		if in.Status.Exit != nil {
			continue
		}
		w.instances = append(w.instances, in)
		if record := vm.Status.Instance; record != nil && record.Name == in.Name && record.Exit == "" {
			w.instance = in
		}
	}
	for i := range pods.Items {
		p := &pods.Items[i]
		if p.Labels[v1alpha2.LabelLauncher] == v1alpha2.HotplugValue && p.Annotations[plan.AttachmentDeviceAnnotation] == w.id() {
			w.pods = append(w.pods, p)
		}
	}
	return nil
}

// judge finds what becomes of this attachment among its siblings.
func (w *world) judge(siblings []v1alpha2.VirtualMachineBlockDeviceAttachment) {
	w.devices = len(w.vm.Spec.BlockDeviceRefs)
	w.wantedElsewhere = policy.ListsDevice(w.vm.Spec.BlockDeviceRefs, w.ref().Kind, w.ref().Name)
	for _, j := range policy.JudgeAttachments(w.vm, siblings) {
		if j.Verdict == policy.AttachmentAccepted {
			w.devices++
		}
		switch {
		case j.UID == w.attachment.UID:
			w.verdict = j.Verdict
		case j.Verdict == policy.AttachmentAccepted && j.Spec.BlockDeviceRef == w.ref():
			w.wantedElsewhere = true
		}
	}
}

func (r *Reconciler) observeDevice(ctx context.Context, w *world) error {
	ref, namespace := w.ref(), w.attachment.Namespace
	switch ref.Kind {
	case v1alpha2.ClusterImageDevice:
		o := &v1alpha2.ClusterVirtualImage{}
		found, err := r.get(ctx, "", ref.Name, o)
		if found {
			w.image = &image{phase: o.Status.Phase, deleting: o.DeletionTimestamp != nil, stored: o.Status.Target.RegistryURL != ""}
		}
		return err
	case v1alpha2.ImageDevice:
		o := &v1alpha2.VirtualImage{}
		found, err := r.get(ctx, namespace, ref.Name, o)
		if found {
			w.image = &image{phase: o.Status.Phase, deleting: o.DeletionTimestamp != nil, stored: o.Status.Target.RegistryURL != ""}
		}
		return err
	case v1alpha2.DiskDevice:
	}
	d := &v1alpha2.VirtualDisk{}
	found, err := r.get(ctx, namespace, ref.Name, d)
	if err != nil || !found {
		return err
	}
	w.disk = d
	name := d.Status.Target.PersistentVolumeClaimName
	if name == "" {
		return nil
	}
	claim := &corev1.PersistentVolumeClaim{}
	if found, err = r.get(ctx, namespace, name, claim); found {
		w.claim = claim
	}
	return err
}
