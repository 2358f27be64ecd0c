package disk

import (
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/attempt"
	"orlop.dev/orlop/internal/steps"
)

// show computes the status after a pass; it is the only writer of it.
func show(w *world, d steps.Decision, errs steps.Errors) v1alpha2.VirtualDiskStatus {
	s := *w.disk.Status.DeepCopy()
	stage := w.stage()
	s.Conditions = steps.Conditions(s.Conditions, d, errs, w.disk.Generation, w.now)
	s.ObservedGeneration = w.disk.Generation
	s.Phase = phase(w, d, stage)
	s.Progress = progress(w, stage, s.Phase, s.Progress)
	s.AttachedToVirtualMachines = attached(w)
	s.StorageClassName = w.className
	if w.record.Work != "" {
		s.Target.PersistentVolumeClaimName = w.claimName()
	}
	if w.source != nil && w.record.Result == nil {
		s.SourceUID = w.source.uid
	}
	if w.record.Result != nil {
		s.Capacity = quantity(w.record.Result.VirtualSize)
	}
	s.Stats.CreationDuration = durations(s, w.disk.CreationTimestamp, w.now)
	return s
}

func phase(w *world, d steps.Decision, s stage) v1alpha2.DiskPhase {
	outcome := d.Outcome(v1alpha2.DiskConditionReady)
	failed := outcome.State == steps.FailedState
	switch s {
	case removing:
		return v1alpha2.DiskTerminating
	case finished:
		if failed {
			return v1alpha2.DiskPVCLost
		}
		if d.Outcome(v1alpha2.DiskConditionResizing).Reason == v1alpha2.DiskReasonInProgress.String() {
			return v1alpha2.DiskResizing
		}
		return v1alpha2.DiskReady
	case blocked:
		if failed {
			return v1alpha2.DiskFailed
		}
		return v1alpha2.DiskPending
	case parked:
		return v1alpha2.DiskWaitForFirstConsumer
	case replacing, filling, handing:
	}
	if failed {
		return v1alpha2.DiskFailed
	}
	if s == filling && w.claim == nil && w.willPark() {
		// Not Provisioning for the blink of an eye before a late class parks the disk.
		return v1alpha2.DiskPending
	}
	return v1alpha2.DiskProvisioning
}

// willPark reports that the disk is about to wait for its first consumer.
func (w *world) willPark() bool { return w.class != nil && w.late() }

// progress is empty while Pending and never empty after.
func progress(w *world, s stage, p v1alpha2.DiskPhase, before string) string {
	switch {
	case p == v1alpha2.DiskPending:
		return ""
	case s == finished || s == handing:
		return "100%"
	case s == removing || p == v1alpha2.DiskFailed:
		return before
	case s == filling && w.progress != nil && w.progress.Percent >= 0:
		return fmt.Sprintf("%d%%", int(min(w.progress.Percent, 100)))
	case s == filling && attempt.Judge(w.pod()).State == attempt.Running && before != "":
		return before
	}
	return "0%"
}

// attached lists the machines that refer to the disk or hold it.
func attached(w *world) []v1alpha2.AttachedVirtualMachine {
	var list []v1alpha2.AttachedVirtualMachine
	for _, name := range sorted(slices.Concat(w.machines, w.holders)) {
		list = append(list, v1alpha2.AttachedVirtualMachine{Name: name, Mounted: slices.Contains(w.holders, name)})
	}
	return list
}

// durations are filled once each, from the times at which the conditions changed.
func durations(s v1alpha2.VirtualDiskStatus, created metav1.Time, now time.Time) v1alpha2.VirtualDiskCreationDuration {
	all := s.Stats.CreationDuration
	since := func(t time.Time) *metav1.Duration {
		return &metav1.Duration{Duration: max(now.Sub(t), 0).Truncate(time.Second)}
	}
	if all.WaitingForDependencies == nil && s.Phase != v1alpha2.DiskPending && s.Phase != v1alpha2.DiskFailed && s.Phase != v1alpha2.DiskTerminating {
		all.WaitingForDependencies = since(created.Time)
	}
	if all.TotalProvisioning == nil && s.Phase == v1alpha2.DiskReady && all.WaitingForDependencies != nil {
		all.TotalProvisioning = since(created.Add(all.WaitingForDependencies.Duration))
	}
	return all
}

// claimOf is the disk that a claim was made for, or "".
func claimOf(c *corev1.PersistentVolumeClaim) string {
	owner := metav1.GetControllerOf(c)
	if owner == nil || owner.Kind != v1alpha2.VirtualDiskKind || owner.APIVersion != v1alpha2.GroupVersion.String() {
		return ""
	}
	return owner.Name
}
