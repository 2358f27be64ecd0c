package csi

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"orlop.dev/orlop/internal/loopdev"
)

// CreateSnapshot copies a volume as it is at one moment.
func (c *Controller) CreateSnapshot(_ context.Context, r *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	if r.GetName() == "" || len(r.GetName()) > nameLimit {
		return nil, status.Errorf(codes.InvalidArgument, "name must have 1 to %d bytes", nameLimit)
	}
	if r.GetSourceVolumeId() == "" {
		return nil, status.Error(codes.InvalidArgument, "source volume ID is missing")
	}
	for key := range r.GetParameters() {
		return nil, status.Errorf(codes.InvalidArgument, "parameter %q is not known", key)
	}
	c.promising.Lock()
	defer c.promising.Unlock()
	id := snapshotID(r.GetName())
	have, err := c.store.readSnapshot(id)
	switch {
	case err == nil && have.SourceVolume != r.GetSourceVolumeId():
		return nil, status.Errorf(codes.AlreadyExists, "snapshot %q exists and is of another volume", r.GetName())
	case err == nil:
		return &csi.CreateSnapshotResponse{Snapshot: have.message()}, nil
	case !errors.Is(err, errNotExist):
		return nil, status.Errorf(codes.Internal, "look for snapshot: %v", err)
	}
	n, err := c.takeSnapshot(id, r.GetName(), r.GetSourceVolumeId())
	if err != nil {
		return nil, asStatus(err, "take snapshot")
	}
	return &csi.CreateSnapshotResponse{Snapshot: n.message()}, nil
}

func (c *Controller) takeSnapshot(id, name, source string) (*snapshot, error) {
	v, err := c.store.readVolume(source)
	if err != nil {
		return nil, err
	}
	if err := c.admit(v.Capacity); err != nil {
		return nil, err
	}
	n := &snapshot{ID: id, Name: name, SourceVolume: source, Size: v.Capacity, FSType: v.FSType, Created: time.Now().UTC()}
	err = c.store.create(id, n, func(image string) error { return c.copyVolume(image, source, v.Capacity) })
	return n, err
}

// copyVolume copies a volume that may be in use. The reference copy stops writes
// to the image for a moment, so it is what a power cut at that moment would have
// left; what was written to the volume before the call is in it, because it is
// flushed first. The file system is not frozen: a driver that dies while it
// holds a freeze would leave every user of the volume hanging.
func (c *Controller) copyVolume(image, source string, size int64) error {
	unlock, err := c.store.lock(source)
	if err != nil {
		return err
	}
	defer unlock()
	v, err := c.store.readVolume(source)
	if err != nil {
		return err
	}
	if err := c.flush(v); err != nil {
		return err
	}
	return copyByReference(image, c.store.image(source), size)
}

// flush brings what is cached for the volume into its image.
func (c *Controller) flush(v *volume) error {
	d, err := loopdev.Find(c.store.image(v.ID))
	if err != nil || d == nil {
		return err
	}
	if v.FSType != "" {
		busy, err := d.Busy()
		if err != nil {
			return err
		}
		if busy {
			if err := c.flushFS(d, v.FSType); err != nil {
				return err
			}
		}
	}
	return d.Sync()
}

// flushFS flushes the file system that some node has mounted. Mounting the same
// device here gives us the same file system, for all of them share one kernel.
func (c *Controller) flushFS(d *loopdev.Device, fsType string) error {
	dir, err := os.MkdirTemp("", "orlop-flush-")
	if err != nil {
		return fmt.Errorf("make mount point: %w", err)
	}
	defer os.Remove(dir)
	if err := unix.Mount(d.Path(), dir, fsType, 0, mountData(fsType)); err != nil {
		return fmt.Errorf("mount volume to flush it: %w", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH) //nolint:errcheck // nobody else sees this mount
	f, err := os.Open(filepath.Clean(dir))
	if err != nil {
		return fmt.Errorf("open volume to flush it: %w", err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("flush file system: %w", err)
	}
	return nil
}

// DeleteSnapshot deletes a snapshot; volumes made from it do not mind.
func (c *Controller) DeleteSnapshot(_ context.Context, r *csi.DeleteSnapshotRequest) (*csi.DeleteSnapshotResponse, error) {
	id := r.GetSnapshotId()
	if id == "" {
		return nil, status.Error(codes.InvalidArgument, "snapshot ID is missing")
	}
	if _, err := c.store.readSnapshot(id); errors.Is(err, errNotExist) {
		return &csi.DeleteSnapshotResponse{}, nil
	}
	unlock, err := c.store.lock(id)
	if errors.Is(err, errNotExist) {
		return &csi.DeleteSnapshotResponse{}, nil
	}
	if err != nil {
		return nil, status.Errorf(codes.Internal, "lock snapshot: %v", err)
	}
	defer unlock()
	if err := c.store.remove(id); err != nil {
		return nil, status.Errorf(codes.Internal, "delete snapshot: %v", err)
	}
	return &csi.DeleteSnapshotResponse{}, nil
}

// ListSnapshots lists snapshots by ID, page by page, all or those asked for.
func (c *Controller) ListSnapshots(_ context.Context, r *csi.ListSnapshotsRequest) (*csi.ListSnapshotsResponse, error) {
	all, err := c.store.snapshots()
	if err != nil {
		return nil, status.Errorf(codes.Internal, "list snapshots: %v", err)
	}
	var wanted []*snapshot
	for _, n := range all {
		if (r.GetSnapshotId() == "" || r.GetSnapshotId() == n.ID) &&
			(r.GetSourceVolumeId() == "" || r.GetSourceVolumeId() == n.SourceVolume) {
			wanted = append(wanted, n)
		}
	}
	part, next, err := page(wanted, r.GetStartingToken(), r.GetMaxEntries())
	if err != nil {
		return nil, err
	}
	out := &csi.ListSnapshotsResponse{NextToken: next}
	for _, n := range part {
		out.Entries = append(out.Entries, &csi.ListSnapshotsResponse_Entry{Snapshot: n.message()})
	}
	return out, nil
}

func (n *snapshot) message() *csi.Snapshot {
	return &csi.Snapshot{
		SnapshotId: n.ID, SourceVolumeId: n.SourceVolume, SizeBytes: n.Size,
		CreationTime: timestamppb.New(n.Created), ReadyToUse: true,
	}
}

func isNoSpace(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}
