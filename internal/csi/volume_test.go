package csi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"orlop.dev/orlop/internal/loopdev"
)

const (
	mib = 1 << 20
	gib = 1 << 30
)

func mounted(fsType string) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: fsType}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER},
	}
}

func raw() *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER},
	}
}

// make makes a volume.
func (d *driver) make(t *testing.T, name string, size int64, c *csi.VolumeCapability, from *csi.VolumeContentSource) *csi.Volume {
	t.Helper()
	r, err := d.controller.CreateVolume(t.Context(), &csi.CreateVolumeRequest{
		Name: name, CapacityRange: &csi.CapacityRange{RequiredBytes: size},
		VolumeCapabilities: []*csi.VolumeCapability{c}, VolumeContentSource: from,
	})
	if err != nil {
		t.Fatalf("CreateVolume %s: %v", name, err)
	}
	return r.GetVolume()
}

// stager is what both a node and a client of one offer.
type stager interface {
	stage(ctx context.Context, r *csi.NodeStageVolumeRequest) error
	unstage(ctx context.Context, r *csi.NodeUnstageVolumeRequest) error
}

type remoteNode struct{ csi.NodeClient }

func (n remoteNode) stage(ctx context.Context, r *csi.NodeStageVolumeRequest) error {
	_, err := n.NodeStageVolume(ctx, r)
	return err
}

func (n remoteNode) unstage(ctx context.Context, r *csi.NodeUnstageVolumeRequest) error {
	_, err := n.NodeUnstageVolume(ctx, r)
	return err
}

type directNode struct{ *Node }

func (n directNode) stage(ctx context.Context, r *csi.NodeStageVolumeRequest) error {
	_, err := n.NodeStageVolume(ctx, r)
	return err
}

func (n directNode) unstage(ctx context.Context, r *csi.NodeUnstageVolumeRequest) error {
	_, err := n.NodeUnstageVolume(ctx, r)
	return err
}

// use stages a volume on a node and returns where; it is unstaged at the end.
func (d *driver) use(t *testing.T, n stager, id, dir string, c *csi.VolumeCapability) string {
	t.Helper()
	path := filepath.Join(d.dir, dir)
	if err := n.stage(t.Context(), &csi.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: path, VolumeCapability: c}); err != nil {
		t.Fatalf("NodeStageVolume %s: %v", dir, err)
	}
	t.Cleanup(func() { d.release(t, n, id, dir) })
	return path
}

func (d *driver) release(t *testing.T, n stager, id, dir string) {
	t.Helper()
	path := filepath.Join(d.dir, dir)
	if err := n.unstage(context.WithoutCancel(t.Context()), &csi.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: path}); err != nil {
		t.Errorf("NodeUnstageVolume %s: %v", dir, err)
	}
}

func (d *driver) device(t *testing.T, id string) *loopdev.Device {
	t.Helper()
	dev, err := loopdev.Find(d.store.image(id))
	if err != nil {
		t.Fatal(err)
	}
	return dev
}

func put(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func wantFile(t *testing.T, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want {
		t.Errorf("%s: %q, %v; want %q", path, got, err, want)
	}
}

func TestTwoNodesSeeOneFileSystem(t *testing.T) {
	for _, fsType := range []string{fsXFS, fsExt4} {
		t.Run(fsType, func(t *testing.T) {
			d := startDriver(t)
			one, two := remoteNode{d.node}, directNode{d.nodeTwo}
			v := d.make(t, "v", gib, mounted(fsType), nil)
			a := d.use(t, one, v.GetVolumeId(), "a", mounted(""))
			b := d.use(t, two, v.GetVolumeId(), "b", mounted(""))
			put(t, a+"/f", "from one")
			wantFile(t, b+"/f", "from one")
			put(t, b+"/f", "from two")
			wantFile(t, a+"/f", "from two")

			d.release(t, one, v.GetVolumeId(), "a")
			if d.device(t, v.GetVolumeId()) == nil {
				t.Fatal("the device is gone while node two uses it")
			}
			wantFile(t, b+"/f", "from two")
			if _, err := d.controller.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: v.GetVolumeId()}); status.Code(err) != codes.FailedPrecondition {
				t.Errorf("deletion of a volume in use: %v", err)
			}
			d.release(t, two, v.GetVolumeId(), "b")
			if dev := d.device(t, v.GetVolumeId()); dev != nil {
				t.Errorf("%s is still attached after the last node", dev.Path())
			}
		})
	}
}

