package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// raw is QEMU as one would type it, with the same guest, size and devices' kinds.
type raw struct{ qemu, guest string }

// start boots the guest on a scratch overlay and returns the time from exec to userspace.
func (r raw) start(ctx context.Context) (time.Duration, error) {
	directory, err := os.MkdirTemp("", "orlop-bench-")
	if err != nil {
		return 0, err
	}
	defer func() { _ = os.RemoveAll(directory) }()
	disk := filepath.Join(directory, "disk.qcow2")
	if err := copyFile(r.guest, disk); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, r.qemu, "-nodefaults", "-display", "none", "-machine", "q35", "-accel", "tcg,tb-size=32,thread=multi",
		"-cpu", "Nehalem", "-smp", "1", "-m", "256", "-serial", "stdio", "-device", "virtio-scsi-pci",
		"-drive", "file="+disk+",format=qcow2,if=none,id=d,cache=none", "-device", "scsi-hd,drive=d")
	output, err := command.StdoutPipe()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if err := command.Start(); err != nil {
		return 0, err
	}
	err = waitForUserspace(output)
	took := time.Since(began)
	cancel()
	_ = command.Wait()
	return took, err
}

// waitForUserspace reads a serial port until the guest's first process speaks.
func waitForUserspace(serial io.Reader) error {
	lines := bufio.NewScanner(serial)
	for lines.Scan() {
		if strings.Contains(lines.Text(), userspace) {
			return nil
		}
	}
	return errors.Join(fmt.Errorf("the serial port ended without %q", userspace), lines.Err())
}

func copyFile(from, to string) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = source.Close() }()
	target, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(target, source)
	return errors.Join(err, target.Close())
}
