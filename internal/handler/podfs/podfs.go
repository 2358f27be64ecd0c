// Package podfs opens what a pod has on its node: its run directory, its file
// system volumes and its block volumes, all below the kubelet's directory as the
// node's init process sees it.
//
// Much of that can be written by the pod or by whoever else mounts the same
// volume, and the reader is root: no symbolic link below a pod's directory is ever
// followed, the type of a file is checked on a descriptor that cannot be used for
// I/O, and only that very inode is opened afterwards. The one exception is the
// link of a block volume, which the kubelet makes in a directory of its own; it is
// followed inside the node's root and must end at a block device.
package podfs

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"
)

// RunVolume is the name of the emptyDir with the sockets of launcher and QEMU.
const RunVolume = "run"

// DiskFile is the disk's file in the root of a file system volume.
const DiskFile = "disk.qcow2"

// beneath is how every path that a pod may have written is resolved.
const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

// ErrNotMounted says that the kubelet has not (yet, or any more) mounted what was
// asked for.
var ErrNotMounted = errors.New("volume is not mounted")

// Node is the file system of this node.
type Node struct {
	// Root is the node's root directory, /proc/1/root for a process in the node's
	// PID namespace. Files opened through it keep their volume busy, so that the
	// kubelet cannot unmount it under a running QEMU.
	Root string
	// KubeletDir is the kubelet's root directory below Root, /var/lib/kubelet.
	KubeletDir string
}

// Exists says whether the kubelet still has a directory for the pod.
func (n Node) Exists(pod types.UID) (bool, error) {
	dir, err := n.openPod(pod)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, dir.Close()
}

// RunDir opens the pod's run directory (O_PATH).
func (n Node) RunDir(pod types.UID) (*os.File, error) {
	dir, err := n.openPod(pod)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return openDir(dir, path.Join("volumes", "kubernetes.io~empty-dir", RunVolume))
}

// Disk is an open disk.
type Disk struct {
	File *os.File
	// Buffered is true if the file system refused O_DIRECT.
	Buffered bool
}

// Grown is the size of an open block device, in bytes. A loop device is told first to
// look at what is below it, which may have grown.
func (d Disk) Grown() (int64, error) {
	fd := d.File.Fd()
	if err := unix.IoctlSetInt(int(fd), unix.LOOP_SET_CAPACITY, 0); err != nil && !errors.Is(err, unix.ENOTTY) && !errors.Is(err, unix.EINVAL) {
		return 0, fmt.Errorf("refresh size of device: %w", err)
	}
	size, err := d.File.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, fmt.Errorf("read size of device: %w", err)
	}
	return size, nil
}

// DiskFile opens the disk in a file system volume, read-write or read-only.
func (n Node) DiskFile(pod types.UID, volume string, readOnly bool) (Disk, error) {
	dir, err := n.openPod(pod)
	if err != nil {
		return Disk{}, err
	}
	defer dir.Close()
	mount, err := findMount(dir, volume)
	if err != nil {
		return Disk{}, err
	}
	defer mount.Close()
	file, err := openat(mount, DiskFile, unix.O_PATH|unix.O_NOFOLLOW, beneath|unix.RESOLVE_NO_XDEV)
	if err != nil {
		return Disk{}, fmt.Errorf("open %s of volume %s: %w", DiskFile, volume, err)
	}
	defer file.Close()
	if err := checkType(file, unix.S_IFREG, "a regular file"); err != nil {
		return Disk{}, fmt.Errorf("open %s of volume %s: %w", DiskFile, volume, err)
	}
	disk, err := reopen(file, mode(readOnly))
	if err != nil {
		return Disk{}, fmt.Errorf("open %s of volume %s: %w", DiskFile, volume, err)
	}
	return disk, nil
}

// BlockDevice opens a block volume. A writable device is opened exclusively, unless it
// is paired: the second open of the same device on this node fails, through whatever
// device node it comes. Paired is the device of a machine that arrives by a migration
// and is still in the hands of its source.
func (n Node) BlockDevice(pod types.UID, volume string, readOnly, paired bool) (Disk, error) {
	dir, err := n.openPod(pod)
	if err != nil {
		return Disk{}, err
	}
	defer dir.Close()
	link, err := findDevice(dir, volume)
	if err != nil {
		return Disk{}, err
	}
	root, err := os.Open(n.Root)
	if err != nil {
		return Disk{}, fmt.Errorf("open node root: %w", err)
	}
	defer root.Close()
	device, err := openat(root, link, unix.O_PATH, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS)
	if err != nil {
		return Disk{}, fmt.Errorf("open device of volume %s: %w", volume, err)
	}
	defer device.Close()
	if err := checkType(device, unix.S_IFBLK, "a block device"); err != nil {
		return Disk{}, fmt.Errorf("open device of volume %s: %w", volume, err)
	}
	flags := mode(readOnly)
	if !readOnly && !paired {
		flags |= unix.O_EXCL
	}
	disk, err := reopen(device, flags)
	if err != nil {
		return Disk{}, fmt.Errorf("open device of volume %s: %w", volume, err)
	}
	return disk, nil
}

func mode(readOnly bool) int {
	if readOnly {
		return unix.O_RDONLY
	}
	return unix.O_RDWR
}

// openPod opens the directory of a pod. The directories above it are the
// kubelet's alone.
func (n Node) openPod(pod types.UID) (*os.File, error) {
	if pod == "" || strings.ContainsAny(string(pod), "/.") {
		return nil, fmt.Errorf("open directory of pod %q: not a UID", pod)
	}
	pods, err := os.Open(path.Join(n.Root, n.KubeletDir, "pods"))
	if err != nil {
		return nil, fmt.Errorf("open the kubelet's directory: %w", err)
	}
	defer pods.Close()
	dir, err := openDir(pods, string(pod))
	if err != nil {
		return nil, fmt.Errorf("open directory of pod: %w", err)
	}
	return dir, nil
}