func TestExpansionIsReal(t *testing.T) {
	for why, c := range map[string]struct {
		capability *csi.VolumeCapability
		online     bool
	}{
		"XFS in use":      {mounted(fsXFS), true},
		"ext4 in use":     {mounted(fsExt4), true},
		"XFS not in use":  {mounted(fsXFS), false},
		"ext4 not in use": {mounted(fsExt4), false},
		"block in use":    {raw(), true},
	} {
		t.Run(why, func(t *testing.T) {
			d := startDriver(t)
			n := remoteNode{d.node}
			v := d.make(t, "v", gib, c.capability, nil)
			path := ""
			if c.online && c.capability.GetMount().GetFsType() == fsExt4 && !mayResize(t) {
				t.Skip("ext4 grows in use only with CAP_SYS_RESOURCE")
			}
			if c.online {
				path = d.use(t, n, v.GetVolumeId(), "a", c.capability)
			}
			size := &csi.CapacityRange{RequiredBytes: 3 * gib}
			if _, err := d.controller.ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{VolumeId: v.GetVolumeId(), CapacityRange: size}); err != nil {
				t.Fatal(err)
			}
			if c.online {
				if _, err := d.node.NodeExpandVolume(t.Context(), &csi.NodeExpandVolumeRequest{VolumeId: v.GetVolumeId(), VolumePath: path, CapacityRange: size}); err != nil {
					t.Fatal(err)
				}
			} else {
				path = d.use(t, n, v.GetVolumeId(), "a", c.capability)
			}
			if got, err := d.device(t, v.GetVolumeId()).Size(); err != nil || got != 3*gib {
				t.Errorf("device has %d bytes (%v)", got, err)
			}
			if c.capability.GetBlock() != nil {
				return
			}
			var st unix.Statfs_t
			if err := unix.Statfs(path, &st); err != nil {
				t.Fatal(err)
			}
			if got := int64(st.Blocks) * st.Bsize; got < 2800*mib {
				t.Errorf("file system has %d MiB", got/mib)
			}
		})
	}
}

func mayResize(t *testing.T) bool {
	t.Helper()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		t.Fatal(err)
	}
	return data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

// TestSnapshotUnderWrites takes a snapshot while somebody appends numbered lines,
// and checks that it has all that was written before, and a prefix of the rest.
func TestSnapshotUnderWrites(t *testing.T) {
	for _, fsType := range []string{fsXFS, fsExt4} {
		t.Run(fsType, func(t *testing.T) {
			d := startDriver(t)
			n := remoteNode{d.node}
			v := d.make(t, "v", gib, mounted(fsType), nil)
			a := d.use(t, n, v.GetVolumeId(), "a", mounted(""))
			put(t, a+"/before", "written before the snapshot, not synced")
			stop := appendLines(t, a+"/log")
			s, err := d.controller.CreateSnapshot(t.Context(), &csi.CreateSnapshotRequest{Name: "s", SourceVolumeId: v.GetVolumeId()})
			stop()
			if err != nil {
				t.Fatal(err)
			}
			put(t, a+"/before", "written after")

			restored := d.make(t, "r", 2*gib, mounted(""), snapshotSource(s.GetSnapshot().GetSnapshotId()))
			r := d.use(t, n, restored.GetVolumeId(), "r", mounted(""))
			wantFile(t, r+"/before", "written before the snapshot, not synced")
			checkLines(t, r+"/log")
			put(t, r+"/mine", "x")
			if _, err := os.Stat(a + "/mine"); err == nil {
				t.Error("a write to the copy is seen in the source")
			}
			var st unix.Statfs_t
			if err := unix.Statfs(r, &st); err != nil || int64(st.Blocks)*st.Bsize < 1800*mib {
				t.Errorf("a larger copy has %d MiB (%v)", int64(st.Blocks)*st.Bsize/mib, err)
			}
		})
	}
}

func snapshotSource(id string) *csi.VolumeContentSource {
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: id}}}
}

