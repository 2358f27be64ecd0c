package cluster

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func needsRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// inNewNetwork runs f in a network namespace of its own, where rules disturb nobody.
func inNewNetwork(t *testing.T, f func()) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with its namespace.
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestFirewall(t *testing.T) {
	needsRoot(t)
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs nft")
	}
	inNewNetwork(t, func() {
		ctx := context.Background()
		list := func() string {
			text, err := nft(ctx, "", "list", "ruleset")
			if err != nil {
				t.Error(err)
			}
			return string(text)
		}
		// What Docker and a careful administrator leave on a host.
		host := `table ip filter { chain FORWARD { type filter hook forward priority filter; policy drop; }; }
table inet mine { chain input { type filter hook input priority filter; policy drop; iifname "lo" accept; }; }
`
		if _, err := nft(ctx, host, "-f", "-"); err != nil {
			t.Error(err)
			return
		}
		before := list()
		for range 2 { // the second time changes nothing
			if err := ensureFirewall(ctx, "dev", planSlot(0)); err != nil {
				t.Error(err)
			}
		}
		rules := list()
		for text, want := range map[string]int{
			`iifname "orl-dev" counter`: 2, `oifname "orl-dev" counter`: 1, "masquerade": 1, "table ip orlop-dev": 1,
		} {
			if got := strings.Count(rules, text); got != want {
				t.Errorf("%d times %q, want %d, in\n%s", got, text, want, rules)
			}
		}
		if err := ensureFirewall(ctx, "dev2", planSlot(1)); err != nil {
			t.Error(err)
		}
		for _, name := range []string{"dev", "dev", "dev2"} { // twice, as after a down that was cut
			if err := removeFirewall(ctx, name); err != nil {
				t.Error(err)
			}
		}
		if after := list(); after != before {
			t.Errorf("rules were\n%s\nand are\n%s", before, after)
		}
	})
}

func TestControlGroups(t *testing.T) {
	needsRoot(t)
	found, err := findCgroups()
	if err != nil {
		t.Fatal(err)
	}
	hosts := map[string]*cgroups{"as the host has them": found}
	if unified := "/sys/fs/cgroup/unified"; !found.unified && slices.Contains(found.mounts, unified) {
		hosts["version 2 alone"] = &cgroups{unified: true, mounts: []string{unified}}
	}
	for name, groups := range hosts {
		t.Run(name, func(t *testing.T) {
			const cluster = "testgroup"
			t.Cleanup(func() {
				if err := groups.remove(clusterCgroup(cluster)); err != nil {
					t.Error(err)
				}
			})
			group := initCgroup(cluster, "box")
			for range 2 {
				if err := groups.create(group); err != nil {
					t.Fatal(err)
				}
			}
			command := exec.CommandContext(t.Context(), "sleep", "1000")
			if err := command.Start(); err != nil {
				t.Fatal(err)
			}
			if err := groups.join(group, command.Process.Pid); err != nil {
				t.Fatal(err)
			}
			if got := groups.processes(clusterCgroup(cluster)); !slices.Equal(got, []int{command.Process.Pid}) {
				t.Errorf("processes %v, want %d", got, command.Process.Pid)
			}
			waited := make(chan error, 1)
			go func() { waited <- command.Wait() }()
			// It kills what is in the way.
			if err := groups.remove(clusterCgroup(cluster)); err != nil {
				t.Error(err)
			}
			if err := <-waited; err == nil {
				t.Error("the process in the group ended well, want killed")
			}
			for _, mount := range groups.mounts {
				if _, err := os.Stat(filepath.Join(mount, clusterCgroup(cluster))); err == nil {
					t.Errorf("%s still has the group", mount)
				}
			}
		})
	}
}

func TestDetachLoops(t *testing.T) {
	needsRoot(t)
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		t.Skip("needs mkfs.ext4")
	}
	dir, elsewhere := t.TempDir(), t.TempDir()
	run := func(name string, args ...string) string {
		t.Helper()
		output, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", name, err, output)
		}
		return strings.TrimSpace(string(output))
	}
	attach := func(file string) string {
		t.Helper()
		run("truncate", "--size=16M", file)
		return run("losetup", "--find", "--show", file)
	}
	other := attach(filepath.Join(elsewhere, "volume"))
	t.Cleanup(func() { _ = detach(other) })
	outer := attach(filepath.Join(dir, "backing"))
	run("mkfs.ext4", "-q", outer)
	// In a mount namespace that dies, like a box: the inner device outlives it.
	run("unshare", "--mount", "sh", "-e", "-c", "mount "+outer+" "+elsewhere+" && truncate --size=4M "+elsewhere+"/volume && losetup --find "+elsewhere+"/volume")
	before, err := attachedLoops()
	if err != nil {
		t.Fatal(err)
	}
	if err := detachLoops(dir); err != nil {
		t.Fatal(err)
	}
	after, err := attachedLoops()
	if err != nil {
		t.Fatal(err)
	}
	if _, still := after[filepath.Base(outer)]; still {
		t.Error("the device of the cluster's file is still attached")
	}
	if _, still := after[filepath.Base(other)]; !still {
		t.Error("somebody else's device was detached")
	}
	for device, backing := range before {
		if _, still := after[device]; still && deviceName(backing.device) == filepath.Base(outer) {
			t.Errorf("%s, whose file is on the cluster's device, is still attached", device)
		}
	}
}
