package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// measuring is what `make bench-disk` runs inside a guest, with all its libraries.
var measuring = Pick{
	Root:  Root{Name: "fio", Variant: "minbase", Packages: []string{"fio"}},
	Paths: []string{"/usr/bin/fio"},
}

// unpackMeasuring unpacks fio below a directory, for a disk that guests mount.
func unpackMeasuring(ctx context.Context, cache Cache, dir string) error {
	layer, err := measuring.layer(ctx, cache)
	if err != nil {
		return err
	}
	mark := filepath.Join(dir, ".layer")
	if content, err := os.ReadFile(mark); err == nil && string(content) == layer.Sum.Hex {
		return nil
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := layer.unpack(filepath.Join(dir, "root")); err != nil {
		return fmt.Errorf("unpack fio: %w", err)
	}
	return os.WriteFile(mark, []byte(layer.Sum.Hex), 0o644)
}
