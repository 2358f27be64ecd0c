package ipam

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// attachment is one interface of one container, the unit of CNI.
type attachment struct{ containerID, ifName string }

// file is the attachment's name on disk. CNI allows neither slashes nor leading
// dots in both halves, so the name stays inside the directory.
func (a attachment) file() string { return a.containerID + "@" + a.ifName + ".json" }

// store remembers annotated addresses of one network, one file per attachment.
// The caller holds its lock: withStore is the only way to get one.
type store struct{ dir string }

// withStore runs act on the locked store of the configuration's network.
func withStore(conf *config, act func(*store) error) error {
	dir := filepath.Join(conf.IPAM.DataDir, conf.Name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("create data directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("open lock: %w", err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	return act(&store{dir: dir})
}

// claim records the address of an attachment. An attachment keeps the address it
// was first given, whatever the annotation says now: its interface carries it.
func (s *store) claim(a attachment, addr netip.Addr) (netip.Addr, error) {
	if given, known, err := s.lookup(a); err != nil || known {
		return given, err
	}
	data, err := record{a.containerID, a.ifName, addr}.marshal()
	if err != nil {
		return netip.Addr{}, err
	}
	path := filepath.Join(s.dir, a.file())
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return netip.Addr{}, fmt.Errorf("write address record: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return netip.Addr{}, fmt.Errorf("write address record: %w", err)
	}
	return addr, nil
}

// lookup returns the address the attachment was given here, if any. A file cut
// short by a power loss counts as none: ADD is then simply repeated.
func (s *store) lookup(a attachment) (netip.Addr, bool, error) {
	data, err := os.ReadFile(filepath.Join(s.dir, a.file()))
	if errors.Is(err, fs.ErrNotExist) {
		return netip.Addr{}, false, nil
	}
	if err != nil {
		return netip.Addr{}, false, fmt.Errorf("read address record: %w", err)
	}
	var r record
	if json.Unmarshal(data, &r) != nil || !r.Address.IsValid() {
		return netip.Addr{}, false, nil
	}
	return r.Address, true, nil
}

// release forgets the attachment and says whether there was anything to forget.
func (s *store) release(a attachment) (bool, error) {
	err := os.Remove(filepath.Join(s.dir, a.file()))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("remove address record: %w", err)
	}
	return true, nil
}

// prune forgets every attachment that is not valid any more.
func (s *store) prune(valid map[attachment]bool) error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("list address records: %w", err)
	}
	var errs []error
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok {
			continue
		}
		containerID, ifName, _ := strings.Cut(name, "@")
		if a := (attachment{containerID, ifName}); !valid[a] {
			_, err := s.release(a)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
