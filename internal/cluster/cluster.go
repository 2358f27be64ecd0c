// Package cluster is the embedded cluster: a real Kubernetes on one machine.
//
// Every machine of the cluster is a box (package box): the control plane in one, each
// node in another. This package decides what is in a box, connects boxes to each other
// and to the host, brings images and basic objects in, and takes everything away again.
// It does not install Orlop's own platform; that is ordinary objects on any Kubernetes.
//
// What a cluster is lies in one directory; what runs is compared with it. So Up can be
// repeated at any time and after any accident (a killed process, a power cut), and Down
// finds everything by name even if the directory is damaged. Invariants to keep: nothing
// is made on the host under a name that does not contain the cluster's, and host-wide
// settings are recorded before they are changed.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"orlop.dev/orlop/internal/version"
)

// DefaultRoot is where clusters are kept, one directory each.
const DefaultRoot = "/var/lib/orlop"

// DefaultName is the cluster that commands mean without --name.
const DefaultName = "orlop"

var errNeedsRoot = errors.New("the embedded cluster needs root: run the command with sudo")

var namePattern = regexp.MustCompile(`^[a-z]([a-z0-9-]{0,8}[a-z0-9])?$`)

// Options say which cluster, and where its parts come from.
type Options struct {
	Name string
	// Root is the directory with a directory for each cluster; DefaultRoot if empty.
	Root string
	// Source is the directory of our binaries, with the embedded ones in "embedded";
	// that of the running program if empty.
	Source string
	// Images is the directory of OCI layouts; "images" in Source if empty.
	Images string
	// Out gets progress lines.
	Out io.Writer
	// Now is the clock; certificates and progress need it.
	Now func() time.Time
}

// Cluster is one embedded cluster, which may or may not exist.
type Cluster struct {
	name   string
	root   string
	dir    string
	source string
	images string

	state    *state // nil while it does not exist
	cgroups  *cgroups
	machine  machine
	mtu      int
	progress progress
	now      func() time.Time
	digests  map[string]string // of binaries, for revisions

	references map[string]string    // of images, by name
	started    map[string]time.Time // boxes switched on by this up
}

// Open finds a cluster.
func Open(o Options) (*Cluster, error) {
	if !namePattern.MatchString(o.Name) {
		return nil, fmt.Errorf("cluster name %q: up to 10 lower-case letters, digits and dashes are allowed, a letter first", o.Name)
	}
	if o.Root == "" {
		o.Root = DefaultRoot
	}
	root, err := filepath.Abs(o.Root)
	if err != nil {
		return nil, fmt.Errorf("find state directory: %w", err)
	}
	if o.Source == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find own program: %w", err)
		}
		o.Source = filepath.Dir(self)
	}
	if o.Images == "" {
		o.Images = filepath.Join(o.Source, "images")
	}
	c := &Cluster{
		name: o.Name, root: root, dir: filepath.Join(root, o.Name), source: o.Source, images: o.Images,
		progress: progress{out: o.Out, now: o.Now}, now: o.Now, digests: map[string]string{}, started: map[string]time.Time{},
	}
	c.state, err = readState(c.dir)
	if errors.Is(err, fs.ErrPermission) {
		return nil, errNeedsRoot
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Exists says whether the cluster was made, running or not.
func (c *Cluster) Exists() bool { return c.state != nil }

func (c *Cluster) missing() error {
	return fmt.Errorf("there is no cluster %q in %s; \"d8 cluster up --name %[1]s\" makes it", c.name, c.root)
}

// inspect looks at the host and refuses what cannot work, with what to do.
func (c *Cluster) inspect() error {
	if os.Geteuid() != 0 {
		return errNeedsRoot
	}
	var err error
	if c.cgroups, err = findCgroups(); err != nil {
		return err
	}
	c.machine.cpus = runtime.NumCPU()
	if c.machine.memory, err = totalMemory(); err != nil {
		return err
	}
	c.mtu = uplinkMTU()
	return nil
}

// totalMemory is the machine's memory in bytes.
func totalMemory() (int64, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, fmt.Errorf("read memory size: %w", err)
	}
	var kib int64
	if _, err := fmt.Sscanf(string(text), "MemTotal: %d kB", &kib); err != nil {
		return 0, fmt.Errorf("read memory size: %w", err)
	}
	return kib << 10, nil
}

// create makes the state of a new cluster, or takes over what a repeated up asks for,
// and returns with the cluster's lock taken.
func (c *Cluster) create(nodes, nodeCPUs int) (unlock func(), err error) {
	if unlock, err = c.lockDir(); err != nil {
		return nil, err
	}
	if err = c.fill(nodes, nodeCPUs); err != nil {
		unlock()
		return nil, err
	}
	return unlock, nil
}

