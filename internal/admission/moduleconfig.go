package admission

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"orlop.dev/orlop/api/core/v1alpha2"
	deckhousev1alpha1 "orlop.dev/orlop/api/deckhouse/v1alpha1"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/settings"
)

// moduleConfig checks the module's settings. Those of other modules never come here:
// the webhook configuration leaves them out.
type moduleConfig struct {
	client   client.Reader
	platform settings.Platform
}

func moduleConfigs(m ctrl.Manager, platform settings.Platform) error {
	w := &moduleConfig{client: m.GetClient(), platform: platform}
	return ctrl.NewWebhookManagedBy(m, &deckhousev1alpha1.ModuleConfig{}).WithValidator(w).Complete()
}

// +kubebuilder:rbac:groups="",resources=nodes,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=persistentvolumeclaims,verbs=get;list;watch
// +kubebuilder:rbac:groups=deckhouse.io,resources=moduleconfigs,verbs=get;list;watch
// +kubebuilder:rbac:groups=virtualization.deckhouse.io,resources=virtualmachineipaddressleases,verbs=get;list;watch

// ValidateCreate implements admission.Validator.
func (w *moduleConfig) ValidateCreate(ctx context.Context, config *deckhousev1alpha1.ModuleConfig) (admission.Warnings, error) {
	return nil, w.validate(ctx, nil, config)
}

// ValidateUpdate implements admission.Validator.
func (w *moduleConfig) ValidateUpdate(ctx context.Context, former, config *deckhousev1alpha1.ModuleConfig) (admission.Warnings, error) {
	if deleting(config) {
		return nil, nil
	}
	if err := w.validate(ctx, former, config); err != nil || config.Name != settings.Name {
		return nil, err
	}
	var warnings admission.Warnings
	if paths := settings.Deferred(former, config); len(paths) > 0 {
		warnings = append(warnings, fmt.Sprintf("%s: takes effect with the next `d8 install`", strings.Join(paths, ", ")))
	}
	return warnings, nil
}

// ValidateDelete implements admission.Validator; it is not called.
func (w *moduleConfig) ValidateDelete(context.Context, *deckhousev1alpha1.ModuleConfig) (admission.Warnings, error) {
	return nil, nil
}

func (w *moduleConfig) validate(ctx context.Context, former, config *deckhousev1alpha1.ModuleConfig) error {
	if config.Name != settings.Name {
		return nil
	}
	around, err := w.surroundings(ctx)
	if err != nil {
		return err
	}
	return settings.Validate(former, config, around)
}

// surroundings collects what the settings must fit into.
func (w *moduleConfig) surroundings(ctx context.Context) (settings.Surroundings, error) {
	around := settings.Surroundings{Platform: w.platform}
	var nodes corev1.NodeList
	if err := w.client.List(ctx, &nodes); err != nil {
		return around, fmt.Errorf("list nodes: %w", err)
	}
	for _, node := range nodes.Items {
		for _, cidr := range node.Spec.PodCIDRs {
			if prefix, err := netip.ParsePrefix(cidr); err == nil {
				around.PodCIDRs = append(around.PodCIDRs, prefix)
			}
		}
		for _, address := range node.Status.Addresses {
			if ip, err := netip.ParseAddr(address.Address); err == nil {
				around.NodeAddresses = append(around.NodeAddresses, ip)
			}
		}
	}
	var leases v1alpha2.VirtualMachineIPAddressLeaseList
	if err := w.client.List(ctx, &leases); err != nil {
		return around, fmt.Errorf("list leases: %w", err)
	}
	for _, lease := range leases.Items {
		if address, ok := policy.LeasedAddress(lease.Name); ok {
			around.Leases = append(around.Leases, address)
		}
	}
	err := w.client.Get(ctx, client.ObjectKey{Namespace: w.platform.Namespace, Name: "dvcr"}, &corev1.PersistentVolumeClaim{})
	if err != nil && !apierrors.IsNotFound(err) {
		return around, fmt.Errorf("get claim of the registry: %w", err)
	}
	around.DVCRClaim = err == nil
	return around, nil
}
