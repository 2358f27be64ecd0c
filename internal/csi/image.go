package csi

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// File systems that a volume may have.
const (
	fsXFS  = "xfs"
	fsExt4 = "ext4"
)

const (
	sectorSize = 4096
	// minimumXFS is the smallest size mkfs.xfs accepts.
	minimumXFS = 300 << 20
	// minimumOther is the smallest block or ext4 volume.
	minimumOther = 4 << 20
)

// volumeSize rounds a wanted size up to what the volume can have.
func volumeSize(want int64, fsType string) int64 {
	least := int64(minimumOther)
	if fsType == fsXFS {
		least = minimumXFS
	}
	want = max(want, least)
	return (want + sectorSize - 1) / sectorSize * sectorSize
}

// makeSparse makes an empty image.
func makeSparse(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("create image: %w", err)
	}
	if err := errors.Join(f.Truncate(size), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("size image: %w", err)
	}
	return nil
}

// format makes the file system inside the image.
func format(image, fsType string) error {
	var err error
	switch fsType {
	case "":
		return nil
	case fsXFS:
		// Nothing inside a volume is copied by reference, so XFS need not keep room
		// aside for it: the volume holds more.
		err = run("mkfs.xfs", "-q", "-f", "-m", "reflink=0,rmapbt=0", image)
	case fsExt4:
		err = run("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "nodiscard,lazy_itable_init=1", image)
	default:
		return fmt.Errorf("file system %q is not supported", fsType)
	}
	if err != nil {
		return fmt.Errorf("make file system: %w", err)
	}
	return nil
}

// copyByReference makes dst a copy of src as src is at one moment, and then as
// large as size.
func copyByReference(dst, src string, size int64) error {
	in, err := os.Open(src)
	if err != nil {
		return fmt.Errorf("open source image: %w", err)
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("create image: %w", err)
	}
	err = unix.IoctlFileClone(int(out.Fd()), int(in.Fd()))
	if err == nil && size > 0 {
		err = out.Truncate(size)
	}
	if err := errors.Join(err, out.Sync(), out.Close()); err != nil {
		return fmt.Errorf("copy image by reference: %w", err)
	}
	return nil
}

// growMounted makes a mounted file system as large as its device. It does nothing
// if it is that large already.
func growMounted(fsType, device, mountPoint string) error {
	var err error
	switch fsType {
	case fsXFS:
		err = run("xfs_growfs", "-d", mountPoint)
	case fsExt4:
		err = run("resize2fs", device)
	}
	if err != nil {
		return fmt.Errorf("grow file system: %w", err)
	}
	return nil
}

// growUnmounted does the same for ext4 before it is mounted: growing it in use
// takes a right (CAP_SYS_RESOURCE) that root does not have everywhere. The file
// system has to be checked first, and its journal replayed.
func growUnmounted(fsType, device string) error {
	if fsType != fsExt4 {
		return nil
	}
	if grown, err := fillsDevice(device); grown || err != nil {
		return err
	}
	var exit *exec.ExitError
	// 1 means that something was put right.
	if err := run("e2fsck", "-f", "-p", device); err != nil && !(errors.As(err, &exit) && exit.ExitCode() == 1) {
		return fmt.Errorf("check file system: %w", err)
	}
	if err := run("resize2fs", device); err != nil {
		return fmt.Errorf("grow file system: %w", err)
	}
	return nil
}

// Where an ext4 superblock has its size, in bytes from the start of the device.
const (
	ext4Super     = 1024
	ext4BlocksLow = ext4Super + 0x4
	ext4LogBlock  = ext4Super + 0x18
	ext4BlocksTop = ext4Super + 0x150
	ext4SuperEnd  = ext4Super + 1024
)

// fillsDevice tells whether an ext4 file system takes all of its device, so that
// the check that growing needs, which reads all metadata, can be left out.
func fillsDevice(device string) (bool, error) {
	f, err := os.Open(device)
	if err != nil {
		return false, fmt.Errorf("open device: %w", err)
	}
	defer f.Close()
	super := make([]byte, ext4SuperEnd)
	if _, err := f.ReadAt(super, 0); err != nil {
		return false, fmt.Errorf("read superblock: %w", err)
	}
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return false, fmt.Errorf("measure device: %w", err)
	}
	le := binary.LittleEndian
	blocks := uint64(le.Uint32(super[ext4BlocksTop:]))<<32 | uint64(le.Uint32(super[ext4BlocksLow:]))
	blockSize := uint64(1024) << (le.Uint32(super[ext4LogBlock:]) & 0xf)
	// Less than one block more than it has: nothing to gain.
	return blocks*blockSize+blockSize > uint64(end), nil
}

// run runs a tool and puts what it complained about into the error. A caller that
// gives up does not end it: half-made and half-grown file systems need repair.
func run(name string, args ...string) error {
	var out bytes.Buffer
	cmd := exec.CommandContext(context.Background(), name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		text := strings.TrimSpace(out.String())
		if len(text) > 512 {
			text = text[len(text)-512:]
		}
		return fmt.Errorf("run %s: %w: %s", name, err, text)
	}
	return nil
}
