package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// guest is a disk image for demo and tests, made of nothing but Debian packages.
type guest struct {
	name  string
	build func(ctx context.Context, cache Cache, image string) error
	key   []any // what else decides the result
}

func buildGuests(ctx context.Context, cache Cache, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, g := range []guest{tinyGuest(), debianGuest()} {
		image, err := cache.file(g.name+"-"+digestOf(g.key...)+".qcow2", func(path string) error {
			fmt.Fprintf(os.Stderr, "images: making guest %s\n", g.name)
			return g.build(ctx, cache, path)
		})
		if err != nil {
			return fmt.Errorf("build guest %s: %w", g.name, err)
		}
		if err := replaceWith(image, filepath.Join(dir, g.name+".qcow2")); err != nil {
			return err
		}
	}
	return nil
}

// replaceWith puts a cached file under another name, unless it is there already.
func replaceWith(cached, name string) error {
	from, err := os.Stat(cached)
	if err != nil {
		return err
	}
	if to, err := os.Stat(name); err == nil && (os.SameFile(from, to) || to.Size() == from.Size() && !to.ModTime().Before(from.ModTime())) {
		return nil
	}
	if err := os.Remove(name); err != nil && !os.IsNotExist(err) {
		return err
	}
	return linkOrCopy(cached, name)
}
