package cluster

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"text/template"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"orlop.dev/orlop/internal/version"
)

// manifestFiles are the objects every cluster has, applied in the order of names.
//
//go:embed manifests/*.yaml
var manifestFiles embed.FS

// fieldOwner is the name under which the cluster applies objects.
const fieldOwner = client.FieldOwner("orlop-cluster")

// manifestData is what manifests may refer to.
type manifestData struct {
	Version       string
	ClusterDNS    string
	ClusterDomain string

	imageRef func(name string) string
}

// Image is the reference of one of our images.
func (d manifestData) Image(name string) string { return d.imageRef(name) }

// manifests renders all objects in the order in which they are applied.
func manifests(data manifestData) ([]*unstructured.Unstructured, error) {
	names, err := fs.Glob(manifestFiles, "manifests/*.yaml")
	if err != nil {
		return nil, err
	}
	var objects []*unstructured.Unstructured
	for _, name := range names {
		source, err := manifestFiles.ReadFile(name)
		if err != nil {
			return nil, err
		}
		parsed, err := template.New(filepath.Base(name)).Option("missingkey=error").Parse(string(source))
		if err != nil {
			return nil, fmt.Errorf("parse %s: %w", name, err)
		}
		var text bytes.Buffer
		if err := parsed.Execute(&text, data); err != nil {
			return nil, fmt.Errorf("render %s: %w", name, err)
		}
		decoder := yaml.NewYAMLOrJSONDecoder(&text, 4096)
		for {
			object := &unstructured.Unstructured{}
			err := decoder.Decode(object)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return nil, fmt.Errorf("decode %s: %w", name, err)
			}
			if len(object.Object) > 0 {
				objects = append(objects, object)
			}
		}
	}
	// Whatever their files are called, definitions come before objects of their kinds.
	slices.SortStableFunc(objects, func(a, b *unstructured.Unstructured) int {
		return rank(a) - rank(b)
	})
	return objects, nil
}

func rank(object *unstructured.Unstructured) int {
	switch object.GetKind() {
	case "CustomResourceDefinition", "Namespace", "PriorityClass":
		return 0
	default:
		return 1
	}
}

// applyManifests brings the cluster's own objects up to date.
func (c *Cluster) applyManifests(ctx context.Context, kube client.Client) (int, error) {
	objects, err := manifests(manifestData{Version: version.Version(), ClusterDNS: c.state.Addresses.DNS.String(), ClusterDomain: clusterDomain, imageRef: c.imageRef})
	if err != nil {
		return 0, err
	}
	for _, object := range objects {
		// A kind whose definition was applied a moment ago is not served at once.
		err := poll(ctx, 30*time.Second, func(ctx context.Context) error {
			return kube.Apply(ctx, client.ApplyConfigurationFromUnstructured(object.DeepCopy()), fieldOwner, client.ForceOwnership)
		}, meta.IsNoMatchError)
		if err != nil {
			return 0, fmt.Errorf("apply %s %s: %w", object.GetKind(), object.GetName(), err)
		}
	}
	return len(objects), nil
}
