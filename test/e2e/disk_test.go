//go:build e2e

package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// TestStory08FullDisk fills the file system under a running guest's disk: the guest
// pauses, the machine says why, and it goes on by itself when there is space again.
func TestStory08FullDisk(t *testing.T) {
	ns := namespace(t)
	apply(t, ns, image("tiny", "tiny.qcow2")+disk("root", "shared", "512Mi", "tiny")+blank("data", "shared", "256Mi")+
		machine("linux", "256Mi", []string{"root", "data"}))
	reaches(t, long, ns, "vm/linux", ".status.phase", "Running")
	console := open(t, ns, "linux")
	console.prompt(soon)

	volume := mountOf(t, ns, "linux", field(t, ns, "vd/data", ".status.target.persistentVolumeClaimName"))
	filler := filepath.Join(volume, "filler")
	fill(t, filler)
	t.Cleanup(func() { _ = os.Remove(filler) })

	console.send("dd if=/dev/urandom of=/dev/sdb bs=1M count=200; echo written=$?")
	reaches(t, soon, ns, "vm/linux", ".status.phase", "Pause")
	running := condition(t, ns, "vm/linux", "Running")
	t.Log(running)
	if !strings.HasPrefix(running, "False") || !strings.Contains(strings.ToLower(running), "space") {
		t.Errorf("Running is %q, want False with a word on space", running)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	reaches(t, long, ns, "vm/linux", ".status.phase", "Running")
	console.expect(long, `written=0`)
}

// mountOf finds where a claim is mounted for a machine's pod, as the host sees it.
func mountOf(t *testing.T, ns, vm, claim string) string {
	t.Helper()
	pod := field(t, ns, "pod/"+field(t, ns, "vm/"+vm, ".status.instance.name"), ".metadata.uid")
	volume := field(t, ns, "pvc/"+claim, ".spec.volumeName")
	for _, pid := range processes(t, "kubelet") {
		path := filepath.Join("/proc", strconv.Itoa(pid), "root/var/lib/kubelet/pods", pod, "volumes/kubernetes.io~csi", volume, "mount")
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	t.Fatalf("claim %s is mounted nowhere", claim)
	return ""
}

// fill writes a file until its file system is full.
func fill(t *testing.T, path string) {
	t.Helper()
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	for size := 1 << 20; size >= 4096; {
		if _, err := file.Write(make([]byte, size)); errors.Is(err, syscall.ENOSPC) {
			size /= 2
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if err := file.Sync(); err != nil && !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
}
