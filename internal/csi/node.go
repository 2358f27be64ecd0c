package csi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"orlop.dev/orlop/internal/loopdev"
)

// stagedFile is what a raw block volume has inside its staging folder, so that a
// restarted driver can tell that it is staged.
const stagedFile = "staged"

// Node attaches, mounts and grows the volumes of one node.
type Node struct {
	csi.UnimplementedNodeServer

	store *Store
	name  string
}

// NewNode returns the service of the named node. Marks of volumes that the node
// no longer has mounted, because it lost its power, are removed.
func NewNode(s *Store, name string) (*Node, error) {
	if name == "" || strings.ContainsAny(name, "/\x00") || name == "." || name == ".." {
		return nil, fmt.Errorf("node name %q is not valid", name)
	}
	n := &Node{store: s, name: name}
	return n, n.dropStaleMarks()
}

func (n *Node) dropStaleMarks() error {
	staged, err := n.store.stagedOn(n.name)
	if err != nil {
		return err
	}
	for id, path := range staged {
		alive, err := isMounted(path)
		if err != nil {
			return err
		}
		if _, err := os.Stat(filepath.Join(path, stagedFile)); err == nil || alive {
			continue
		}
		if err := n.forget(id); err != nil {
			return fmt.Errorf("drop mark of %s: %w", id, err)
		}
	}
	return nil
}

// NodeGetInfo names the node.
func (n *Node) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{
		NodeId:             n.name,
		AccessibleTopology: &csi.Topology{Segments: map[string]string{TopologyKey: n.name}},
	}, nil
}

// NodeGetCapabilities lists what the service can do.
func (n *Node) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	out := &csi.NodeGetCapabilitiesResponse{}
	for _, t := range []csi.NodeServiceCapability_RPC_Type{
		csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME,
		csi.NodeServiceCapability_RPC_EXPAND_VOLUME,
		csi.NodeServiceCapability_RPC_GET_VOLUME_STATS,
		csi.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	} {
		out.Capabilities = append(out.Capabilities, &csi.NodeServiceCapability{
			Type: &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{Type: t}},
		})
	}
	return out, nil
}

// NodeStageVolume attaches the volume's loop device and mounts its file system.
func (n *Node) NodeStageVolume(_ context.Context, r *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	if r.GetVolumeId() == "" || r.GetStagingTargetPath() == "" || r.GetVolumeCapability() == nil {
		return nil, status.Error(codes.InvalidArgument, "volume ID, staging path and capability are needed")
	}
	unlock, err := n.store.lock(r.GetVolumeId())
	if err != nil {
		return nil, asStatus(err, "lock volume")
	}
	defer unlock()
	v, err := n.store.readVolume(r.GetVolumeId())
	if err != nil {
		return nil, asStatus(err, "read volume")
	}
	if err := v.usable(r.GetVolumeCapability()); err != nil {
		return nil, err
	}
	if v.Node != "" && v.Node != n.name {
		return nil, status.Errorf(codes.FailedPrecondition, "volume %s is local to node %s", v.ID, v.Node)
	}
	if err := n.stage(v, r.GetStagingTargetPath(), r.GetVolumeCapability().GetMount().GetMountFlags()); err != nil {
		return nil, asStatus(err, "stage volume")
	}
	return &csi.NodeStageVolumeResponse{}, nil
}

func (n *Node) stage(v *volume, path string, options []string) error {
	// Marked before it is attached: a crash in between leaves a mark too many,
	// which the next unstage removes, never a device detached under a user.
	if err := n.store.markStaged(v.ID, n.name, path); err != nil {
		return err
	}
	d, err := loopdev.Attach(n.store.image(v.ID), n.store.label(v.ID))
	if err != nil {
		return err
	}
	if err := refreshIfLarger(d, v); err != nil {
		return err
	}
	if v.FSType == "" {
		return writeStaged(path)
	}
	mounted, err := isMounted(path)
	if err != nil || mounted {
		return err
	}
	if err := os.MkdirAll(path, 0o750); err != nil {
		return fmt.Errorf("make staging folder: %w", err)
	}
	return mountVolume(d, v, path, options)
}

func writeStaged(path string) error {
	if err := os.MkdirAll(path, 0o750); err != nil {
		return fmt.Errorf("make staging folder: %w", err)
	}
	if err := os.WriteFile(filepath.Join(path, stagedFile), nil, 0o600); err != nil {
		return fmt.Errorf("write staging mark: %w", err)
	}
	return nil
}

func mountVolume(d *loopdev.Device, v *volume, path string, options []string) error {
	flags, err := flagsOf(options)
	if err != nil {
		return err
	}
	// Always read-write: the same device mounted elsewhere must be mounted the same
	// way. Read-only is a matter of publishing.
	flags &^= unix.MS_RDONLY
	// A copy may be larger than its source, and a volume may have grown while
	// nobody had it mounted.
	inUse, err := d.Busy()
	if err != nil {
		return err
	}
	if !inUse {
		if err := growUnmounted(v.FSType, d.Path()); err != nil {
			return err
		}
	}
	if err := unix.Mount(d.Path(), path, v.FSType, flags, mountData(v.FSType)); err != nil {
		return fmt.Errorf("mount volume: %w", err)
	}
	if v.FSType != fsXFS {
		return nil
	}
	if err := growMounted(v.FSType, d.Path(), path); err != nil {
		_ = unix.Unmount(path, unix.MNT_DETACH)
		return err
	}
	return nil
}

