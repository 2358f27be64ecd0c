package main

import (
	"context"
	_ "embed"
	"fmt"
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

// files is what the guests use.
type files struct {
	// tools is a disk with fio, for reading.
	tools string
	// of are the disks of each side.
	of map[string]sideFiles
}

// sideFiles are the writable disks of one side.
type sideFiles struct{ root, data, device string }

// prepare makes the disks, alike for both sides. All were written to, so that nobody
// pays for the first touch.
func prepare(ctx context.Context, o options, dir string) (*files, error) {
	f := &files{tools: filepath.Join(dir, "tools.img"), of: map[string]sideFiles{}}
	staging := o.program("fio", "root")
	for _, mountPoint := range []string{"dev", "proc", "tmp"} {
		if err := os.MkdirAll(filepath.Join(staging, mountPoint), 0o755); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(filepath.Join(staging, "jobs.fio"), jobs, 0o644); err != nil {
		return nil, err
	}
	if _, err := output(ctx, "mkfs.ext4", "-q", "-d", staging, f.tools, "512M"); err != nil {
		return nil, err
	}
	for _, side := range sides {
		if err := f.add(ctx, o, dir, side); err != nil {
			f.remove()
			return nil, err
		}
	}
	return f, nil
}

// add makes the disks of one side.
func (f *files) add(ctx context.Context, o options, dir, side string) error {
	s := sideFiles{root: filepath.Join(dir, side+"-root.qcow2"), data: filepath.Join(dir, side+"-data.qcow2")}
	image := filepath.Join(dir, side+"-device.img")
	for _, command := range [][]string{
		{"cp", o.program("guests", "tiny.qcow2"), s.root},
		{o.program("qemu", "qemu-img"), "create", "-q", "-f", "qcow2", s.data, fmt.Sprintf("%dM", dataMiB)},
		{o.program("qemu", "qemu-io"), "-f", "qcow2", "-c", fmt.Sprintf("write -P 1 0 %dM", dataMiB), s.data},
		{"dd", "if=/dev/urandom", "of=" + image, "bs=1M", fmt.Sprintf("count=%d", dataMiB), "conv=fsync", "status=none"},
	} {
		if _, err := output(ctx, command...); err != nil {
			return err
		}
	}
	device, err := output(ctx, "losetup", "--find", "--show", "--direct-io=on", image)
	if err != nil {
		return err
	}
	s.device = strings.TrimSpace(device)
	f.of[side] = s
	return nil
}

func (f *files) remove() {
	for _, s := range f.of {
		if _, err := output(context.Background(), "losetup", "--detach", s.device); err != nil {
			fmt.Fprintln(os.Stderr, "bench-disk:", err)
		}
	}
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
