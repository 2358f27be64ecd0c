package disk

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"orlop.dev/orlop/api/core/v1alpha2"
	instancev1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/attempt"
	"orlop.dev/orlop/internal/importer"
	"orlop.dev/orlop/internal/plan"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/storageclass"
)

// world is everything observed in one pass.
type world struct {
	now  time.Time
	disk *v1alpha2.VirtualDisk
	// importerImage is the container image of the populating pod.
	importerImage string
	// record is what was remembered, as read.
	record attempt.Record

	// className is the StorageClass in effect, class the object or nil.
	className string
	class     *storagev1.StorageClass
	rules     storageclass.Rules

	// source is the image the disk is made from; nil for a blank disk.
	source *source

	claim, prime *corev1.PersistentVolumeClaim
	// volumes are those whose claimRef is the disk's claim or the prime.
	volumes []corev1.PersistentVolume
	// pods are all populating pods of the disk, of whatever attempt.
	pods []corev1.Pod
	// nodes are those of the pods that are being deleted, by name.
	nodes map[string]*corev1.Node
	// configMissing: the pod of the current attempt waits for its Secret.
	configMissing bool
	// progress is what the running pod answered, or nil.
	progress *importer.Progress

	// machines are the names of those that refer to the disk, holders of those whose
	// process has it open.
	machines, holders []string
	// processes are those that have the disk's claim and have not ended.
	processes []*instancev1.Instance
	// run makes the named writes; see acts.go.
	run runner
}

// source is what a disk is made from.
type source struct {
	kind, name string
	// found, ready and uid tell about the image as observed.
	found, ready bool
	uid          string
	// repository in DVCR, and the digest of the manifest.
	repository, digest string
	// size is the virtual size, in bytes.
	size int64
}

// stage is how far a disk is; every step asks for it.
type stage int

const (
	// removing: the disk is being deleted.
	removing stage = iota
	// finished: the disk was ready once.
	finished
	// blocked: something the disk needs is not there, or the wishes contradict.
	blocked
	// replacing: a claim of former wishes is in the way.
	replacing
	// parked: the class binds late and nobody wants the disk yet.
	parked
	// filling: the prime is being made and written.
	filling
	// handing: the volume is written and becomes the disk's.
	handing
)

func (w *world) deleting() bool { return w.disk.DeletionTimestamp != nil }

func (w *world) stage() stage {
	switch {
	case w.deleting():
		return removing
	case w.record.Result != nil:
		return finished
	case w.handedOver() != nil:
		return handing
	case w.block() != nil:
		return blocked
	case w.record.Work != w.work():
		return filling // its first move is to remember the new work
	case stale(w.claim, w.record.Work) || stale(w.prime, w.record.Work):
		return replacing
	case w.parked():
		return parked
	case attempt.Judge(w.pod()).State == attempt.Succeeded:
		return handing
	}
	return filling
}

// stale reports that a claim was made for other wishes, or is on its way out.
func stale(c *corev1.PersistentVolumeClaim, work string) bool {
	return c != nil && (c.DeletionTimestamp != nil || c.Annotations[plan.WorkAnnotation] != work)
}

// size is what the guest shall see, in bytes; 0 if it is not known yet.
func (w *world) size() int64 {
	if s := w.disk.Spec.PersistentVolumeClaim.Size; s != nil {
		return plan.RoundDiskSize(s.Value())
	}
	if w.source != nil {
		return plan.RoundDiskSize(w.source.size)
	}
	return 0
}

// modes is how a volume is asked for.
func (w *world) modes() (storageclass.Modes, error) {
	if w.class == nil {
		return storageclass.Modes{}, fmt.Errorf("StorageClass %q does not exist", w.className)
	}
	return storageclass.ModesFor(w.class, w.disk.Annotations, supported)
}

// supported tells which volumes a disk can be made on today.
func supported(m storageclass.Modes) bool { return m.Volume == corev1.PersistentVolumeFilesystem }

// work identifies everything the claims and their content are made for.
func (w *world) work() string {
	if w.settled() && (w.source != nil && !w.source.ready) {
		// The image has gone from sight while its content is on its way: carry on.
		return w.record.Work
	}
	parts := []any{w.className, w.size()}
	if w.source != nil {
		parts = append(parts, w.source.kind, w.source.uid, w.source.digest)
	}
	return attempt.Digest(parts...)
}

