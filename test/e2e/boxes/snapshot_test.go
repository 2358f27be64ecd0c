//go:build e2e

package boxes

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// snapshot is everything of a host that a cluster touches. Other clusters may stand
// on it, but must not change meanwhile.
type snapshot struct {
	Mounts, Links, Addresses, Routes, Rules, Tables, Groups, Loops, Files, Settings []string
	// Processes are those that belong to one of the test's clusters; others come and go.
	Processes []string
}

func takeSnapshot(t *testing.T) snapshot {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	counters := regexp.MustCompile(`counter packets \d+ bytes \d+|# handle \d+`)
	s := snapshot{
		Mounts:    lines(string(mounts)),
		Links:     lines(regexp.MustCompile(`(?m)^\d+: `).ReplaceAllString(run(t, "ip", "-br", "link"), "")),
		Addresses: lines(run(t, "ip", "-br", "address")),
		Routes:    lines(run(t, "ip", "route", "show", "table", "all")),
		Rules:     lines(run(t, "ip", "rule")),
		Tables:    lines(counters.ReplaceAllString(run(t, "nft", "list", "ruleset"), "")),
		Loops:     lines(run(t, "losetup", "-a")),
		Groups:    groups(t),
		Files:     files(t),
		Settings:  settings(t),
	}
	entries, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, process := range entries {
		group, _ := os.ReadFile(process + "/cgroup")
		if strings.Contains(string(group), "/orlop-"+first) || strings.Contains(string(group), "/orlop-"+second) {
			name, _ := os.ReadFile(process + "/comm")
			s.Processes = append(s.Processes, strings.TrimSpace(string(name)))
		}
	}
	return s
}

// groups lists the control groups, but for those inside other clusters.
func groups(t *testing.T) []string {
	t.Helper()
	var list []string
	err := filepath.WalkDir("/sys/fs/cgroup", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return nil // groups come and go
		}
		if name := entry.Name(); strings.HasPrefix(name, "orlop-") && name != "orlop-"+first && name != "orlop-"+second {
			return fs.SkipDir
		}
		if strings.Contains(path, "orlop-") {
			list = append(list, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// files lists the places where a node keeps things on a machine of its own.
func files(t *testing.T) []string {
	t.Helper()
	var list []string
	for _, pattern := range []string{
		"/var/lib/orlop", "/var/lib/orlop/*", "/run/orlop", "/run/orlop/*", "/run/netns/*", "/run/containerd*", "/run/cni*", "/etc/cni*", "/opt/cni*",
		"/etc/kubernetes*", "/etc/containerd*", "/var/lib/kubelet*", "/var/lib/containerd*", "/var/lib/cni*", "/var/lib/etcd*", "/var/log/pods*", "/var/log/containers*",
		"/orlop*",
	} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, found...)
	}
	slices.Sort(list)
	return list
}

// settings reads the host-wide settings that kubelet or the cluster change.
func settings(t *testing.T) []string {
	t.Helper()
	var list []string
	for _, name := range []string{
		"net/ipv4/ip_forward", "net/ipv4/conf/all/forwarding", "net/ipv4/conf/default/forwarding", "net/ipv4/conf/all/rp_filter", "net/ipv4/conf/default/rp_filter",
		"fs/inotify/max_user_instances", "fs/inotify/max_user_watches", "vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
		"kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes", "net/netfilter/nf_conntrack_max", "kernel/hostname", "fs/file-max", "kernel/pid_max",
	} {
		value, err := os.ReadFile("/proc/sys/" + name)
		if err == nil {
			list = append(list, name+"="+strings.TrimSpace(string(value)))
		}
	}
	return list
}
