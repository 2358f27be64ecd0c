//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestStory03Killed kills every component, hard, while a guest runs: the guest
// never notices, and the platform is whole again.
func TestStory03Killed(t *testing.T) {
	ns := namespace(t)
	apply(t, ns, image("tiny", "tiny.qcow2")+disk("root", "shared", "512Mi", "tiny")+machine("linux", "256Mi", []string{"root"}))
	reaches(t, long, ns, "vm/linux", ".status.phase", "Running")
	address := field(t, ns, "vm/linux", ".status.ipAddress")
	eventually(t, soon, "the guest answers", func() bool { return answers("http://" + address + ":8080") })
	guest := qemus(t)
	if len(guest) != 1 {
		t.Fatalf("%d QEMU processes, want 1", len(guest))
	}

	for _, victim := range []string{"virt-handler", "virtualization-controller", "virtualization-api", "dvcr", "vm-route-forge", "orlop-csi",
		"kubelet", "containerd", "etcd", "kube-apiserver"} {
		t.Run(victim, func(t *testing.T) {
			if killed := kill(t, victim); killed == 0 {
				t.Fatalf("no process named %s", victim)
			}
			eventually(t, long, "the API answers and the machine is Running", func() bool {
				return field(t, ns, "vm/linux", ".status.phase") == "Running"
			})
			eventually(t, soon, "the guest answers", func() bool { return answers("http://" + address + ":8080") })
			if now := qemus(t); len(now) != 1 || now[0] != guest[0] {
				t.Fatalf("QEMU processes were %v and are %v", guest, now)
			}
		})
	}
	t.Run("force-deleting the launcher pod starts no second one", func(t *testing.T) {
		pod := field(t, ns, "vm/linux", ".status.instance.name")
		_, _ = try(t, "k", "-n", ns, "delete", "pod", pod, "--force", "--grace-period=0", "--wait=false")
		for range 20 {
			if now := qemus(t); len(now) > 1 {
				t.Fatalf("two QEMUs: %v", now)
			}
			time.Sleep(500 * time.Millisecond)
		}
		reaches(t, long, ns, "vm/linux", ".status.phase", "Running")
	})
	t.Run("killed while a machine is being made", func(t *testing.T) {
		reaches(t, long, ns, "vm/linux", ".status.phase", "Running")
		apply(t, ns, image("again", "tiny.qcow2")+disk("second", "local", "512Mi", "again")+machine("second", "256Mi", []string{"second"}))
		for _, victim := range []string{"virtualization-controller", "dvcr-importer", "dvcr", "orlop-csi", "kubelet", "virtualization-controller",
			"virt-handler", "containerd", "etcd"} {
			time.Sleep(700 * time.Millisecond)
			t.Logf("killed %d of %s while the phase was %q", kill(t, victim), victim, field(t, ns, "vm/second", ".status.phase"))
		}
		reaches(t, long, ns, "vm/second", ".status.phase", "Running")
		reaches(t, long, ns, "vm/linux", ".status.phase", "Running")
		eventually(t, soon, "each machine has one QEMU", func() bool { return len(qemus(t)) == 2 })
	})
	t.Run("everything still works", func(t *testing.T) {
		eventually(t, long, "the console opens", func() bool {
			_, err := feed(t, "\x1d", "v", "-n", ns, "console", "linux", "--timeout=20s")
			return err == nil
		})
		d8(t, "v", "-n", ns, "stop", "linux", "--wait", "--yes")
		d8(t, "v", "-n", ns, "start", "linux", "--wait", "--yes")
	})
}

// qemus returns the process ids of the QEMUs that belong to the cluster of this test.
func qemus(t *testing.T) []int {
	t.Helper()
	return processes(t, "qemu-system-x86_64")
}

// processes returns the ids of all processes of the cluster whose program has this name.
func processes(t *testing.T, program string) []int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var found []int
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || !ours(pid) {
			continue
		}
		line, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "cmdline"))
		if err != nil {
			continue
		}
		words := strings.Split(string(line), "\x00")
		if filepath.Base(words[0]) == program || (len(words) > 1 && filepath.Base(words[0]) == "orlop-kube" && words[1] == program) {
			found = append(found, pid)
		}
	}
	return found
}

// ours tells whether a process lives in a box of this test's cluster: the boxes'
// cgroups carry the cluster's name.
func ours(pid int) bool {
	groups, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cgroup"))
	return err == nil && strings.Contains(string(groups), *name)
}

func kill(t *testing.T, program string) int {
	t.Helper()
	victims := processes(t, program)
	for _, pid := range victims {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Logf("kill %d: %v", pid, err)
		}
	}
	return len(victims)
}