// findMount looks for the volume under every plugin's directory: CSI mounts it at
// "mount" below, the plugins inside the kubelet mount the directory itself.
func findMount(pod *os.File, volume string) (*os.File, error) {
	plugins, err := list(pod, "volumes")
	if err != nil {
		return nil, err
	}
	for _, plugin := range plugins {
		at := path.Join("volumes", plugin, volume)
		if plugin == "kubernetes.io~csi" {
			at = path.Join(at, "mount")
		}
		dir, err := openDir(pod, at)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		return dir, err
	}
	return nil, fmt.Errorf("find volume %s: %w", volume, ErrNotMounted)
}

// findDevice reads the link the kubelet has made for a block volume.
func findDevice(pod *os.File, volume string) (string, error) {
	plugins, err := list(pod, "volumeDevices")
	if err != nil {
		return "", err
	}
	for _, plugin := range plugins {
		at := path.Join("volumeDevices", plugin, volume)
		f, err := openat(pod, at, unix.O_PATH|unix.O_NOFOLLOW, beneath&^unix.RESOLVE_NO_SYMLINKS)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("open link of volume %s: %w", volume, err)
		}
		defer f.Close()
		target := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(int(f.Fd()), "", target)
		if err != nil {
			return "", fmt.Errorf("read link of volume %s: %w", volume, err)
		}
		return string(target[:n]), nil
	}
	return "", fmt.Errorf("find device of volume %s: %w", volume, ErrNotMounted)
}

// Listener is a socket in a pod's run directory.
type Listener struct {
	*net.UnixListener
	dir  *os.File
	name string
}

// Listen makes a stream socket in the pod's run directory that a user of the pod may
// connect to. What lies there under its name is removed.
func (n Node) Listen(pod types.UID, name string, user int) (*Listener, error) {
	dir, err := n.RunDir(pod)
	if err != nil {
		return nil, err
	}
	l, err := ListenIn(dir, name, user)
	if err != nil {
		_ = dir.Close()
	}
	return l, err
}

// ListenIn does so in an open directory, which the listener owns from then on.
func ListenIn(dir *os.File, name string, user int) (*Listener, error) {
	if err := unix.Unlinkat(int(dir.Fd()), name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("remove old socket %s: %w", name, err)
	}
	// bind(2) follows no link in the last place and replaces nothing.
	address := &net.UnixAddr{Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name), Net: "unix"}
	inner, err := net.ListenUnix("unix", address)
	if err != nil {
		return nil, fmt.Errorf("make socket %s: %w", name, err)
	}
	inner.SetUnlinkOnClose(false) // by its path, which means nothing once dir is closed
	if err := giveTo(dir, name, user); err != nil {
		_ = inner.Close()
		return nil, err
	}
	return &Listener{UnixListener: inner, dir: dir, name: name}, nil
}

// giveTo makes a user the owner of the socket that we have just made, and of nothing
// that the pod may have put in its place: nothing else in its reach is a socket of ours.
func giveTo(dir *os.File, name string, user int) error {
	f, err := openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW, beneath|unix.RESOLVE_NO_XDEV)
	if err != nil {
		return fmt.Errorf("open socket %s: %w", name, err)
	}
	defer f.Close()
	if err := checkType(f, unix.S_IFSOCK, "a socket"); err != nil {
		return fmt.Errorf("open socket %s: %w", name, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("stat socket %s: %w", name, err)
	}
	if int(st.Uid) != os.Getuid() {
		return fmt.Errorf("open socket %s: somebody else's", name)
	}
	if err := unix.Fchownat(int(f.Fd()), "", user, user, unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("give socket %s to user %d: %w", name, user, err)
	}
	return nil
}

// Close stops listening and removes the socket.
func (l *Listener) Close() error {
	err := l.UnixListener.Close()
	_ = unix.Unlinkat(int(l.dir.Fd()), l.name, 0)
	return errors.Join(err, l.dir.Close())
}

// list returns the names in a directory of the pod; a missing one is empty.
func list(pod *os.File, name string) ([]string, error) {
	dir, err := openat(pod, name, unix.O_RDONLY|unix.O_DIRECTORY, beneath)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open %s of pod: %w", name, err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list %s of pod: %w", name, err)
	}
	return names, nil
}

func openDir(at *os.File, name string) (*os.File, error) {
	dir, err := openat(at, name, unix.O_PATH|unix.O_DIRECTORY, beneath)
	if err != nil {
		return nil, fmt.Errorf("open directory %s: %w", name, err)
	}
	return dir, nil
}

func openat(at *os.File, name string, flags int, resolve uint64) (*os.File, error) {
	for {
		fd, err := unix.Openat2(int(at.Fd()), name, &unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: resolve})
		// The kernel gives up with EAGAIN when something was renamed meanwhile.
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return os.NewFile(uintptr(fd), name), nil
	}
}

func checkType(f *os.File, want uint32, what string) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	if st.Mode&unix.S_IFMT != want {
		return fmt.Errorf("it is not %s", what)
	}
	return nil
}

// reopen opens the inode of an O_PATH descriptor for I/O, with O_DIRECT where the
// file system has it.
func reopen(f *os.File, flags int) (Disk, error) {
	name := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	for _, direct := range []int{unix.O_DIRECT, 0} {
		fd, err := unix.Open(name, flags|direct|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.EINVAL) && direct != 0 {
			continue
		}
		if err != nil {
			return Disk{}, err
		}
		return Disk{File: os.NewFile(uintptr(fd), f.Name()), Buffered: direct == 0}, nil
	}
	return Disk{}, unix.EINVAL
}
