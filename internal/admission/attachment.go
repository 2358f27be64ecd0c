package admission

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/api/equality"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/settings"
)

type attachment struct{ client client.Reader }

func attachments(m ctrl.Manager, _ settings.Platform) error {
	return ctrl.NewWebhookManagedBy(m, &v1alpha2.VirtualMachineBlockDeviceAttachment{}).WithValidator(&attachment{client: m.GetClient()}).Complete()
}

// ValidateCreate refuses what cannot come true as things are. What may still change
// (a machine or device that does not exist yet) is a condition.
func (w *attachment) ValidateCreate(ctx context.Context, a *v1alpha2.VirtualMachineBlockDeviceAttachment) (admission.Warnings, error) {
	var p problems
	ref := a.Spec.BlockDeviceRef
	if ref.Kind == "" || ref.Name == "" {
		p.add("spec.blockDeviceRef: kind and name are required")
	}
	others, err := attachmentsOf(ctx, w.client, a.Namespace, a.Spec.VirtualMachineName)
	if err != nil {
		return nil, err
	}
	for i := range others {
		if others[i].Spec.BlockDeviceRef == ref && others[i].Name != a.Name {
			p.add("spec.blockDeviceRef: VirtualMachineBlockDeviceAttachment %s attaches %s %s to VirtualMachine %s already",
				others[i].Name, ref.Kind, ref.Name, a.Spec.VirtualMachineName)
		}
	}
	vm := &v1alpha2.VirtualMachine{}
	err = w.client.Get(ctx, client.ObjectKey{Namespace: a.Namespace, Name: a.Spec.VirtualMachineName}, vm)
	if client.IgnoreNotFound(err) != nil {
		return nil, fmt.Errorf("get VirtualMachine %s: %w", a.Spec.VirtualMachineName, err)
	}
	if err != nil {
		return nil, p.err()
	}
	if vm.Spec.OSType == v1alpha2.OSTypeLegacy && !policy.HotPlugs(&vm.Spec) {
		p.add("VirtualMachine %s has osType Legacy without paravirtualization, which takes no devices while it runs", vm.Name)
	}
	if n := len(vm.Spec.BlockDeviceRefs) + len(others) + 1; n > policy.MostDevices {
		p.add("VirtualMachine %s would have %d block devices, attachments included: %d are possible", vm.Name, n, policy.MostDevices)
	}
	if err := reachable(ctx, w.client, &p, vm, ref.Kind, ref.Name); err != nil {
		return nil, err
	}
	return nil, p.err()
}

// ValidateUpdate keeps the spec as it is.
func (w *attachment) ValidateUpdate(_ context.Context, before, a *v1alpha2.VirtualMachineBlockDeviceAttachment) (admission.Warnings, error) {
	if !equality.Semantic.DeepEqual(before.Spec, a.Spec) {
		return nil, fmt.Errorf("spec can not be changed: delete the attachment and make another one")
	}
	return nil, nil
}

// ValidateDelete allows everything: deletion waits until the guest has let go.
func (w *attachment) ValidateDelete(context.Context, *v1alpha2.VirtualMachineBlockDeviceAttachment) (admission.Warnings, error) {
	return nil, nil
}

// attachmentsOf are the attachments of a machine that are not being deleted.
func attachmentsOf(ctx context.Context, reader client.Reader, namespace, machine string) ([]v1alpha2.VirtualMachineBlockDeviceAttachment, error) {
	list := &v1alpha2.VirtualMachineBlockDeviceAttachmentList{}
	if err := reader.List(ctx, list, client.InNamespace(namespace)); err != nil {
		return nil, fmt.Errorf("list attachments: %w", err)
	}
	var found []v1alpha2.VirtualMachineBlockDeviceAttachment
	for i := range list.Items {
		if a := &list.Items[i]; a.Spec.VirtualMachineName == machine && a.DeletionTimestamp == nil {
			found = append(found, *a)
		}
	}
	return found, nil
}
