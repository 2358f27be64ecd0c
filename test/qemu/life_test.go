package qemu_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/qemu"
	"orlop.dev/orlop/internal/qmp"
	"orlop.dev/orlop/internal/wire"
)

func TestLifeOfAGuest(t *testing.T) {
	p := newPod(t)
	if s := p.hello(); s.Phase != v1alpha1.InstancePending {
		t.Fatalf("fresh launcher is in phase %q", s.Phase)
	}
	disk := tinyDisk(t)
	begin := time.Now()
	c := p.mustStart(tinyRequest(t, disk))
	t.Logf("start to userspace: %s", time.Since(begin).Round(time.Millisecond))

	s := p.hello()
	if s.Phase != v1alpha1.InstanceRunning || s.StartTime == nil || !strings.HasPrefix(s.QEMUVersion, "10.") || s.GuestStatus != "running" {
		t.Errorf("got state %+v", s)
	}
	if len(s.Disks) != 1 || s.Disks[0].ID != "vd-root" || !s.Disks[0].Attached || s.Disks[0].Size == 0 {
		t.Errorf("got disks %+v", s.Disks)
	}
	if err := p.start(tinyRequest(t, disk)); !errors.Is(err, wire.ErrAlreadyStarted) {
		t.Errorf("second start: got %v, want ErrAlreadyStarted", err)
	}

	// A restarted handler finds the same guest, on both of its ways in.
	p.connect()
	if got := p.hello(); !cmp.Equal(s, got) {
		t.Errorf("state after reconnect: %s", cmp.Diff(s, got))
	}
	monitor, err := qmp.Dial(t.Context(), filepath.Join(p.dir, qemu.HandlerMonitorSocket))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = monitor.Close() }()
	status, err := monitor.QueryStatus(t.Context())
	if err != nil || !status.Running {
		t.Errorf("handler's monitor: %+v, %v", status, err)
	}

	size := s.Disks[0].Size + 64<<20
	if err := p.client.Resize(t.Context(), "vd-root", size-1); err == nil {
		t.Error("a size between sectors was accepted")
	}
	if err := p.client.Resize(t.Context(), "vd-root", size); err != nil {
		t.Error(err)
	}
	c.run("cat /sys/block/sda/size")
	c.expect(intString(size/512) + "\r\n")
	if err := p.client.Resize(t.Context(), "vd-root", size-512); err == nil {
		t.Error("shrinking was accepted")
	}

	if err := p.client.Shutdown(t.Context(), 60); err != nil {
		t.Fatal(err)
	}
	if s := p.hello(); s.Phase != v1alpha1.InstanceStopping {
		t.Errorf("phase %q after shutdown", s.Phase)
	}
	c.expect("orlop-tiny: power button")
	x := p.exit()
	if x.Cause != v1alpha1.ExitHostShutdown || x.Code != 0 || x.Time.IsZero() {
		t.Errorf("got exit %+v", x)
	}
	if got := p.terminationMessage(); got.Cause != x.Cause {
		t.Errorf("got termination message %+v", got)
	}
	if err := p.start(tinyRequest(t, disk)); !errors.Is(err, wire.ErrAlreadyStarted) {
		t.Errorf("start after the end: got %v, want ErrAlreadyStarted", err)
	}
	if code := p.bye(); code != 0 {
		t.Errorf("launcher exits with %d", code)
	}
	run(t, tools.qemuImg, "check", disk)
}

func TestGuestEndsItself(t *testing.T) {
	t.Run("poweroff", func(t *testing.T) {
		p := newPod(t)
		c := p.mustStart(tinyRequest(t, tinyDisk(t)))
		c.run("poweroff")
		if x := p.exit(); x.Cause != v1alpha1.ExitGuestShutdown || x.Code != 0 {
			t.Errorf("got exit %+v", x)
		}
		if code := p.bye(); code != 0 {
			t.Errorf("launcher exits with %d", code)
		}
	})
	t.Run("reset stays in the process, until told otherwise", func(t *testing.T) {
		p := newPod(t)
		c := p.mustStart(tinyRequest(t, tinyDisk(t)))
		pid := p.qemuPID()
		c.run("reboot")
		c.expect(userspaceUp)
		if got := p.qemuPID(); got != pid {
			t.Errorf("process %d became %d", pid, got)
		}
		if err := p.client.SetRebootAction(t.Context(), v1alpha1.RebootShutdown); err != nil {
			t.Fatal(err)
		}
		if s := p.hello(); s.RebootAction != v1alpha1.RebootShutdown || s.Phase != v1alpha1.InstanceRunning {
			t.Errorf("got state %+v", s)
		}
		c.run("reboot")
		if x := p.exit(); x.Cause != v1alpha1.ExitGuestReset {
			t.Errorf("got exit %+v", x)
		}
	})
	t.Run("reset of a machine that began with the action", func(t *testing.T) {
		p := newPod(t)
		r := tinyRequest(t, tinyDisk(t))
		r.RebootAction = v1alpha1.RebootShutdown
		p.mustStart(r).run("reboot")
		if x := p.exit(); x.Cause != v1alpha1.ExitGuestReset {
			t.Errorf("got exit %+v", x)
		}
	})
}

