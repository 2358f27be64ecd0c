package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
)

// tools is what tests and guests run on the machine itself: the very QEMU of the
// images, because the machine's own may be too old.
var tools = Pick{
	Root:  base,
	Paths: append([]string{"/usr/bin/qemu-img", "/usr/bin/qemu-io"}, emulator.Paths...),
}

// wrapper runs a program of another root in place, without chroot: its loader is
// told where its libraries are, so paths in its arguments mean what the caller means.
const wrapper = `#!/bin/sh
root=$(dirname "$(readlink -f "$0")")/root
export QEMU_MODULE_DIR="$root/usr/lib/x86_64-linux-gnu/qemu"
exec "$root/usr/lib64/ld-linux-x86-64.so.2" --argv0 %[1]s --library-path "$root/usr/lib/x86_64-linux-gnu" "$root/usr/bin/%[1]s" %[2]s"$@"
`

// unpackTools unpacks the platform's QEMU below a directory, with one wrapper for
// each program.
func unpackTools(ctx context.Context, cache Cache, dir string) error {
	layer, err := tools.layer(ctx, cache)
	if err != nil {
		return err
	}
	mark := filepath.Join(dir, ".layer")
	if content, err := os.ReadFile(mark); err == nil && string(content) == digestOf(layer.Sum.Hex, wrapper) {
		return nil
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := layer.unpack(filepath.Join(dir, "root")); err != nil {
		return fmt.Errorf("unpack QEMU: %w", err)
	}
	firmware := `-L "$root/usr/share/seabios" -L "$root/usr/share/qemu" `
	for name, options := range map[string]string{"qemu-system-x86_64": firmware, "qemu-img": "", "qemu-io": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), fmt.Appendf(nil, wrapper, name, options), 0o755); err != nil {
			return err
		}
	}
	return os.WriteFile(mark, []byte(digestOf(layer.Sum.Hex, wrapper)), 0o644)
}

// unpack writes the layer's files below a directory. Its content is our own, so
// names are trusted.
func (l *Layer) unpack(dir string) error {
	content, err := l.Uncompressed()
	if err != nil {
		return err
	}
	defer content.Close()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	archive := tar.NewReader(content)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := filepath.Join(dir, path.Join("/", header.Name)) //nolint:gosec // Rooted by the inner Join.
		if err := unpackEntry(name, header, archive); err != nil {
			return err
		}
	}
}

func unpackEntry(name string, header *tar.Header, content io.Reader) error {
	switch header.Typeflag {
	case tar.TypeDir:
		return os.MkdirAll(name, os.FileMode(header.Mode))
	case tar.TypeSymlink:
		return os.Symlink(header.Linkname, name)
	case tar.TypeReg:
		file, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, os.FileMode(header.Mode))
		if err != nil {
			return err
		}
		defer file.Close()
		if _, err := io.Copy(file, content); err != nil {
			return err
		}
		return file.Close()
	}
	return fmt.Errorf("unpack %s: unexpected type %q", header.Name, header.Typeflag)
}
