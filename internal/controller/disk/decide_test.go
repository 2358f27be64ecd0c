package disk

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/attempt"
	"orlop.dev/orlop/internal/importer"
	"orlop.dev/orlop/internal/plan"
	"orlop.dev/orlop/internal/steps"
	"orlop.dev/orlop/internal/storageclass"
	"orlop.dev/orlop/internal/testkit"
)

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

func class(late bool) *storagev1.StorageClass {
	c := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "fast"}, Provisioner: "local.orlop"}
	if late {
		c.VolumeBindingMode = new(storagev1.VolumeBindingWaitForFirstConsumer)
	}
	return c
}

// blank is a world with a blank disk of 1 GiB, a class that binds at once, and nothing made yet.
func blank(changes ...func(*world)) *world {
	w := &world{now: noon, disk: testkit.Disk("data").Size("1Gi").Object(), importerImage: "importer:1", className: "fast", class: class(false)}
	w.disk.CreationTimestamp = metav1.NewTime(noon.Add(-time.Minute))
	w.run = runner{w: w}
	for _, change := range changes {
		change(w)
	}
	return w
}

func late(w *world) { w.class = class(true) }

func fromImage(w *world) {
	w.disk = testkit.Disk("data").FromImage("debian").Object()
	w.source = &source{kind: "VirtualImage", name: "debian", found: true, ready: true, uid: "i", repository: "vi/default/debian", digest: "sha256:1", size: 2 << 30}
}

// begun: the first attempt is remembered.
func begun(w *world) { w.record = attempt.Record{Work: w.work(), Number: 1} }

func claimed(w *world) {
	w.claim = w.claims().Claim()
	w.claim.UID, w.claim.Status.Phase = "claim", corev1.ClaimPending
}

func selected(w *world) { w.claim.Annotations[plan.SelectedNodeAnnotation] = "node-1" }

func primed(w *world) {
	w.prime = w.claims().Prime(w.node())
	w.prime.UID, w.prime.Status.Phase = "prime", corev1.ClaimPending
}

func provisioned(w *world) {
	w.prime.Status.Phase, w.prime.Spec.VolumeName = corev1.ClaimBound, "pv"
	w.volumes = []corev1.PersistentVolume{{ObjectMeta: metav1.ObjectMeta{Name: "pv"},
		Spec: corev1.PersistentVolumeSpec{ClaimRef: &corev1.ObjectReference{Namespace: "default", Name: w.prime.Name, UID: w.prime.UID}}}}
}

