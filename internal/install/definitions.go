package install

import (
	"context"
	"fmt"
	"io/fs"
	"path"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"orlop.dev/orlop/config"
)

// moduleConfigDefinition belongs to Deckhouse where there is one.
const moduleConfigDefinition = "moduleconfigs.deckhouse.io"

// definitions returns our CRDs as they are embedded.
func definitions() ([]*apiextensionsv1.CustomResourceDefinition, error) {
	files, err := fs.Glob(config.CRDs, "crd/*.yaml")
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("bug: no CRDs are embedded: %w", err)
	}
	var list []*apiextensionsv1.CustomResourceDefinition
	for _, file := range files {
		data, err := config.CRDs.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", file, err)
		}
		crd := &apiextensionsv1.CustomResourceDefinition{}
		if err := yaml.Unmarshal(data, crd); err != nil {
			return nil, fmt.Errorf("read %s: %w", path.Base(file), err)
		}
		list = append(list, crd)
	}
	return list, nil
}

// installDefinitions applies our CRDs and waits until they are served.
func (i *installer) installDefinitions(ctx context.Context) error {
	crds, err := definitions()
	if err != nil {
		return err
	}
	done := i.progress.step("resource definitions")
	for _, crd := range crds {
		if crd.Name == moduleConfigDefinition {
			foreign, err := i.belongsToOthers(ctx, crd.Name)
			if err != nil {
				return err
			}
			if foreign {
				continue
			}
		}
		if err := apply(ctx, i.client, crd); err != nil {
			return fmt.Errorf("apply CRD %s: %w", crd.Name, err)
		}
	}
	done("%d applied", len(crds))
	return i.progress.wait(ctx, "resource definitions", func() (string, error) {
		for _, crd := range crds {
			served, err := i.served(ctx, crd.Name)
			if err != nil || !served {
				return crd.Name, err
			}
		}
		return "", nil
	})
}

// belongsToOthers says whether a CRD exists that we did not apply.
func (i *installer) belongsToOthers(ctx context.Context, name string) (bool, error) {
	present := &apiextensionsv1.CustomResourceDefinition{}
	err := i.client.Get(ctx, client.ObjectKey{Name: name}, present)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("get CRD %s: %w", name, err)
	}
	for _, field := range present.ManagedFields {
		if field.Manager == fieldOwner {
			return false, nil
		}
	}
	return true, nil
}

// served says whether a CRD's kind can be used.
func (i *installer) served(ctx context.Context, name string) (bool, error) {
	crd := &apiextensionsv1.CustomResourceDefinition{}
	if err := i.client.Get(ctx, client.ObjectKey{Name: name}, crd); err != nil {
		return false, fmt.Errorf("get CRD %s: %w", name, err)
	}
	for _, condition := range crd.Status.Conditions {
		switch {
		case condition.Type == apiextensionsv1.NamesAccepted && condition.Status == apiextensionsv1.ConditionFalse:
			return false, fmt.Errorf("names of CRD %s are taken: %s", name, condition.Message)
		case condition.Type == apiextensionsv1.Established && condition.Status == apiextensionsv1.ConditionTrue:
			return true, nil
		}
	}
	return false, nil
}

// apply brings an object to the cluster by server-side apply. Zero values that the
// Go types would write as facts, such as an empty status, are left out.
func apply(ctx context.Context, c client.Client, object client.Object) error {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(object)
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	delete(content, "status")
	unstructured.RemoveNestedField(content, "metadata", "creationTimestamp")
	return c.Apply(ctx, client.ApplyConfigurationFromUnstructured(&unstructured.Unstructured{Object: content}), client.FieldOwner(fieldOwner), client.ForceOwnership)
}