// mountData are the options of a file system itself. A copy has the UUID of its
// source, which XFS would otherwise refuse to mount beside it; devices are found
// by their backing file, so nobody depends on the UUID.
func mountData(fsType string) string {
	if fsType == fsXFS {
		return "nouuid,discard"
	}
	return "discard"
}

func refreshIfLarger(d *loopdev.Device, v *volume) error {
	have, err := d.Size()
	if err != nil {
		return err
	}
	if have >= v.Capacity {
		return nil
	}
	return d.Refresh()
}

// NodeUnstageVolume undoes NodeStageVolume; the last node detaches the device.
func (n *Node) NodeUnstageVolume(_ context.Context, r *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	if r.GetVolumeId() == "" || r.GetStagingTargetPath() == "" {
		return nil, status.Error(codes.InvalidArgument, "volume ID and staging path are needed")
	}
	if err := unmountAll(r.GetStagingTargetPath()); err != nil {
		return nil, status.Errorf(codes.Internal, "unstage volume: %v", err)
	}
	if err := removeTarget(filepath.Join(r.GetStagingTargetPath(), stagedFile)); err != nil {
		return nil, status.Errorf(codes.Internal, "unstage volume: %v", err)
	}
	if err := n.forget(r.GetVolumeId()); err != nil {
		return nil, asStatus(err, "unstage volume")
	}
	return &csi.NodeUnstageVolumeResponse{}, nil
}

// forget removes our mark and, if it was the last one, the loop device.
func (n *Node) forget(id string) error {
	unlock, err := n.store.lock(id)
	if errors.Is(err, errNotExist) {
		return nil // deleted already
	}
	if err != nil {
		return err
	}
	defer unlock()
	left, err := n.store.unmarkStaged(id, n.name)
	if err != nil || left > 0 {
		return err
	}
	d, err := loopdev.Find(n.store.image(id))
	if err != nil || d == nil {
		return err
	}
	// Nobody has it staged, so whatever is stacked upon it was left by the dead.
	return d.DetachStack()
}

// NodePublishVolume makes a staged volume visible to a pod.
func (n *Node) NodePublishVolume(_ context.Context, r *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	if r.GetVolumeId() == "" || r.GetTargetPath() == "" || r.GetVolumeCapability() == nil {
		return nil, status.Error(codes.InvalidArgument, "volume ID, target path and capability are needed")
	}
	if r.GetStagingTargetPath() == "" {
		return nil, status.Error(codes.FailedPrecondition, "staging path is needed")
	}
	v, err := n.store.readVolume(r.GetVolumeId())
	if err != nil {
		return nil, asStatus(err, "read volume")
	}
	if err := v.usable(r.GetVolumeCapability()); err != nil {
		return nil, err
	}
	if mounted, err := isMounted(r.GetTargetPath()); err != nil {
		return nil, status.Errorf(codes.Internal, "publish volume: %v", err)
	} else if mounted {
		return &csi.NodePublishVolumeResponse{}, nil
	}
	if r.GetVolumeCapability().GetAccessMode().GetMode() == csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER {
		if err := n.checkSingle(v, r.GetStagingTargetPath(), r.GetTargetPath()); err != nil {
			return nil, asStatus(err, "publish volume")
		}
	}
	if v.FSType == "" {
		err = n.publishBlock(v, r.GetStagingTargetPath(), r.GetTargetPath())
	} else {
		err = publishFS(r)
	}
	if err != nil {
		return nil, asStatus(err, "publish volume")
	}
	return &csi.NodePublishVolumeResponse{}, nil
}

// checkSingle refuses a second user of a volume that may have one.
func (n *Node) checkSingle(v *volume, staging, target string) error {
	d, err := loopdev.Find(n.store.image(v.ID))
	if err != nil || d == nil {
		return err
	}
	taken, err := mountedElsewhere(d.Path(), staging, target)
	if err != nil {
		return err
	}
	if taken {
		return status.Errorf(codes.FailedPrecondition, "volume %s has a user already and is for a single one", v.ID)
	}
	return nil
}

func publishFS(r *csi.NodePublishVolumeRequest) error {
	staged, err := isMounted(r.GetStagingTargetPath())
	if err != nil {
		return err
	}
	if !staged {
		return status.Error(codes.FailedPrecondition, "the volume is not staged")
	}
	flags, err := flagsOf(r.GetVolumeCapability().GetMount().GetMountFlags())
	if err != nil {
		return err
	}
	if r.GetReadonly() {
		flags |= unix.MS_RDONLY
	}
	if err := os.MkdirAll(r.GetTargetPath(), 0o750); err != nil {
		return fmt.Errorf("make target folder: %w", err)
	}
	return bind(r.GetStagingTargetPath(), r.GetTargetPath(), flags)
}

