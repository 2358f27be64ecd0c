package admission

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/storageclass"
)

// Disk validates VirtualDisks. Reader reads StorageClasses and images.
type Disk struct{ Reader client.Reader }

var _ admission.Validator[*v1alpha2.VirtualDisk] = (*Disk)(nil)

// ValidateCreate refuses what can never become a disk, and warns of what is
// probably a mistake.
func (v *Disk) ValidateCreate(ctx context.Context, disk *v1alpha2.VirtualDisk) (admission.Warnings, error) {
	if err := firstError(
		plainName(disk.Name),
		diskSource(disk.Spec.DataSource),
		diskSize(disk),
		diskModes(disk, nil),
	); err != nil {
		return nil, err
	}
	if err := v.class(ctx, disk.Spec.PersistentVolumeClaim.StorageClassName); err != nil {
		return nil, err
	}
	return v.againstSource(ctx, disk)
}

// ValidateUpdate refuses changes that the disk's phase does not allow.
func (v *Disk) ValidateUpdate(ctx context.Context, old, disk *v1alpha2.VirtualDisk) (admission.Warnings, error) {
	same := equality.Semantic.DeepEqual(old.Spec, disk.Spec)
	if disk.DeletionTimestamp != nil {
		if !same {
			return nil, fmt.Errorf("the disk is being deleted: its spec can not be changed any more")
		}
		return nil, nil
	}
	if err := diskModes(disk, old); err != nil || same {
		return nil, err
	}
	if err := firstError(
		diskSourceChange(old, disk),
		diskSizeChange(old, disk),
	); err != nil {
		return nil, err
	}
	if err := v.classChange(ctx, old, disk); err != nil {
		return nil, err
	}
	warnings, err := v.againstSource(ctx, disk)
	if plainName(disk.Name) != nil {
		warnings = append(warnings, plainName(disk.Name).Error())
	}
	return warnings, err
}

// ValidateDelete allows everything: what still uses the disk delays its deletion.
func (v *Disk) ValidateDelete(context.Context, *v1alpha2.VirtualDisk) (admission.Warnings, error) {
	return nil, nil
}

// plainName keeps dots out of names: they end up in names that allow none.
func plainName(name string) error {
	if strings.Contains(name, ".") {
		return fmt.Errorf("the name %q contains a dot: use letters, digits and dashes only", name)
	}
	return nil
}

func diskSource(source *v1alpha2.VirtualDiskDataSource) error {
	switch {
	case source == nil:
		return nil
	case source.Type != v1alpha2.DataSourceObjectRef:
		return fmt.Errorf("spec.dataSource.type %s is not supported for disks yet: make a VirtualImage from it and refer to that", source.Type)
	case source.ObjectRef != nil && source.ObjectRef.Kind == v1alpha2.VirtualDiskFromVirtualDiskSnapshot:
		return fmt.Errorf("spec.dataSource.objectRef.kind %s is not supported yet", source.ObjectRef.Kind)
	}
	return nil
}

func diskSize(disk *v1alpha2.VirtualDisk) error {
	size := disk.Spec.PersistentVolumeClaim.Size
	switch {
	case size != nil && size.Sign() <= 0:
		return fmt.Errorf("spec.persistentVolumeClaim.size must be greater than zero")
	case size == nil && disk.Spec.DataSource == nil:
		return fmt.Errorf("spec.persistentVolumeClaim.size is required for a disk without data source")
	}
	return nil
}

// diskModes refuses volume modes that are not built yet; old is nil on creation.
func diskModes(disk, old *v1alpha2.VirtualDisk) error {
	mode := disk.Annotations[storageclass.VolumeModeAnnotation]
	if mode != "Block" || old != nil && old.Annotations[storageclass.VolumeModeAnnotation] == mode {
		return nil
	}
	return fmt.Errorf("annotation %s: %s is not supported yet", storageclass.VolumeModeAnnotation, mode)
}

// provisioned reports that the disk holds data, or held it once.
func provisioned(disk *v1alpha2.VirtualDisk) bool {
	switch disk.Status.Phase {
	case v1alpha2.DiskReady, v1alpha2.DiskResizing, v1alpha2.DiskMigrating, v1alpha2.DiskExporting, v1alpha2.DiskPVCLost:
		return true
	default:
		return false
	}
}

func diskSourceChange(old, disk *v1alpha2.VirtualDisk) error {
	if equality.Semantic.DeepEqual(old.Spec.DataSource, disk.Spec.DataSource) {
		return nil
	}
	if provisioned(old) {
		return fmt.Errorf("spec.dataSource can not be changed in phase %s", old.Status.Phase)
	}
	return diskSource(disk.Spec.DataSource)
}

