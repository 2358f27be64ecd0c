package image

import (
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/attempt"
	"orlop.dev/orlop/internal/steps"
)

// progressPeriod is how often a running importer is asked how far it is: it has no
// other way to tell.
const progressPeriod = 2 * time.Second

// all are the steps of both kinds; their order must not matter.
func all(k kind) []steps.Step[*world] {
	list := []steps.Step[*world]{
		{Condition: v1alpha2.ImageConditionDatasourceReady, Decide: datasource},
		{Condition: v1alpha2.ImageConditionReady, Decide: ready},
		{Condition: v1alpha2.ImageConditionInUse, Decide: inUse},
		{Condition: v1alpha2.ImageConditionTerminating, Decide: terminating},
		{Decide: pod},
		{Decide: config},
	}
	if k.Name() == v1alpha2.VirtualImageKind {
		list = append(list, steps.Step[*world]{Condition: v1alpha2.ImageConditionStorageClassReady, Decide: storageClass})
	}
	return list
}

// datasource: a URL is always worth a try; what is wrong with it, Ready tells.
func datasource(w *world) (steps.Outcome, steps.Act) {
	if why := w.unsupported(); why != "" {
		return steps.Outcome{State: steps.FailedState, Status: metav1.ConditionUnknown,
			Reason: v1alpha2.ReasonUnknown.String(), Message: why}, nil
	}
	return steps.Done(v1alpha2.ImageReasonDatasourceReady.String(), "The data source can be read"), nil
}

// storageClass exists for VirtualImage only, which could also live on a volume.
func storageClass(w *world) (steps.Outcome, steps.Act) {
	if w.image.onVolume {
		return steps.Failed(v1alpha2.ImageReasonStorageClassNotReady.String(), "%s", w.unsupported()), nil
	}
	return steps.Done(v1alpha2.ImageReasonDVCRTypeUsed.String(), "The image is stored in the module's registry and needs no StorageClass"), nil
}

// ready drives the import by what is remembered.
func ready(w *world) (steps.Outcome, steps.Act) {
	if why := w.unsupported(); why != "" {
		return steps.Failed(v1alpha2.ImageReasonProvisioningFailedTerminally.String(), "%s", why), nil
	}
	next := w.next()
	outcome := readyOutcome(w, next)
	if next.Move != attempt.Remember || w.deleting() {
		return outcome, nil
	}
	return outcome, w.run.remember(next.Record)
}

func readyOutcome(w *world, next attempt.Step) steps.Outcome {
	record := next.Record
	switch next.Move {
	case attempt.Finished:
		return steps.Done(v1alpha2.ImageReasonReady.String(), "The image can be used")
	case attempt.GiveUp:
		return steps.Failed(v1alpha2.ImageReasonProvisioningFailedTerminally.String(), "%s", giveUpMessage(record))
	case attempt.Pausing:
		return steps.Failed(v1alpha2.ImageReasonProvisioningFailed.String(), "%s", retryMessage(record)).Within(next.Wait)
	case attempt.Watch:
		return underWay(w, next)
	case attempt.Start, attempt.Remember:
	}
	if record.Failure != nil {
		return steps.Failed(v1alpha2.ImageReasonProvisioningFailed.String(), "%s", retryMessage(record))
	}
	return steps.Waiting(v1alpha2.ImageReasonProvisioningNotStarted.String(), "The import is about to start")
}

// underWay tells about a pod that exists and has not ended. A second attempt keeps
// showing why the first one failed until it gets further than that.
func underWay(w *world, next attempt.Step) steps.Outcome {
	verdict, name := next.Verdict, w.podName()
	switch {
	case verdict.Waits == "ErrImagePull" || verdict.Waits == "ImagePullBackOff" || verdict.Waits == "InvalidImageName":
		return steps.Failed(v1alpha2.ImageReasonImagePullFailed.String(),
			"Pod %s cannot start: its container image %s cannot be pulled", name, w.importerImage)
	case verdict.State == attempt.Starting && verdict.Why != "":
		return steps.Waiting(v1alpha2.ImageReasonProvisioningNotStarted.String(), "Pod %s waits: %s", name, oneLine(verdict.Why))
	case next.Record.Failure != nil && !moving(w):
		return steps.Failed(v1alpha2.ImageReasonProvisioningFailed.String(), "%s", retryMessage(next.Record)).Within(progressPeriod)
	case verdict.State == attempt.Starting:
		return steps.Waiting(v1alpha2.ImageReasonProvisioningNotStarted.String(), "Pod %s is starting", name)
	}
	return steps.Waiting(v1alpha2.ImageReasonProvisioning.String(), "The image is being imported by pod %s", name).Within(progressPeriod)
}