// lockDir makes and locks the cluster's directory and reads its state again, which
// may have changed while somebody else had the lock. If that was a down, the locked
// directory is no longer the one that is there.
func (c *Cluster) lockDir() (func(), error) {
	for {
		if err := os.MkdirAll(c.dir, 0o700); err != nil {
			return nil, fmt.Errorf("create state directory: %w", err)
		}
		unlock, same, err := lock(c.dir, func() { c.progress.note("waiting for another command on cluster %s", c.name) })
		if err != nil {
			return nil, err
		}
		if !same {
			unlock()
			continue
		}
		if c.state, err = readState(c.dir); err != nil {
			unlock()
			return nil, err
		}
		return unlock, nil
	}
}

// fill completes the state. The lock on the root keeps two new clusters from choosing
// the same addresses.
func (c *Cluster) fill(nodes, nodeCPUs int) error {
	unlock, _, err := lock(c.root, nil)
	if err != nil {
		return err
	}
	defer unlock()
	if c.state == nil {
		used, err := usedRanges()
		if err != nil {
			return err
		}
		others, err := c.otherPlans()
		if err != nil {
			return err
		}
		plan, err := choosePlan(append(used, others...))
		if err != nil {
			return err
		}
		c.state = &state{Name: c.name, Nodes: 1, Addresses: plan, Boxes: map[string]processRef{}}
		if err := os.MkdirAll(filepath.Join(c.dir, "shared"), 0o755); err != nil {
			return fmt.Errorf("create state directory: %w", err)
		}
	}
	if nodes > 0 {
		if nodes < c.state.Nodes {
			return fmt.Errorf("cluster %s has %d nodes and cannot shrink to %d; \"d8 cluster down --name %[1]s\" removes it", c.name, c.state.Nodes, nodes)
		}
		c.state.Nodes = nodes
	}
	if nodeCPUs > 0 {
		c.state.NodeCPUs = nodeCPUs
	}
	c.state.Version = version.Version()
	return c.state.write(c.dir)
}

// otherPlans lists the ranges of all clusters in the root, running or not.
func (c *Cluster) otherPlans() ([]netip.Prefix, error) {
	entries, err := os.ReadDir(c.root)
	if err != nil {
		return nil, fmt.Errorf("list clusters: %w", err)
	}
	var used []netip.Prefix
	for _, entry := range entries {
		other, err := readState(filepath.Join(c.root, entry.Name()))
		if err != nil {
			return nil, err
		}
		if other != nil {
			used = append(used, other.Addresses.inside()...)
		}
	}
	return used, nil
}

// Down stops the cluster and removes everything of it.
func (c *Cluster) Down(ctx context.Context) error {
	if err := c.inspect(); err != nil {
		return err
	}
	if c.state != nil {
		unlock, err := c.lockDir()
		if err != nil {
			return err
		}
		defer unlock()
	}
	var kubeconfigs []string
	if c.state != nil {
		kubeconfigs = c.state.Kubeconfigs
	}
	done := c.progress.step("removing cluster %s", c.name)
	// Killing the inits first is the quick way; the groups then have whatever escaped.
	for _, ref := range c.refs() {
		ref.kill()
	}
	err := errors.Join(
		c.cgroups.remove(clusterCgroup(c.name)),
		removeLinks(c.name),
		removeFirewall(ctx, c.name),
		detachLoops(c.dir),
		hostSettings.release(c.dir),
		forgetKubeconfigs(c.name, kubeconfigs),
	)
	if err != nil {
		return err
	}
	for _, ref := range c.refs() {
		// The entry of a killed init stays until the namespace is taken apart and its
		// parent has looked; a parent that never does is not ours to repair.
		_ = poll(ctx, 5*time.Second, func(context.Context) error { return ref.gone() }, nil)
	}
	if err := os.RemoveAll(c.dir); err != nil {
		return fmt.Errorf("remove state directory: %w", err)
	}
	// Gone with the last cluster.
	if err := os.Remove(c.root); err != nil && !errors.Is(err, fs.ErrNotExist) {
		if entries, listErr := os.ReadDir(c.root); listErr != nil || len(entries) == 0 {
			return fmt.Errorf("remove state directory: %w", err)
		}
	}
	done("nothing is left")
	return nil
}

func (c *Cluster) refs() []processRef {
	var refs []processRef
	if c.state != nil {
		for _, ref := range c.state.Boxes {
			refs = append(refs, ref)
		}
	}
	return refs
}

// BoxNames lists the boxes, the control box first.
func (c *Cluster) BoxNames() []string {
	if c.state == nil {
		return nil
	}
	return c.state.boxNames()
}

// KillBox is a power cut of one box.
func (c *Cluster) KillBox(ctx context.Context, name string) error {
	if c.state == nil {
		return c.missing()
	}
	if !slices.Contains(c.state.boxNames(), name) {
		return fmt.Errorf("no box %q in cluster %s; there are %s", name, c.name, strings.Join(c.state.boxNames(), ", "))
	}
	ref := c.state.Boxes[name]
	if !ref.alive() {
		return fmt.Errorf("box %s does not run", name)
	}
	ref.kill()
	return poll(ctx, 10*time.Second, func(context.Context) error {
		if ref.alive() {
			return fmt.Errorf("box %s is still there", name)
		}
		return nil
	}, nil)
}
