package box

import (
	"bufio"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// copiedEtc are the files of the host's /etc that programs in a box need; they are
// copied, so that nothing in a box can change the host's.
var copiedEtc = []string{
	"passwd", "group", "protocols", "services", "ld.so.cache", "ld.so.conf", "localtime", "timezone", "mke2fs.conf", "xattr.conf",
}

// boundEtc are directories of the host's /etc that are shown read-only.
var boundEtc = []string{"ssl", "alternatives", "ld.so.conf.d", "ca-certificates", "pki"}

// systemDirs are shown read-only from the host; where the host has a link (merged
// /usr), the box gets the same link.
var systemDirs = []string{"usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"}

// enterRoot builds the box's root file system and makes it the root of the calling
// process, which must be alone in its mount namespace. Afterwards no mount of the
// host is left but those that the box shows.
func enterRoot(s *Spec) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	root := filepath.Join(s.Dir, "root")
	for _, dir := range []string{"root", "var", "etc", "opt", "tmp", "log"} {
		if err := os.MkdirAll(filepath.Join(s.Dir, dir), 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("root", root, "tmpfs", 0, "mode=755,size=16m"); err != nil {
		return fmt.Errorf("mount root: %w", err)
	}
	steps := []struct {
		what string
		do   func(*Spec, string) error
	}{
		{"system directories", mountSystem},
		{"state directories", mountState},
		{"/etc", writeEtc},
		{"/proc and /sys", mountKernel},
		{"/dev", mountDevices},
		{"links", makeLinks},
	}
	for _, step := range steps {
		if err := step.do(s, root); err != nil {
			return fmt.Errorf("prepare %s: %w", step.what, err)
		}
	}
	return pivot(root)
}

// pivot makes root the root and drops the old one with everything below it.
func pivot(root string) error {
	if err := unix.Chdir(root); err != nil {
		return fmt.Errorf("enter root: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detach old root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("enter root: %w", err)
	}
	// Mounts made in a pod with bidirectional propagation must reach the box and
	// other pods, as on a machine of its own.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share mounts: %w", err)
	}
	return nil
}

// mountSystem shows the host's programs and libraries.
func mountSystem(_ *Spec, root string) error {
	for _, name := range systemDirs {
		host := "/" + name
		info, err := os.Lstat(host)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return err
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(host)
			if err != nil {
				return err
			}
			if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
				return err
			}
		default:
			if err := bind(host, filepath.Join(root, name), true); err != nil {
				return err
			}
		}
	}
	return nil
}

