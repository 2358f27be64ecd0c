package handler

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"orlop.dev/orlop/internal/handler/network"
	"orlop.dev/orlop/internal/handler/podfs"
	"orlop.dev/orlop/internal/wire"
)

// launcherUID is the user of everything in a launcher pod.
const launcherUID = 107

// link is a proven connection to a launcher.
type link struct {
	client *wire.Client
	// net is the network namespace of the launcher, and so of the pod.
	net *network.Namespace
}

func (l *link) close() { _ = errors.Join(l.client.Close(), l.net.Close()) }

// connect finds the pod's launcher and proves that it is one: a process of the
// launcher's user, in a cgroup of exactly this pod.
func connect(ctx context.Context, node podfs.Node, pod types.UID) (*link, error) {
	dir, err := node.RunDir(pod)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	conn, err := wire.Dial(ctx, dir)
	if err != nil {
		return nil, err
	}
	peer, err := conn.Peer()
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	proc, err := provePeer(peer, pod)
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("refuse launcher: %w", err)
	}
	defer proc.Close()
	ns, err := network.NamespaceOfProcess(proc)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return &link{client: wire.NewClient(conn), net: ns}, nil
}

// provePeer checks a peer's credentials and returns its directory in /proc, which
// goes on meaning this very process.
func provePeer(peer wire.Peer, pod types.UID) (*os.File, error) {
	if peer.UID != launcherUID {
		return nil, fmt.Errorf("its user is %d instead of %d", peer.UID, launcherUID)
	}
	if peer.PID <= 0 {
		return nil, errors.New("its process is not visible on this node")
	}
	proc, err := os.Open("/proc/" + strconv.Itoa(int(peer.PID)))
	if err != nil {
		return nil, fmt.Errorf("open its process: %w", err)
	}
	cgroup, err := readAt(proc, "cgroup")
	if err == nil && !inPod(cgroup, pod) {
		err = fmt.Errorf("process %d is not in pod %s", peer.PID, pod)
	}
	if err != nil {
		_ = proc.Close()
		return nil, err
	}
	return proc, nil
}

func readAt(dir *os.File, name string) (string, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("open %s of process: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil {
		return "", fmt.Errorf("read %s of process: %w", name, err)
	}
	return string(data), nil
}

// inPod says whether a process with this /proc/<pid>/cgroup belongs to the pod. The
// kubelet names a pod's cgroup "pod<uid>", or "…-pod<uid with underscores>.slice"
// where systemd keeps the cgroups. A process without privilege cannot leave it.
func inPod(cgroup string, pod types.UID) bool {
	plain := "pod" + string(pod)
	slice := "-pod" + strings.ReplaceAll(string(pod), "-", "_") + ".slice"
	for line := range strings.Lines(cgroup) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) != 3 {
			continue
		}
		for dir := range strings.SplitSeq(fields[2], "/") {
			if dir == plain || strings.HasSuffix(dir, slice) {
				return true
			}
		}
	}
	return false
}

// dialSocket connects to a stream socket of QEMU in the pod's run directory, with
// the same proof as for the launcher.
func dialSocket(ctx context.Context, node podfs.Node, pod types.UID, name string) (*net.UnixConn, error) {
	dir, err := node.RunDir(pod)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	socket, err := wire.OpenSocketAt(dir, name)
	if err != nil {
		return nil, err
	}
	defer socket.Close()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", wire.SocketPath(socket))
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", name, err)
	}
	conn := c.(*net.UnixConn)
	peer, err := peerOf(conn)
	if err == nil {
		var proc *os.File
		if proc, err = provePeer(peer, pod); err == nil {
			_ = proc.Close()
		}
	}
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("refuse %s: %w", name, err)
	}
	return conn, nil
}

func peerOf(c *net.UnixConn) (wire.Peer, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return wire.Peer{}, fmt.Errorf("use socket: %w", err)
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil || credErr != nil {
		return wire.Peer{}, fmt.Errorf("read peer credentials: %w", errors.Join(err, credErr))
	}
	return wire.Peer{PID: cred.Pid, UID: cred.Uid, GID: cred.Gid}, nil
}
