package csi

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mountFlags are the mount options a StorageClass may ask for.
var mountFlags = map[string]uintptr{
	"ro": unix.MS_RDONLY, "rw": 0,
	"noatime": unix.MS_NOATIME, "relatime": unix.MS_RELATIME, "nodiratime": unix.MS_NODIRATIME,
	"nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC, "nosuid": unix.MS_NOSUID,
	"sync": unix.MS_SYNCHRONOUS,
}

// flagsOf translates mount options; an unknown one is an error.
func flagsOf(options []string) (uintptr, error) {
	var flags uintptr
	for _, o := range options {
		f, known := mountFlags[o]
		if !known {
			return 0, fmt.Errorf("mount option %q is not supported", o)
		}
		flags |= f
	}
	return flags, nil
}

// mountEntry is one line of the mount table.
type mountEntry struct {
	// device as "major:minor", root is the path inside it, target where it is mounted.
	device, root, target string
}

func mountTable() ([]mountEntry, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read mount table: %w", err)
	}
	defer f.Close()
	var all []mountEntry
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) > 4 {
			all = append(all, mountEntry{device: fields[2], root: unescape(fields[3]), target: unescape(fields[4])})
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read mount table: %w", err)
	}
	return all, nil
}

// real is a path as the mount table has it.
func real(path string) string {
	path = filepath.Clean(path)
	if parent, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
		return filepath.Join(parent, filepath.Base(path))
	}
	return path
}

// isMounted tells whether something is mounted exactly at path.
func isMounted(path string) (bool, error) {
	all, err := mountTable()
	if err != nil {
		return false, err
	}
	want := real(path)
	return slices.ContainsFunc(all, func(m mountEntry) bool { return m.target == want }), nil
}

// mountedElsewhere tells whether the device, or the file system on it, is mounted
// anywhere but at the given paths.
func mountedElsewhere(device string, paths ...string) (bool, error) {
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil {
		return false, fmt.Errorf("stat %s: %w", device, err)
	}
	number := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	all, err := mountTable()
	if err != nil {
		return false, err
	}
	for i := range paths {
		paths[i] = real(paths[i])
	}
	return slices.ContainsFunc(all, func(m mountEntry) bool {
		ours := m.device == number || filepath.Base(m.root) == filepath.Base(device)
		return ours && !slices.Contains(paths, m.target)
	}), nil
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// bind makes source visible at target, read-only if asked.
func bind(source, target string, flags uintptr) error {
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind volume: %w", err)
	}
	if flags == 0 {
		return nil
	}
	if err := unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|flags, ""); err != nil {
		_ = unix.Unmount(target, unix.MNT_DETACH)
		return fmt.Errorf("set mount options: %w", err)
	}
	return nil
}

// unmountAll removes whatever is mounted at target.
func unmountAll(target string) error {
	for {
		mounted, err := isMounted(target)
		if err != nil || !mounted {
			return err
		}
		if err := unix.Unmount(target, 0); err != nil {
			return fmt.Errorf("unmount %s: %w", target, err)
		}
	}
}

// removeTarget removes an empty mount point, file or folder.
func removeTarget(target string) error {
	if err := os.Remove(target); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove mount point: %w", err)
	}
	return nil
}
