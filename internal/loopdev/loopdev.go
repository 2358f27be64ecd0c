// Package loopdev attaches files to loop devices and finds them again.
//
// A device is identified by the device and inode number of its backing file, as
// the kernel reports them, never by a path: paths differ between the mount
// namespaces of the boxes of one machine, which share a single set of loop
// devices. Each device also carries a label (the kernel keeps 63 bytes for it),
// so that everything that belongs to one cluster can be found and detached when
// the cluster goes.
//
// It is not for deciding who may use a device; callers serialise attach and
// detach of one file themselves.
package loopdev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	controlPath = "/dev/loop-control"
	// attachTries bounds the race for a free device with other users of the machine.
	attachTries = 64
	labelLimit  = unix.LO_NAME_SIZE - 1
	// blockSize is the sector size of every device, in bytes. Left to itself, the
	// kernel gives 4096 to a file that shares blocks with another, and the copy of a
	// file system made with 512 could not be mounted.
	blockSize = 512
)

// Device is one loop device.
type Device struct {
	// Number of the device: 7 is /dev/loop7.
	Number int
	// Label given by Attach, or what other tools wrote there (usually a path).
	Label string
	// backing file, and its device number if it is itself a block device.
	backingDevice, backingInode, backingRdev uint64
}

// Path of the device node.
func (d Device) Path() string { return "/dev/loop" + strconv.Itoa(d.Number) }

// Find returns the device that is backed by the file, or nil.
func Find(file string) (*Device, error) {
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil {
		return nil, fmt.Errorf("stat %s: %w", file, err)
	}
	all, err := list()
	if err != nil {
		return nil, err
	}
	for _, d := range all {
		if d.backingDevice == st.Dev && d.backingInode == st.Ino {
			return &d, nil
		}
	}
	return nil, nil
}

// Attach returns the device backed by the file, attaching one if there is none.
// Direct I/O is used where the file's file system has it, so that data is not
// cached twice.
func Attach(file, label string) (*Device, error) {
	if len(label) > labelLimit {
		return nil, fmt.Errorf("label %q is longer than %d bytes", label, labelLimit)
	}
	if d, err := Find(file); d != nil || err != nil {
		return d, err
	}
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open backing file: %w", err)
	}
	defer f.Close()
	for range attachTries {
		n, err := free()
		if err != nil {
			return nil, err
		}
		d := &Device{Number: n, Label: label}
		switch err := configure(d, f); {
		case err == nil:
			return d, nil
		case !errors.Is(err, unix.EBUSY):
			return nil, fmt.Errorf("attach %s to %s: %w", file, d.Path(), err)
		}
	}
	return nil, fmt.Errorf("attach %s: no free loop device after %d tries", file, attachTries)
}

func free() (int, error) {
	c, err := os.OpenFile(controlPath, os.O_RDWR, 0)
	if err != nil {
		return 0, fmt.Errorf("open loop control: %w", err)
	}
	defer c.Close()
	n, err := unix.IoctlRetInt(int(c.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return 0, fmt.Errorf("get free loop device: %w", err)
	}
	return n, nil
}

func configure(d *Device, backing *os.File) error {
	dev, err := open(d.Number)
	if err != nil {
		return err
	}
	defer dev.Close()
	c := unix.LoopConfig{Fd: uint32(backing.Fd()), Size: blockSize}
	c.Info.Flags = unix.LO_FLAGS_DIRECT_IO
	copy(c.Info.File_name[:], d.Label)
	return unix.IoctlLoopConfigure(int(dev.Fd()), &c)
}

// open opens the device node, making it first where /dev is no devtmpfs: a
// device added after a container or box was started has no node in there.
func open(n int) (*os.File, error) {
	path := Device{Number: n}.Path()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	if err := makeNode(n, path); err != nil {
		return nil, err
	}
	return os.OpenFile(path, os.O_RDWR, 0)
}

func makeNode(n int, path string) error {
	raw, err := os.ReadFile(fmt.Sprintf("/sys/block/loop%d/dev", n))
	if err != nil {
		return fmt.Errorf("read device number: %w", err)
	}
	var major, minor uint32
	if _, err := fmt.Sscanf(string(raw), "%d:%d", &major, &minor); err != nil {
		return fmt.Errorf("parse device number %q: %w", raw, err)
	}
	err = unix.Mknod(path, unix.S_IFBLK|0o600, int(unix.Mkdev(major, minor)))
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make device node %s: %w", path, err)
	}
	return nil
}

