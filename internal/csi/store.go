package csi

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"orlop.dev/orlop/internal/loopdev"
)

// Names inside the store and inside the folder of one volume or snapshot.
const (
	volumesDir   = "volumes"
	snapshotsDir = "snapshots"
	workDir      = "work"
	identityFile = "id"
	imageFile    = "image"
	metaFile     = "meta.json"
	nodesDir     = "nodes"

	volumePrefix   = "vol-"
	snapshotPrefix = "snap-"
)

// errNotExist: no such volume or snapshot.
var errNotExist = errors.New("does not exist")

// idPattern is what an ID must look like before it is used in a path.
var idPattern = regexp.MustCompile(`^(vol|snap)-[0-9a-f]{32}$`)

// Store is the folder in which volumes and snapshots live. It is on a file
// system that can copy by reference.
type Store struct {
	// dir is where volumes are: the root itself, or the mounted backing image.
	dir string
	// identity is unique for each store of the machine; it prefixes the labels of
	// the store's loop devices.
	identity string
}

// volume is what is written in meta.json of a volume.
type volume struct {
	ID       string `json:"id"`
	Name     string `json:"name"`
	Capacity int64  `json:"capacity"`
	// Class is "shared" or "local"; Node is set for "local".
	Class string `json:"class"`
	Node  string `json:"node,omitempty"`
	// FSType is "xfs" or "ext4"; empty for a raw block volume.
	FSType string `json:"fsType,omitempty"`
	// SourceVolume or SourceSnapshot is what it was copied from.
	SourceVolume   string `json:"sourceVolume,omitempty"`
	SourceSnapshot string `json:"sourceSnapshot,omitempty"`
}

// snapshot is what is written in meta.json of a snapshot.
type snapshot struct {
	ID           string    `json:"id"`
	Name         string    `json:"name"`
	SourceVolume string    `json:"sourceVolume"`
	Size         int64     `json:"size"`
	FSType       string    `json:"fsType,omitempty"`
	Created      time.Time `json:"created"`
}

// volumeID and snapshotID derive the ID from the name, so that repeating a
// creation finds what the first one made.
func volumeID(name string) string   { return volumePrefix + digest(name) }
func snapshotID(name string) string { return snapshotPrefix + digest(name) }

func digest(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:16])
}

// openStore prepares the folders and reads (or makes) the identity.
func openStore(root, dir string) (*Store, error) {
	for _, sub := range []string{volumesDir, snapshotsDir, workDir} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, fmt.Errorf("make store folder: %w", err)
		}
	}
	id, err := storeIdentity(root)
	if err != nil {
		return nil, err
	}
	return &Store{dir: dir, identity: id}, nil
}

// storeIdentity reads the identity of the store at root, making one the first time.
func storeIdentity(root string) (string, error) {
	path := filepath.Join(root, identityFile)
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		fresh := make([]byte, 8)
		_, _ = rand.Read(fresh) // never fails
		tmp := path + "." + hex.EncodeToString(fresh)
		if err := os.WriteFile(tmp, []byte(hex.EncodeToString(fresh)), 0o600); err != nil {
			return "", fmt.Errorf("write store identity: %w", err)
		}
		defer os.Remove(tmp)
		// A link, not a rename: of several processes that start at once, one wins.
		if err := os.Link(tmp, path); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", fmt.Errorf("write store identity: %w", err)
		}
		raw, err = os.ReadFile(path)
	}
	if err != nil {
		return "", fmt.Errorf("read store identity: %w", err)
	}
	return strings.TrimSpace(string(raw)), nil
}

// labelPrefix is how the labels of all loop devices of a store begin.
func labelPrefix(identity string) string { return "orlop:" + identity + ":" }

// DetachAll releases every loop device of the store at root. It is for taking a
// cluster down, after its boxes have gone; it does nothing if there is no store.
func DetachAll(root string) error {
	raw, err := os.ReadFile(filepath.Join(root, identityFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read store identity: %w", err)
	}
	return loopdev.DetachAll(labelPrefix(strings.TrimSpace(string(raw))))
}

func (s *Store) path(id string) string {
	if strings.HasPrefix(id, snapshotPrefix) {
		return filepath.Join(s.dir, snapshotsDir, id)
	}
	return filepath.Join(s.dir, volumesDir, id)
}

func (s *Store) image(id string) string { return filepath.Join(s.path(id), imageFile) }

func (s *Store) label(id string) string { return labelPrefix(s.identity) + id }

// lock takes the exclusive lock of a volume's or snapshot's folder, across all
// processes of the machine; the kernel drops it when the process dies.
func (s *Store) lock(id string) (unlock func(), err error) {
	if !idPattern.MatchString(id) {
		return nil, fmt.Errorf("%q: %w", id, errNotExist)
	}
	f, err := os.Open(s.path(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", id, errNotExist)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", id, err)
	}
	for {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", id, err)
	}
	// It may have been deleted while we waited.
	if _, err := os.Stat(filepath.Join(s.path(id), metaFile)); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", id, errNotExist)
	}
	return func() { f.Close() }, nil
}

// readVolume returns the volume, or errNotExist.
func (s *Store) readVolume(id string) (*volume, error) {
	v := &volume{}
	return v, s.readMeta(id, volumePrefix, v)
}

