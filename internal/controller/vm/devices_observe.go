package vm

import (
	"context"
	"fmt"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/plan"
	"orlop.dev/orlop/internal/policy"
)

// Names of the field indexes about devices.
const (
	machinesByDevice     = "vm.device"
	attachmentsByMachine = "vm.attachment"
	attachmentsByDevice  = "vm.attachedDevice"
)

// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=clustervirtualimages,verbs=get;list;watch
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualimages,verbs=get;list;watch
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualmachineblockdeviceattachments,verbs=get;list;watch

// observeAttachments finds the devices that accepted attachments want.
func (r *Reconciler) observeAttachments(ctx context.Context, w *world) error {
	list := &v1alpha2.VirtualMachineBlockDeviceAttachmentList{}
	err := r.Client.List(ctx, list, client.InNamespace(w.vm.Namespace), client.MatchingFields{attachmentsByMachine: w.vm.Name})
	if err != nil {
		return fmt.Errorf("list attachments of machine %s: %w", w.vm.Name, err)
	}
	for _, a := range policy.JudgeAttachments(w.vm, list.Items) {
		if a.Verdict != policy.AttachmentAccepted {
			continue
		}
		ref := a.Spec.BlockDeviceRef
		d, err := r.observeDisk(ctx, w, v1alpha2.BlockDeviceSpecRef{Kind: ref.Kind, Name: ref.Name})
		if err != nil {
			return err
		}
		d.attachment = a.Name
		w.attached = append(w.attached, d)
	}
	return r.observePodOwners(ctx, w)
}

// observePodOwners finds the processes that attachment pods belong to, past the cache
// where they are not known: a cache that lags must not make one look dead.
func (r *Reconciler) observePodOwners(ctx context.Context, w *world) error {
	w.podOwners = map[types.UID]*v1alpha1.Instance{}
	if w.instance != nil {
		w.podOwners[w.instance.UID] = w.instance
	}
	for _, i := range w.strayInstances {
		w.podOwners[i.UID] = i
	}
	for _, p := range w.attachmentPods {
		owner := metav1.GetControllerOf(p)
		if owner == nil || w.podOwners[owner.UID] != nil {
			continue
		}
		i := &v1alpha1.Instance{}
		found, err := get(ctx, r.Reader, p.Namespace, owner.Name, i)
		if err != nil {
			return err
		}
		if found && i.UID == owner.UID {
			w.podOwners[i.UID] = i
		}
	}
	return nil
}

func ownerOf(p *corev1.Pod) types.UID {
	if owner := metav1.GetControllerOf(p); owner != nil {
		return owner.UID
	}
	return ""
}

// observeImage reads what a machine needs to know of an image of either kind.
func (r *Reconciler) observeImage(ctx context.Context, w *world, ref v1alpha2.BlockDeviceSpecRef) (*image, error) {
	if ref.Kind == v1alpha2.ClusterImageDevice {
		o := &v1alpha2.ClusterVirtualImage{}
		if found, err := get(ctx, r.Client, "", ref.Name, o); err != nil || !found {
			return nil, err
		}
		s := o.Status
		return &image{uid: o.UID, phase: s.Phase, deleting: o.DeletionTimestamp != nil, cdrom: s.CDROM, reference: s.Target.RegistryURL,
			size: bytes(s.Size.UnpackedBytes)}, nil
	}
	o := &v1alpha2.VirtualImage{}
	if found, err := get(ctx, r.Client, w.vm.Namespace, ref.Name, o); err != nil || !found {
		return nil, err
	}
	s := o.Status
	return &image{uid: o.UID, phase: s.Phase, deleting: o.DeletionTimestamp != nil, cdrom: s.CDROM, reference: s.Target.RegistryURL,
		size: bytes(s.Size.UnpackedBytes)}, nil
}

func bytes(text string) int64 {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// indexDevices makes the field indexes about devices.
func indexDevices(ctx context.Context, indexer client.FieldIndexer) error {
	machine := func(o client.Object) []string {
		var keys []string
		for _, ref := range o.(*v1alpha2.VirtualMachine).Spec.BlockDeviceRefs {
			keys = append(keys, deviceKey(ref.Kind, ref.Name))
		}
		return keys
	}
	if err := indexer.IndexField(ctx, &v1alpha2.VirtualMachine{}, machinesByDevice, machine); err != nil {
		return err
	}
	attachment := &v1alpha2.VirtualMachineBlockDeviceAttachment{}
	err := indexer.IndexField(ctx, attachment, attachmentsByMachine, func(o client.Object) []string {
		return some(o.(*v1alpha2.VirtualMachineBlockDeviceAttachment).Spec.VirtualMachineName)
	})
	if err != nil {
		return err
	}
	return indexer.IndexField(ctx, attachment, attachmentsByDevice, func(o client.Object) []string {
		ref := o.(*v1alpha2.VirtualMachineBlockDeviceAttachment).Spec.BlockDeviceRef
		return []string{deviceKey(ref.Kind, ref.Name)}
	})
}

func deviceKey(kind v1alpha2.BlockDeviceKind, name string) string { return string(kind) + "/" + name }

// ofDevice wakes the machines that list a disk or image or are attached one.
func (r *Reconciler) ofDevice(kind v1alpha2.BlockDeviceKind) func(context.Context, client.Object) []reconcile.Request {
	return func(ctx context.Context, o client.Object) []reconcile.Request {
		return r.devicesUsers(ctx, kind, o.GetNamespace(), o.GetName())
	}
}

func (r *Reconciler) devicesUsers(ctx context.Context, kind v1alpha2.BlockDeviceKind, namespace, name string) []reconcile.Request {
	key := deviceKey(kind, name)
	requests := r.machines(ctx, client.InNamespace(namespace), client.MatchingFields{machinesByDevice: key})
	list := &v1alpha2.VirtualMachineBlockDeviceAttachmentList{}
	if r.Client.List(ctx, list, client.InNamespace(namespace), client.MatchingFields{attachmentsByDevice: key}) != nil {
		return requests
	}
	for i := range list.Items {
		requests = append(requests, request(list.Items[i].Namespace, list.Items[i].Spec.VirtualMachineName)...)
	}
	return requests
}

func ofAttachment(_ context.Context, o client.Object) []reconcile.Request {
	return request(o.GetNamespace(), o.(*v1alpha2.VirtualMachineBlockDeviceAttachment).Spec.VirtualMachineName)
}

// ofAttachmentPod goes by the annotation: no label of such a pod names the machine.
func ofAttachmentPod(o client.Object) []reconcile.Request {
	name := o.GetAnnotations()[plan.AttachmentMachineAnnotation]
	if name == "" || o.GetLabels()[v1alpha2.LabelLauncher] != v1alpha2.HotplugValue {
		return nil
	}
	return request(o.GetNamespace(), name)
}
