package qemu_test

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/wire"
)

func intString(n int64) string { return strconv.FormatInt(n, 10) }

// A file system that is full stops the guest; the guest does not see an error, and goes
// on where it was when there is space again.
func TestFullFileSystemPausesTheGuest(t *testing.T) {
	volume := smallFileSystem(t, 96)
	disk := filepath.Join(volume, "disk.qcow2")
	run(t, "cp", tinyDisk(t), disk)
	filler := filepath.Join(volume, "filler")
	fill(t, filler)

	p := newPod(t)
	c := p.mustStart(tinyRequest(t, disk))
	c.run("until grep -q ' /disk ' /proc/mounts; do sleep 1; done; dd if=/dev/zero of=/disk/big bs=1M count=8 conv=fsync; echo written-$?")

	paused := p.waitFor("pause", func(s wire.State) bool { return s.Phase == v1alpha1.InstancePaused })
	if paused.PauseReason != "NoSpace" || paused.GuestStatus != "io-error" {
		t.Errorf("got state %+v", paused)
	}
	if err := p.client.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.waitFor("pause without space", func(s wire.State) bool {
		return s.Phase == v1alpha1.InstancePaused && s.PauseReason == "NoSpace"
	})
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	// The guest may meet the full disk once more after the state was read: like the
	// handler, resume for as long as it stands.
	for range 20 {
		if p.hello().Phase == v1alpha1.InstancePaused {
			if err := p.client.Resume(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(200 * time.Millisecond)
	}
	c.expect("written-0")
	if s := p.hello(); s.Phase != v1alpha1.InstanceRunning || s.PauseReason != "" {
		t.Errorf("got state %+v", s)
	}
	c.run("poweroff")
	if x := p.exit(); x.Cause != v1alpha1.ExitGuestShutdown {
		t.Errorf("got exit %+v", x)
	}
	run(t, tools.qemuImg, "check", disk)
}

// A paused guest cannot follow the power button; the grace period ends it all the same.
func TestPausedGuestIsStopped(t *testing.T) {
	volume := smallFileSystem(t, 96)
	disk := filepath.Join(volume, "disk.qcow2")
	run(t, "cp", tinyDisk(t), disk)
	fill(t, filepath.Join(volume, "filler"))
	p := newPod(t)
	c := p.mustStart(tinyRequest(t, disk))
	c.run("until grep -q ' /disk ' /proc/mounts; do sleep 1; done; dd if=/dev/zero of=/disk/big bs=1M count=8 conv=fsync")
	p.waitFor("pause", func(s wire.State) bool { return s.Phase == v1alpha1.InstancePaused })
	if err := p.client.Shutdown(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	if s := p.hello(); s.Phase != v1alpha1.InstanceStopping || s.PauseReason != "" {
		t.Errorf("got state %+v", s)
	}
	if x := p.exit(); x.Cause != v1alpha1.ExitKilled {
		t.Errorf("got exit %+v", x)
	}
}

// smallFileSystem mounts an ext4 of so many MiB.
func smallFileSystem(t *testing.T, mebibytes int64) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	image, dir := filepath.Join(t.TempDir(), "volume"), t.TempDir()
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, mebibytes<<20); err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs.ext4", "-q", "-m", "0", image)
	if out, err := exec.Command("mount", "-o", "loop", image, dir).CombinedOutput(); err != nil {
		t.Skipf("no loop devices: %s", strings.TrimSpace(string(out)))
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// fill takes all the space of a file system but a little.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	size := int64(st.Bavail)*st.Bsize - 1<<20
	if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
		zero, openErr := os.Open("/dev/zero")
		if openErr != nil {
			t.Fatal(err, openErr)
		}
		defer func() { _ = zero.Close() }()
		if _, err := io.CopyN(f, zero, size); err != nil {
			t.Fatal(err)
		}
	}
}
