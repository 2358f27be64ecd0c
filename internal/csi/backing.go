package csi

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"orlop.dev/orlop/internal/loopdev"
)

const (
	backingFile  = "backing.xfs"
	backingMount = "backing"
	// backingReserve is what a new backing image leaves free on its host, in bytes.
	backingReserve = 2 << 30
	// backingMinimum is the smallest backing image worth making, in bytes.
	backingMinimum = 1 << 30
)

// OpenStore opens the store under root, a folder that all nodes of the machine
// see. Where the file system of root cannot copy by reference, the store is an
// XFS file system in a sparse file there; it is made once and mounted for this
// process. Several processes may do this at once.
func OpenStore(root string) (*Store, error) {
	unlock, err := lockRoot(root)
	if err != nil {
		return nil, err
	}
	defer unlock()
	image := filepath.Join(root, backingFile)
	_, err = os.Stat(image)
	switch {
	case err == nil:
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("look for backing image: %w", err)
	case reflinks(root):
		return openStore(root, root)
	default:
		if err := makeBacking(root, image); err != nil {
			return nil, err
		}
	}
	dir, err := mountBacking(root, image)
	if err != nil {
		return nil, err
	}
	return openStore(root, dir)
}

// CloseStore unmounts the backing image of the store at root, if there is one,
// for this mount namespace. Loop devices of volumes keep working.
func CloseStore(root string) error {
	target := filepath.Join(root, backingMount)
	mounted, err := isMounted(target)
	if err != nil || !mounted {
		return err
	}
	if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount backing image: %w", err)
	}
	return nil
}

func lockRoot(root string) (unlock func(), err error) {
	f, err := os.Open(root)
	if err != nil {
		return nil, fmt.Errorf("open storage folder: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock storage folder: %w", err)
	}
	return func() { f.Close() }, nil
}

// reflinks tells by trying whether files in dir can be copied by reference.
func reflinks(dir string) bool {
	src, err := os.CreateTemp(dir, ".probe-")
	if err != nil {
		return false
	}
	defer os.Remove(src.Name())
	defer src.Close()
	if _, err := src.Write(make([]byte, 64<<10)); err != nil {
		return false
	}
	dst, err := os.CreateTemp(dir, ".probe-")
	if err != nil {
		return false
	}
	defer os.Remove(dst.Name())
	defer dst.Close()
	return unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) == nil
}

// makeBacking makes the backing image, as large as what is free. It is sparse:
// it takes what the volumes take.
func makeBacking(root, image string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil {
		return fmt.Errorf("measure storage folder: %w", err)
	}
	size := int64(st.Bavail)*st.Bsize - backingReserve
	size -= size % (1 << 20)
	if size < backingMinimum {
		return fmt.Errorf("storage folder %s has too little space: %d MiB more are needed", root, (backingMinimum-size)>>20)
	}
	tmp := image + ".new"
	if err := makeSparse(tmp, size); err != nil {
		return err
	}
	defer os.Remove(tmp)
	if err := run("mkfs.xfs", "-q", "-f", "-m", "reflink=1", "-L", "orlop", tmp); err != nil {
		return fmt.Errorf("make backing file system: %w", err)
	}
	if err := os.Rename(tmp, image); err != nil {
		return fmt.Errorf("move backing image to its place: %w", err)
	}
	return syncDir(root)
}

func mountBacking(root, image string) (string, error) {
	id, err := storeIdentity(root)
	if err != nil {
		return "", err
	}
	target := filepath.Join(root, backingMount)
	if err := os.MkdirAll(target, 0o700); err != nil {
		return "", fmt.Errorf("make mount point of backing image: %w", err)
	}
	mounted, err := isMounted(target)
	if err != nil || mounted {
		return target, err
	}
	d, err := loopdev.Attach(image, labelPrefix(id)+"backing")
	if err != nil {
		return "", fmt.Errorf("attach backing image: %w", err)
	}
	// discard, so that the host gets back the space of deleted volumes.
	if err := unix.Mount(d.Path(), target, "xfs", unix.MS_NOATIME, "nouuid,discard"); err != nil {
		return "", fmt.Errorf("mount backing image: %w", err)
	}
	return target, nil
}
