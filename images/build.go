package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Image is one container image: files of a Debian root below, ours on top.
type Image struct {
	Name       string
	Pick       Pick     // empty for none
	Files      []string // built programs, each put into /usr/bin
	Entrypoint []string
	User       string // uid:gid
}

// accounts names the users of catalog.go for programs that look themselves up.
const accounts = `root:x:0:0:root:/:/usr/sbin/nologin
qemu:x:107:107:qemu:/:/usr/sbin/nologin
nonroot:x:65532:65532:nonroot:/:/usr/sbin/nologin
`

const groups = "root:x:0:\nqemu:x:107:\nnonroot:x:65532:\n"

// buildAll writes the layouts of the named images, or of all. An image whose
// program has not been built is left out with a notice.
func buildAll(ctx context.Context, s settings, cache Cache, names []string) error {
	for _, name := range names {
		if !slices.ContainsFunc(catalog, func(i Image) bool { return i.Name == name }) {
			return fmt.Errorf("no image %q in the catalog", name)
		}
	}
	for _, image := range catalog {
		if len(names) > 0 && !slices.Contains(names, image.Name) {
			continue
		}
		err := image.build(ctx, s, cache)
		if missing := (*fs.PathError)(nil); errors.As(err, &missing) && errors.Is(err, fs.ErrNotExist) && slices.Contains(image.Files, missing.Path) {
			fmt.Fprintf(os.Stderr, "images: %s left out: %s has not been built\n", image.Name, missing.Path)
			continue
		}
		if err != nil {
			return fmt.Errorf("build image %s: %w", image.Name, err)
		}
	}
	return nil
}

// build writes the image's layout unless the one that is there is the same.
func (i Image) build(ctx context.Context, s settings, cache Cache) error {
	layers, err := i.layers(ctx, cache)
	if err != nil {
		return err
	}
	image, err := i.assemble(layers)
	if err != nil {
		return err
	}
	reference := s.registry + "/" + i.Name + ":" + s.version
	dir := filepath.Join(s.out, i.Name)
	digest, err := image.Digest()
	if err != nil {
		return err
	}
	if isCurrent(dir, reference, digest) {
		return nil
	}
	if err := writeLayout(dir, reference, image, layers); err != nil {
		return err
	}
	fmt.Printf("%s %s %d MiB\n", reference, digest, totalSize(layers)>>20)
	return nil
}

// layers returns the image's layers, the one that changes most often last.
func (i Image) layers(ctx context.Context, cache Cache) ([]*Layer, error) {
	var layers []*Layer
	key := []string{accounts, groups}
	for _, name := range i.Files {
		sum, err := digestOfFile(name)
		if err != nil {
			return nil, err
		}
		key = append(key, name, sum)
	}
	if len(i.Pick.Paths) > 0 {
		layer, err := i.Pick.layer(ctx, cache)
		if err != nil {
			return nil, err
		}
		layers = append(layers, layer)
	}
	programs, err := cache.layer(digestOf("programs", key), i.writePrograms)
	if err != nil {
		return nil, err
	}
	return append(layers, programs), nil
}

func (i Image) writePrograms(w *layerWriter) error {
	if err := w.directory("/tmp", 0o1777); err != nil {
		return err
	}
	if err := w.text("/etc/passwd", accounts); err != nil {
		return err
	}
	if err := w.text("/etc/group", groups); err != nil {
		return err
	}
	for _, name := range i.Files {
		if err := w.program(name, "/usr/bin/"+filepath.Base(name)); err != nil {
			return err
		}
	}
	return nil
}

func (i Image) assemble(layers []*Layer) (v1.Image, error) {
	image := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	image = mutate.ConfigMediaType(image, types.OCIConfigJSON)
	image, err := mutate.ConfigFile(image, &v1.ConfigFile{
		Architecture: runtime.GOARCH,
		OS:           "linux",
		Created:      v1.Time{Time: time.Unix(epoch, 0).UTC()},
		RootFS:       v1.RootFS{Type: "layers"},
		Config: v1.Config{
			Entrypoint: i.Entrypoint,
			User:       i.User,
			Env:        []string{"PATH=/usr/sbin:/usr/bin"},
			WorkingDir: "/",
		},
	})
	if err != nil {
		return nil, err
	}
	for _, layer := range layers {
		image, err = mutate.Append(image, mutate.Addendum{Layer: layer, MediaType: types.OCILayerZStd})
		if err != nil {
			return nil, err
		}
	}
	return image, nil
}

// Annotations of a layout's index by which container runtimes name what they import.
const (
	referenceAnnotation  = "org.opencontainers.image.ref.name"
	containerdAnnotation = "io.containerd.image.name"
)

func isCurrent(dir, reference string, digest v1.Hash) bool {
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return false
	}
	manifest, err := index.IndexManifest()
	if err != nil || len(manifest.Manifests) != 1 {
		return false
	}
	there := manifest.Manifests[0]
	return there.Digest == digest && there.Annotations[referenceAnnotation] == reference
}

// writeLayout replaces a layout as a whole; a reader sees the old or the new one.
func writeLayout(dir, reference string, image v1.Image, layers []*Layer) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	scratch, err := os.MkdirTemp(filepath.Dir(dir), "."+filepath.Base(dir)+"-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	made := filepath.Join(scratch, "layout")
	path, err := layout.Write(made, empty.Index)
	if err != nil {
		return err
	}
	blobs := filepath.Join(made, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return err
	}
	// A blob that is there already is not written again.
	for _, layer := range layers {
		if err := linkOrCopy(layer.Path, filepath.Join(blobs, layer.Sum.Hex)); err != nil {
			return err
		}
	}
	names := layout.WithAnnotations(map[string]string{referenceAnnotation: reference, containerdAnnotation: reference})
	if err := path.AppendImage(image, names); err != nil {
		return fmt.Errorf("write layout %s: %w", dir, err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Rename(made, dir)
}

func totalSize(layers []*Layer) int64 {
	var total int64
	for _, layer := range layers {
		total += layer.Len
	}
	return total
}

// imageName is the last part of a reference without its tag.
func imageName(reference string) string {
	name, _, _ := strings.Cut(filepath.Base(reference), ":")
	return name
}
