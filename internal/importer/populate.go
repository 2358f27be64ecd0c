package importer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"orlop.dev/orlop/internal/diskimage"
)

// unfinished is the disk while it is made. It becomes DiskFile in one step, so a
// volume has a whole disk or none.
const unfinished = ".disk.qcow2.new"

// diskMode lets QEMU's group write; the volume may be mounted by another uid of it.
const diskMode = 0o660

// populate fills the volume. A volume that has its disk already, because we died
// between the last step and the report, is left as it is.
func (r *Run) populate(ctx context.Context, c *Populate) (*Result, error) {
	if c.VirtualSize < 0 || c.VirtualSize%512 != 0 || (c.VirtualSize == 0 && c.Image == nil) {
		return nil, fail(ReasonInvalidConfig, nil, "A disk cannot have %d bytes", c.VirtualSize)
	}
	st, err := os.Stat(r.Target)
	if err != nil {
		return nil, fmt.Errorf("look at volume: %w", err)
	}
	if !st.IsDir() {
		return nil, fail(ReasonUnsupported, nil, "Volumes of mode Block cannot be filled yet: use a StorageClass with volume mode Filesystem")
	}
	disk, work := filepath.Join(r.Target, DiskFile), filepath.Join(r.Target, unfinished)
	if _, err := os.Lstat(disk); err == nil {
		return r.describe(ctx, disk, c)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("look for disk: %w", err)
	}
	if err := os.Remove(work); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove unfinished disk: %w", err)
	}
	result := &Result{Format: string(diskimage.QCOW2)}
	if c.Image == nil {
		r.Meter.begin(PhaseWriting, shareWrite, 0)
		err = diskimage.CreateBlank(ctx, work, c.VirtualSize)
	} else {
		err = r.fromImage(ctx, c, work, result)
	}
	if err != nil {
		_ = os.Remove(work)
		return nil, err
	}
	if err := publish(work, disk); err != nil {
		return nil, err
	}
	made, err := r.describe(ctx, disk, c)
	if err != nil {
		return nil, err
	}
	result.VirtualSize, result.StoredSize = made.VirtualSize, made.StoredSize
	return result, nil
}

// fromImage makes the disk from an image. The registry vouches for the bytes, not
// for what they mean, so they are looked at like any other's.
func (r *Run) fromImage(ctx context.Context, c *Populate, path string, result *Result) error {
	if err := r.pull(ctx, c, path, result); err != nil {
		return err
	}
	info, err := diskimage.Probe(ctx, path, DefaultMaxVirtualSize)
	if err != nil {
		return err
	}
	if info.Format != diskimage.QCOW2 {
		return fail(ReasonNotAnImage, nil, "The image in the registry is %s, not qcow2", info.Format)
	}
	if c.VirtualSize == 0 {
		return nil
	}
	return diskimage.Grow(ctx, path, c.VirtualSize)
}

// pull brings the image's qcow2 file into the volume as it is.
func (r *Run) pull(ctx context.Context, c *Populate, path string, result *Result) error {
	ctx, dog, done := watch(ctx, seconds(c.StallTimeoutSeconds, DefaultStallTimeout))
	defer done()
	image, err := find(ctx, *c.Image)
	if err != nil {
		return err
	}
	if image.layer.MediaType != MediaTypeQCOW2 {
		return fail(ReasonUnsupported, nil, "A disk cannot be made from an ISO image: attach the image itself as a CD-ROM")
	}
	if c.VirtualSize != 0 && c.VirtualSize < image.virtualSize {
		return fail(ReasonDiskTooSmall, nil, "The disk would have %d bytes, but the image is a disk of %d", c.VirtualSize, image.virtualSize)
	}
	result.Digest, result.SourceFormat, result.SourceSize = image.digest, image.sourceFormat, image.layer.Size
	r.Meter.begin(PhaseWriting, shareWrite, image.layer.Size)
	if err := r.copyLayer(ctx, image, path, dog); err != nil {
		return err
	}
	result.AverageSpeedBytes = r.Meter.Progress().AverageSpeedBytes
	return nil
}

func (r *Run) copyLayer(ctx context.Context, image *stored, path string, dog *watchdog) error {
	in, err := image.open(ctx)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := createSparse(path, image.layer.Size, image.layer.Size)
	if err != nil {
		return err
	}
	defer out.Close()
	counted := &transferError{Reader: &counting{Reader: in, count: func(n int64) { dog.feed(); r.Meter.add(n) }}}
	_, err = io.CopyBuffer(struct{ io.Writer }{out}, counted, make([]byte, 256<<10))
	if counted.err != nil {
		return registryFailure(ctx, counted.err)
	}
	if err != nil {
		return err
	}
	return out.finish(false)
}

// publish makes the finished disk visible, after all of it is on stable storage.
func publish(work, disk string) error {
	f, err := os.OpenFile(work, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open disk: %w", err)
	}
	// The mode first: what is synced is what is seen.
	err = errors.Join(f.Chmod(diskMode), f.Sync(), f.Close())
	if err != nil {
		return noRoom(err, "write disk")
	}
	if err := os.Rename(work, disk); err != nil {
		return noRoom(err, "name disk")
	}
	dir, err := os.Open(filepath.Dir(disk))
	if err != nil {
		return fmt.Errorf("open volume: %w", err)
	}
	defer dir.Close()
	if err := dir.Sync(); err != nil {
		return noRoom(err, "sync volume")
	}
	return nil
}

// describe reads what the disk in the volume is.
func (r *Run) describe(ctx context.Context, disk string, c *Populate) (*Result, error) {
	info, err := diskimage.Probe(ctx, disk, DefaultMaxVirtualSize)
	if err != nil {
		return nil, err
	}
	if c.VirtualSize != 0 && info.VirtualSize != c.VirtualSize {
		return nil, fail(ReasonInternal, nil, "The volume holds a disk of %d bytes, not of %d", info.VirtualSize, c.VirtualSize)
	}
	st, err := os.Stat(disk)
	if err != nil {
		return nil, fmt.Errorf("stat disk: %w", err)
	}
	return &Result{Format: string(info.Format), VirtualSize: info.VirtualSize, StoredSize: st.Size()}, nil
}
