package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

//go:embed jobs.fio
var jobs []byte

// The disks that are measured, by the serial numbers that guests find them by. The one
// with fio is called toolsDisk.
var disks = []string{"file", "device"}

const (
	toolsDisk = "tools"
	// dataMiB is more than the guest touches.
	dataMiB = 256
)

// files is what both sides use.
type files struct {
	dir                       string
	root, tools, data, device string
}

// prepare makes the disks. All are written to once before, so that neither side pays
// for the first touch.
func prepare(ctx context.Context, o options, dir string) (*files, error) {
	f := &files{dir: dir, root: filepath.Join(dir, "root.qcow2"), tools: filepath.Join(dir, "tools.img"), data: filepath.Join(dir, "data.qcow2")}
	image := filepath.Join(dir, "device.img")
	staging := o.program("fio", "root")
	for _, mountPoint := range []string{"dev", "proc", "tmp"} {
		if err := os.MkdirAll(filepath.Join(staging, mountPoint), 0o755); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(filepath.Join(staging, "jobs.fio"), jobs, 0o644); err != nil {
		return nil, err
	}
	for _, command := range [][]string{
		{"mkfs.ext4", "-q", "-d", staging, f.tools, "512M"},
		{o.program("qemu", "qemu-img"), "create", "-q", "-f", "qcow2", f.data, fmt.Sprintf("%dM", dataMiB)},
		{o.program("qemu", "qemu-io"), "-f", "qcow2", "-c", fmt.Sprintf("write -P 1 0 %dM", dataMiB), f.data},
		{"dd", "if=/dev/urandom", "of=" + image, "bs=1M", fmt.Sprintf("count=%d", dataMiB), "conv=fsync", "status=none"},
	} {
		if _, err := output(ctx, command...); err != nil {
			return nil, err
		}
	}
	device, err := output(ctx, "losetup", "--find", "--show", "--direct-io=on", image)
	if err != nil {
		return nil, err
	}
	f.device = strings.TrimSpace(device)
	return f, nil
}

func (f *files) remove() {
	if _, err := output(context.Background(), "losetup", "--detach", f.device); err != nil {
		fmt.Fprintln(os.Stderr, "bench-disk:", err)
	}
}

// freshRoot gives the next guest a disk to boot from.
func (f *files) freshRoot(o options) error {
	source, err := os.Open(o.program("guests", "tiny.qcow2"))
	if err != nil {
		return err
	}
	defer func() { _ = source.Close() }()
	target, err := os.Create(f.root)
	if err != nil {
		return err
	}
	_, err = io.Copy(target, source)
	return errors.Join(err, target.Close())
}

func output(ctx context.Context, command ...string) (string, error) {
	var said strings.Builder
	c := exec.CommandContext(ctx, command[0], command[1:]...)
	c.Stderr = &said
	out, err := c.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, strings.TrimSpace(said.String()))
	}
	return string(out), nil
}
