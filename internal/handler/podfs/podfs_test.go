package podfs

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"
)

const pod = "5d1c6c4e-0000-4000-8000-000000000001"

// node is a kubelet directory with one pod in it; dir is the pod's.
func node(t *testing.T) (n Node, dir string) {
	t.Helper()
	root := t.TempDir()
	dir = filepath.Join(root, "var/lib/kubelet/pods", pod)
	mkdir(t, dir)
	return Node{Root: root, KubeletDir: "/var/lib/kubelet"}, dir
}

func mkdir(t *testing.T, dir string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func write(t *testing.T, file string) {
	t.Helper()
	mkdir(t, filepath.Dir(file))
	if err := os.WriteFile(file, []byte("disk"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func symlink(t *testing.T, target, name string) {
	t.Helper()
	mkdir(t, filepath.Dir(name))
	if err := os.Symlink(target, name); err != nil {
		t.Fatal(err)
	}
}

func TestDiskFile(t *testing.T) {
	const csi = "volumes/kubernetes.io~csi/pv-1/mount"
	secret := filepath.Join(t.TempDir(), "secret")
	write(t, secret)
	cases := map[string]struct {
		prepare func(t *testing.T, dir string)
		want    string // part of the error, empty for success
		wantErr error
	}{
		"a CSI volume is mounted one level below": {
			prepare: func(t *testing.T, dir string) { write(t, filepath.Join(dir, csi, DiskFile)) },
		},
		"the kubelet's own plugins mount the directory itself": {
			prepare: func(t *testing.T, dir string) {
				write(t, filepath.Join(dir, "volumes/kubernetes.io~nfs/pv-1", DiskFile))
			},
		},
		"a volume that is not mounted yet is awaited": {
			prepare: func(t *testing.T, dir string) { mkdir(t, filepath.Join(dir, "volumes/kubernetes.io~csi")) },
			wantErr: ErrNotMounted,
		},
		"a mounted volume without a disk says so": {
			prepare: func(t *testing.T, dir string) { mkdir(t, filepath.Join(dir, csi)) },
			wantErr: unix.ENOENT,
		},
		"a link to a secret of the node is not followed": {
			prepare: func(t *testing.T, dir string) { symlink(t, secret, filepath.Join(dir, csi, DiskFile)) },
			want:    "not a regular file",
		},
		"a link to another file of the volume is not followed either": {
			prepare: func(t *testing.T, dir string) {
				write(t, filepath.Join(dir, csi, "other"))
				symlink(t, "other", filepath.Join(dir, csi, DiskFile))
			},
			want: "not a regular file",
		},
		"a volume directory that is a link is not followed": {
			prepare: func(t *testing.T, dir string) { symlink(t, filepath.Dir(secret), filepath.Join(dir, csi)) },
			wantErr: unix.ELOOP,
		},
		"a FIFO would block the handler for ever": {
			prepare: func(t *testing.T, dir string) {
				mkdir(t, filepath.Join(dir, csi))
				if err := unix.Mkfifo(filepath.Join(dir, csi, DiskFile), 0o666); err != nil {
					t.Fatal(err)
				}
			},
			want: "not a regular file",
		},
		"a directory is no disk": {
			prepare: func(t *testing.T, dir string) { mkdir(t, filepath.Join(dir, csi, DiskFile)) },
			want:    "not a regular file",
		},
		"a device node would hand out the node's memory": {
			prepare: func(t *testing.T, dir string) {
				mkdir(t, filepath.Join(dir, csi))
				if err := unix.Mknod(filepath.Join(dir, csi, DiskFile), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
					t.Skipf("needs the right to make device nodes: %v", err)
				}
			},
			want: "not a regular file",
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			n, dir := node(t)
			c.prepare(t, dir)
			disk, err := n.DiskFile(pod, "pv-1", false)
			switch {
			case c.wantErr != nil:
				if !errors.Is(err, c.wantErr) {
					t.Fatalf("error %v, want %v", err, c.wantErr)
				}
			case c.want != "":
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Fatalf("error %v, want one with %q", err, c.want)
				}
			default:
				if err != nil {
					t.Fatal(err)
				}
				defer disk.File.Close()
				flags, err := unix.FcntlInt(disk.File.Fd(), unix.F_GETFL, 0)
				if err != nil {
					t.Fatal(err)
				}
				if flags&unix.O_ACCMODE != unix.O_RDWR || (flags&unix.O_DIRECT == 0) != disk.Buffered {
					t.Errorf("flags %#o, buffered %v", flags, disk.Buffered)
				}
			}
		})
	}
}

func TestReadOnlyDiskIsOpenedReadOnly(t *testing.T) {
	n, dir := node(t)
	write(t, filepath.Join(dir, "volumes/kubernetes.io~csi/pv-1/mount", DiskFile))
	disk, err := n.DiskFile(pod, "pv-1", true)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.File.Close()
	if flags, _ := unix.FcntlInt(disk.File.Fd(), unix.F_GETFL, 0); flags&unix.O_ACCMODE != unix.O_RDONLY {
		t.Errorf("flags %#o, want read-only", flags)
	}
}

func TestRunDir(t *testing.T) {
	const run = "volumes/kubernetes.io~empty-dir/run"
	outside := t.TempDir()
	cases := map[string]struct {
		prepare func(t *testing.T, dir string)
		wantErr error
	}{
		"the emptyDir":                        {func(t *testing.T, dir string) { mkdir(t, filepath.Join(dir, run)) }, nil},
		"not there before the pod has begun":  {func(*testing.T, string) {}, unix.ENOENT},
		"a link in its place is not followed": {func(t *testing.T, dir string) { symlink(t, outside, filepath.Join(dir, run)) }, unix.ELOOP},
		"a link further up is not followed":   {func(t *testing.T, dir string) { symlink(t, outside, filepath.Join(dir, "volumes")) }, unix.ELOOP},
		"a regular file is no directory":      {func(t *testing.T, dir string) { write(t, filepath.Join(dir, run)) }, unix.ENOTDIR},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			n, dir := node(t)
			c.prepare(t, dir)
			f, err := n.RunDir(pod)
			if !errors.Is(err, c.wantErr) {
				t.Fatalf("error %v, want %v", err, c.wantErr)
			}
			if err == nil {
				_ = f.Close()
			}
		})
	}
}

