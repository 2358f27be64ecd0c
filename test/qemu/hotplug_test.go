package qemu_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/qemu"
	"orlop.dev/orlop/internal/qmp"
	"orlop.dev/orlop/internal/wire"
)

// plugDisk is a disk for hot-plug with a file or device behind it.
type plugDisk struct {
	v1alpha1.Disk

	path string
}

// blankDisk makes a writable qcow2 disk of so many MiB for a unit of the SCSI bus.
func blankDisk(t *testing.T, id string, slot int32, mebibytes int) plugDisk {
	t.Helper()
	path := filepath.Join(t.TempDir(), id+".qcow2")
	run(t, tools.qemuImg, "create", "-q", "-f", "qcow2", path, fmt.Sprintf("%dM", mebibytes))
	return plugDisk{path: path, Disk: v1alpha1.Disk{ID: id, Bus: "scsi", Slot: slot, Serial: "serial-" + id, Source: v1alpha1.VolumeSource{
		PersistentVolumeClaim: &v1alpha1.PersistentVolumeClaimSource{ClaimName: id, Mode: "Filesystem"},
	}}}
}

// attach opens a disk as the handler does, hands it over and lets go of it.
func (p *pod) attach(d plugDisk) error {
	p.t.Helper()
	flags := os.O_RDWR | unix.O_DIRECT
	if qemu.ReadOnly(d.Disk) {
		flags = os.O_RDONLY | unix.O_DIRECT
	}
	f, err := os.OpenFile(d.path, flags, 0)
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	return p.client.Attach(p.t.Context(), wire.Attach{Disk: d.Disk, FDs: []int{0}}, []*os.File{f})
}

func (p *pod) mustAttach(d plugDisk) {
	p.t.Helper()
	if err := p.attach(d); err != nil {
		p.t.Fatalf("attach %s: %v", d.ID, err)
	}
}

// awaitGone asks for a disk to go and waits until nothing of it is left.
func (p *pod) awaitGone(id string) {
	p.t.Helper()
	if err := p.client.Detach(p.t.Context(), id); err != nil {
		p.t.Fatalf("detach %s: %v", id, err)
	}
	p.waitFor("detach of "+id, func(s wire.State) bool { return diskOf(s, id) == nil })
}

func diskOf(s wire.State, id string) *v1alpha1.DiskStatus {
	for _, d := range s.Disks {
		if d.ID == id {
			return &d
		}
	}
	return nil
}

// heldFiles are the regular files and devices below dir that QEMU has open.
func (p *pod) heldFiles(dir string) []string {
	p.t.Helper()
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", p.qemuPID()))
	if err != nil {
		p.t.Fatal(err)
	}
	var held []string
	for _, l := range links {
		if target, err := os.Readlink(l); err == nil && strings.HasPrefix(target, dir) {
			held = append(held, target)
		}
	}
	slices.Sort(held)
	return slices.Compact(held)
}

// handlerMonitor is QEMU's second monitor.
func (p *pod) handlerMonitor() *qmp.Client {
	p.t.Helper()
	m, err := qmp.Dial(p.t.Context(), filepath.Join(p.dir, qemu.HandlerMonitorSocket))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = m.Close() })
	return m
}

