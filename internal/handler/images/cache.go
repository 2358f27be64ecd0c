package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sys/unix"

	"orlop.dev/orlop/internal/handler/podfs"
)

const (
	// DefaultLimit is how much the cache may hold, in bytes.
	DefaultLimit = 20 << 30

	// The file system keeps a fifth of itself free, so that the kubelet, which evicts
	// pods below 15 %, is not brought near that by us; on a large one this much is
	// enough, since the cache has its own limit.
	reserveShare = 5
	reserveMost  = 20 << 30

	partial = "partial-"
	tick    = 64 << 20 // what was written is handed to the disk in pieces of so many bytes
)

// Fetching says that an image is on its way.
type Fetching struct {
	// Received and Size in bytes; Size is 0 while it is unknown.
	Received, Size int64
}

// Error implements error.
func (f *Fetching) Error() string {
	const mebibyte = 1 << 20
	if f.Size == 0 {
		return "the image is being fetched"
	}
	return fmt.Sprintf("the image is being fetched, %d of %d MiB so far", f.Received/mebibyte, f.Size/mebibyte)
}

// Cache is a folder of images. Fill the exported fields, then Start.
type Cache struct {
	// Dir is the folder; it is made.
	Dir string
	// Limit of all files together, in bytes.
	Limit int64
	// Source is where images come from.
	Source Registry
	// InUse are the references that living machines of this node name.
	InUse func() []string
	Now   func() time.Time
	Log   logr.Logger

	mu      sync.Mutex
	ctx     context.Context
	fetches map[string]*fetch
	group   sync.WaitGroup
}

// fetch is one image on its way.
type fetch struct {
	received, size atomic.Int64
	// waiting are told of the end.
	waiting []func()
	ended   bool
	err     error
}

// Write counts.
func (f *fetch) Write(p []byte) (int, error) {
	f.received.Add(int64(len(p)))
	return len(p), nil
}

// Start removes what a crash has left and fetches images until the context ends. It is
// a manager.Runnable.
func (c *Cache) Start(ctx context.Context) error {
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return fmt.Errorf("make folder of images: %w", err)
	}
	left, err := filepath.Glob(filepath.Join(c.Dir, partial+"*"))
	if err != nil {
		return fmt.Errorf("list folder of images: %w", err)
	}
	for _, f := range left {
		if err := os.Remove(f); err != nil {
			return fmt.Errorf("remove unfinished image: %w", err)
		}
	}
	c.mu.Lock()
	c.ctx, c.fetches = ctx, map[string]*fetch{}
	c.mu.Unlock()
	<-ctx.Done()
	c.mu.Lock()
	c.ctx = nil // nobody adds to the group from here on
	c.mu.Unlock()
	c.group.Wait()
	return nil
}

// Open opens an image for reading. One that is not there is fetched, once however many
// ask: the error is then *Fetching, and ready is called when it is worth asking again.
func (c *Cache) Open(name string, ready func()) (podfs.Disk, error) {
	ref, err := ParseReference(name)
	if err != nil {
		return podfs.Disk{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	disk, err := c.open(ref.file())
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return disk, err
	}
	ctx := c.ctx
	if ctx == nil || ctx.Err() != nil {
		return podfs.Disk{}, errors.New("images cannot be fetched now")
	}
	f := c.fetches[ref.file()]
	switch {
	case f == nil:
		f = &fetch{}
		c.fetches[ref.file()] = f
		c.group.Go(func() { c.fetch(ctx, ref, f) })
	case f.ended: // badly; the next to ask begins anew
		delete(c.fetches, ref.file())
		return podfs.Disk{}, fmt.Errorf("fetch image: %w", f.err)
	}
	f.waiting = append(f.waiting, ready)
	return podfs.Disk{}, &Fetching{Received: f.received.Load(), Size: f.size.Load()}
}

// open opens a finished file and notes that it is used.
func (c *Cache) open(file string) (podfs.Disk, error) {
	path := filepath.Join(c.Dir, file)
	for _, direct := range []int{unix.O_DIRECT, 0} {
		f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|direct, 0)
		if errors.Is(err, unix.EINVAL) && direct != 0 {
			continue
		}
		if err != nil {
			return podfs.Disk{}, fmt.Errorf("open image: %w", err)
		}
		if err := os.Chtimes(path, time.Time{}, c.Now()); err != nil {
			c.Log.Info("cannot note the use of an image", "file", file, "reason", err.Error())
		}
		return podfs.Disk{File: f, Buffered: direct == 0}, nil
	}
	return podfs.Disk{}, unix.EINVAL
}