// moving reports that the running importer has got bytes.
func moving(w *world) bool { return w.progress != nil && w.progress.BytesDone > 0 }

func giveUpMessage(r attempt.Record) string {
	if r.Failure.Retry {
		return fmt.Sprintf("%s; given up after %d attempts, change the data source to try again", r.Failure.Message, r.Failures)
	}
	return r.Failure.Message
}

func retryMessage(r attempt.Record) string {
	return fmt.Sprintf("%s; attempt %d of %d failed, it is tried again", r.Failure.Message, r.Failures, attempt.Limit)
}

// inUse names the machines that hold the image open.
func inUse(w *world) (steps.Outcome, steps.Act) {
	if len(w.holders) == 0 {
		return steps.Done(v1alpha2.ImageReasonNotInUse.String(), "No machine uses the image").As(metav1.ConditionFalse), nil
	}
	return steps.Done(v1alpha2.ImageReasonAttachedToVirtualMachine.String(), "Attached to %s", holders(w)), nil
}

// terminating waits for users, then for pods, then takes the image out of the
// registry and lets the object go.
func terminating(w *world) (steps.Outcome, steps.Act) {
	waiting := func(format string, args ...any) (steps.Outcome, steps.Act) {
		return steps.Waiting(v1alpha2.ImageReasonCleanupPending.String(), format, args...).As(metav1.ConditionTrue), nil
	}
	switch {
	case !w.deleting():
		return steps.Absent(), nil
	case len(w.holders) > 0:
		return waiting("The image is attached to %s", holders(w))
	case len(w.disks) > 0:
		return waiting("Disks are being filled from the image: %s", strings.Join(head(w.disks), ", "))
	case len(w.pods) > 0:
		return waiting("Pod %s is being stopped", w.pods[0].Name)
	}
	outcome, _ := waiting("The image is being removed from the registry")
	return outcome, w.run.discard(w.record.Number > 0)
}

// pod makes the pod of the current attempt, and removes every other one. Only a
// recorded outcome lets the pod of an attempt go.
func pod(w *world) (steps.Outcome, steps.Act) {
	next, current := w.next(), w.podName()
	under := next.Move == attempt.Start || next.Move == attempt.Watch || next.Move == attempt.Remember && w.record.Work == w.work()
	for i := range w.pods {
		p := &w.pods[i]
		if p.DeletionTimestamp == nil && (w.deleting() || w.unsupported() != "" || !under || p.Name != current) {
			return steps.Absent(), steps.Delete{Object: p}
		}
	}
	if next.Move != attempt.Start || w.deleting() || w.unsupported() != "" {
		return steps.Absent(), nil
	}
	return steps.Absent(), w.run.create()
}

// config gives a starting pod its Secret.
func config(w *world) (steps.Outcome, steps.Act) {
	p := w.pod()
	if p == nil || p.DeletionTimestamp != nil || !w.configMissing || w.deleting() || w.unsupported() != "" {
		return steps.Absent(), nil
	}
	return steps.Absent(), w.run.configure(p)
}

func holders(w *world) string {
	names := make([]string, 0, len(w.holders))
	for _, h := range w.holders {
		name := h.Name
		if h.Namespace != w.image.GetNamespace() {
			name = h.Namespace + "/" + h.Name
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return "VirtualMachine " + strings.Join(head(slices.Compact(names)), ", ")
}

// head keeps messages readable.
func head(names []string) []string {
	const most = 5
	if len(names) <= most {
		return names
	}
	return append(slices.Clone(names[:most]), fmt.Sprintf("and %d more", len(names)-most))
}

func oneLine(s string) string { return strings.TrimSuffix(strings.Join(strings.Fields(s), " "), ".") }
