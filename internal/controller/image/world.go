package image

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/attempt"
	"orlop.dev/orlop/internal/importer"
	"orlop.dev/orlop/internal/plan"
)

// world is everything observed in one pass.
type world struct {
	now   time.Time
	image view
	host  string // of DVCR, with port
	// importerImage is the container image of the importer.
	importerImage string
	// record is what was remembered, as read.
	record attempt.Record
	// pods are all importer pods of this object, of whatever attempt.
	pods []corev1.Pod
	// configMissing: the pod of the current attempt waits for its Secret.
	configMissing bool
	// progress is what the running importer answered, or nil.
	progress *importer.Progress
	// holders are the machines whose process has the image open.
	holders []holder
	// disks are those that are being filled from the image, as namespace/name.
	disks []string
	// run makes the named writes; see acts.go.
	run runner
}

// holder is one machine that uses the image.
type holder struct{ Namespace, Name string }

func (w *world) deleting() bool { return w.image.GetDeletionTimestamp() != nil }

// unsupported says what the user asked for that does not exist yet, or "".
func (w *world) unsupported() string {
	switch {
	case w.image.onVolume:
		return "Images on a PersistentVolumeClaim are not supported yet: set spec.storage to ContainerRegistry"
	case w.image.sourceType != v1alpha2.DataSourceHTTP || w.image.http == nil:
		return "Data source type " + string(w.image.sourceType) + " is not supported yet: use HTTP"
	}
	return ""
}

// work identifies what is to be imported.
func (w *world) work() string { return attempt.Digest("http", w.image.http) }

// podName is the pod of the attempt that is remembered.
func (w *world) podName() string {
	return plan.DataPodName(w.image.kind.Short(), w.image.GetUID(), w.record.Number)
}

// pod is the pod of the attempt that is remembered, or nil.
func (w *world) pod() *corev1.Pod {
	name := w.podName()
	if i := slices.IndexFunc(w.pods, func(p corev1.Pod) bool { return p.Name == name }); i >= 0 {
		return &w.pods[i]
	}
	return nil
}

// next is the one decision about the import; every step that needs it asks again.
func (w *world) next() attempt.Step {
	return attempt.Next(w.record, w.work(), attempt.Judge(w.pod()), w.now)
}

// repository of the image in DVCR, without host.
func (w *world) repository() string {
	return plan.ImageRepository(w.host, w.image.GetNamespace(), w.image.GetName())
}
