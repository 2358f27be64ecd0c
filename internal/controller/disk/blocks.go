package disk

import (
	"fmt"

	"k8s.io/apimachinery/pkg/api/resource"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/plan"
	"orlop.dev/orlop/internal/steps"
	"orlop.dev/orlop/internal/storageclass"
)

// block is the first thing that keeps the disk from being made, as the outcome of
// Ready, or nil. What it waits for comes back by a watch.
func (w *world) block() *steps.Outcome {
	if why := w.unsupported(); why != "" {
		return failed(v1alpha2.DiskReasonProvisioningFailedTerminally, "%s", why)
	}
	if err := w.classError(); err != nil {
		return waiting(v1alpha2.DiskReasonStorageClassIsNotReady, "%s", upper(err.Error()))
	}
	if _, err := w.modes(); err != nil {
		return failed(v1alpha2.DiskReasonStorageClassIsNotReady, "%s", upper(err.Error()))
	}
	if w.source != nil && !w.source.ready {
		switch {
		case w.settled():
			return nil // its content is already on its way
		case !w.source.found:
			return waiting(v1alpha2.DiskReasonDatasourceIsNotFound, "%s %s does not exist", w.source.kind, w.source.name)
		}
		return waiting(v1alpha2.DiskReasonDatasourceIsNotReady, "%s %s is not ready", w.source.kind, w.source.name)
	}
	size := w.size()
	switch {
	case size <= 0:
		return failed(v1alpha2.DiskReasonProvisioningFailed, "A blank disk needs a size: set spec.persistentVolumeClaim.size")
	case w.source != nil && size < w.source.size:
		return failed(v1alpha2.DiskReasonProvisioningFailed, "%s", tooSmall(size, w.source))
	}
	return nil
}

// tooSmall names both sizes, and the least that would do.
func tooSmall(size int64, s *source) string {
	return fmt.Sprintf("The size %s is smaller than %s %s, which needs %s: raise spec.persistentVolumeClaim.size",
		quantity(size), s.kind, s.name, quantity(plan.RoundDiskSize(s.size)))
}

// unsupported says what the user asked for that does not exist yet, or "".
func (w *world) unsupported() string {
	source := w.disk.Spec.DataSource
	switch {
	case source == nil:
		return ""
	case source.Type != v1alpha2.DataSourceObjectRef || source.ObjectRef == nil:
		return fmt.Sprintf("Data source type %s is not supported for disks yet: make a VirtualImage from it and refer to that", source.Type)
	case source.ObjectRef.Kind == v1alpha2.VirtualDiskFromVirtualDiskSnapshot:
		return "Disks from a VirtualDiskSnapshot are not supported yet"
	}
	return ""
}

// classError says why the StorageClass in effect cannot be used, or nil.
func (w *world) classError() error {
	named := w.disk.Spec.PersistentVolumeClaim.StorageClassName
	explicit := named != nil && *named != ""
	if err := storageclass.Check(w.className, w.class, explicit, w.rules); err != nil {
		return err
	}
	_, err := storageclass.WaitsForConsumer(w.class, w.disk.Annotations)
	return err
}

func failed(reason v1alpha2.Reason, format string, args ...any) *steps.Outcome {
	o := steps.Failed(reason.String(), format, args...)
	return &o
}

func waiting(reason v1alpha2.Reason, format string, args ...any) *steps.Outcome {
	o := steps.Waiting(reason.String(), format, args...)
	return &o
}

// quantity writes bytes as Kubernetes does: "10Gi".
func quantity(bytes int64) string { return resource.NewQuantity(bytes, resource.BinarySI).String() }