func TestHostEndsGuest(t *testing.T) {
	t.Run("kill", func(t *testing.T) {
		p := newPod(t)
		p.mustStart(tinyRequest(t, tinyDisk(t)))
		if err := p.client.Kill(t.Context()); err != nil {
			t.Fatal(err)
		}
		if x := p.exit(); x.Cause != v1alpha1.ExitKilled || x.Code != 137 {
			t.Errorf("got exit %+v", x)
		}
	})
	t.Run("a deaf guest is killed after the grace period", func(t *testing.T) {
		p := newPod(t)
		c := p.mustStart(tinyRequest(t, tinyDisk(t)))
		c.run("killall -STOP init acpid; echo deaf-$?")
		c.expect("deaf-0")
		if err := p.client.Shutdown(t.Context(), 2); err != nil {
			t.Fatal(err)
		}
		if x := p.exit(); x.Cause != v1alpha1.ExitKilled {
			t.Errorf("got exit %+v", x)
		}
	})
	t.Run("somebody else kills QEMU", func(t *testing.T) {
		p := newPod(t)
		p.mustStart(tinyRequest(t, tinyDisk(t)))
		if err := syscall.Kill(p.qemuPID(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if x := p.exit(); x.Cause != v1alpha1.ExitCrashed || !strings.Contains(x.Message, "killed") {
			t.Errorf("got exit %+v", x)
		}
		if code := p.bye(); code != 1 {
			t.Errorf("launcher exits with %d, want 1", code)
		}
	})
	t.Run("deletion of the pod", func(t *testing.T) {
		p := newPod(t)
		c := p.mustStart(tinyRequest(t, tinyDisk(t)))
		if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		c.expect("orlop-tiny: power button")
		if x := p.exit(); x.Cause != v1alpha1.ExitHostShutdown {
			t.Errorf("got exit %+v", x)
		}
		if code := p.bye(); code != 0 {
			t.Errorf("launcher exits with %d", code)
		}
	})
	t.Run("deletion of a pod that was never started", func(t *testing.T) {
		p := newPod(t)
		if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if code := p.code(); code != 0 {
			t.Errorf("launcher exits with %d", code)
		}
	})
}

func TestStartFails(t *testing.T) {
	cases := map[string]struct {
		change func(t *testing.T, r *request)
		want   string
	}{
		"the disk is not qcow2": {func(t *testing.T, r *request) {
			path := filepath.Join(t.TempDir(), "junk")
			if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
				t.Fatal(err)
			}
			r.Disks = nil
			r.disk(t, "vd-root", path, os.O_RDWR|unix.O_DIRECT)
		}, "Image is not in qcow2 format"},
		"the disk was opened for reading": {func(t *testing.T, r *request) {
			path := r.files[r.Disks[0].FDs[0]].Name()
			r.Disks = nil
			r.disk(t, "vd-root", path, os.O_RDONLY|unix.O_DIRECT)
		}, "writable is false"},
		"the disk goes through the page cache": {func(t *testing.T, r *request) {
			path := r.files[r.Disks[0].FDs[0]].Name()
			r.Disks = nil
			r.disk(t, "vd-root", path, os.O_RDWR)
		}, "without O_DIRECT"},
		"the disk is missing":            {func(_ *testing.T, r *request) { r.Disks = nil }, "no descriptor"},
		"the CPU model does not exist":   {func(_ *testing.T, r *request) { r.Machine.CPU.Model = "i386sx" }, "i386sx"},
		"KVM is not there":               {func(_ *testing.T, r *request) { r.Machine.Accelerator = v1alpha1.AcceleratorKVM }, "KVM"},
		"first-boot data is not there":   {func(_ *testing.T, r *request) { addFirstBoot(r) }, "no user-data"},
		"the machine cannot be built":    {func(_ *testing.T, r *request) { r.Machine.Firmware = "EFI" }, "firmware EFI"},
		"a descriptor that was not sent": {func(_ *testing.T, r *request) { r.Disks[0].FDs = []int{77} }, "descriptor 77"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			p := newPod(t)
			r := tinyRequest(t, tinyDisk(t))
			tc.change(t, r)
			if err := p.start(r); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want error with %q", err, tc.want)
			}
			x := p.exit()
			if x.Cause != v1alpha1.ExitStartFailed || !strings.Contains(x.Message, tc.want) || x.Code == 0 {
				t.Errorf("got exit %+v, want message with %q", x, tc.want)
			}
			if code := p.bye(); code != 1 {
				t.Errorf("launcher exits with %d, want 1", code)
			}
		})
	}
}