// readSnapshot returns the snapshot, or errNotExist.
func (s *Store) readSnapshot(id string) (*snapshot, error) {
	n := &snapshot{}
	return n, s.readMeta(id, snapshotPrefix, n)
}

func (s *Store) readMeta(id, prefix string, into any) error {
	if !idPattern.MatchString(id) || !strings.HasPrefix(id, prefix) {
		return fmt.Errorf("%q: %w", id, errNotExist)
	}
	raw, err := os.ReadFile(filepath.Join(s.path(id), metaFile))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", id, errNotExist)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", id, err)
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("parse description of %s: %w", id, err)
	}
	return nil
}

// writeMeta replaces the description in a folder, whole or not at all.
func writeMeta(dir string, meta any) error {
	raw, err := json.Marshal(meta)
	if err != nil {
		return fmt.Errorf("encode description: %w", err)
	}
	tmp := filepath.Join(dir, metaFile+".new")
	if err := writeSynced(tmp, raw); err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(dir, metaFile)); err != nil {
		return fmt.Errorf("write description: %w", err)
	}
	return syncDir(dir)
}

func writeSynced(path string, raw []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("create %s: %w", filepath.Base(path), err)
	}
	_, err = f.Write(raw)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	return nil
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("open folder: %w", err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync folder: %w", err)
	}
	return nil
}

// create makes a folder with fill and its description, and moves it to its place
// in one step. If somebody else was faster, theirs stays.
func (s *Store) create(id string, meta any, fill func(image string) error) error {
	work, err := os.MkdirTemp(filepath.Join(s.dir, workDir), id+".")
	if err != nil {
		return fmt.Errorf("make work folder: %w", err)
	}
	defer os.RemoveAll(work) // nothing is left there on success
	if err := os.Mkdir(filepath.Join(work, nodesDir), 0o700); err != nil {
		return fmt.Errorf("make folder of nodes: %w", err)
	}
	if err := fill(filepath.Join(work, imageFile)); err != nil {
		return err
	}
	if err := writeMeta(work, meta); err != nil {
		return err
	}
	err = os.Rename(work, s.path(id))
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("move %s to its place: %w", id, err)
	}
	return syncDir(filepath.Dir(s.path(id)))
}

// remove takes the folder away in one step and then frees its space. The caller
// holds its lock.
func (s *Store) remove(id string) error {
	trash, err := os.MkdirTemp(filepath.Join(s.dir, workDir), "gone.")
	if err != nil {
		return fmt.Errorf("make work folder: %w", err)
	}
	if err := os.Rename(s.path(id), filepath.Join(trash, id)); err != nil {
		return fmt.Errorf("remove %s: %w", id, err)
	}
	if err := syncDir(filepath.Dir(s.path(id))); err != nil {
		return err
	}
	if err := os.RemoveAll(trash); err != nil {
		return fmt.Errorf("free space of %s: %w", id, err)
	}
	return nil
}

// sweep frees what creations and removals left when their process died. Only the
// controller calls it, before it serves.
func (s *Store) sweep() error {
	left, err := os.ReadDir(filepath.Join(s.dir, workDir))
	if err != nil {
		return fmt.Errorf("list work folder: %w", err)
	}
	for _, e := range left {
		if err := os.RemoveAll(filepath.Join(s.dir, workDir, e.Name())); err != nil {
			return fmt.Errorf("free left-over %s: %w", e.Name(), err)
		}
	}
	return nil
}

// volumes lists all volumes by ID.
func (s *Store) volumes() ([]*volume, error) {
	return collect(s, volumesDir, s.readVolume)
}

// snapshots lists all snapshots by ID.
func (s *Store) snapshots() ([]*snapshot, error) {
	return collect(s, snapshotsDir, s.readSnapshot)
}

func collect[T any](s *Store, dir string, read func(id string) (*T, error)) ([]*T, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, dir))
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", dir, err)
	}
	var all []*T
	for _, e := range entries {
		item, err := read(e.Name())
		if errors.Is(err, errNotExist) {
			continue // deleted since it was listed
		}
		if err != nil {
			return nil, err
		}
		all = append(all, item)
	}
	return all, nil
}

// markStaged and unmarkStaged record which nodes use a volume, and where. The
// caller holds the volume's lock.
func (s *Store) markStaged(id, node, path string) error {
	return writeSynced(filepath.Join(s.path(id), nodesDir, node), []byte(path))
}

// unmarkStaged returns how many nodes are left.
func (s *Store) unmarkStaged(id, node string) (int, error) {
	err := os.Remove(filepath.Join(s.path(id), nodesDir, node))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("remove mark of node %s: %w", node, err)
	}
	left, err := os.ReadDir(filepath.Join(s.path(id), nodesDir))
	if err != nil {
		return 0, fmt.Errorf("list nodes of %s: %w", id, err)
	}
	return len(left), nil
}

// stagedOn returns where the node has volumes staged according to its marks, by
// volume ID.
func (s *Store) stagedOn(node string) (map[string]string, error) {
	all, err := s.volumes()
	if err != nil {
		return nil, err
	}
	paths := map[string]string{}
	for _, v := range all {
		raw, err := os.ReadFile(filepath.Join(s.path(v.ID), nodesDir, node))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read mark of node %s: %w", node, err)
		}
		paths[v.ID] = string(raw)
	}
	return paths, nil
}
