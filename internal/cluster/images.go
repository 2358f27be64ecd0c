package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	containerimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"orlop.dev/orlop/internal/version"
)

const (
	// imageNamespace is the part of containerd's store that kubelet sees.
	imageNamespace = "k8s.io"
	// pinnedLabel keeps kubelet from ever removing an image; it could not be pulled again.
	pinnedLabel = "io.cri-containerd.pinned"
	snapshotter = "overlayfs"
	// registryName begins the references of our images; no such registry exists.
	registryName = "orlop.internal/"
)

// findReferences learns the references of our images from the layouts at hand, which
// may be of another build than this program. An image without a layout gets the
// reference it would have.
func (c *Cluster) findReferences() error {
	layouts, err := readLayouts(c.images)
	if err != nil {
		return err
	}
	c.references = map[string]string{}
	for _, image := range layouts {
		c.references[filepath.Base(image.dir)] = image.name
	}
	return nil
}

// imageRef is the reference of one of our images in this cluster.
func (c *Cluster) imageRef(name string) string {
	if reference := c.references[name]; reference != "" {
		return reference
	}
	return registryName + name + ":" + version.Version()
}

// layoutImage is one image of a directory with an OCI layout.
type layoutImage struct {
	dir  string
	name string // the reference it gets
	desc ocispec.Descriptor
}

// readLayouts lists the images in all layouts of a directory, by reference.
func readLayouts(dir string) ([]layoutImage, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	var list []layoutImage
	for _, entry := range entries {
		layout := filepath.Join(dir, entry.Name())
		text, err := os.ReadFile(filepath.Join(layout, ocispec.ImageIndexFile))
		if errors.Is(err, fs.ErrNotExist) {
			continue // being written, or something else
		} else if err != nil {
			return nil, fmt.Errorf("read image layout: %w", err)
		}
		var index ocispec.Index
		if err := json.Unmarshal(text, &index); err != nil {
			return nil, fmt.Errorf("decode index of image layout %s: %w", layout, err)
		}
		for _, desc := range index.Manifests {
			if name := desc.Annotations[ocispec.AnnotationRefName]; name != "" {
				list = append(list, layoutImage{dir: layout, name: name, desc: desc})
			}
		}
	}
	return list, nil
}

// ReaderAt makes a layout a content.Provider.
func (l layoutImage) ReaderAt(_ context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	return local.OpenReader(filepath.Join(l.dir, "blobs", desc.Digest.Algorithm().String(), desc.Digest.Encoded()))
}

// loadImages brings the images of a node up to date with the layouts and returns the
// references of those that were not there.
func loadImages(ctx context.Context, socket string, wanted []layoutImage, progress func(string)) ([]string, error) {
	ctx = namespaces.WithNamespace(ctx, imageNamespace)
	client, err := containerd.New(socket)
	if err != nil {
		return nil, fmt.Errorf("connect to containerd: %w", err)
	}
	defer client.Close()
	var loaded []string
	for _, image := range wanted {
		now, err := client.ImageService().Get(ctx, image.name)
		if err == nil && now.Target.Digest == image.desc.Digest {
			continue
		}
		if err != nil && !errdefs.IsNotFound(err) {
			return loaded, fmt.Errorf("look for image %s: %w", image.name, err)
		}
		progress(image.name)
		if err := loadImage(ctx, client, image); err != nil {
			return loaded, fmt.Errorf("load image %s: %w", image.name, err)
		}
		loaded = append(loaded, image.name)
	}
	return loaded, pruneImages(ctx, client, wanted)
}

// keptBuilds is how many builds of one image stay on a node. The newest is wanted;
// workloads may name an older one until they are upgraded.
const keptBuilds = 3

