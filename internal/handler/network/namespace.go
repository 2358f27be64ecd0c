package network

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Namespace is an open network namespace of a pod.
type Namespace struct{ file *os.File }

// NewNamespace takes over a descriptor of a network namespace other than the
// caller's own: what is done to a pod must never be done to the node.
func NewNamespace(f *os.File) (*Namespace, error) {
	var theirs, ours unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &theirs); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("stat network namespace: %w", err)
	}
	if err := unix.Stat("/proc/self/ns/net", &ours); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("stat own network namespace: %w", err)
	}
	if theirs.Dev == ours.Dev && theirs.Ino == ours.Ino {
		_ = f.Close()
		return nil, errors.New("the pod is in the node's network namespace")
	}
	return &Namespace{file: f}, nil
}

// Copy returns a second descriptor of the namespace.
func (n *Namespace) Copy() (*Namespace, error) {
	fd, err := unix.FcntlInt(n.file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("copy network namespace: %w", err)
	}
	return &Namespace{file: os.NewFile(uintptr(fd), n.file.Name())}, nil
}

// Close releases the namespace.
func (n *Namespace) Close() error { return n.file.Close() }

// Do runs act on a thread inside the namespace. Sockets opened and links made by
// act stay there. act must not start goroutines that rely on it.
func (n *Namespace) Do(act func() error) error {
	result := make(chan error)
	go func() { result <- n.doLocked(act) }()
	return <-result
}

// doLocked switches the thread of a goroutine of its own. If the way back fails
// the thread stays locked and so ends with the goroutine.
func (n *Namespace) doLocked(act func() error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open own network namespace: %w", err)
	}
	defer home.Close()
	if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace: %w", err)
	}
	err = act()
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, fmt.Errorf("leave network namespace: %w", back))
	}
	runtime.UnlockOSThread()
	return err
}