// fetch brings an image into the folder.
func (c *Cache) fetch(ctx context.Context, ref Reference, f *fetch) {
	began := c.Now()
	err := c.bring(ctx, ref, f)
	if err != nil {
		c.Log.Info("cannot fetch image, will try again when asked", "repository", ref.Repository, "reason", err.Error())
	} else {
		c.Log.Info("image fetched", "repository", ref.Repository, "digest", ref.Digest, "bytes", f.size.Load(), "seconds", c.Now().Sub(began).Seconds())
	}
	c.mu.Lock()
	f.ended, f.err = true, err
	waiting := f.waiting
	if err == nil {
		delete(c.fetches, ref.file())
	}
	c.mu.Unlock()
	for _, ready := range waiting {
		ready()
	}
}

func (c *Cache) bring(ctx context.Context, ref Reference, f *fetch) error {
	blob, err := c.Source.Resolve(ctx, ref)
	if err != nil {
		return err
	}
	defer blob.Close()
	if err := c.reserve(f, blob.Size); err != nil {
		return err
	}
	file, err := os.CreateTemp(c.Dir, partial)
	if err != nil {
		return fmt.Errorf("make file: %w", err)
	}
	defer func() { _ = os.Remove(file.Name()) }() // a finished one has another name by then
	defer func() { _ = file.Close() }()
	if err := blob.Copy(ctx, io.MultiWriter(&gentle{file: file}, f)); err != nil {
		return err
	}
	if err := file.Sync(); err != nil {
		return fmt.Errorf("write file: %w", err)
	}
	if err := os.Rename(file.Name(), filepath.Join(c.Dir, ref.file())); err != nil {
		return fmt.Errorf("name file: %w", err)
	}
	return syncDir(c.Dir)
}

// gentle hands to the disk what was written, piece by piece, and takes it out of the
// page cache: guests read images without it.
type gentle struct {
	file    *os.File
	pending int64
	done    int64
}

func (g *gentle) Write(p []byte) (int, error) {
	n, err := g.file.Write(p)
	g.pending += int64(n)
	if err == nil && g.pending >= tick {
		if err = unix.Fdatasync(int(g.file.Fd())); err == nil {
			_ = unix.Fadvise(int(g.file.Fd()), g.done, g.pending, unix.FADV_DONTNEED)
		}
		g.done, g.pending = g.done+g.pending, 0
	}
	return n, err
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open folder of images: %w", err)
	}
	defer func() { _ = d.Close() }()
	return d.Sync()
}

// entry is a file of the cache.
type entry struct {
	name string
	size int64
	used time.Time
}

// reserve makes room for an image and books it.
func (c *Cache) reserve(f *fetch, size int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	entries, err := c.list()
	if err != nil {
		return err
	}
	free, err := c.free()
	if err != nil {
		return err
	}
	var used int64
	for _, e := range entries {
		used += e.size
	}
	for _, other := range c.fetches {
		if !other.ended {
			used += other.size.Load()
			free -= other.size.Load() - other.received.Load()
		}
	}
	evict, ok := choose(entries, c.keep(), max(used+size-c.Limit, size-free))
	if !ok {
		return fmt.Errorf("the node's cache of images has no room for %d bytes: "+
			"it may hold %d, and what machines of this node use stays", size, c.Limit)
	}
	for _, name := range evict {
		if err := os.Remove(filepath.Join(c.Dir, name)); err != nil {
			return fmt.Errorf("remove image: %w", err)
		}
		c.Log.Info("image removed to make room", "file", name)
	}
	f.size.Store(size)
	return nil
}

// choose picks the files to remove so that excess bytes become free, the least
// recently used ones first.
func choose(entries []entry, keep map[string]bool, excess int64) (names []string, ok bool) {
	slices.SortFunc(entries, func(a, b entry) int { return a.used.Compare(b.used) })
	for _, e := range entries {
		if excess <= 0 {
			break
		}
		if !keep[e.name] {
			names = append(names, e.name)
			excess -= e.size
		}
	}
	return names, excess <= 0
}

func (c *Cache) keep() map[string]bool {
	keep := map[string]bool{}
	for _, name := range c.InUse() {
		if ref, err := ParseReference(name); err == nil {
			keep[ref.file()] = true
		}
	}
	return keep
}

func (c *Cache) list() ([]entry, error) {
	files, err := os.ReadDir(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("list folder of images: %w", err)
	}
	var entries []entry
	for _, f := range files {
		info, err := f.Info()
		if err != nil || !strings.HasPrefix(f.Name(), "sha256-") {
			continue
		}
		entries = append(entries, entry{name: f.Name(), size: info.Size(), used: info.ModTime()})
	}
	return entries, nil
}

// free is what the file system has beyond its reserve, in bytes.
func (c *Cache) free() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(c.Dir, &st); err != nil {
		return 0, fmt.Errorf("measure file system of images: %w", err)
	}
	total := int64(st.Blocks) * st.Bsize
	return int64(st.Bavail)*st.Bsize - min(total/reserveShare, reserveMost), nil
}
