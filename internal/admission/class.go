package admission

import (
	"context"
	"strconv"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/intstr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/settings"
)

type class struct{ client client.Reader }

func classes(m ctrl.Manager, _ settings.Platform) error {
	return ctrl.NewWebhookManagedBy(m, &v1alpha2.VirtualMachineClass{}).WithValidator(&class{client: m.GetClient()}).Complete()
}

// ValidateCreate checks a new class.
func (w *class) ValidateCreate(ctx context.Context, c *v1alpha2.VirtualMachineClass) (admission.Warnings, error) {
	var p problems
	if c.Spec.CPU.Type == v1alpha2.CPUTypeDiscovery {
		p.add("spec.cpu.type: Discovery is not supported in this release")
	}
	policies(&p, c.Spec.SizingPolicies)
	if err := w.onlyDefault(ctx, &p, c); err != nil {
		return nil, err
	}
	return nil, p.err()
}

// ValidateUpdate checks a changed class.
func (w *class) ValidateUpdate(ctx context.Context, before, c *v1alpha2.VirtualMachineClass) (admission.Warnings, error) {
	if deleting(c) {
		return nil, nil
	}
	var p problems
	if !equality.Semantic.DeepEqual(before.Spec.SizingPolicies, c.Spec.SizingPolicies) {
		policies(&p, c.Spec.SizingPolicies)
	}
	if before.Annotations[v1alpha2.AnnotationDefaultClass] != c.Annotations[v1alpha2.AnnotationDefaultClass] {
		if err := w.onlyDefault(ctx, &p, c); err != nil {
			return nil, err
		}
	}
	return nil, p.err()
}

// ValidateDelete allows everything: the finalizer waits for the machines.
func (w *class) ValidateDelete(context.Context, *v1alpha2.VirtualMachineClass) (admission.Warnings, error) {
	return nil, nil
}

func policies(p *problems, list []v1alpha2.SizingPolicy) {
	for i, s := range list {
		if s.Cores == nil {
			p.add("spec.sizingPolicies[%d].cores: is required", i)
			continue
		}
		for j := range i {
			other := list[j].Cores
			if other != nil && s.Cores.Min <= other.Max && other.Min <= s.Cores.Max {
				p.add("spec.sizingPolicies[%d]: cores %d–%d overlap with %d–%d of policy %d", i, s.Cores.Min, s.Cores.Max, other.Min, other.Max, j)
			}
		}
		defaultShare(p, i, s)
	}
}

func defaultShare(p *problems, i int, s v1alpha2.SizingPolicy) {
	d := s.DefaultCoreFraction
	switch {
	case d == nil:
		return
	case d.Type == intstr.String && d.StrVal == v1alpha2.CoreFractionAuto:
		p.add("spec.sizingPolicies[%d].defaultCoreFraction: Auto is not supported in this release", i)
		return
	case d.Type == intstr.String:
		p.add("spec.sizingPolicies[%d].defaultCoreFraction: %q is not a number from 1 to 100", i, d.StrVal)
		return
	case len(s.CoreFractions) == 0:
		return
	}
	for _, f := range s.CoreFractions {
		if int(f) == d.IntValue() {
			return
		}
	}
	p.add("spec.sizingPolicies[%d].defaultCoreFraction: %s is not among coreFractions", i, strconv.Itoa(d.IntValue()))
}

// onlyDefault keeps the default class unique, since machines without a class could
// not be created otherwise.
func (w *class) onlyDefault(ctx context.Context, p *problems, c *v1alpha2.VirtualMachineClass) error {
	value, marked := c.Annotations[v1alpha2.AnnotationDefaultClass]
	if !marked {
		return nil
	}
	if value != "true" {
		p.add("metadata.annotations: the value of %s can only be \"true\"", v1alpha2.AnnotationDefaultClass)
		return nil
	}
	list := &v1alpha2.VirtualMachineClassList{}
	if err := w.client.List(ctx, list); err != nil {
		return err
	}
	for i := range list.Items {
		if o := &list.Items[i]; o.Name != c.Name && o.Annotations[v1alpha2.AnnotationDefaultClass] == "true" {
			p.add("VirtualMachineClass %s is the default already", o.Name)
		}
	}
	return nil
}