func diskSizeChange(old, disk *v1alpha2.VirtualDisk) error {
	before, after := old.Spec.PersistentVolumeClaim.Size, disk.Spec.PersistentVolumeClaim.Size
	if equality.Semantic.DeepEqual(before, after) {
		return nil
	}
	if !provisioned(old) {
		return diskSize(disk)
	}
	if after == nil {
		return fmt.Errorf("spec.persistentVolumeClaim.size can not be removed in phase %s", old.Status.Phase)
	}
	present := before
	if present == nil {
		// The size came from the image: what was made counts.
		capacity, err := resource.ParseQuantity(old.Status.Capacity)
		if err != nil {
			return fmt.Errorf("spec.persistentVolumeClaim.size can not be set in phase %s: the present size is not known", old.Status.Phase)
		}
		present = &capacity
	}
	switch {
	case after.Cmp(*present) == 0:
		return nil
	case after.Cmp(*present) < 0:
		return fmt.Errorf("spec.persistentVolumeClaim.size can not shrink from %s to %s: a disk only grows", present, after)
	case old.Status.Phase != v1alpha2.DiskReady && old.Status.Phase != v1alpha2.DiskResizing:
		return fmt.Errorf("spec.persistentVolumeClaim.size can not be changed in phase %s", old.Status.Phase)
	}
	return nil
}

// class refuses a StorageClass that is named and cannot be used.
func (v *Disk) class(ctx context.Context, name *string) error {
	if name == nil || *name == "" {
		return nil
	}
	class := &storagev1.StorageClass{}
	err := v.Reader.Get(ctx, types.NamespacedName{Name: *name}, class)
	if apierrors.IsNotFound(err) {
		class = nil
	} else if err != nil {
		return fmt.Errorf("get StorageClass %s: %w", *name, err)
	}
	// The list of allowed classes is a setting that may change: it is a condition.
	return storageclass.Check(*name, class, true, storageclass.Rules{})
}

func (v *Disk) classChange(ctx context.Context, old, disk *v1alpha2.VirtualDisk) error {
	before, after := old.Spec.PersistentVolumeClaim.StorageClassName, disk.Spec.PersistentVolumeClaim.StorageClassName
	if equality.Semantic.DeepEqual(before, after) {
		return nil
	}
	if name := old.Status.StorageClassName; name != "" && after != nil && *after == name {
		return nil // naming what is in effect moves nothing
	}
	switch old.Status.Phase {
	case "", v1alpha2.DiskPending, v1alpha2.DiskFailed:
		return v.class(ctx, after)
	default:
		return fmt.Errorf("spec.persistentVolumeClaim.storageClassName can not be changed in phase %s: moving a disk to another StorageClass is not supported yet", old.Status.Phase)
	}
}

// againstSource warns of a size or a source that will not do; both can still be put
// right, so neither is refused.
func (v *Disk) againstSource(ctx context.Context, disk *v1alpha2.VirtualDisk) (admission.Warnings, error) {
	source := disk.Spec.DataSource
	if source == nil || source.ObjectRef == nil {
		return nil, nil
	}
	unpacked, cdrom, err := v.image(ctx, disk.Namespace, source.ObjectRef)
	if err != nil {
		return nil, err
	}
	var warnings admission.Warnings
	if cdrom {
		warnings = append(warnings, fmt.Sprintf("%s %s is an ISO image: a disk made from it is probably not what you want, attach the image itself", source.ObjectRef.Kind, source.ObjectRef.Name))
	}
	if size := disk.Spec.PersistentVolumeClaim.Size; size != nil && size.Value() < unpacked {
		warnings = append(warnings, fmt.Sprintf("spec.persistentVolumeClaim.size %s is smaller than %s %s, which needs %s", size,
			source.ObjectRef.Kind, source.ObjectRef.Name, resource.NewQuantity(unpacked, resource.BinarySI)))
	}
	return warnings, nil
}

// image reads the virtual size of an image in bytes (0 while unknown), and whether it is an ISO.
func (v *Disk) image(ctx context.Context, namespace string, ref *v1alpha2.VirtualDiskObjectRef) (int64, bool, error) {
	var size string
	var cdrom bool
	var err error
	switch ref.Kind {
	case v1alpha2.VirtualDiskFromVirtualImage:
		image := &v1alpha2.VirtualImage{}
		err = v.Reader.Get(ctx, types.NamespacedName{Namespace: namespace, Name: ref.Name}, image)
		size, cdrom = image.Status.Size.UnpackedBytes, image.Status.CDROM
	case v1alpha2.VirtualDiskFromClusterVirtualImage:
		image := &v1alpha2.ClusterVirtualImage{}
		err = v.Reader.Get(ctx, types.NamespacedName{Name: ref.Name}, image)
		size, cdrom = image.Status.Size.UnpackedBytes, image.Status.CDROM
	case v1alpha2.VirtualDiskFromVirtualDiskSnapshot:
		return 0, false, nil
	}
	if apierrors.IsNotFound(err) || err == nil && size == "" {
		return 0, false, nil // a disk may come before its image
	}
	if err != nil {
		return 0, false, fmt.Errorf("get %s %s: %w", ref.Kind, ref.Name, err)
	}
	bytes, err := strconv.ParseInt(size, 10, 64)
	if err != nil {
		return 0, cdrom, nil // not ours to judge here
	}
	return bytes, cdrom, nil
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
