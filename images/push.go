package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// pushAll copies every layout to a registry, with the credentials of the user's
// docker configuration. Layers that are there already are not sent again.
func pushAll(ctx context.Context, s settings, registry string) error {
	dirs, err := filepath.Glob(filepath.Join(s.out, "*", "index.json"))
	if err != nil {
		return err
	}
	if len(dirs) == 0 {
		return fmt.Errorf("no image in %s: build them first", s.out)
	}
	for _, index := range dirs {
		if err := push(ctx, filepath.Dir(index), registry, s.version); err != nil {
			return err
		}
	}
	return nil
}

func push(ctx context.Context, dir, registry, version string) error {
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return fmt.Errorf("open layout %s: %w", dir, err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return fmt.Errorf("open layout %s: %w", dir, err)
	}
	for _, descriptor := range manifest.Manifests {
		target := registry + "/" + imageName(descriptor.Annotations[referenceAnnotation]) + ":" + version
		reference, err := name.ParseReference(target)
		if err != nil {
			return fmt.Errorf("push to %s: %w", target, err)
		}
		image, err := index.Image(descriptor.Digest)
		if err != nil {
			return fmt.Errorf("open layout %s: %w", dir, err)
		}
		if err := remote.Write(reference, image, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain)); err != nil {
			return fmt.Errorf("push %s: %w", target, err)
		}
		fmt.Fprintf(os.Stdout, "%s@%s\n", target, descriptor.Digest)
	}
	return nil
}