// pruneImages removes our images of builds long gone. Kubelet would never do it,
// because they are pinned.
func pruneImages(ctx context.Context, client *containerd.Client, wanted []layoutImage) error {
	all, err := client.ImageService().List(ctx)
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	containers, err := client.ContainerService().List(ctx)
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	used := map[string]bool{}
	for _, container := range containers {
		used[container.Image] = true
	}
	for _, image := range wanted {
		used[image.name] = true
	}
	for _, name := range outdated(all, used) {
		if err := client.ImageService().Delete(ctx, name); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("remove image %s: %w", name, err)
		}
	}
	return nil
}

// outdated chooses the images to remove: ours, not in use, older than the newest few
// of the same name.
func outdated(all []containerimages.Image, used map[string]bool) []string {
	all = slices.Clone(all)
	slices.SortFunc(all, func(a, b containerimages.Image) int { return b.CreatedAt.Compare(a.CreatedAt) })
	builds := map[string]int{}
	var names []string
	for _, image := range all {
		name, _, ours := strings.Cut(strings.TrimPrefix(image.Name, registryName), ":")
		if !ours || !strings.HasPrefix(image.Name, registryName) {
			continue
		}
		builds[name]++
		if builds[name] > keptBuilds && !used[image.Name] {
			names = append(names, image.Name)
		}
	}
	return names
}

// loadImage copies the blobs that are missing, names the image and unpacks it.
func loadImage(ctx context.Context, client *containerd.Client, image layoutImage) error {
	// Without a lease the garbage collector may take blobs that nothing refers to yet.
	ctx, release, err := client.WithLease(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = release(ctx) }()
	store := client.ContentStore()
	copyBlob := containerimages.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		reader, err := image.ReaderAt(ctx, desc)
		if err != nil {
			return nil, err
		}
		defer reader.Close()
		// The name is of this load, so that one that was cut does not stand in the way.
		err = content.WriteBlob(ctx, store, "orlop-"+desc.Digest.String(), content.NewReader(reader), desc)
		if err != nil && !errdefs.IsAlreadyExists(err) {
			return nil, fmt.Errorf("copy %s: %w", desc.Digest, err)
		}
		return nil, nil
	})
	handler := containerimages.Handlers(copyBlob, containerimages.SetChildrenLabels(store, containerimages.ChildrenHandler(image)))
	if err := containerimages.Dispatch(ctx, handler, nil, image.desc); err != nil {
		return err
	}
	record := containerimages.Image{Name: image.name, Target: image.desc, Labels: map[string]string{pinnedLabel: "pinned"}}
	created, err := client.ImageService().Create(ctx, record)
	if errdefs.IsAlreadyExists(err) {
		created, err = client.ImageService().Update(ctx, record)
	}
	if err != nil {
		return err
	}
	return containerd.NewImageWithPlatform(client, created, platforms.Default()).Unpack(ctx, snapshotter)
}

// LoadImages loads the images of all layouts into every running node box, those only
// whose name is given if there are names.
func (c *Cluster) LoadImages(ctx context.Context, names ...string) error {
	layouts, err := readLayouts(c.images)
	if err != nil {
		return err
	}
	if len(names) > 0 {
		layouts = slices.DeleteFunc(layouts, func(image layoutImage) bool { return !slices.Contains(names, filepath.Base(image.dir)) })
	}
	if len(layouts) == 0 {
		c.progress.note("no images in %s", c.images)
		return nil
	}
	for n := 1; n <= c.state.Nodes; n++ {
		name := nodeBox(c.name, n)
		ref := c.state.Boxes[name]
		if !ref.alive() {
			continue
		}
		done := c.progress.step("images on %s", name)
		if err := c.awaitSocket(ctx, ref.PID, containerdSocket); err != nil {
			return explained(err, name, "containerd")
		}
		socket := fmt.Sprintf("/proc/%d/root%s", ref.PID, containerdSocket)
		loaded, err := loadImages(ctx, socket, layouts, func(image string) { c.progress.note("  %s", image) })
		if err != nil {
			return explained(err, name, "containerd")
		}
		done("%d of %d loaded", len(loaded), len(layouts))
	}
	return nil
}
