// Package box is one machine of the embedded cluster: what its small init does after
// it was cloned into namespaces of its own, and how the host talks to it.
//
// A box has PID, mount, UTS, IPC and network namespaces and a private root made of
// bind mounts, so that nothing it mounts or writes appears on the host: its whole
// memory is one directory. The init is PID 1 there. It starts the components of its
// specification, restarts what dies, reaps orphans and keeps their output in rotated
// files. It outlives the command that started it.
//
// The package knows nothing about Kubernetes: components are argument lists made by
// package cluster. The invariant to keep: killing the init is a power cut. Everything
// in the box dies with it, and a new init on the same directory is the same machine
// switched on again; therefore nothing may be remembered outside of that directory.
package box

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// Paths inside every box.
const (
	// BinDir holds the cluster's binaries, read-only.
	BinDir = "/orlop/bin"
	// ownDir is the box's own directory of the host.
	ownDir = "/orlop/box"
	// SharedDir is one directory for all boxes of a cluster.
	SharedDir = "/var/lib/orlop/shared"
	// LocalDir belongs to this box alone.
	LocalDir = "/var/lib/orlop/local"
)

// Spec is a box as the host wants it. It is a file in the box's directory, read by
// the init when it starts and whenever it is told to reload.
type Spec struct {
	// Name is the host name, and the node's name.
	Name string `json:"name"`
	// Dir is the box's directory on the host. The init creates var, etc, opt, tmp, root
	// and log in it.
	Dir string `json:"dir"`
	// Bin is the cluster's directory of binaries on the host.
	Bin string `json:"bin"`
	// Shared is the directory on the host that all boxes see at SharedDir.
	Shared string `json:"shared"`
	// ResolvConf and Hosts are the contents of those two files in /etc.
	ResolvConf string `json:"resolvConf"`
	Hosts      string `json:"hosts"`
	// Sysctls are written once, before any component starts: path below /proc/sys to value.
	// They must be of the box's own network namespace.
	Sysctls map[string]string `json:"sysctls,omitempty"`
	// Links are symbolic links to make inside the box: name to target.
	Links map[string]string `json:"links,omitempty"`
	// Components are started in this order and stopped in the reverse one.
	Components []Component `json:"components"`
}

// Component is one supervised process of a box.
type Component struct {
	Name string   `json:"name"`
	Argv []string `json:"argv"`
	// After is what must answer before the process starts: "unix:<path>", "tcp:<host:port>"
	// or "https:<host:port/path>".
	// Waiting is only a courtesy that saves a crash and its back-off; after a minute the
	// process starts anyway and says itself what it misses.
	After string `json:"after,omitempty"`
	// Revision changes whenever the process must be restarted to see its new
	// configuration, certificates or binary.
	Revision string `json:"revision"`
}

// SpecFile is where the specification of the box in dir is kept.
func SpecFile(dir string) string { return filepath.Join(dir, "box.json") }

// LogFile is the current output of a component of the box in dir, seen from the host.
// "init" is the init's own.
func LogFile(dir, component string) string {
	return filepath.Join(dir, "log", component+".log")
}

// Write stores the specification atomically.
func (s *Spec) Write() error {
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("encode box %s: %w", s.Name, err)
	}
	file := SpecFile(s.Dir)
	if err := os.WriteFile(file+".new", text, 0o600); err != nil {
		return fmt.Errorf("write box %s: %w", s.Name, err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		return fmt.Errorf("write box %s: %w", s.Name, err)
	}
	return nil
}

// readSpec reads a specification.
func readSpec(file string) (*Spec, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read box: %w", err)
	}
	s := &Spec{}
	if err := json.Unmarshal(text, s); err != nil {
		return nil, fmt.Errorf("decode %s: %w", file, err)
	}
	return s, nil
}