func TestPodUIDCannotLeaveTheDirectory(t *testing.T) {
	n, _ := node(t)
	for _, uid := range []string{"", ".", "..", "../pods", "a/b"} {
		if f, err := n.RunDir(types.UID(uid)); err == nil {
			_ = f.Close()
			t.Errorf("opened pod %q", uid)
		}
	}
}

func TestBlockDevice(t *testing.T) {
	const link = "volumeDevices/kubernetes.io~csi/pv-1"
	cases := map[string]struct {
		prepare func(t *testing.T, n Node, dir string)
		want    string
		wantErr error
	}{
		"not mapped yet": {prepare: func(*testing.T, Node, string) {}, wantErr: ErrNotMounted},
		"a link to a regular file is no device": {
			prepare: func(t *testing.T, n Node, dir string) {
				write(t, filepath.Join(n.Root, "dev/file"))
				symlink(t, "/dev/file", filepath.Join(dir, link))
			},
			want: "not a block device",
		},
		"a link out of the node's root stays inside it": {
			prepare: func(t *testing.T, _ Node, dir string) {
				symlink(t, "/../../../../etc/passwd", filepath.Join(dir, link))
			},
			wantErr: unix.ENOENT,
		},
		"a character device is no disk": {
			prepare: func(t *testing.T, n Node, dir string) {
				mkdir(t, filepath.Join(n.Root, "dev"))
				if err := unix.Mknod(filepath.Join(n.Root, "dev/zero"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))); err != nil {
					t.Skipf("needs the right to make device nodes: %v", err)
				}
				symlink(t, "/dev/zero", filepath.Join(dir, link))
			},
			want: "not a block device",
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			n, dir := node(t)
			c.prepare(t, n, dir)
			disk, err := n.BlockDevice(pod, "pv-1", false, false)
			if err == nil {
				_ = disk.File.Close()
				t.Fatal("opened")
			}
			if c.wantErr != nil && !errors.Is(err, c.wantErr) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %v %q", err, c.wantErr, c.want)
			}
		})
	}
}

// TestBlockDeviceIsExclusive: the same device through two pods' links is opened for
// writing once.
func TestBlockDeviceIsExclusive(t *testing.T) {
	n, dir := node(t)
	backing := filepath.Join(t.TempDir(), "backing")
	write(t, backing)
	if err := os.Truncate(backing, 1<<20); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", backing).Output()
	if err != nil {
		t.Skipf("needs loop devices: %v", err)
	}
	loop := strings.TrimSpace(string(out))
	t.Cleanup(func() { _ = exec.Command("losetup", "--detach", loop).Run() })
	var st unix.Stat_t
	if err := unix.Stat(loop, &st); err != nil {
		t.Fatal(err)
	}
	mkdir(t, filepath.Join(n.Root, "dev"))
	for _, name := range []string{"one", "two"} {
		if err := unix.Mknod(filepath.Join(n.Root, "dev", name), unix.S_IFBLK|0o600, int(st.Rdev)); err != nil {
			t.Skipf("needs the right to make device nodes: %v", err)
		}
		symlink(t, "/dev/"+name, filepath.Join(dir, "volumeDevices/kubernetes.io~csi", name))
	}
	first, err := n.BlockDevice(pod, "one", false, false)
	if err != nil {
		t.Fatal(err)
	}
	if second, err := n.BlockDevice(pod, "two", false, false); !errors.Is(err, unix.EBUSY) {
		if err == nil {
			_ = second.File.Close()
		}
		t.Errorf("second open: %v, want %v", err, unix.EBUSY)
	}
	_ = first.File.Close()
	again, err := n.BlockDevice(pod, "two", false, false)
	if err != nil {
		t.Fatalf("after the first was closed: %v", err)
	}
	_ = again.File.Close()
}
