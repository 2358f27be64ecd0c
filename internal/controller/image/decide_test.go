package image

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/attempt"
	"orlop.dev/orlop/internal/importer"
	"orlop.dev/orlop/internal/steps"
	"orlop.dev/orlop/internal/testkit"
)

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

func fresh(changes ...func(*world)) *world {
	w := &world{now: noon, host: "dvcr:5000", importerImage: "importer:1"}
	w.image = virtualImage{}.View(testkit.Image("debian").Object(), "d8-virtualization")
	w.run = runner{w: w}
	for _, change := range changes {
		change(w)
	}
	return w
}

// image changes the object and looks at it again.
func image(change func(*v1alpha2.VirtualImage)) func(*world) {
	return func(w *world) {
		obj := w.image.Object.DeepCopyObject().(*v1alpha2.VirtualImage)
		change(obj)
		w.image = virtualImage{}.View(obj, "d8-virtualization")
	}
}

func begun(w *world) { w.record = attempt.Record{Work: w.work(), Number: 1} }

func podIs(phase corev1.PodPhase, state corev1.ContainerState) func(*world) {
	return func(w *world) {
		p := w.run.data(nil).Pod()
		p.UID, p.Status.Phase = "pod", phase
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{State: state}}
		w.pods = []corev1.Pod{*p}
	}
}

func ended(message string, code int32) corev1.ContainerState {
	return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code, Message: message, FinishedAt: metav1.NewTime(noon)}}
}

var (
	podRuns      = podIs(corev1.PodRunning, corev1.ContainerState{Running: &corev1.ContainerStateRunning{}})
	podSucceeded = podIs(corev1.PodSucceeded, ended(`{"format":"qcow2","sourceFormat":"raw","virtualSize":1073741824,"storedSize":1000,"digest":"sha256:1"}`, 0))
	podFailed    = podIs(corev1.PodFailed, ended(`{"reason":"NotFound","message":"The server has no such file (404)","retry":true}`, 1))
	gone         = importer.Failure{Reason: importer.ReasonNotFound, Message: "The server has no such file (404)", Retry: true}
)

func failed(f importer.Failure, ago time.Duration) func(*world) {
	return func(w *world) { w.record = w.record.Failed(f, noon.Add(-ago)) }
}

func again(w *world) { w.record = w.record.Again() }

func done(w *world) {
	w.record = w.record.Succeeded(importer.Result{Format: "qcow2", SourceFormat: "raw", VirtualSize: 1 << 30, StoredSize: 300_000_000, Digest: "sha256:1"})
}

func bytes(percent float64, n int64) func(*world) {
	return func(w *world) { w.progress = &importer.Progress{Percent: percent, BytesDone: n, SpeedBytes: 2 << 20} }
}

var deleted = image(func(i *v1alpha2.VirtualImage) { i.DeletionTimestamp = new(metav1.NewTime(noon)) })

func held(w *world) { w.holders = []holder{{"default", "vm"}} }