func (n *Node) publishBlock(v *volume, staging, target string) error {
	if _, err := os.Stat(filepath.Join(staging, stagedFile)); err != nil {
		return status.Error(codes.FailedPrecondition, "the volume is not staged")
	}
	// After a power cut of the whole machine the mark is still there but the
	// device is not.
	unlock, err := n.store.lock(v.ID)
	if err != nil {
		return err
	}
	defer unlock()
	d, err := loopdev.Attach(n.store.image(v.ID), n.store.label(v.ID))
	if err != nil {
		return err
	}
	if err := refreshIfLarger(d, v); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		return fmt.Errorf("make folder of target: %w", err)
	}
	f, err := os.OpenFile(target, os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return fmt.Errorf("make target file: %w", err)
	}
	f.Close()
	return bind(d.Path(), target, 0)
}

// NodeUnpublishVolume undoes NodePublishVolume.
func (n *Node) NodeUnpublishVolume(_ context.Context, r *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	if r.GetVolumeId() == "" || r.GetTargetPath() == "" {
		return nil, status.Error(codes.InvalidArgument, "volume ID and target path are needed")
	}
	if err := unmountAll(r.GetTargetPath()); err != nil {
		return nil, status.Errorf(codes.Internal, "unpublish volume: %v", err)
	}
	if err := removeTarget(r.GetTargetPath()); err != nil {
		return nil, status.Errorf(codes.Internal, "unpublish volume: %v", err)
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

// NodeExpandVolume lets the device and the file system follow the image.
func (n *Node) NodeExpandVolume(_ context.Context, r *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	if r.GetVolumeId() == "" || r.GetVolumePath() == "" {
		return nil, status.Error(codes.InvalidArgument, "volume ID and volume path are needed")
	}
	unlock, err := n.store.lock(r.GetVolumeId())
	if err != nil {
		return nil, asStatus(err, "lock volume")
	}
	defer unlock()
	v, err := n.store.readVolume(r.GetVolumeId())
	if err != nil {
		return nil, asStatus(err, "read volume")
	}
	if want := r.GetCapacityRange().GetRequiredBytes(); want > v.Capacity {
		return nil, status.Errorf(codes.OutOfRange, "the volume has %d bytes, not %d", v.Capacity, want)
	}
	if _, err := os.Stat(r.GetVolumePath()); err != nil {
		return nil, status.Errorf(codes.NotFound, "volume path: %v", err)
	}
	d, err := loopdev.Find(n.store.image(v.ID))
	if err != nil {
		return nil, status.Errorf(codes.Internal, "look for loop device: %v", err)
	}
	if d == nil {
		return nil, status.Error(codes.FailedPrecondition, "the volume is not staged")
	}
	if err := n.expand(d, v, r.GetVolumePath()); err != nil {
		return nil, status.Errorf(codes.Internal, "expand volume: %v", err)
	}
	return &csi.NodeExpandVolumeResponse{CapacityBytes: v.Capacity}, nil
}

func (n *Node) expand(d *loopdev.Device, v *volume, path string) error {
	// The controller may have died between writing the size and growing the image.
	if err := growImage(n.store.image(v.ID), v.Capacity); err != nil {
		return err
	}
	if err := refreshIfLarger(d, v); err != nil {
		return err
	}
	if v.FSType == "" {
		return nil
	}
	return growMounted(v.FSType, d.Path(), path)
}

func growImage(image string, size int64) error {
	st, err := os.Stat(image)
	if err != nil {
		return fmt.Errorf("stat image: %w", err)
	}
	if st.Size() >= size {
		return nil
	}
	if err := os.Truncate(image, size); err != nil {
		return fmt.Errorf("grow image: %w", err)
	}
	return nil
}

// NodeGetVolumeStats tells how full a volume is.
func (n *Node) NodeGetVolumeStats(_ context.Context, r *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	if r.GetVolumeId() == "" || r.GetVolumePath() == "" {
		return nil, status.Error(codes.InvalidArgument, "volume ID and volume path are needed")
	}
	v, err := n.store.readVolume(r.GetVolumeId())
	if err != nil {
		return nil, asStatus(err, "read volume")
	}
	if _, err := os.Stat(r.GetVolumePath()); errors.Is(err, fs.ErrNotExist) {
		return nil, status.Error(codes.NotFound, "nothing is at the volume path")
	}
	if v.FSType == "" {
		return &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{{Unit: csi.VolumeUsage_BYTES, Total: v.Capacity}}}, nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(r.GetVolumePath(), &st); err != nil {
		return nil, status.Errorf(codes.Internal, "measure volume: %v", err)
	}
	return &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{
		{Unit: csi.VolumeUsage_BYTES, Total: int64(st.Blocks) * st.Bsize, Available: int64(st.Bavail) * st.Bsize, Used: int64(st.Blocks-st.Bfree) * st.Bsize},
		{Unit: csi.VolumeUsage_INODES, Total: int64(st.Files), Available: int64(st.Ffree), Used: int64(st.Files - st.Ffree)},
	}}, nil
}
