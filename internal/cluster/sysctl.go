package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// sysctlRecord remembers the host-wide settings as they were before the first
// cluster of this boot came up, and who uses them now: the last cluster to go
// restores them. It lives in /run because settings do not survive a boot either.
type sysctlRecord struct {
	Boot  string            `json:"boot"`
	Was   map[string]string `json:"was"`
	Users []string          `json:"users"` // state directories
}

// settings is where host-wide settings are and where they are recorded.
type settings struct {
	proc string // normally /proc/sys
	dir  string // exists while a cluster of this host does
}

// hostSettings are those of this machine.
var hostSettings = settings{proc: "/proc/sys", dir: "/run/orlop"}

func (h settings) file() string { return filepath.Join(h.dir, "sysctls.json") }

// ourSysctls are set by us: value, or the least value.
var ourSysctls = map[string]struct {
	value   string
	atLeast int
}{
	"net/ipv4/ip_forward": {value: "1"},
	// Every kubelet, containerd and controller of every box takes from the same user's
	// allowance; the usual 128 instances are gone with two nodes.
	"fs/inotify/max_user_instances": {atLeast: 8192},
	"fs/inotify/max_user_watches":   {atLeast: 524288},
}

// kubeletSysctls are set by every kubelet when it starts.
var kubeletSysctls = []string{
	"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
	"kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes",
}

// use records and sets the host-wide settings for a cluster.
func (h settings) use(user string) error {
	if err := os.MkdirAll(h.dir, 0o755); err != nil {
		return fmt.Errorf("record sysctls: %w", err)
	}
	unlock, _, err := lock(h.dir, nil)
	if err != nil {
		return err
	}
	defer unlock()
	record, err := h.record()
	if err != nil {
		return err
	}
	names := slices.Clone(kubeletSysctls)
	for name := range ourSysctls {
		names = append(names, name)
	}
	for _, name := range names {
		if _, known := record.Was[name]; known {
			continue
		}
		if value, err := h.get(name); err == nil {
			record.Was[name] = value
		}
	}
	if !slices.Contains(record.Users, user) {
		record.Users = append(record.Users, user)
	}
	if err := h.write(record); err != nil {
		return err
	}
	for name, want := range ourSysctls {
		now, err := h.get(name)
		if err != nil {
			continue
		}
		value := want.value
		if number, err := strconv.Atoi(now); want.atLeast > 0 && err == nil {
			value = strconv.Itoa(max(number, want.atLeast))
		}
		if value == now {
			continue
		}
		if err := h.set(name, value); err != nil {
			return err
		}
	}
	return nil
}

// release forgets a cluster; the last one restores the settings.
func (h settings) release(user string) error {
	if _, err := os.Stat(h.file()); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	unlock, _, err := lock(h.dir, nil)
	if err != nil {
		return err
	}
	defer unlock()
	record, err := h.record()
	if err != nil {
		return err
	}
	// A cluster whose directory was removed by hand uses nothing any more.
	record.Users = slices.DeleteFunc(record.Users, func(other string) bool {
		_, err := os.Stat(other)
		return other == user || errors.Is(err, fs.ErrNotExist)
	})
	if len(record.Users) > 0 {
		return h.write(record)
	}
	for name, was := range record.Was {
		if now, err := h.get(name); err == nil && now != was {
			if err := h.set(name, was); err != nil {
				return err
			}
		}
	}
	return os.RemoveAll(h.dir)
}

func (h settings) record() (*sysctlRecord, error) {
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	fresh := &sysctlRecord{Boot: boot, Was: map[string]string{}}
	text, err := os.ReadFile(h.file())
	if errors.Is(err, fs.ErrNotExist) {
		return fresh, nil
	} else if err != nil {
		return nil, fmt.Errorf("read recorded sysctls: %w", err)
	}
	record := &sysctlRecord{}
	if err := json.Unmarshal(text, record); err != nil {
		return nil, fmt.Errorf("decode %s: %w", h.file(), err)
	}
	if record.Boot != boot || record.Was == nil {
		return fresh, nil
	}
	return record, nil
}

func (h settings) write(r *sysctlRecord) error {
	text, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode sysctls: %w", err)
	}
	return writeFile(h.file(), text, 0o600)
}

func (h settings) get(name string) (string, error) {
	text, err := os.ReadFile(filepath.Join(h.proc, name))
	return strings.TrimSpace(string(text)), err
}

func (h settings) set(name, value string) error {
	if err := os.WriteFile(filepath.Join(h.proc, name), []byte(value), 0); err != nil {
		return fmt.Errorf("set sysctl %s: %w", name, err)
	}
	return nil
}