func acts(d steps.Decision) string {
	var names []string
	for _, f := range d {
		switch a := f.Act.(type) {
		case nil:
		case steps.Create:
			names = append(names, "create "+a.Object.GetName())
		case steps.Delete:
			names = append(names, "delete "+a.Object.GetName())
		case steps.Call:
			names = append(names, a.Name)
		default:
			names = append(names, fmt.Sprintf("%T", a))
		}
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

func TestDecide(t *testing.T) {
	const pod1 = "dvcr-importer-vi-debianui-1"
	retry := "The server has no such file (404); attempt 1 of 20 failed, it is tried again"
	cases := map[string]struct {
		world                     *world
		phase                     v1alpha2.ImagePhase
		reason, message, progress string
		acts                      string
	}{
		"a new image is remembered before anything is made": {
			world: fresh(), phase: v1alpha2.ImageProvisioning, reason: "ProvisioningNotStarted", progress: "0%", acts: "remember attempt",
		},
		"then comes the pod": {
			world: fresh(begun), phase: v1alpha2.ImageProvisioning, reason: "ProvisioningNotStarted", progress: "0%", acts: "create " + pod1,
		},
		"a starting pod gets its configuration": {
			world: fresh(begun, podIs(corev1.PodPending, corev1.ContainerState{}), func(w *world) { w.configMissing = true }),
			phase: v1alpha2.ImageProvisioning, reason: "ProvisioningNotStarted", progress: "0%", acts: "create configuration",
		},
		"a container image that cannot be pulled": {
			world: fresh(begun, podIs(corev1.PodPending, corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ErrImagePull", Message: "no host"}})),
			phase: v1alpha2.ImageFailed, reason: "ImagePullFailed", progress: "0%", message: "Pod " + pod1 + " cannot start: its container image importer:1 cannot be pulled",
		},
		"a running import shows its progress": {
			world: fresh(begun, podRuns, bytes(12.9, 1)), phase: v1alpha2.ImageProvisioning, reason: "Provisioning", progress: "12%",
		},
		"an import whose size is unknown is at least begun": {
			world: fresh(begun, podRuns, bytes(-1, 1)), phase: v1alpha2.ImageProvisioning, reason: "Provisioning", progress: "0%",
		},
		"an importer that does not answer keeps what was shown": {
			world: fresh(image(func(i *v1alpha2.VirtualImage) { i.Status.Progress = "30%" }), begun, podRuns),
			phase: v1alpha2.ImageProvisioning, reason: "Provisioning", progress: "30%",
		},
		"success is remembered while the pod still exists": {
			world: fresh(begun, podSucceeded), phase: v1alpha2.ImageProvisioning, reason: "ProvisioningNotStarted", progress: "0%", acts: "remember attempt",
		},
		"remembered success lets the pod go": {
			world: fresh(begun, podSucceeded, done), phase: v1alpha2.ImageReady, reason: "Ready", progress: "100%", acts: "delete " + pod1,
		},
		"a failure is remembered": {
			world: fresh(begun, podFailed), phase: v1alpha2.ImageFailed, reason: "ProvisioningFailed", message: retry, progress: "0%", acts: "remember attempt",
		},
		"a remembered failure lets the pod go and waits": {
			world: fresh(begun, podFailed, failed(gone, 0)), phase: v1alpha2.ImageFailed, reason: "ProvisioningFailed", message: retry, progress: "0%", acts: "delete " + pod1,
		},
		"after the pause comes the next attempt": {
			world: fresh(begun, failed(gone, time.Minute)), phase: v1alpha2.ImageFailed, reason: "ProvisioningFailed", message: retry, progress: "0%", acts: "remember attempt",
		},
		"a second attempt that has got nothing yet still shows why the first one failed": {
			world: fresh(begun, failed(gone, time.Minute), again, podRuns, bytes(0, 0)), phase: v1alpha2.ImageFailed, reason: "ProvisioningFailed", message: retry, progress: "0%",
		},
		"a second attempt that gets bytes is an import again": {
			world: fresh(begun, failed(gone, time.Minute), again, podRuns, bytes(1, 1)), phase: v1alpha2.ImageProvisioning, reason: "Provisioning", progress: "1%",
		},
		"a final failure stays": {
			world: fresh(begun, failed(importer.Failure{Reason: importer.ReasonBackingFile, Message: "The image refers to another file"}, time.Hour)),
			phase: v1alpha2.ImageFailed, reason: "ProvisioningFailedTerminally", message: "The image refers to another file", progress: "0%",
		},
		"a changed URL starts over, and the former pod goes": {
			world: fresh(begun, podRuns, image(func(i *v1alpha2.VirtualImage) { i.Spec.DataSource.HTTP.URL = "http://x/y" })),
			phase: v1alpha2.ImageProvisioning, reason: "ProvisioningNotStarted", progress: "0%", acts: "delete " + pod1 + ", remember attempt",
		},
		"a changed URL revives a final failure": {
			world: fresh(begun, failed(importer.Failure{Message: "No"}, time.Hour), image(func(i *v1alpha2.VirtualImage) { i.Spec.DataSource.HTTP.URL = "http://x/y" })),
			phase: v1alpha2.ImageProvisioning, reason: "ProvisioningNotStarted", progress: "0%", acts: "remember attempt",
		},
		"upload is not built yet": {
			world: fresh(image(func(i *v1alpha2.VirtualImage) {
				i.Spec.DataSource = v1alpha2.VirtualImageDataSource{Type: v1alpha2.DataSourceUpload}
			})), phase: v1alpha2.ImageFailed, reason: "ProvisioningFailedTerminally", message: "Data source type Upload is not supported yet: use HTTP",
		},
		"an attached image is not deleted": {
			world: fresh(begun, done, held, deleted), phase: v1alpha2.ImageTerminating, reason: "Ready", progress: "100%",
		},
		"nor one that a disk is being filled from": {
			world: fresh(begun, done, deleted, func(w *world) { w.disks = []string{"default/a"} }), phase: v1alpha2.ImageTerminating, reason: "Ready", progress: "100%",
		},
		"deletion stops the importer first": {
			world: fresh(begun, podRuns, deleted), phase: v1alpha2.ImageTerminating, reason: "Provisioning", progress: "0%", acts: "delete " + pod1,
		},
		"then the image leaves the registry": {
			world: fresh(begun, done, deleted), phase: v1alpha2.ImageTerminating, reason: "Ready", progress: "100%", acts: "remove image from registry",
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			d := steps.Decide(c.world, all(c.world.image.kind)...)
			s := show(c.world, d, nil)
			ready := d.Outcome(v1alpha2.ImageConditionReady)
			got := []string{string(s.Phase), ready.Reason, s.Progress, acts(d)}
			want := []string{string(c.phase), c.reason, c.progress, c.acts}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("phase, reason, progress, acts:\n%s\nmessage: %s", diff, ready.Message)
			}
			if c.message != "" && ready.Message != c.message {
				t.Errorf("message %q, want %q", ready.Message, c.message)
			}
			list := all(c.world.image.kind)
			rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
			other := steps.Decide(c.world, list...)
			if acts(other) != acts(d) {
				t.Errorf("in another order the acts are %q", acts(other))
			}
			if diff := cmp.Diff(s, show(c.world, other, nil)); diff != "" {
				t.Errorf("in another order the status differs:\n%s", diff)
			}
		})
	}
}

func TestStatusOfReadyImage(t *testing.T) {
	w := fresh(begun, done, held, func(w *world) { w.holders = append(w.holders, holder{"other", "vm"}) })
	s := show(w, steps.Decide(w, all(w.image.kind)...), nil)
	s.Conditions = nil
	want := status{
		Phase: v1alpha2.ImageReady, Progress: "100%", Format: "raw", RegistryURL: "dvcr:5000/vi/default/debian@sha256:1",
		Size:             v1alpha2.ImageStatusSize{Stored: "286.1Mi", StoredBytes: "300000000", Unpacked: "1Gi", UnpackedBytes: "1073741824"},
		UsedInNamespaces: []string{"default", "other"}, ObservedGeneration: 1,
	}
	if diff := cmp.Diff(want, s); diff != "" {
		t.Error(diff)
	}
}

// TestKindsAgree: what one kind stores, it shows again, whatever the kind.
func TestKindsAgree(t *testing.T) {
	s := status{Phase: v1alpha2.ImageReady, Progress: "100%", CDROM: true, Format: "iso", RegistryURL: "x@y",
		Size: v1alpha2.ImageStatusSize{Stored: "1"}, DownloadSpeed: &v1alpha2.StatusSpeed{Avg: "1"},
		Conditions: []metav1.Condition{{Type: "Ready"}}, ObservedGeneration: 3}
	for _, k := range []kind{virtualImage{}, clusterVirtualImage{}} {
		t.Run(k.Name(), func(t *testing.T) {
			if diff := cmp.Diff(s, k.View(k.Store(k.New(), s), "ns").status); diff != "" {
				t.Error(diff)
			}
		})
	}
}
