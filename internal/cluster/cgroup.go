package cluster

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// controllers of version 2 that kubelet and runc use; those the kernel lacks are skipped.
var unifiedControllers = []string{"cpuset", "cpu", "io", "memory", "hugetlb", "pids", "rdma", "misc"}

// cgroups are the control groups of the host as this process sees them: either one
// unified hierarchy (version 2) or one directory for each version 1 hierarchy.
type cgroups struct {
	unified bool
	mounts  []string
}

// findCgroups looks at what is mounted.
func findCgroups() (*cgroups, error) {
	const root = "/sys/fs/cgroup"
	var fs unix.Statfs_t
	if err := unix.Statfs(root, &fs); err != nil {
		return nil, fmt.Errorf("look at %s: %w", root, err)
	}
	if fs.Type == unix.CGROUP2_SUPER_MAGIC {
		return &cgroups{unified: true, mounts: []string{root}}, nil
	}
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	defer file.Close()
	c := &cgroups{}
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		// …  <root> <mount point> <options> … - <type> <source> <super options>
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(before)
		if !ok || len(fields) < 5 || (!strings.HasPrefix(after, "cgroup ") && !strings.HasPrefix(after, "cgroup2 ")) {
			continue
		}
		if !slices.Contains(c.mounts, fields[4]) {
			c.mounts = append(c.mounts, fields[4])
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	if len(c.mounts) == 0 {
		return nil, errors.New("no control groups are mounted below " + root)
	}
	return c, nil
}

// clusterCgroup is the top of a cluster's subtree, boxCgroup that of a box, which is
// also kubelet's root; initCgroup holds the box's own processes (in version 2 a group
// with children that have controllers may hold none itself).
func clusterCgroup(cluster string) string   { return "/orlop-" + cluster }
func boxCgroup(cluster, box string) string  { return clusterCgroup(cluster) + "/" + box }
func initCgroup(cluster, box string) string { return boxCgroup(cluster, box) + "/init" }

// create makes a group and the ones above it, usable for kubelet.
func (c *cgroups) create(group string) error {
	for _, mount := range c.mounts {
		if err := c.createIn(mount, group); err != nil {
			return fmt.Errorf("create control group %s in %s: %w", group, mount, err)
		}
	}
	return nil
}

func (c *cgroups) createIn(mount, group string) error {
	dir := mount
	for part := range strings.SplitSeq(strings.Trim(group, "/"), "/") {
		if c.unified {
			if err := delegate(dir); err != nil {
				return err
			}
		}
		parent := dir
		dir = filepath.Join(dir, part)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := copyCPUSet(parent, dir); err != nil {
			return err
		}
	}
	return nil
}

// delegate gives the children of a version 2 group every controller it has.
func delegate(dir string) error {
	text, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	have := strings.Fields(string(text))
	control := filepath.Join(dir, "cgroup.subtree_control")
	on, err := os.ReadFile(control)
	if err != nil {
		return err
	}
	enabled := strings.Fields(string(on))
	for _, controller := range unifiedControllers {
		if !slices.Contains(have, controller) || slices.Contains(enabled, controller) {
			continue
		}
		err := os.WriteFile(control, []byte("+"+controller), 0)
		if errors.Is(err, unix.EBUSY) {
			// In a container the "root" has processes of its own; they must move first.
			if err = vacate(dir); err == nil {
				err = os.WriteFile(control, []byte("+"+controller), 0)
			}
		}
		if err != nil {
			return fmt.Errorf("delegate %s: %w", controller, err)
		}
	}
	return nil
}

// vacate moves the processes of a version 2 group into a child.
func vacate(dir string) error {
	leaf := filepath.Join(dir, "orlop-host")
	if err := os.Mkdir(leaf, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	pids, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return err
	}
	for pid := range strings.FieldsSeq(string(pids)) {
		if err := os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte(pid), 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}

// copyCPUSet fills what a version 1 cpuset has empty when it is made; without it no
// process can join.
func copyCPUSet(parent, dir string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		now, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) || len(strings.TrimSpace(string(now))) > 0 {
			continue
		}
		if err != nil {
			return err
		}
		above, err := os.ReadFile(filepath.Join(parent, name))
		if err != nil {
			return err
		}
		if len(strings.TrimSpace(string(above))) == 0 {
			continue // version 2: empty means "as above"
		}
		if err := os.WriteFile(filepath.Join(dir, name), above, 0); err != nil { //nolint:gosec // below the control groups
			return err
		}
	}
	return nil
}

// join moves a process into a group of every hierarchy.
func (c *cgroups) join(group string, pid int) error {
	for _, mount := range c.mounts {
		if err := os.WriteFile(filepath.Join(mount, group, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
			return fmt.Errorf("join control group %s: %w", group, err)
		}
	}
	return nil
}

// processes lists every process in the group and below, in any hierarchy.
func (c *cgroups) processes(group string) []int {
	var pids []int
	for _, mount := range c.mounts {
		_ = filepath.WalkDir(filepath.Join(mount, group), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.IsDir() {
				return nil // groups vanish while we look
			}
			text, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
			for field := range strings.FieldsSeq(string(text)) {
				if pid, err := strconv.Atoi(field); err == nil && pid > 0 && !slices.Contains(pids, pid) {
					pids = append(pids, pid)
				}
			}
			return nil
		})
	}
	return pids
}

// remove kills what is left in the group and removes it with everything below.
func (c *cgroups) remove(group string) error {
	var err error
	for range 100 {
		for _, pid := range c.processes(group) {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		err = nil
		for _, mount := range c.mounts {
			err = errors.Join(err, removeTree(filepath.Join(mount, group)))
		}
		if err == nil {
			return nil
		}
		<-time.After(50 * time.Millisecond) // the kernel announces the end of a process to nobody but its parent
	}
	return fmt.Errorf("remove control group %s: %w", group, err)
}

// removeTree removes a group from the leaves up; files in it cannot be removed, so
// os.RemoveAll does not work.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.IsDir() {
			err = errors.Join(err, removeTree(filepath.Join(dir, entry.Name())))
		}
	}
	if err != nil {
		return err
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
