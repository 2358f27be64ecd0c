package cluster

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// applets are the names the multi-call binary orlop-kube is called by.
var applets = []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"}

// embedded are the binaries a cluster cannot do without.
var embedded = []string{"orlop-kube", "containerd", "containerd-shim-runc-v2", "runc"}

// cniApplets are the names of the multi-call binary cni, where there is one.
var cniApplets = []string{"host-local", "loopback", "portmap", "ptp"}

// binDir is the cluster's own copy of all binaries: a new build must not change a
// running cluster before the next up.
func (c *Cluster) binDir() string { return filepath.Join(c.dir, "bin") }

// initBinary is the copy of this program that boxes run.
const initBinary = "d8"

// installBinaries brings the copies up to date.
func (c *Cluster) installBinaries() error {
	if err := os.MkdirAll(filepath.Join(c.binDir(), "cni.d"), 0o755); err != nil {
		return fmt.Errorf("create directory of binaries: %w", err)
	}
	if err := install("/proc/self/exe", filepath.Join(c.binDir(), initBinary)); err != nil {
		return err
	}
	for _, name := range embedded {
		from := filepath.Join(c.source, "embedded", name)
		if _, err := os.Stat(from); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s is missing: run \"make embedded\" first, or name the directory of the binaries with --bin-dir", from)
		}
		if err := install(from, filepath.Join(c.binDir(), name)); err != nil {
			return err
		}
	}
	for _, applet := range applets {
		if err := relink("orlop-kube", filepath.Join(c.binDir(), applet)); err != nil {
			return err
		}
	}
	return c.installPlugins()
}

// installPlugins copies the network plugins: one multi-call binary or a directory.
func (c *Cluster) installPlugins() error {
	from := filepath.Join(c.source, "embedded", "cni")
	info, err := os.Stat(from)
	if err != nil {
		return fmt.Errorf("find network plugins: %w", err)
	}
	dir := filepath.Join(c.binDir(), "cni.d")
	if info.IsDir() {
		entries, err := os.ReadDir(from)
		if err != nil {
			return fmt.Errorf("list network plugins: %w", err)
		}
		for _, entry := range entries {
			if err := install(filepath.Join(from, entry.Name()), filepath.Join(dir, entry.Name())); err != nil {
				return err
			}
		}
	} else {
		if err := install(from, filepath.Join(c.binDir(), "cni")); err != nil {
			return err
		}
		for _, applet := range cniApplets {
			if err := relink("../cni", filepath.Join(dir, applet)); err != nil {
				return err
			}
		}
	}
	// Without it pods still work, but no pod gets a chosen address.
	own := filepath.Join(c.source, "vm-ipam")
	if _, err := os.Stat(own); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return install(own, filepath.Join(dir, "vm-ipam"))
}

// cniPlugins lists the installed plugins.
func (c *Cluster) cniPlugins() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(c.binDir(), "cni.d"))
	if err != nil {
		return nil, fmt.Errorf("list network plugins: %w", err)
	}
	var names []string
	for _, entry := range entries {
		if !strings.HasSuffix(entry.Name(), ".new") {
			names = append(names, entry.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

// install copies a program unless the copy is the same. A running process keeps the
// old one.
func install(from, to string) error {
	// An unchanged program, which is the usual case, is not read at all.
	source, err := os.Stat(from)
	if err != nil {
		return fmt.Errorf("install %s: %w", filepath.Base(to), err)
	}
	if copied, err := os.Stat(to); err == nil && copied.Size() == source.Size() && copied.ModTime().Equal(source.ModTime()) {
		return nil
	}
	if err := copyProgram(from, to); err != nil {
		return fmt.Errorf("install %s: %w", filepath.Base(to), err)
	}
	return os.Chtimes(to, source.ModTime(), source.ModTime())
}

// copyProgram replaces to by a copy of from unless they are the same.
func copyProgram(from, to string) error {
	now, err := fileDigest(from)
	if err != nil {
		return err
	}
	if was, err := fileDigest(to); err == nil && was == now {
		return nil
	}
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := os.OpenFile(to+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(target, source)
	if err = errors.Join(err, target.Close()); err == nil {
		err = os.Rename(to+".new", to)
	}
	if err != nil {
		return err
	}
	return nil
}

// fileDigest is the SHA-256 of a file.
func fileDigest(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, file); err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

func relink(target, path string) error {
	if now, err := os.Readlink(path); err == nil && now == target {
		return nil
	}
	if err := os.RemoveAll(path); err != nil {
		return fmt.Errorf("link %s: %w", path, err)
	}
	if err := os.Symlink(target, path); err != nil {
		return fmt.Errorf("link %s: %w", path, err)
	}
	return nil
}

// mayLowerOOMScore says whether this process has CAP_SYS_RESOURCE, which containers
// often lack even as root.
func mayLowerOOMScore() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	return data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}
