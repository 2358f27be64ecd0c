package admission

import (
	ctrl "sigs.k8s.io/controller-runtime"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/settings"
)

func disks(m ctrl.Manager, _ settings.Platform) error {
	return ctrl.NewWebhookManagedBy(m, &v1alpha2.VirtualDisk{}).WithValidator(&Disk{Reader: m.GetClient()}).Complete()
}

func images(m ctrl.Manager, _ settings.Platform) error {
	return ctrl.NewWebhookManagedBy(m, &v1alpha2.VirtualImage{}).WithValidator(&Image{}).Complete()
}

func clusterImages(m ctrl.Manager, _ settings.Platform) error {
	return ctrl.NewWebhookManagedBy(m, &v1alpha2.ClusterVirtualImage{}).WithValidator(&ClusterImage{}).Complete()
}
