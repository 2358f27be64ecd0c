package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/yaml"

	"orlop.dev/orlop/internal/testkit"
)

// crds reads the generated CRDs.
func crds(t *testing.T) []apiextensionsv1.CustomResourceDefinition {
	t.Helper()
	root, err := testkit.Root()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(root, "config", "crd", "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("find CRDs: %v", err)
	}
	list := make([]apiextensionsv1.CustomResourceDefinition, len(files))
	for i, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := yaml.UnmarshalStrict(data, &list[i]); err != nil {
			t.Fatal(err)
		}
	}
	return list
}

// TestEveryFieldIsExplained keeps `kubectl explain` readable.
func TestEveryFieldIsExplained(t *testing.T) {
	for _, crd := range crds(t) {
		for _, version := range crd.Spec.Versions {
			root := version.Schema.OpenAPIV3Schema
			if strings.TrimSpace(root.Description) == "" {
				t.Errorf("%s: the kind has no description", crd.Name)
			}
			for _, part := range []string{"spec", "status"} {
				if schema, ok := root.Properties[part]; ok {
					explained(t, crd.Spec.Names.Kind+"."+part, schema)
				}
			}
		}
	}
}

func explained(t *testing.T, path string, schema apiextensionsv1.JSONSchemaProps) {
	t.Helper()
	if strings.TrimSpace(schema.Description) == "" {
		t.Errorf("%s has no description", path)
	}
	for name, property := range schema.Properties {
		explained(t, path+"."+name, property)
	}
	if schema.Items != nil && schema.Items.Schema != nil {
		for name, property := range schema.Items.Schema.Properties {
			explained(t, path+"[]."+name, property)
		}
	}
}

// TestNamesAndColumns holds what scripts and fingers are used to.
func TestNamesAndColumns(t *testing.T) {
	var lines []string
	for _, crd := range crds(t) {
		names := crd.Spec.Names
		for _, version := range crd.Spec.Versions {
			lines = append(lines, fmt.Sprintf("%s/%s %s %s short=%s categories=%s status=%v", crd.Spec.Group, version.Name, names.Plural, crd.Spec.Scope,
				strings.Join(names.ShortNames, ","), strings.Join(names.Categories, ","), version.Subresources != nil && version.Subresources.Status != nil))
			labels := make([]string, 0, len(crd.Labels))
			for key, value := range crd.Labels {
				labels = append(labels, key+"="+value)
			}
			sort.Strings(labels)
			lines = append(lines, "  labels "+strings.Join(labels, " "))
			for _, column := range version.AdditionalPrinterColumns {
				lines = append(lines, fmt.Sprintf("  %s %s %s %d", column.Name, column.Type, column.JSONPath, column.Priority))
			}
		}
	}
	got := strings.Join(lines, "\n") + "\n"
	golden := filepath.Join("testdata", "definitions.txt")
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("definitions changed (UPDATE_GOLDEN=1 writes them anew):\n%s", diff)
	}
}
