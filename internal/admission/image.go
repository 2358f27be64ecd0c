package admission

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/api/equality"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"orlop.dev/orlop/api/core/v1alpha2"
)

// Image validates VirtualImages.
type Image struct{}

var _ admission.Validator[*v1alpha2.VirtualImage] = (*Image)(nil)

// ValidateCreate refuses what can never become an image.
func (*Image) ValidateCreate(_ context.Context, image *v1alpha2.VirtualImage) (admission.Warnings, error) {
	return nil, firstError(
		plainName(image.Name),
		imageStorage(image.Spec.Storage),
		imageSource(image.Spec.DataSource.Type, image.Spec.DataSource.HTTP),
	)
}

// ValidateUpdate refuses changes that the image's phase does not allow.
func (*Image) ValidateUpdate(_ context.Context, old, image *v1alpha2.VirtualImage) (admission.Warnings, error) {
	if equality.Semantic.DeepEqual(old.Spec, image.Spec) {
		return nil, nil
	}
	if image.DeletionTimestamp != nil {
		return nil, fmt.Errorf("the image is being deleted: its spec can not be changed any more")
	}
	if imageSettled(old.Status.Phase) {
		return nil, fmt.Errorf("spec can not be changed in phase %s: make another image", old.Status.Phase)
	}
	var changes []error
	if old.Spec.Storage != image.Spec.Storage {
		changes = append(changes, imageStorage(image.Spec.Storage))
	}
	if !equality.Semantic.DeepEqual(old.Spec.DataSource, image.Spec.DataSource) {
		changes = append(changes, imageSource(image.Spec.DataSource.Type, image.Spec.DataSource.HTTP))
	}
	return nil, firstError(changes...)
}

// ValidateDelete allows everything: what still uses the image delays its deletion.
func (*Image) ValidateDelete(context.Context, *v1alpha2.VirtualImage) (admission.Warnings, error) {
	return nil, nil
}

// ClusterImage validates ClusterVirtualImages.
type ClusterImage struct{}

var _ admission.Validator[*v1alpha2.ClusterVirtualImage] = (*ClusterImage)(nil)

// ValidateCreate refuses what can never become an image.
func (*ClusterImage) ValidateCreate(_ context.Context, image *v1alpha2.ClusterVirtualImage) (admission.Warnings, error) {
	return nil, firstError(plainName(image.Name), imageSource(image.Spec.DataSource.Type, image.Spec.DataSource.HTTP))
}

// ValidateUpdate refuses changes that the image's phase does not allow.
func (*ClusterImage) ValidateUpdate(_ context.Context, old, image *v1alpha2.ClusterVirtualImage) (admission.Warnings, error) {
	switch {
	case equality.Semantic.DeepEqual(old.Spec, image.Spec):
		return nil, nil
	case image.DeletionTimestamp != nil:
		return nil, fmt.Errorf("the image is being deleted: its spec can not be changed any more")
	case imageSettled(old.Status.Phase):
		return nil, fmt.Errorf("spec can not be changed in phase %s: make another image", old.Status.Phase)
	}
	return nil, imageSource(image.Spec.DataSource.Type, image.Spec.DataSource.HTTP)
}

// ValidateDelete allows everything: what still uses the image delays its deletion.
func (*ClusterImage) ValidateDelete(context.Context, *v1alpha2.ClusterVirtualImage) (admission.Warnings, error) {
	return nil, nil
}

// imageSettled reports that the image holds data, or held it once.
func imageSettled(p v1alpha2.ImagePhase) bool {
	return p == v1alpha2.ImageReady || p == v1alpha2.ImageLost || p == v1alpha2.ImagePVCLost
}

func imageStorage(s v1alpha2.StorageType) error {
	if s == "" || s == v1alpha2.StorageContainerRegistry {
		return nil
	}
	return fmt.Errorf("spec.storage %s is not supported yet: use %s", s, v1alpha2.StorageContainerRegistry)
}

func imageSource(kind v1alpha2.DataSourceType, http *v1alpha2.DataSourceHTTPSource) error {
	if kind != v1alpha2.DataSourceHTTP || http == nil {
		return fmt.Errorf("spec.dataSource.type %s is not supported yet: use %s", kind, v1alpha2.DataSourceHTTP)
	}
	if c := http.Checksum; c != nil && (c.Streebog256 != "" || c.Streebog512 != "") {
		return fmt.Errorf("spec.dataSource.http.checksum: streebog256 and streebog512 are not supported yet")
	}
	return nil
}
