package handler

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/handler/images"
	"orlop.dev/orlop/internal/handler/podfs"
	"orlop.dev/orlop/internal/testkit"
	"orlop.dev/orlop/internal/wire"
)

func disksOf(disks ...v1alpha1.Disk) func(*v1alpha1.Instance) {
	return func(in *v1alpha1.Instance) { in.Spec.Machine.Disks = disks }
}

func on(claim string) v1alpha1.VolumeSource {
	return v1alpha1.VolumeSource{PersistentVolumeClaim: &v1alpha1.PersistentVolumeClaimSource{ClaimName: claim, Mode: "Filesystem"}}
}

// One situation per line: what is to be done about the machine's disks.
func TestPlugs(t *testing.T) {
	a, b := v1alpha1.Disk{ID: "vd-a", Source: on("a")}, v1alpha1.Disk{ID: "vd-b", Source: on("b")}
	large := v1alpha1.Disk{ID: "vd-a", Source: on("a"), Size: 2048}
	image := v1alpha1.Disk{ID: "vd-a", Size: 2048, Source: v1alpha1.VolumeSource{Image: &v1alpha1.ImageSource{Format: "iso"}}}
	first := v1alpha1.Disk{ID: "firstboot", Source: v1alpha1.VolumeSource{FirstBoot: &v1alpha1.FirstBootSource{}}}
	hasA := v1alpha1.DiskStatus{ID: "vd-a", Attached: true, Size: 1024}
	leaving := v1alpha1.DiskStatus{ID: "vd-a", Attached: true, Message: "Waiting"}
	closing := v1alpha1.DiskStatus{ID: "vd-a", Message: "Closing"}
	migrating := func(role v1alpha1.MigrationRole, phase v1alpha1.MigrationPhase) func(*v1alpha1.Instance) {
		return func(in *v1alpha1.Instance) {
			in.Spec.Migration = &v1alpha1.Migration{ID: "m", Role: role}
			if phase != "" {
				in.Status.Migration = &v1alpha1.MigrationStatus{ID: "m", Phase: phase}
			}
		}
	}
	cases := map[string]struct {
		wanted []v1alpha1.Disk
		has    []v1alpha1.DiskStatus
		change func(*v1alpha1.Instance)
		guest  string
		phase  v1alpha1.InstancePhase
		want   []act
	}{
		"as it should be":                   {wanted: []v1alpha1.Disk{a}, has: []v1alpha1.DiskStatus{hasA}},
		"one is missing":                    {wanted: []v1alpha1.Disk{a, b}, has: []v1alpha1.DiskStatus{hasA}, want: []act{"attach vd-b"}},
		"one too many goes first":           {wanted: []v1alpha1.Disk{b}, has: []v1alpha1.DiskStatus{hasA}, want: []act{"detach vd-a", "attach vd-b"}},
		"leaving: ask again, in time":       {has: []v1alpha1.DiskStatus{leaving}, want: []act{"detach vd-a"}},
		"leaving, but wanted again: wait":   {wanted: []v1alpha1.Disk{a}, has: []v1alpha1.DiskStatus{leaving}},
		"being closed: wait":                {has: []v1alpha1.DiskStatus{closing}},
		"closed later, wanted again: wait":  {wanted: []v1alpha1.Disk{a}, has: []v1alpha1.DiskStatus{closing}},
		"to grow":                           {wanted: []v1alpha1.Disk{large}, has: []v1alpha1.DiskStatus{hasA}, want: []act{"resize vd-a"}},
		"images do not grow":                {wanted: []v1alpha1.Disk{image}, has: []v1alpha1.DiskStatus{hasA}},
		"first-boot data come at the start": {wanted: []v1alpha1.Disk{first}},
		"on a guest that stands":            {wanted: []v1alpha1.Disk{a}, phase: v1alpha1.InstancePaused, want: []act{"attach vd-a"}},
		"not on a guest that stops":         {wanted: []v1alpha1.Disk{a}, phase: v1alpha1.InstanceStopping},
		"not when it is to stop":            {wanted: []v1alpha1.Disk{a}, change: power(v1alpha1.PowerOff)},
		"not on one that arrives":           {wanted: []v1alpha1.Disk{a}, guest: "inmigrate"},
		"not on one that has left":          {wanted: []v1alpha1.Disk{a}, guest: "postmigrate"},
		"not before a migration":            {wanted: []v1alpha1.Disk{a}, change: migrating(v1alpha1.MigrationSource, "")},
		"not in a migration":                {wanted: []v1alpha1.Disk{a}, change: migrating(v1alpha1.MigrationSource, v1alpha1.MigrationTransferring)},
		"after one that failed":             {wanted: []v1alpha1.Disk{a}, change: migrating(v1alpha1.MigrationSource, v1alpha1.MigrationFailed), want: []act{"attach vd-a"}},
		"never on a source that completed":  {wanted: []v1alpha1.Disk{a}, change: migrating(v1alpha1.MigrationSource, v1alpha1.MigrationCompleted)},
		"on a target that completed":        {wanted: []v1alpha1.Disk{a}, change: migrating(v1alpha1.MigrationTarget, v1alpha1.MigrationCompleted), want: []act{"attach vd-a"}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			in := instance(disksOf(tc.wanted...))
			if tc.change != nil {
				tc.change(in)
			}
			m := newMemory(in)
			phase := tc.phase
			if phase == "" {
				phase = v1alpha1.InstanceRunning
			}
			m.hear(noon, &wire.State{InstanceUID: in.UID, Phase: phase, GuestStatus: tc.guest, Disks: tc.has})
			if diff := cmp.Diff(tc.want, plugs(m)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A disk is in the status before anything is done about it, and what fails about one
// holds up no other.
func TestPlugsAreOneAtATime(t *testing.T) {
	in := instance(was(v1alpha1.InstanceRunning), disksOf(v1alpha1.Disk{ID: "vd-a", Source: on("a")}, v1alpha1.Disk{ID: "vd-b", Source: on("b")}))
	m := newMemory(in)
	m.hear(noon, says(v1alpha1.InstanceRunning, ""))
	m.wired = true
	if a, _ := decide(m, noon); a != actReport {
		t.Fatalf("act %q, want the report first", a)
	}
	m.status = statusOf(m, noon)
	if len(m.status.Disks) != 2 || m.status.Disks[0].Attached || m.status.Disks[0].Message == "" {
		t.Errorf("got %+v", m.status.Disks)
	}
	a, _ := decide(m, noon)
	if a != "attach vd-a" {
		t.Fatalf("act %q", a)
	}
	for range 3 {
		m.retry(a).failed(noon)
	}
	m.problems[a] = "Cannot attach the device: broken"
	if s := statusOf(m, noon); s.Disks[0].Message != m.problems[a] {
		t.Errorf("got %+v", s.Disks)
	}
	m.status = statusOf(m, noon)
	if a, _ := decide(m, noon); a != "attach vd-b" {
		t.Errorf("act %q, want the other disk's", a)
	}
	m.hear(noon, &wire.State{InstanceUID: in.UID, Phase: v1alpha1.InstanceRunning, Disks: []v1alpha1.DiskStatus{{ID: "vd-a", Attached: true}}})
	if r := m.retries[a]; r != nil {
		t.Errorf("it is in, but its failures are remembered: %+v", r)
	}
}

// attachmentPod makes the directory that the kubelet makes for a pod that only holds a
// claim; its file has so many bytes.
func (n *testNode) attachmentPod(claim string, size int64) v1alpha1.VolumeSource {
	n.t.Helper()
	n.next++
	uid := types.UID(fmt.Sprintf("00000000-0000-4000-8000-%012d", n.next))
	dir := filepath.Join(n.fs.Root, n.fs.KubeletDir, "pods", string(uid), "volumes/kubernetes.io~csi", "pv-"+claim, "mount")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, podfs.DiskFile), make([]byte, size), 0o600); err != nil {
		n.t.Fatal(err)
	}
	n.bind(claim, "pv-"+claim)
	source := on(claim)
	source.PersistentVolumeClaim.Pod = &v1alpha1.AttachmentPod{Name: "hp-" + claim, UID: uid}
	return source
}

// TestHotPlugOnANode goes from the description to the launcher and back, across a new
// handler.
func TestHotPlugOnANode(t *testing.T) {
	n := newTestNode(t)
	p := n.pod()
	in := n.create(p, "virt-launcher-linux-1")
	n.images = &slowImages{path: filepath.Join(t.TempDir(), "image")}
	node, stop := n.run()
	p.launch(t, launcherUID, true)
	n.await(in, "run", inPhase(v1alpha1.InstanceRunning))

	good := v1alpha1.Disk{ID: "vd-good", Bus: "scsi", Slot: 5, Source: n.attachmentPod("good", 8192)}
	stuck := v1alpha1.Disk{ID: "vd-stuck", Bus: "scsi", Slot: 6, Source: n.attachmentPod("stuck", 4096)}
	bad := v1alpha1.Disk{ID: "vd-bad", Bus: "scsi", Slot: 7, Source: on("missing")}
	image := v1alpha1.Disk{ID: "vi-image", Bus: "scsi", Slot: 8, Source: v1alpha1.VolumeSource{Image: &v1alpha1.ImageSource{Reference: "host/image@sha256:0", Format: "iso"}}}
	n.patch(in, func(s *v1alpha1.InstanceSpec) {
		s.Machine.Disks = append(s.Machine.Disks, bad, image, good, stuck)
	})
	s := n.await(in, "have the disks", func(s v1alpha1.InstanceStatus) bool {
		g, k, b := status(s, "vd-good"), status(s, "vd-stuck"), status(s, "vd-bad")
		return status(s, "vi-image").Attached && g.Attached && k.Attached && !b.Attached && strings.Contains(b.Message, "missing")
	})
	if size := status(s, "vd-good").Size; size != 8192 {
		t.Errorf("the launcher was given a file of %d bytes", size)
	}
	if used := node.ImagesInUse(); len(used) != 1 || used[0] != image.Source.Image.Reference {
		t.Errorf("got %v as the images in use", used)
	}
	if held := openDisks(t); len(held) != 0 {
		t.Errorf("the handler keeps %v open", held)
	}

	stop()
	n.patch(in, func(s *v1alpha1.InstanceSpec) { s.Machine.Disks = s.Machine.Disks[:1] })
	n.run()
	s = n.await(in, "lose the disks", func(s v1alpha1.InstanceStatus) bool {
		return len(s.Disks) == 2 && status(s, "vd-stuck").Message == "Waiting for the guest"
	})
	if d := status(s, "vd-stuck"); !d.Attached {
		t.Errorf("got %+v", d)
	}
}

// slowImages has an image only when it is asked for the second time.
type slowImages struct {
	path  string
	asked bool
}

func (i *slowImages) Open(_ string, ready func()) (podfs.Disk, error) {
	if !i.asked {
		i.asked = true
		time.AfterFunc(10*time.Millisecond, ready)
		return podfs.Disk{}, &images.Fetching{Size: 1 << 20}
	}
	if err := os.WriteFile(i.path, []byte("image"), 0o400); err != nil {
		return podfs.Disk{}, err
	}
	f, err := os.Open(i.path)
	return podfs.Disk{File: f, Buffered: true}, err
}

func status(s v1alpha1.InstanceStatus, id string) v1alpha1.DiskStatus {
	for _, d := range s.Disks {
		if d.ID == id {
			return d
		}
	}
	return v1alpha1.DiskStatus{}
}

// openDisks are the disk files that this process has open.
func openDisks(t *testing.T) []string {
	t.Helper()
	var held []string
	testkit.Eventually(t, 10*time.Second, "descriptors", func() error {
		links, err := filepath.Glob("/proc/self/fd/*")
		held = nil
		for _, l := range links {
			if target, err := os.Readlink(l); err == nil && strings.HasSuffix(target, podfs.DiskFile) {
				held = append(held, target)
			}
		}
		return err
	})
	slices.Sort(held)
	return held
}
