package admission

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/policy"
)

// +kubebuilder:rbac:groups="",resources=nodes,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=persistentvolumeclaims,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=persistentvolumes,verbs=get;list;watch
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualmachineblockdeviceattachments,verbs=get;list;watch

// devices checks the block devices of a machine against everything beside it: its
// attachments, the images it names, the guest that runs.
func (w *machine) devices(ctx context.Context, p *problems, before, vm *v1alpha2.VirtualMachine) error {
	var was []v1alpha2.BlockDeviceSpecRef
	if before != nil {
		was = before.Spec.BlockDeviceRefs
		if equality.Semantic.DeepEqual(was, vm.Spec.BlockDeviceRefs) {
			return nil
		}
		keepsBootDevice(p, before, vm)
	}
	others, err := attachmentsOf(ctx, w.client, vm.Namespace, vm.Name)
	if err != nil {
		return err
	}
	if n := len(vm.Spec.BlockDeviceRefs) + len(others); n > policy.MostDevices && len(vm.Spec.BlockDeviceRefs) > len(was) {
		p.add("spec.blockDeviceRefs: with its %d attachments the machine would have %d block devices, %d are possible", len(others), n, policy.MostDevices)
	}
	if err := w.firstDevice(ctx, p, vm); err != nil {
		return err
	}
	for i, r := range vm.Spec.BlockDeviceRefs {
		if policy.ListsDevice(was, r.Kind, r.Name) {
			continue
		}
		for j := range others {
			if ref := others[j].Spec.BlockDeviceRef; ref.Kind == r.Kind && ref.Name == r.Name {
				p.add("spec.blockDeviceRefs[%d]: %s %s is attached by VirtualMachineBlockDeviceAttachment %s: delete that first", i, r.Kind, r.Name, others[j].Name)
			}
		}
		if err := reachable(ctx, w.client, p, vm, r.Kind, r.Name); err != nil {
			return err
		}
	}
	return nil
}

// keepsBootDevice refuses to take the disk away that a running guest has booted from.
func keepsBootDevice(p *problems, before, vm *v1alpha2.VirtualMachine) {
	if !policy.HotPlugs(&before.Spec) {
		return // nothing is taken away before the next start
	}
	var boot *v1alpha2.BlockDeviceStatusRef
	for i := range before.Status.BlockDeviceRefs {
		d := &before.Status.BlockDeviceRefs[i]
		if d.Attached && d.BootOrder != nil && (boot == nil || *d.BootOrder < *boot.BootOrder) {
			boot = d
		}
	}
	if boot != nil && policy.ListsDevice(before.Spec.BlockDeviceRefs, boot.Kind, boot.Name) && !policy.ListsDevice(vm.Spec.BlockDeviceRefs, boot.Kind, boot.Name) {
		p.add("spec.blockDeviceRefs: the running guest has booted from %s %s: stop the machine before taking it away", boot.Kind, boot.Name)
	}
}

// firstDevice refuses an image as the device to boot from, unless it is an optical
// disc: nothing could be installed or written there.
func (w *machine) firstDevice(ctx context.Context, p *problems, vm *v1alpha2.VirtualMachine) error {
	if len(vm.Spec.BlockDeviceRefs) == 0 {
		return nil
	}
	first := vm.Spec.BlockDeviceRefs[0]
	var phase v1alpha2.ImagePhase
	var cdrom bool
	var err error
	switch first.Kind {
	case v1alpha2.ImageDevice:
		image := &v1alpha2.VirtualImage{}
		err = w.client.Get(ctx, client.ObjectKey{Namespace: vm.Namespace, Name: first.Name}, image)
		phase, cdrom = image.Status.Phase, image.Status.CDROM
	case v1alpha2.ClusterImageDevice:
		image := &v1alpha2.ClusterVirtualImage{}
		err = w.client.Get(ctx, client.ObjectKey{Name: first.Name}, image)
		phase, cdrom = image.Status.Phase, image.Status.CDROM
	case v1alpha2.DiskDevice:
		return nil
	}
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("get %s %s: %w", first.Kind, first.Name, err)
	}
	if phase == v1alpha2.ImageReady && !cdrom {
		p.add("spec.blockDeviceRefs[0]: %s %s is read-only and no optical disc: put a VirtualDisk made from it first", first.Kind, first.Name)
	}
	return nil
}

// reachable refuses a disk whose volume cannot be brought to the node that the machine
// runs on. What is not known yet is not refused.
func reachable(ctx context.Context, reader client.Reader, p *problems, vm *v1alpha2.VirtualMachine, kind v1alpha2.BlockDeviceKind, name string) error {
	if kind != v1alpha2.DiskDevice || vm.Status.NodeName == "" {
		return nil
	}
	disk, claim, volume, node := &v1alpha2.VirtualDisk{}, &corev1.PersistentVolumeClaim{}, &corev1.PersistentVolume{}, &corev1.Node{}
	if err := reader.Get(ctx, client.ObjectKey{Namespace: vm.Namespace, Name: name}, disk); err != nil {
		return client.IgnoreNotFound(err)
	}
	if err := reader.Get(ctx, client.ObjectKey{Namespace: vm.Namespace, Name: disk.Status.Target.PersistentVolumeClaimName}, claim); err != nil {
		return client.IgnoreNotFound(err)
	}
	if claim.Spec.VolumeName == "" {
		return nil
	}
	if err := reader.Get(ctx, client.ObjectKey{Name: claim.Spec.VolumeName}, volume); err != nil {
		return client.IgnoreNotFound(err)
	}
	if err := reader.Get(ctx, client.ObjectKey{Name: vm.Status.NodeName}, node); err != nil {
		return client.IgnoreNotFound(err)
	}
	if !policy.VolumeReaches(volume, node) {
		p.add("VirtualDisk %s lies on a volume that cannot be used on node %s, where the machine runs", name, node.Name)
	}
	return nil
}