func podIs(phase corev1.PodPhase, state corev1.ContainerState) func(*world) {
	return func(w *world) {
		p := w.data(nil).Pod()
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
	podSucceeded = podIs(corev1.PodSucceeded, ended(`{"format":"qcow2","virtualSize":1073741824,"storedSize":1}`, 0))
	podFailed    = podIs(corev1.PodFailed, ended(`{"reason":"VolumeFull","message":"The volume is full","retry":true}`, 1))
)

func handed(w *world) {
	w.volumes = []corev1.PersistentVolume{*plan.DiskRebound(&w.volumes[0], w.claim, w.disk.UID)}
}

func boundTo(volume string) func(*world) {
	return func(w *world) {
		w.claim.Spec.VolumeName, w.claim.Status.Phase = volume, corev1.ClaimBound
	}
}

func done(w *world) {
	w.record = w.record.Succeeded(importer.Result{Format: "qcow2", VirtualSize: 1 << 30})
}

func deleted(w *world) { w.disk.DeletionTimestamp = new(metav1.NewTime(noon)) }

func held(w *world) { w.holders = []string{"vm"} }

func acts(d steps.Decision) string {
	var names []string
	for _, f := range d {
		switch a := f.Act.(type) {
		case nil:
		case steps.Create:
			names = append(names, "create "+a.Object.GetName())
		case steps.Delete:
			names = append(names, "delete "+a.Object.GetName())
		case steps.Release:
			names = append(names, "release")
		case steps.Call:
			names = append(names, a.Name)
		default:
			names = append(names, fmt.Sprintf("%T", a))
		}
	}
	return strings.Join(sorted(names), ", ")
}

func TestDecide(t *testing.T) {
	const claim, prime, pod1 = "vd-data-datauid", "vd-data-datauid-prime", "dvcr-importer-vd-datauid-1"
	cases := map[string]struct {
		world                     *world
		phase                     v1alpha2.DiskPhase
		reason, message, progress string
		acts                      string
	}{
		"a new disk is remembered before anything is made": {
			world: blank(), phase: v1alpha2.DiskProvisioning, reason: "Provisioning", progress: "0%", acts: "remember attempt",
		},
		"then comes its claim": {
			world: blank(begun), phase: v1alpha2.DiskProvisioning, reason: "Provisioning", progress: "0%", acts: "create " + claim,
		},
		"a class that binds at once gets the prime without waiting for anybody": {
			world: blank(begun, claimed), phase: v1alpha2.DiskProvisioning, reason: "Provisioning", progress: "0%", acts: "create " + prime,
		},
		"the pod comes with the prime: it may be its first consumer": {
			world: blank(begun, claimed, primed), phase: v1alpha2.DiskProvisioning, reason: "Provisioning", progress: "0%",
			message: "Waiting for StorageClass fast to provide a volume for PersistentVolumeClaim " + prime, acts: "create " + pod1,
		},
		"a class that binds late parks the disk until the scheduler chooses a node": {
			world: blank(late, begun, claimed), phase: v1alpha2.DiskWaitForFirstConsumer, reason: "WaitingForFirstConsumer", progress: "0%",
		},
		"a late disk without claim gets one": {
			world: blank(late, begun), phase: v1alpha2.DiskWaitForFirstConsumer, reason: "WaitingForFirstConsumer", progress: "0%", acts: "create " + claim,
		},
		"an annotation asks a late class not to wait": {
			world: blank(late, func(w *world) {
				w.disk.Annotations = map[string]string{storageclass.BindingModeAnnotation: "Immediate"}
			}, begun, claimed), phase: v1alpha2.DiskProvisioning, reason: "Provisioning", progress: "0%", acts: "create " + prime,
		},
		"with a node chosen the prime is made for that node": {
			world: blank(late, begun, claimed, selected), phase: v1alpha2.DiskProvisioning, reason: "Provisioning", progress: "0%", acts: "create " + prime,
		},
		"a node that has no room is given up": {
			world: blank(late, begun, claimed, selected, primed, func(w *world) { delete(w.prime.Annotations, plan.SelectedNodeAnnotation) }, podRuns),
			phase: v1alpha2.DiskProvisioning, reason: "Provisioning", progress: "0%", acts: "give up node",
		},
		"another node chosen means another prime": {
			world: blank(late, begun, claimed, selected, primed, func(w *world) { w.claim.Annotations[plan.SelectedNodeAnnotation] = "node-2" }, podRuns),
			phase: v1alpha2.DiskProvisioning, reason: "Provisioning", progress: "0%", acts: "delete " + prime,
		},
		"a starting pod gets its configuration": {
			world: blank(begun, claimed, primed, provisioned, podIs(corev1.PodPending, corev1.ContainerState{}), func(w *world) { w.configMissing = true }),
			phase: v1alpha2.DiskProvisioning, reason: "Provisioning", progress: "0%", acts: "create configuration",
		},
		"a running pod is left alone and its progress shown": {
			world: blank(begun, claimed, primed, provisioned, podRuns, func(w *world) { w.progress = &importer.Progress{Percent: 42.7} }),
			phase: v1alpha2.DiskProvisioning, reason: "Provisioning", progress: "42%",
		},
		"a written volume is handed over": {
			world: blank(begun, claimed, primed, provisioned, podSucceeded), phase: v1alpha2.DiskProvisioning, reason: "Provisioning", progress: "100%",
			acts: "hand over volume",
		},
		"until the claim is bound nothing is cleaned up": {
			world: blank(begun, claimed, primed, provisioned, podSucceeded, handed), phase: v1alpha2.DiskProvisioning, reason: "Provisioning", progress: "100%",
		},
		"a bound claim is success": {
			world: blank(begun, claimed, primed, provisioned, podSucceeded, handed, boundTo("pv")), phase: v1alpha2.DiskProvisioning, reason: "Provisioning", progress: "100%",
			acts: "remember attempt",
		},
		"the mark on the volume is witness enough when the pod has gone": {
			world: blank(begun, claimed, primed, provisioned, podSucceeded, handed, boundTo("pv"), func(w *world) { w.pods = nil }),
			phase: v1alpha2.DiskProvisioning, reason: "Provisioning", progress: "100%", acts: "remember attempt",
		},
		"once success is remembered, pod and prime go": {
			world: blank(begun, claimed, primed, provisioned, podSucceeded, handed, boundTo("pv"), done), phase: v1alpha2.DiskReady, reason: "Ready", progress: "100%",
			acts: "delete " + pod1 + ", delete " + prime,
		},
		"a prime deleted under a written volume means another attempt": {
			world: blank(begun, claimed, primed, provisioned, podSucceeded, func(w *world) { w.prime, w.volumes = nil, nil }),
			phase: v1alpha2.DiskProvisioning, reason: "Provisioning", progress: "100%", acts: "remember attempt",
		},
		"a claim bound to a foreign volume is refused": {
			world: blank(begun, claimed, primed, boundTo("other")), phase: v1alpha2.DiskFailed, reason: "ProvisioningFailed",
			message: "PersistentVolumeClaim vd-data-datauid was bound to volume other, which was not filled for it: delete the claim, and make sure that no unclaimed volume of StorageClass fast is left",
		},
		"a failed attempt is remembered": {
			world: blank(begun, claimed, primed, provisioned, podFailed), phase: v1alpha2.DiskFailed, reason: "ProvisioningFailed",
			message: "The volume is full; attempt 1 of 20 failed, it is tried again", acts: "remember attempt",
		},
		"a remembered failure lets the pod go, and the prime stay for the next attempt": {
			world: blank(begun, claimed, primed, provisioned, podFailed, func(w *world) {
				w.record = w.record.Failed(importer.Failure{Message: "The volume is full", Retry: true}, noon)
			}), phase: v1alpha2.DiskFailed, reason: "ProvisioningFailed", acts: "delete " + pod1,
		},
		"a final failure gives the storage back": {
			world: blank(begun, claimed, primed, provisioned, func(w *world) {
				w.record = w.record.Failed(importer.Failure{Message: "It is no image"}, noon)
			}), phase: v1alpha2.DiskFailed, reason: "ProvisioningFailedTerminally", message: "It is no image", acts: "delete " + prime,
		},
		"a size raised before the disk is ready starts over with a new number": {
			world: blank(begun, claimed, primed, provisioned, podRuns, func(w *world) {
				w.disk.Spec.PersistentVolumeClaim.Size = testkit.Disk("x").Size("2Gi").Object().Spec.PersistentVolumeClaim.Size
			}),
			phase: v1alpha2.DiskProvisioning, reason: "Provisioning", progress: "0%", acts: "remember attempt",
		},
		"what was made for the former size is removed first": {
			world: blank(begun, claimed, primed, provisioned, podRuns, func(w *world) { w.record = attempt.Record{Work: "new", Number: 2} }, func(w *world) {
				w.disk.Spec.PersistentVolumeClaim.Size = testkit.Disk("x").Size("2Gi").Object().Spec.PersistentVolumeClaim.Size
				w.record.Work = w.work()
			}), phase: v1alpha2.DiskProvisioning, reason: "ProvisioningNotStarted", progress: "0%",
			acts: "delete " + pod1 + ", delete " + claim + ", delete " + prime,
		},
		"an image that does not exist": {
			world: blank(fromImage, func(w *world) { *w.source = source{kind: "VirtualImage", name: "debian"} }),
			phase: v1alpha2.DiskPending, reason: "DatasourceIsNotFound", message: "VirtualImage debian does not exist",
		},
		"an image that is not ready": {
			world: blank(fromImage, func(w *world) { w.source.ready = false }),
			phase: v1alpha2.DiskPending, reason: "DatasourceIsNotReady", message: "VirtualImage debian is not ready",
		},
		"an image that vanishes while its content is being written disturbs nothing": {
			world: blank(fromImage, begun, claimed, primed, provisioned, podRuns, func(w *world) { *w.source = source{kind: "VirtualImage", name: "debian"} }),
			phase: v1alpha2.DiskProvisioning, reason: "Provisioning", progress: "0%",
		},
		"a disk smaller than its image names both sizes": {
			world: blank(fromImage, func(w *world) {
				w.disk.Spec.PersistentVolumeClaim = testkit.Disk("x").Size("1Gi").Object().Spec.PersistentVolumeClaim
			}),
			phase: v1alpha2.DiskFailed, reason: "ProvisioningFailed",
			message: "The size 1Gi is smaller than VirtualImage debian, which needs 2Gi: raise spec.persistentVolumeClaim.size",
		},
		"a blank disk needs a size": {
			world: blank(func(w *world) { w.disk.Spec.PersistentVolumeClaim.Size = nil }), phase: v1alpha2.DiskFailed, reason: "ProvisioningFailed",
			message: "A blank disk needs a size: set spec.persistentVolumeClaim.size",
		},
		"an unknown class": {
			world: blank(func(w *world) { w.class, w.className = nil, "slow" }), phase: v1alpha2.DiskPending, reason: "StorageClassIsNotReady",
			message: `StorageClass "slow" does not exist`,
		},
		"no class at all": {
			world: blank(func(w *world) { w.class, w.className = nil, "" }), phase: v1alpha2.DiskPending, reason: "StorageClassIsNotReady",
			message: "No StorageClass is named and the cluster has no default one",
		},
		"block volumes are not built yet": {
			world: blank(func(w *world) {
				w.disk.Annotations = map[string]string{storageclass.VolumeModeAnnotation: "Block"}
			}), phase: v1alpha2.DiskFailed, reason: "StorageClassIsNotReady", message: "Volumes of mode Block, ReadWriteOnce are not supported yet",
		},
		"a finished disk does not care for its image or its class": {
			world: blank(fromImage, begun, claimed, primed, provisioned, podSucceeded, handed, boundTo("pv"), done, func(w *world) {
				*w.source = source{kind: "VirtualImage", name: "debian"}
				w.prime, w.pods, w.class = nil, nil, nil
			}), phase: v1alpha2.DiskReady, reason: "Ready", progress: "100%",
		},
		"a finished disk whose claim is gone is never made anew": {
			world: blank(begun, done), phase: v1alpha2.DiskPVCLost, reason: "PVCLost", progress: "100%",
		},
		"a disk that a machine holds is not deleted": {
			world: blank(begun, claimed, done, held, deleted), phase: v1alpha2.DiskTerminating, reason: "Ready",
		},
		"a free disk is deleted with its claim": {
			world: blank(begun, claimed, done, deleted), phase: v1alpha2.DiskTerminating, reason: "Ready", acts: "delete " + claim,
		},
		"a half made disk is deleted with everything": {
			world: blank(begun, claimed, primed, podRuns, deleted), phase: v1alpha2.DiskTerminating, reason: "ProvisioningNotStarted",
			acts: "delete " + pod1 + ", delete " + claim + ", delete " + prime,
		},
		"when nothing is left the object goes": {
			world: blank(begun, deleted), phase: v1alpha2.DiskTerminating, reason: "ProvisioningNotStarted", acts: "release",
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			d := steps.Decide(c.world, all()...)
			s := show(c.world, d, nil)
			ready := d.Outcome(v1alpha2.DiskConditionReady)
			got := []string{string(s.Phase), ready.Reason, s.Progress, acts(d)}
			want := []string{string(c.phase), c.reason, c.progress, c.acts}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("phase, reason, progress, acts:\n%s\nmessage: %s", diff, ready.Message)
			}
			if c.message != "" && ready.Message != c.message {
				t.Errorf("message %q, want %q", ready.Message, c.message)
			}
			shuffled(t, c.world, d, s)
		})
	}
}

// shuffled checks that the order of the steps never matters.
func shuffled(t *testing.T, w *world, d steps.Decision, s v1alpha2.VirtualDiskStatus) {
	t.Helper()
	list := all()
	rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	other := steps.Decide(w, list...)
	if acts(other) != acts(d) {
		t.Errorf("in another order the acts are %q", acts(other))
	}
	if diff := cmp.Diff(s, show(w, other, nil)); diff != "" {
		t.Errorf("in another order the status differs:\n%s", diff)
	}
}

func TestStatusNamesMachines(t *testing.T) {
	w := blank(begun, claimed, done, held, func(w *world) { w.machines = []string{"vm", "other"} })
	s := show(w, steps.Decide(w, all()...), nil)
	want := []v1alpha2.AttachedVirtualMachine{{Name: "other"}, {Name: "vm", Mounted: true}}
	if diff := cmp.Diff(want, s.AttachedToVirtualMachines); diff != "" {
		t.Error(diff)
	}
	if s.Capacity != "1Gi" || s.Target.PersistentVolumeClaimName != plan.DiskClaimName("data", types.UID("data-uid")) {
		t.Errorf("capacity %q, claim %q", s.Capacity, s.Target.PersistentVolumeClaimName)
	}
}