// checkSets compares QEMU's descriptor sets with the disks it is to have.
func (p *pod) checkSets(monitor *qmp.Client, want ...string) {
	p.t.Helper()
	sets, err := monitor.QueryFDSets(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	var got []string
	for _, s := range sets {
		if len(s.FDs) == 0 {
			got = append(got, fmt.Sprintf("empty set %d", s.ID))
		}
		for _, f := range s.FDs {
			got = append(got, f.Opaque)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		p.t.Errorf("QEMU has descriptors for %v, want %v", got, want)
	}
}

func TestHotPlug(t *testing.T) {
	p := newPod(t)
	c := p.mustStart(tinyRequest(t, tinyDisk(t)))
	monitor := p.handlerMonitor()
	data := blankDisk(t, "vd-data", 1, 64)

	p.mustAttach(data)
	if d := diskOf(p.hello(), "vd-data"); d == nil || !d.Attached || d.Message != "" {
		t.Errorf("got %+v", d)
	}
	p.waitFor("size", func(s wire.State) bool { return diskOf(s, "vd-data").Size == 64<<20 })
	c.run("until [ -e /sys/block/sdb ]; do sleep 0.1; done; echo $(cat /sys/block/sdb/size) $(grep -a -o serial-vd-data /sys/block/sdb/device/vpd_pg80)")
	c.expect("131072 serial-vd-data")
	c.run("echo hot-plugged content | dd of=/dev/sdb bs=512 conv=sync,fsync 2>/dev/null; echo written-$?")
	c.expect("written-0")

	t.Run("twice is once", func(t *testing.T) {
		p.mustAttach(data)
		p.checkSets(monitor, "vd-root", "vd-data")
	})
	t.Run("a guest that reboots keeps it", func(*testing.T) {
		c.run("reboot -f")
		c.expect(userspaceUp)
		c.run("head -c 19 /dev/sdb; echo -$?")
		c.expect("hot-plugged content-0")
	})
	t.Run("it grows", func(t *testing.T) {
		if err := p.client.Resize(t.Context(), "vd-data", 96<<20); err != nil {
			t.Fatal(err)
		}
		c.run("until [ $(cat /sys/block/sdb/size) = 196608 ]; do sleep 0.1; done; echo grown-$?")
		c.expect("grown-0")
	})
	t.Run("a new handler takes it out", func(t *testing.T) {
		p.connect()
		p.awaitGone("vd-data")
		c.run("until ! [ -e /sys/block/sdb ]; do sleep 0.1; done; echo gone-$?")
		c.expect("gone-0")
		p.checkSets(monitor, "vd-root")
		if held := p.heldFiles(filepath.Dir(data.path)); len(held) != 0 {
			t.Errorf("QEMU still has %v", held)
		}
		run(t, tools.qemuImg, "check", data.path)
	})
	t.Run("what is not there is gone", func(*testing.T) { p.awaitGone("vd-data") })
	t.Run("a block device", func(t *testing.T) {
		device := blankDisk(t, "vd-block", 2, 16)
		device.Source.PersistentVolumeClaim.Mode = "Block"
		device.path = loopDevice(t, device.path)
		p.mustAttach(device)
		c.run("until [ -e /sys/block/sdb ]; do sleep 0.1; done; cat /sys/block/sdb/size")
		c.expect("32768\r\n")
		p.awaitGone("vd-block")
	})
	t.Run("an image that cannot be written", func(t *testing.T) {
		disc := blankDisk(t, "cvi-tools", 3, 16)
		disc.path = filepath.Join(t.TempDir(), "disc.iso")
		if err := os.WriteFile(disc.path, []byte(strings.Repeat("read only disc.", 65536)[:1<<19]), 0o444); err != nil {
			t.Fatal(err)
		}
		disc.Source = v1alpha1.VolumeSource{Image: &v1alpha1.ImageSource{Format: "iso"}}
		p.mustAttach(disc)
		c.run("until [ -e /sys/block/sdb ]; do sleep 0.1; done; echo $(head -c 9 /dev/sdb) $(cat /sys/block/sdb/ro)")
		c.expect("read only 1")
		p.awaitGone("cvi-tools")
		disc.CDROM = true
		p.mustAttach(disc)
		p.awaitGone("cvi-tools")
	})
	t.Run("what QEMU refuses leaves nothing behind", func(t *testing.T) {
		junk := blankDisk(t, "vd-junk", 4, 16)
		if err := os.WriteFile(junk.path, make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := p.attach(junk); err == nil || !strings.Contains(err.Error(), "qcow2") {
			t.Errorf("got %v", err)
		}
		taken := blankDisk(t, "vd-taken", 0, 16) // the root disk's unit
		if err := p.attach(taken); err == nil {
			t.Error("two disks in one place")
		}
		fixed := blankDisk(t, "vd-fixed", 5, 16)
		fixed.Bus = "sata"
		if err := p.attach(fixed); err == nil || !strings.Contains(err.Error(), "sata") {
			t.Errorf("got %v", err)
		}
		p.waitFor("rest", func(s wire.State) bool { return len(s.Disks) == 1 })
		p.checkSets(monitor, "vd-root")
	})
}

// A disk on a PCI slot of its own goes only with the guest's consent.
func TestDetachWaitsForTheGuest(t *testing.T) {
	p := newPod(t)
	r := tinyRequest(t, tinyDisk(t))
	slow := blankDisk(t, "vd-slow", 5, 16)
	slow.Bus = "virtio"
	r.Machine.Disks = append(r.Machine.Disks, slow.Disk)
	r.disk(t, slow.ID, slow.path, os.O_RDWR|unix.O_DIRECT)
	p.mustStart(r)
	monitor := p.handlerMonitor()
	if err := monitor.Stop(t.Context()); err != nil { // a guest that does not answer
		t.Fatal(err)
	}
	if err := p.client.Detach(t.Context(), slow.ID); err != nil {
		t.Fatal(err)
	}
	s := p.waitFor("message", func(s wire.State) bool { return diskOf(s, slow.ID).Message != "" })
	if d := diskOf(s, slow.ID); !d.Attached || !strings.Contains(d.Message, "Waiting for the guest") {
		t.Errorf("got %+v", d)
	}
	// It holds up nobody else, nor a new handler.
	p.connect()
	other := blankDisk(t, "vd-other", 6, 16)
	p.mustAttach(other)
	p.awaitGone(other.ID)
	if d := diskOf(p.hello(), slow.ID); d == nil || !d.Attached {
		t.Errorf("got %+v", d)
	}
	if err := monitor.Continue(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.waitFor("consent", func(s wire.State) bool { return diskOf(s, slow.ID) == nil })
	want := []string{"vd-root"}
	p.checkSets(monitor, want...)
}

// Disks come and go at any rate and in any order, with handlers that do, too, while the
// guest works on one that stays. ORLOP_LONG=1 makes it last.
func TestRandomHotPlug(t *testing.T) {
	changes := 200
	if os.Getenv("ORLOP_LONG") != "" {
		changes = 3000
	}
	p := newPod(t)
	r := tinyRequest(t, tinyDisk(t))
	busy := blankDisk(t, "vd-busy", 1, 16)
	busy.Size = 64<<20 - 100 // no whole sector, and more than the file has
	r.Machine.Disks = append(r.Machine.Disks, busy.Disk)
	r.disk(t, busy.ID, busy.path, os.O_RDWR|unix.O_DIRECT)
	c := p.mustStart(r)
	monitor := p.handlerMonitor()
	if d := diskOf(p.hello(), busy.ID); d == nil || d.Size != 64<<20 {
		t.Errorf("got %+v", d)
	}
	c.run("echo $(cat /sys/block/sdb/size) $(dmesg | grep -c 'sdb.*capacity change')") // it was so before the guest looked
	c.expect("131072 0\r\n")
	c.run("(n=0; while ! [ -e /tmp/stop ]; do n=$((n+1)); echo round-$n | dd of=/dev/sdb bs=4k seek=$((n%1000)) conv=sync,fsync 2>/dev/null || echo busy-$((4+3))-fails; done; echo rounds-$n >/tmp/rounds) & echo working")
	c.expect("working\r\n")

	disks := make([]plugDisk, 14)
	for i := range disks {
		disks[i] = blankDisk(t, fmt.Sprintf("vd-%d", i), int32(i+2), 16)
	}
	wanted := make([]bool, len(disks))
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	began := time.Now()
	for i := range changes {
		at := random.IntN(len(disks))
		wanted[at] = !wanted[at]
		if i%10 == 9 {
			p.connect() // another handler
		}
		p.converge(disks, wanted)
	}
	eventually(t, "the last request", func() error {
		if !p.converge(disks, wanted) {
			return errors.New("not yet")
		}
		return nil
	})
	t.Logf("%d changes in %s", changes, time.Since(began).Round(time.Millisecond))

	want := []string{"vd-root", busy.ID}
	for i, d := range disks {
		if wanted[i] {
			want = append(want, d.ID)
		}
	}
	p.checkSets(monitor, want...)
	if n := len(p.heldFiles(filepath.Dir(filepath.Dir(busy.path)))); n != len(want) {
		t.Errorf("QEMU has %d files open, want %d", n, len(want))
	}
	if s := p.hello(); s.Phase != v1alpha1.InstanceRunning {
		t.Errorf("the guest is %s %s", s.Phase, s.PauseReason)
	}
	c.run("touch /tmp/stop; until [ -e /tmp/rounds ]; do sleep 0.1; done; cat /tmp/rounds; dmesg | grep -c 'I/O error, dev sd[ab]'")
	c.expect("rounds-")
	c.expect("\r\n0\r\n")
	// The guest works through its events in its own time.
	c.run(fmt.Sprintf("i=0; until [ $(ls -d /sys/block/sd* | wc -l) = %d ] || [ $i = 60 ]; do i=$((i+1)); sleep 1; done; "+
		"echo the guest sees $(ls -d /sys/block/sd* | wc -l)", len(want)))
	c.expect(fmt.Sprintf("the guest sees %d\r\n", len(want)))
	if strings.Contains(c.text(), "busy-7-fails") {
		t.Error("the disk that stays had an error")
	}
}

// converge gives one order for each disk that is not as wanted, and says whether all are.
func (p *pod) converge(disks []plugDisk, wanted []bool) bool {
	p.t.Helper()
	s := p.hello()
	done := true
	for i, d := range disks {
		now := diskOf(s, d.ID)
		var err error
		switch {
		case wanted[i] && now == nil:
			err = p.attach(d)
		case !wanted[i] && now != nil:
			err = p.client.Detach(p.t.Context(), d.ID)
		case wanted[i] == (now != nil && now.Attached && now.Message == ""):
			continue
		}
		done = false
		if err != nil && !errors.Is(err, wire.ErrBusy) {
			p.t.Fatalf("%s: %v, state %s", d.ID, err, encoded(now))
		}
		time.Sleep(100 * time.Millisecond) // the handler's pace
	}
	return done
}

func encoded(v any) string {
	data, _ := json.Marshal(v)
	return string(data)
}

// text is everything the guest has said.
func (c *console) text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seen.String()
}
