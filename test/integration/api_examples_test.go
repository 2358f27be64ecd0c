package integration

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"

	deckhousev1alpha1 "orlop.dev/orlop/api/deckhouse/v1alpha1"
	"orlop.dev/orlop/internal/settings"
	"orlop.dev/orlop/internal/testkit"
)

// TestExamplesAreAccepted applies every manifest below examples/ as it is.
func TestExamplesAreAccepted(t *testing.T) {
	server := testkit.API(t)
	c := server.Client(t)
	root, err := testkit.Root()
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	err = filepath.WalkDir(filepath.Join(root, "examples"), func(path string, entry os.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".yaml" {
			return err
		}
		found++
		t.Run(filepath.Base(filepath.Dir(path))+"/"+filepath.Base(path), func(t *testing.T) { accepted(t, c, server.Namespace(t), path) })
		return nil
	})
	if err != nil || found == 0 {
		t.Fatalf("walk examples: %d found, %v", found, err)
	}
}

func accepted(t *testing.T, c client.Client, namespace, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(data), 4096)
	for {
		u := &unstructured.Unstructured{}
		if err := decoder.Decode(u); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
		if namespaced, err := c.IsObjectNamespaced(u); err != nil {
			t.Fatal(err)
		} else if namespaced {
			u.SetNamespace(namespace)
		}
		if err := c.Create(t.Context(), u, client.DryRunAll, client.FieldValidation("Strict")); err != nil {
			t.Errorf("%s %s: %v", u.GetKind(), u.GetName(), err)
		}
		if u.GetKind() != "ModuleConfig" {
			continue
		}
		config := &deckhousev1alpha1.ModuleConfig{}
		raw, err := u.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		if err := yaml.Unmarshal(raw, config); err != nil {
			t.Fatal(err)
		}
		if _, err := settings.Parse(config); err != nil {
			t.Error(err)
		}
	}
}