// mountState shows the box's own directories, the cluster's binaries and the
// directory that boxes share.
func mountState(s *Spec, root string) error {
	for _, name := range []string{"var", "etc", "opt", "tmp"} {
		if err := bind(filepath.Join(s.Dir, name), filepath.Join(root, name), false); err != nil {
			return err
		}
	}
	if err := os.Chmod(filepath.Join(root, "tmp"), 0o777|fs.ModeSticky); err != nil {
		return err
	}
	for _, name := range []string{"root", "home", "mnt", "media", "srv", "proc", "sys", "dev", "run"} {
		if err := os.MkdirAll(filepath.Join(root, name), 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("run", filepath.Join(root, "run"), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	for _, dir := range []string{"lib", "log", "cache", "spool", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, "var", dir), 0o755); err != nil {
			return err
		}
	}
	for name, target := range map[string]string{"run": "/run", "lock": "/run/lock"} {
		if err := link(target, filepath.Join(root, "var", name)); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Join(root, LocalDir), 0o755); err != nil {
		return err
	}
	if err := bind(s.Shared, filepath.Join(root, SharedDir), false); err != nil {
		return err
	}
	if err := bind(s.Dir, filepath.Join(root, ownDir), false); err != nil {
		return err
	}
	return bind(s.Bin, filepath.Join(root, BinDir), true)
}

// writeEtc fills the box's /etc, which persists, with what must be of today.
func writeEtc(s *Spec, root string) error {
	etc := filepath.Join(root, "etc")
	for _, name := range copiedEtc {
		text, err := os.ReadFile(filepath.Join("/etc", name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(etc, name), text, 0o644); err != nil { //nolint:gosec // world-readable on every machine
			return err
		}
	}
	for _, name := range boundEtc {
		if info, err := os.Stat(filepath.Join("/etc", name)); err == nil && info.IsDir() {
			if err := bind(filepath.Join("/etc", name), filepath.Join(etc, name), true); err != nil {
				return err
			}
		}
	}
	if err := writeNames(s, etc); err != nil {
		return err
	}
	if err := link("/usr/lib/os-release", filepath.Join(etc, "os-release")); err != nil {
		return err
	}
	return writeMachineID(filepath.Join(etc, "machine-id"))
}

// writeNames writes the files that say who the box is and whom it asks.
func writeNames(s *Spec, etc string) error {
	files := map[string]string{
		"hostname":      s.Name + "\n",
		"hosts":         s.Hosts,
		"resolv.conf":   s.ResolvConf,
		"nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nservices: files\nprotocols: files\n",
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// refresh brings what a changed specification may change up to date while the box runs.
func refresh(s *Spec) error {
	return errors.Join(writeNames(s, "/etc"), makeLinks(s, "/"))
}

// writeMachineID gives the box an identity once.
func writeMachineID(file string) error {
	if _, err := os.Stat(file); err == nil {
		return nil
	}
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return err
	}
	return os.WriteFile(file, []byte(hex.EncodeToString(id)+"\n"), 0o444)
}

// mountKernel mounts the box's own /proc and /sys. The control groups stay the
// host's: kubelet works in the part of the hierarchy that is the box's.
func mountKernel(_ *Spec, root string) error {
	if err := unix.Mount("proc", filepath.Join(root, "proc"), "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	// A new sysfs shows the network devices of this network namespace.
	if err := unix.Mount("sysfs", filepath.Join(root, "sys"), "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	points, err := mountPointsBelow("/sys/")
	if err != nil {
		return err
	}
	for _, point := range points {
		target := filepath.Join(root, point)
		if _, err := os.Stat(target); err != nil {
			continue // below another mount, and bound with it
		}
		if err := unix.Mount(point, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("bind %s: %w", point, err)
		}
	}
	return nil
}

// mountPointsBelow lists the topmost mount points under a directory.
func mountPointsBelow(dir string) ([]string, error) {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var points []string
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 || !strings.HasPrefix(fields[4], dir) {
			continue
		}
		covered := false
		for _, point := range points {
			covered = covered || fields[4] == point || strings.HasPrefix(fields[4], point+"/")
		}
		if !covered {
			points = append(points, fields[4])
		}
	}
	return points, lines.Err()
}

// mountDevices shows the host's devices (loop devices are of the whole machine
// anyway) with shared memory and message queues of the box.
func mountDevices(_ *Spec, root string) error {
	dev := filepath.Join(root, "dev")
	if err := unix.Mount("/dev", dev, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind /dev: %w", err)
	}
	if _, err := os.Stat(filepath.Join(dev, "shm")); err == nil {
		if err := unix.Mount("shm", filepath.Join(dev, "shm"), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777"); err != nil {
			return fmt.Errorf("mount /dev/shm: %w", err)
		}
	}
	if _, err := os.Stat(filepath.Join(dev, "mqueue")); err == nil {
		if err := unix.Mount("mqueue", filepath.Join(dev, "mqueue"), "mqueue", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return fmt.Errorf("mount /dev/mqueue: %w", err)
		}
	}
	return nil
}

// makeLinks makes the links the specification asks for.
func makeLinks(s *Spec, root string) error {
	for name, target := range s.Links {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := link(target, path); err != nil {
			return err
		}
	}
	return nil
}

// link makes or replaces a symbolic link.
func link(target, path string) error {
	if now, err := os.Readlink(path); err == nil && now == target {
		return nil
	}
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	return os.Symlink(target, path)
}

// bind shows the host's directory at target with everything mounted below it, or,
// for the box's own directories (not readOnly), without.
func bind(host, target string, readOnly bool) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	flags := uintptr(unix.MS_BIND)
	if readOnly {
		flags |= unix.MS_REC
	}
	if err := unix.Mount(host, target, "", flags, ""); err != nil {
		return fmt.Errorf("bind %s: %w", host, err)
	}
	if !readOnly {
		return nil
	}
	if err := unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NODEV, ""); err != nil {
		return fmt.Errorf("make %s read-only: %w", target, err)
	}
	return nil
}
