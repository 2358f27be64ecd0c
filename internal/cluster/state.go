package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// state is what a cluster remembers; everything else is derived from it or found on
// the host. It is written before the things it names are made, so that down finds them.
type state struct {
	Name      string    `json:"name"`
	Nodes     int       `json:"nodes"`
	Addresses Addresses `json:"addresses"`
	// NodeCPUs is how many CPUs each node offers; 0 divides the machine's between the nodes.
	NodeCPUs int `json:"nodeCPUs,omitempty"`
	// Boxes are the inits as last started.
	Boxes map[string]processRef `json:"boxes,omitempty"`
	// Kubeconfigs are the files that got a context of this cluster.
	Kubeconfigs []string `json:"kubeconfigs,omitempty"`
	// Version is the build that last brought the cluster up.
	Version string `json:"version"`
}

// processRef names one process for good: numbers are used again, but not with the
// same start time in the same boot.
type processRef struct {
	PID   int    `json:"pid"`
	Start string `json:"start"` // clock ticks after boot
	Boot  string `json:"boot"`
}

func stateFile(dir string) string { return filepath.Join(dir, "state.json") }

// readState returns nil when there is no such cluster.
func readState(dir string) (*state, error) {
	text, err := os.ReadFile(stateFile(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // absence is an answer here
	}
	if err != nil {
		return nil, fmt.Errorf("read cluster state: %w", err)
	}
	s := &state{}
	s.Boxes = map[string]processRef{}
	if err := json.Unmarshal(text, s); err != nil {
		return nil, fmt.Errorf("decode %s: %w", stateFile(dir), err)
	}
	return s, nil
}

func (s *state) write(dir string) error {
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("encode cluster state: %w", err)
	}
	return writeFile(stateFile(dir), append(text, '\n'), 0o600)
}

// writeFile replaces a file atomically and durably: after a power cut it has the old
// or the new content.
func writeFile(path string, text []byte, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	file, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = file.Write(text)
	err = errors.Join(err, file.Sync(), file.Close())
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// lock takes an exclusive lock on a directory, released by the returned function or
// by the end of the process. A directory needs no lock file that would stay behind.
// waiting is called if somebody else has it; same says whether the directory that was
// locked in the end still is the one with that path.
func lock(dir string, waiting func()) (unlock func(), same bool, err error) {
	file, err := os.Open(dir)
	if err != nil {
		return nil, false, fmt.Errorf("lock %s: %w", dir, err)
	}
	err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		if waiting != nil {
			waiting()
		}
		err = unix.Flock(int(file.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		return nil, false, errors.Join(fmt.Errorf("lock %s: %w", dir, err), file.Close())
	}
	locked, err := file.Stat()
	if err != nil {
		return nil, false, errors.Join(fmt.Errorf("lock %s: %w", dir, err), file.Close())
	}
	there, err := os.Stat(dir)
	return func() { _ = file.Close() }, err == nil && os.SameFile(locked, there), nil
}

// bootID identifies the host's present boot.
func bootID() (string, error) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}

// refer names the running process pid.
func refer(pid int) (processRef, error) {
	boot, err := bootID()
	if err != nil {
		return processRef{}, err
	}
	start, zombie, err := processStart(pid)
	if err != nil {
		return processRef{}, err
	}
	if zombie {
		return processRef{}, fmt.Errorf("process %d has ended", pid)
	}
	return processRef{PID: pid, Start: start, Boot: boot}, nil
}

// alive says whether that very process still runs.
func (r processRef) alive() bool {
	if r.PID == 0 {
		return false
	}
	boot, err := bootID()
	if err != nil || boot != r.Boot {
		return false
	}
	start, zombie, err := processStart(r.PID)
	return err == nil && !zombie && start == r.Start
}

// gone says that not even an entry of that process is left.
func (r processRef) gone() error {
	start, _, err := processStart(r.PID)
	if err == nil && start == r.Start && r.PID != 0 {
		return fmt.Errorf("process %d is still there", r.PID)
	}
	return nil
}

// processStart reads a process's start time (field 22 of its stat) and whether it
// only waits to be reaped.
func processStart(pid int) (start string, zombie bool, err error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return "", false, err
	}
	// The second field is a name in parentheses, which may contain anything.
	end := strings.LastIndexByte(string(text), ')')
	fields := strings.Fields(string(text)[end+1:])
	if end < 0 || len(fields) < 20 {
		return "", false, fmt.Errorf("unreadable stat of process %d", pid)
	}
	return fields[19], fields[0] == "Z" || fields[0] == "X", nil
}