func appendLines(t *testing.T, path string) (stop func()) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	end := make(chan struct{})
	var wait sync.WaitGroup
	wait.Go(func() {
		defer f.Close()
		for i := 0; ; i++ {
			select {
			case <-end:
				return
			default:
			}
			fmt.Fprintf(f, "%09d\n", i)
			if i%100 == 0 {
				_ = f.Sync()
			}
		}
	})
	return func() { close(end); wait.Wait() }
}

func checkLines(t *testing.T, path string) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+10 <= len(raw); i += 10 {
		if want := fmt.Appendf(nil, "%09d\n", i/10); !bytes.Equal(raw[i:i+10], want) {
			t.Fatalf("line %d is %q", i/10, raw[i:i+10])
		}
	}
	t.Logf("%d lines", len(raw)/10)
}

func TestCloneOfABlockVolumeInUse(t *testing.T) {
	d := startDriver(t)
	n := remoteNode{d.node}
	v := d.make(t, "v", 64*mib, raw(), nil)
	d.use(t, n, v.GetVolumeId(), "a", raw())
	target := filepath.Join(d.dir, "pods", "dev")
	publish := &csi.NodePublishVolumeRequest{VolumeId: v.GetVolumeId(), StagingTargetPath: filepath.Join(d.dir, "a"), TargetPath: target, VolumeCapability: raw()}
	if _, err := d.node.NodePublishVolume(t.Context(), publish); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, err := d.node.NodeUnpublishVolume(context.WithoutCancel(t.Context()), &csi.NodeUnpublishVolumeRequest{VolumeId: v.GetVolumeId(), TargetPath: target})
		if err != nil {
			t.Error(err)
		}
	})
	dev, err := os.OpenFile(target, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	content := bytes.Repeat([]byte("block"), 1<<16)
	// Neither synced nor direct: it is in the cache of the device when the clone is made.
	if _, err := dev.WriteAt(content, 1*mib); err != nil {
		t.Fatal(err)
	}
	clone := d.make(t, "c", 64*mib, raw(), &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{
		Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: v.GetVolumeId()},
	}})
	image, err := os.ReadFile(d.store.image(clone.GetVolumeId()))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(image[mib:mib+len(content)], content) {
		t.Error("the clone lacks what was written before")
	}
}

func TestFullVolumeSaysSoAndRecovers(t *testing.T) {
	d := startDriver(t)
	v := d.make(t, "v", 300*mib, mounted(fsXFS), nil)
	a := d.use(t, remoteNode{d.node}, v.GetVolumeId(), "a", mounted(""))
	f, err := os.Create(a + "/big")
	if err != nil {
		t.Fatal(err)
	}
	written, err := io.Copy(struct{ io.Writer }{f}, io.LimitReader(zeros{}, 400*mib))
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("after %d bytes: %v, want ENOSPC", written, err)
	}
	f.Close()
	if err := os.Remove(a + "/big"); err != nil {
		t.Fatal(err)
	}
	put(t, a+"/small", "fits again")
	wantFile(t, a+"/small", "fits again")
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestLocalVolumesBelongToTheirNode(t *testing.T) {
	d := startDriver(t)
	one := []*csi.Topology{{Segments: map[string]string{TopologyKey: "one"}}}
	capability := mounted("")
	capability.AccessMode.Mode = csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER
	request := &csi.CreateVolumeRequest{
		Name: "v", CapacityRange: &csi.CapacityRange{RequiredBytes: gib}, Parameters: map[string]string{ParameterClass: ClassLocal},
		VolumeCapabilities: []*csi.VolumeCapability{capability}, AccessibilityRequirements: &csi.TopologyRequirement{Preferred: one, Requisite: one},
	}
	r, err := d.controller.CreateVolume(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	if got := r.GetVolume().GetAccessibleTopology(); len(got) != 1 || got[0].GetSegments()[TopologyKey] != "one" {
		t.Errorf("topology %v", got)
	}
	stage := &csi.NodeStageVolumeRequest{VolumeId: r.GetVolume().GetVolumeId(), StagingTargetPath: filepath.Join(d.dir, "b"), VolumeCapability: capability}
	if _, err := d.nodeTwo.NodeStageVolume(t.Context(), stage); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("on another node: %v", err)
	}
	request.Name, request.VolumeCapabilities = "w", []*csi.VolumeCapability{mounted("")}
	if _, err := d.controller.CreateVolume(t.Context(), request); status.Code(err) != codes.InvalidArgument {
		t.Errorf("ReadWriteMany: %v", err)
	}
	request.VolumeCapabilities, request.AccessibilityRequirements = []*csi.VolumeCapability{capability}, nil
	if _, err := d.controller.CreateVolume(t.Context(), request); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("without a node: %v", err)
	}
}

