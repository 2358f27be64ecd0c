package admission

import (
	"context"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/settings"
)

type operation struct{ client client.Reader }

func operations(m ctrl.Manager, _ settings.Platform) error {
	return ctrl.NewWebhookManagedBy(m, &v1alpha2.VirtualMachineOperation{}).WithValidator(&operation{client: m.GetClient()}).Complete()
}

// ValidateCreate refuses what is not built yet, and a second operation on a machine
// unless it may take the place of the first.
func (w *operation) ValidateCreate(ctx context.Context, o *v1alpha2.VirtualMachineOperation) (admission.Warnings, error) {
	var p problems
	switch o.Spec.Type {
	case v1alpha2.OperationStart, v1alpha2.OperationStop, v1alpha2.OperationRestart:
	case v1alpha2.OperationEvict, v1alpha2.OperationMigrate:
		if err := w.migration(ctx, o, &p); err != nil {
			return nil, err
		}
	default:
		p.add("spec.type: %s is not supported in this release", o.Spec.Type)
		return nil, p.err()
	}
	list := &v1alpha2.VirtualMachineOperationList{}
	if err := w.client.List(ctx, list, client.InNamespace(o.Namespace)); err != nil {
		return nil, err
	}
	for i := range list.Items {
		other := &list.Items[i]
		if other.Spec.VirtualMachineName != o.Spec.VirtualMachineName || policy.OperationFinished(other.Status.Phase) || deleting(other) {
			continue
		}
		if !policy.Supersedes(o.Spec, other.Spec) {
			p.add("VirtualMachineOperation %s (%s) of VirtualMachine %s has not finished yet", other.Name, other.Spec.Type, other.Spec.VirtualMachineName)
		}
	}
	return nil, p.err()
}

// migration refuses what can never work: labels no node can have, and machines on
// volumes that one node alone can use.
func (w *operation) migration(ctx context.Context, o *v1alpha2.VirtualMachineOperation, p *problems) error {
	if m := o.Spec.Migrate; m != nil {
		for _, e := range metavalidation.ValidateLabels(m.NodeSelector, field.NewPath("spec", "migrate", "nodeSelector")) {
			p.add("%s", e.Error())
		}
	}
	vm := &v1alpha2.VirtualMachine{}
	err := w.client.Get(ctx, client.ObjectKey{Namespace: o.Namespace, Name: o.Spec.VirtualMachineName}, vm)
	if err != nil {
		return client.IgnoreNotFound(err) // the operation itself will say that there is none
	}
	c := meta.FindStatusCondition(vm.Status.Conditions, v1alpha2.MachineConditionMigratable)
	if c != nil && c.Status == metav1.ConditionFalse && c.Reason == v1alpha2.MachineReasonVirtualMachineDisksNotMigratable.String() {
		p.add("VirtualMachine %s cannot be moved: %s", vm.Name, c.Message)
	}
	return nil
}

// ValidateUpdate allows everything: the schema keeps the spec as it is.
func (w *operation) ValidateUpdate(context.Context, *v1alpha2.VirtualMachineOperation, *v1alpha2.VirtualMachineOperation) (admission.Warnings, error) {
	return nil, nil
}

// ValidateDelete allows everything.
func (w *operation) ValidateDelete(context.Context, *v1alpha2.VirtualMachineOperation) (admission.Warnings, error) {
	return nil, nil
}
