package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// file identifies a file across mount namespaces, where paths differ.
type file struct{ device, inode uint64 }

// detachLoops frees the loop devices whose backing files are in the cluster's
// directory, and those whose backing files are in a file system on such a device.
// Loop devices are of the whole machine and survive the box that attached them.
func detachLoops(dir string) error {
	var err error
	for range 50 {
		var left int
		if left, err = detachOnce(dir); left == 0 {
			return err
		}
		<-time.After(100 * time.Millisecond) // a file system that is going away still holds its device
	}
	return errors.Join(err, errors.New("some loop devices of the cluster are still in use"))
}

// detachOnce detaches what it can and returns how many are left.
func detachOnce(dir string) (int, error) {
	loops, err := attachedLoops()
	if err != nil || len(loops) == 0 {
		return 0, err
	}
	ours := map[string]bool{}
	files, err := filesOf(dir, loops)
	if err != nil {
		return 0, err
	}
	for changed := true; changed; {
		changed = false
		for device, backing := range loops {
			if ours[device] {
				continue
			}
			if files[backing] || ours[deviceName(backing.device)] {
				ours[device], changed = true, true
			}
		}
	}
	for device := range ours {
		if err := detach("/dev/" + device); err != nil && !errors.Is(err, unix.ENXIO) {
			return len(ours), fmt.Errorf("detach %s: %w", device, err)
		}
	}
	if len(ours) == 0 {
		return 0, nil
	}
	after, err := attachedLoops()
	left := 0
	for device := range ours {
		if _, still := after[device]; still {
			left++
		}
	}
	return left, err
}

// attachedLoops lists the loop devices in use with their backing files.
func attachedLoops() (map[string]file, error) {
	names, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	loops := map[string]file{}
	for _, name := range names {
		device := strings.Split(name, "/")[3]
		handle, err := os.Open("/dev/" + device)
		if err != nil {
			continue
		}
		info, err := unix.IoctlLoopGetStatus64(int(handle.Fd()))
		_ = handle.Close()
		if err == nil {
			loops[device] = file{device: info.Device, inode: info.Inode}
		}
	}
	return loops, nil
}

// filesOf finds which backing files are below dir. The tree is walked only if some
// loop device has a file of its file system.
func filesOf(dir string, loops map[string]file) (map[file]bool, error) {
	found := map[file]bool{}
	var top unix.Stat_t
	if err := unix.Stat(dir, &top); err != nil {
		return found, nil // no directory, no files
	}
	wanted := map[file]bool{}
	for _, backing := range loops {
		if backing.device == top.Dev {
			wanted[backing] = true
		}
	}
	if len(wanted) == 0 {
		return found, nil
	}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return nil // files vanish while we look
		}
		if entry.IsDir() && entry.Name() == "io.containerd.snapshotter.v1.overlayfs" {
			return filepath.SkipDir // many files, none of them a volume
		}
		if !entry.Type().IsRegular() {
			return nil
		}
		var info unix.Stat_t
		if unix.Lstat(path, &info) == nil && wanted[file{info.Dev, info.Ino}] {
			found[file{info.Dev, info.Ino}] = true
		}
		return nil
	})
	return found, err
}

// deviceName is the name of the block device with that number, if it is a loop device.
func deviceName(device uint64) string {
	const loopMajor = 7
	if unix.Major(device) != loopMajor {
		return ""
	}
	target, err := os.Readlink("/sys/dev/block/" + strconv.Itoa(loopMajor) + ":" + strconv.Itoa(int(unix.Minor(device))))
	if err != nil {
		return ""
	}
	return filepath.Base(target)
}

func detach(device string) error {
	handle, err := os.Open(device)
	if err != nil {
		return err
	}
	defer handle.Close()
	return unix.IoctlSetInt(int(handle.Fd()), unix.LOOP_CLR_FD, 0)
}