// TestPowerCut forgets everything that a process knows, and what a node had
// mounted, and goes on with the same store.
func TestPowerCut(t *testing.T) {
	d := startDriver(t)
	n := remoteNode{d.node}
	v := d.make(t, "v", gib, mounted(""), nil)
	a := d.use(t, n, v.GetVolumeId(), "a", mounted(""))
	put(t, a+"/f", "kept")
	if err := os.Mkdir(filepath.Join(d.store.dir, workDir, "half-made"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(a, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}

	again, err := OpenStore(d.root)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewController(again, 1); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(filepath.Join(d.store.dir, workDir)); len(left) > 0 {
		t.Errorf("left in the work folder: %v", left)
	}
	restarted, err := NewNode(again, "one")
	if err != nil {
		t.Fatal(err)
	}
	if dev := d.device(t, v.GetVolumeId()); dev != nil {
		t.Errorf("%s is attached although nobody has the volume", dev.Path())
	}
	b := d.use(t, directNode{restarted}, v.GetVolumeId(), "b", mounted(""))
	wantFile(t, b+"/f", "kept")
}

// TestPowerCutWithABlockVolume leaves behind what kubelet stacks upon the device.
func TestPowerCutWithABlockVolume(t *testing.T) {
	d := startDriver(t)
	n := remoteNode{d.node}
	v := d.make(t, "v", 64*mib, raw(), nil)
	d.use(t, n, v.GetVolumeId(), "a", raw())
	stacked, err := loopdev.Attach(d.device(t, v.GetVolumeId()).Path(), "left by the dead")
	if err != nil {
		t.Fatal(err)
	}
	d.release(t, n, v.GetVolumeId(), "a")
	if dev := d.device(t, v.GetVolumeId()); dev != nil {
		t.Errorf("%s is still attached", dev.Path())
		_ = stacked.Detach()
	}
}

func TestCapacityIsBounded(t *testing.T) {
	d := startDriver(t)
	r, err := d.controller.GetCapacity(t.Context(), &csi.GetCapacityRequest{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.controller.CreateVolume(t.Context(), &csi.CreateVolumeRequest{
		Name: "v", CapacityRange: &csi.CapacityRange{RequiredBytes: r.GetAvailableCapacity() + mib}, VolumeCapabilities: []*csi.VolumeCapability{raw()},
	})
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a volume larger than what is left: %v", err)
	}
	d.make(t, "w", r.GetAvailableCapacity()/2, raw(), nil)
	after, err := d.controller.GetCapacity(t.Context(), &csi.GetCapacityRequest{})
	if err != nil || after.GetAvailableCapacity() > r.GetAvailableCapacity()*51/100 {
		t.Errorf("left after half of it was promised: %d of %d (%v)", after.GetAvailableCapacity(), r.GetAvailableCapacity(), err)
	}
}

func TestNamesLeadNowhereElse(t *testing.T) {
	d := startDriver(t)
	for _, id := range []string{"../../etc", "vol-../../etc/passwd", "vol-" + fmt.Sprint(make([]byte, 16)), "", "snap-00000000000000000000000000000000"} {
		if _, err := d.controller.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: id}); id != "" && err != nil {
			t.Errorf("DeleteVolume %q: %v", id, err)
		}
		_, err := d.node.NodeStageVolume(t.Context(), &csi.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: filepath.Join(d.dir, "x"), VolumeCapability: raw()})
		if c := status.Code(err); c != codes.NotFound && c != codes.InvalidArgument {
			t.Errorf("NodeStageVolume %q: %v", id, err)
		}
	}
	if _, err := os.Stat(d.store.dir); err != nil {
		t.Fatal(err)
	}
}