// Refresh makes the device as large as its backing file has become.
func (d Device) Refresh() error {
	f, err := open(d.Number)
	if err != nil {
		return fmt.Errorf("open loop device: %w", err)
	}
	defer f.Close()
	if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		return fmt.Errorf("update size of %s: %w", d.Path(), err)
	}
	return nil
}

// Size of the device in bytes.
func (d Device) Size() (int64, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/sys/block/loop%d/size", d.Number))
	if err != nil {
		return 0, fmt.Errorf("read size of %s: %w", d.Path(), err)
	}
	sectors, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("parse size of %s: %w", d.Path(), err)
	}
	return sectors * 512, nil
}

// Busy tells whether somebody has mounted the device or opened it exclusively.
func (d Device) Busy() (bool, error) {
	// open makes the node if need be.
	f, err := open(d.Number)
	if err != nil {
		return false, fmt.Errorf("open %s: %w", d.Path(), err)
	}
	f.Close()
	f, err = os.OpenFile(d.Path(), os.O_RDONLY|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("open %s exclusively: %w", d.Path(), err)
	}
	return false, f.Close()
}

// Sync writes everything cached for the device to its backing file.
func (d Device) Sync() error {
	f, err := open(d.Number)
	if err != nil {
		return fmt.Errorf("open %s: %w", d.Path(), err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", d.Path(), err)
	}
	return nil
}

// Detach releases the backing file: at once, or when the last user closes the
// device.
func (d Device) Detach() error {
	f, err := open(d.Number)
	if err != nil {
		return fmt.Errorf("open %s: %w", d.Path(), err)
	}
	defer f.Close()
	err = unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0)
	if err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("detach %s: %w", d.Path(), err)
	}
	return nil
}

// DetachStack detaches the devices that others have stacked upon this one, and
// then this one. kubelet keeps such a device on each raw block volume that a pod
// uses, and leaves it behind when its node loses power.
func (d Device) DetachStack() error {
	all, err := list()
	if err != nil {
		return err
	}
	var errs []error
	own := d.rdev()
	for _, other := range all {
		if own != 0 && other.backingRdev == own {
			errs = append(errs, other.Detach())
		}
	}
	return errors.Join(append(errs, d.Detach())...)
}

// DetachAll detaches every device whose label starts with the prefix, and what is
// stacked upon those.
func DetachAll(prefix string) error {
	all, err := list()
	if err != nil {
		return err
	}
	var errs []error
	for _, d := range all {
		if strings.HasPrefix(d.Label, prefix) {
			errs = append(errs, d.DetachStack())
		}
	}
	return errors.Join(errs...)
}

func (d Device) rdev() uint64 {
	var st unix.Stat_t
	if err := unix.Stat(d.Path(), &st); err != nil {
		return 0
	}
	return st.Rdev
}

func list() ([]Device, error) {
	dirs, err := filepath.Glob("/sys/block/loop*/loop")
	if err != nil {
		return nil, fmt.Errorf("list loop devices: %w", err)
	}
	var all []Device
	for _, dir := range dirs {
		n, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(filepath.Dir(dir)), "loop"))
		if err != nil {
			continue
		}
		d, err := status(n)
		if err != nil {
			return nil, err
		}
		if d != nil {
			all = append(all, *d)
		}
	}
	slices.SortFunc(all, func(a, b Device) int { return a.Number - b.Number })
	return all, nil
}

func status(n int) (*Device, error) {
	f, err := open(n)
	if err != nil {
		return nil, fmt.Errorf("open loop device %d: %w", n, err)
	}
	defer f.Close()
	i, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if errors.Is(err, unix.ENXIO) {
		return nil, nil // detached since it was listed
	}
	if err != nil {
		return nil, fmt.Errorf("read state of loop device %d: %w", n, err)
	}
	return &Device{
		Number: n, Label: unix.ByteSliceToString(i.File_name[:]),
		backingDevice: i.Device, backingInode: i.Inode, backingRdev: i.Rdevice,
	}, nil
}