// settled reports that an attempt is under way whose pod needs nothing more from us.
func (w *world) settled() bool {
	s := attempt.Judge(w.pod()).State
	return w.record.Work != "" && w.record.FailedAt == nil && (s == attempt.Running || s == attempt.Succeeded)
}

// late reports that the class lets the first consumer choose the node.
func (w *world) late() bool {
	if w.class == nil {
		return false
	}
	late, err := storageclass.WaitsForConsumer(w.class, w.disk.Annotations)
	return err == nil && late
}

// parked reports that nobody wants the disk yet.
func (w *world) parked() bool { return w.late() && w.node() == "" && w.prime == nil }

// node is the one the scheduler chose for the first consumer, or "".
func (w *world) node() string {
	if w.claim == nil || !w.late() {
		return ""
	}
	return w.claim.Annotations[plan.SelectedNodeAnnotation]
}

// podName is the pod of the attempt that is remembered.
func (w *world) podName() string { return plan.DataPodName("vd", w.disk.UID, w.record.Number) }

// pod is the pod of the attempt that is remembered, or nil.
func (w *world) pod() *corev1.Pod {
	name := w.podName()
	if i := slices.IndexFunc(w.pods, func(p corev1.Pod) bool { return p.Name == name }); i >= 0 {
		return &w.pods[i]
	}
	return nil
}

// stopped reports that a pod is proven to write nothing any more.
func (w *world) stopped(p *corev1.Pod) bool { return policy.PodStopped(p, w.nodes[p.Spec.NodeName]) }

// dangling is a pod that may still write the volume although its attempt is over, or
// that is being deleted, or nil.
func (w *world) dangling() *corev1.Pod {
	for i := range w.pods {
		p := &w.pods[i]
		if (p.Name != w.podName() || p.DeletionTimestamp != nil) && !w.stopped(p) {
			return p
		}
	}
	return nil
}

// handedOver is the volume that belongs to the disk's claim and holds its content, or nil.
func (w *world) handedOver() *corev1.PersistentVolume {
	if w.claim == nil {
		return nil
	}
	return w.volume(func(v *corev1.PersistentVolume) bool {
		return v.Spec.ClaimRef.UID == w.claim.UID && v.Annotations[plan.PopulatedForAnnotation] == string(w.disk.UID)
	})
}

// primed is the volume that the prime is bound to, or nil.
func (w *world) primed() *corev1.PersistentVolume {
	if w.prime == nil || w.prime.Status.Phase != corev1.ClaimBound {
		return nil
	}
	return w.volume(func(v *corev1.PersistentVolume) bool {
		return v.Name == w.prime.Spec.VolumeName && v.Spec.ClaimRef.UID == w.prime.UID
	})
}

func (w *world) volume(is func(*corev1.PersistentVolume) bool) *corev1.PersistentVolume {
	for i := range w.volumes {
		if v := &w.volumes[i]; v.Spec.ClaimRef != nil && is(v) {
			return v
		}
	}
	return nil
}

// next is the one decision about the attempts at filling.
func (w *world) next() attempt.Step {
	verdict := attempt.Judge(w.pod())
	if volume := w.handedOver(); volume != nil && verdict.State != attempt.Succeeded {
		// The pod has gone after its work was done: the volume is the better witness.
		verdict = attempt.Verdict{State: attempt.Succeeded, Result: importer.Result{Format: "qcow2", VirtualSize: w.claimedSize()}}
	}
	work := w.record.Work
	if w.handedOver() == nil {
		work = w.work()
	}
	return attempt.Next(w.record, work, verdict, w.now)
}

// lostPrime reports that the volume that was written can no longer be handed over.
func (w *world) lostPrime() bool {
	return w.handedOver() == nil && (w.prime == nil || w.prime.Status.Phase == corev1.ClaimLost)
}

// claimedSize is the virtual size the claim was made for, in bytes.
func (w *world) claimedSize() int64 {
	if w.claim == nil {
		return 0
	}
	n, err := strconv.ParseInt(w.claim.Annotations[plan.VirtualSizeAnnotation], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// bound reports that the disk's claim is bound to the volume that was filled for it.
func (w *world) bound() bool {
	volume := w.handedOver()
	return volume != nil && w.claim.Status.Phase == corev1.ClaimBound && w.claim.Spec.VolumeName == volume.Name
}

// stolen reports that the claim was bound to some volume that was not filled for it.
func (w *world) stolen() bool {
	return w.claim != nil && w.claim.Spec.VolumeName != "" && w.handedOver() == nil
}