func addFirstBoot(r *request) {
	r.FirstBoot = &v1alpha1.FirstBoot{Type: "NoCloud", SecretName: "s"}
	r.Machine.Disks = append(r.Machine.Disks, v1alpha1.Disk{ID: "firstboot", Bus: "scsi", Slot: 1, ReadOnly: true,
		Source: v1alpha1.VolumeSource{FirstBoot: &v1alpha1.FirstBootSource{}}})
}

func TestFirstBootDisc(t *testing.T) {
	p := newPod(t)
	for name, content := range map[string]string{"user-data": "#cloud-config\nhostname: seen-by-guest\n", "meta-data": "instance-id: i\n"} {
		if err := os.WriteFile(filepath.Join(p.firstDir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r := tinyRequest(t, tinyDisk(t))
	addFirstBoot(r)
	c := p.mustStart(r)
	c.run("grep -a -o -e cidata -e seen-by-guest -e USER_DATA /dev/sdb | sort | uniq | tr '\\n' '+'")
	c.expect("USER_DATA+cidata+seen-by-guest+")
	c.run("echo x >/dev/sdb; echo read-only-$?")
	c.expect("read-only-1")
}

// Every shape of the golden files boots.
func TestShapesBoot(t *testing.T) {
	block := func(d *v1alpha1.Disk) {
		d.Source.PersistentVolumeClaim.Mode = "Block"
	}
	cases := map[string]struct {
		change   func(*v1alpha1.Machine)
		device   bool
		wantDisk string
	}{
		"scsi disk on a block volume": {change: func(m *v1alpha1.Machine) { block(&m.Disks[0]) }, device: true, wantDisk: "sda"},
		"virtio disk behind the fourth port": {change: func(m *v1alpha1.Machine) {
			m.Disks[0].Bus, m.Disks[0].Slot = "virtio", 3
		}, wantDisk: "vda"},
		"sata disk on the second controller": {change: func(m *v1alpha1.Machine) {
			m.Disks[0].Bus, m.Disks[0].Slot = "sata", 7
		}},
		"two CPUs of the host's best model": {change: func(m *v1alpha1.Machine) {
			m.CPU.Model, m.CPU.CoresPerSocket = "host", 2
		}, wantDisk: "sda"},
		"root disk with a high unit": {change: func(m *v1alpha1.Machine) { m.Disks[0].Slot = 17 }, wantDisk: "sda"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			disk := tinyDisk(t)
			if tc.device {
				disk = loopDevice(t, disk)
			}
			p := newPod(t)
			c := p.mustStart(tinyRequest(t, disk, tc.change))
			if tc.wantDisk != "" {
				c.run("ls -d /sys/block/[sv]d*; nproc")
				c.expect("/sys/block/" + tc.wantDisk)
			}
		})
	}
}

// loopDevice is a block device with the content of a qcow2 image.
func loopDevice(t *testing.T, image string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("loop devices need root")
	}
	raw := filepath.Join(t.TempDir(), "disk.raw")
	run(t, tools.qemuImg, "convert", "-O", "raw", image, raw)
	out, err := exec.Command("losetup", "--find", "--show", raw).Output()
	if err != nil {
		t.Skipf("no loop devices: %v", err)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() { _ = exec.Command("losetup", "--detach", device).Run() })
	return device
}
