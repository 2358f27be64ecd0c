package disk

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/attempt"
	"orlop.dev/orlop/internal/plan"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/steps"
)

// progressPeriod is how often a running pod is asked how far it is: it has no other
// way to tell.
const progressPeriod = 2 * time.Second

// all are the steps; their order must not matter.
func all() []steps.Step[*world] {
	return []steps.Step[*world]{
		{Condition: v1alpha2.DiskConditionDatasourceReady, Decide: datasource},
		{Condition: v1alpha2.DiskConditionStorageClassReady, Decide: storageClass},
		{Condition: v1alpha2.DiskConditionReady, Decide: ready},
		{Condition: v1alpha2.DiskConditionInUse, Decide: inUse},
		{Condition: v1alpha2.DiskConditionResizing, Decide: resizing},
		{Condition: v1alpha2.DiskConditionTerminating, Decide: terminating},
		{Decide: claim},
		{Decide: prime},
		{Decide: pod},
		{Decide: config},
		{Decide: handover},
		{Decide: reschedule},
	}
}

// datasource tells whether the image can be read; a finished disk needs it no more.
func datasource(w *world) (steps.Outcome, steps.Act) {
	done := steps.Done(v1alpha2.DiskReasonDatasourceReady.String(), "What the disk is made from is there")
	switch s := w.source; {
	case w.unsupported() != "":
		return steps.Outcome{State: steps.FailedState, Status: metav1.ConditionUnknown,
			Reason: v1alpha2.ReasonUnknown.String(), Message: w.unsupported()}, nil
	case s == nil || s.ready || w.record.Result != nil:
		return done, nil
	case s.kind == v1alpha2.ClusterVirtualImageKind && !s.found:
		return steps.Waiting(v1alpha2.DiskReasonClusterImageNotFound.String(), "ClusterVirtualImage %s does not exist", s.name), nil
	case s.kind == v1alpha2.ClusterVirtualImageKind:
		return steps.Waiting(v1alpha2.DiskReasonClusterImageNotReady.String(), "ClusterVirtualImage %s is not ready", s.name), nil
	case !s.found:
		return steps.Waiting(v1alpha2.DiskReasonImageNotFound.String(), "VirtualImage %s does not exist", s.name), nil
	default:
		return steps.Waiting(v1alpha2.DiskReasonImageNotReady.String(), "VirtualImage %s is not ready", s.name), nil
	}
}

func storageClass(w *world) (steps.Outcome, steps.Act) {
	if err := w.classError(); err != nil {
		return steps.Waiting(v1alpha2.DiskReasonStorageClassNotReady.String(), "%s", upper(err.Error())), nil
	}
	if _, err := w.modes(); err != nil && w.record.Result == nil {
		return steps.Failed(v1alpha2.DiskReasonStorageClassNotReady.String(), "%s", upper(err.Error())), nil
	}
	return steps.Done(v1alpha2.DiskReasonStorageClassReady.String(), "StorageClass %s can hold the disk", w.className), nil
}

// ready drives the filling by what is remembered.
func ready(w *world) (steps.Outcome, steps.Act) {
	switch w.stage() {
	case finished:
		return kept(w), nil
	case removing:
		return removingOutcome(w), nil
	case blocked:
		return *w.block(), nil
	case replacing:
		return steps.Waiting(v1alpha2.DiskReasonProvisioningNotStarted.String(),
			"The disk was changed: its former volume is being removed"), nil
	case parked:
		return steps.Waiting(v1alpha2.DiskReasonWaitingForFirstConsumer.String(),
			"StorageClass %s waits for the first VirtualMachine that uses the disk", w.className), nil
	case handing:
		return handingOutcome(w)
	case filling:
	}
	next := w.next()
	outcome := fillingOutcome(w, next)
	if next.Move != attempt.Remember {
		return outcome, nil
	}
	return outcome, w.run.remember(next.Record)
}

// handingOutcome remembers success only when the disk's claim holds the filled volume.
func handingOutcome(w *world) (steps.Outcome, steps.Act) {
	outcome := steps.Waiting(v1alpha2.DiskReasonProvisioning.String(), "The filled volume is being bound to PersistentVolumeClaim %s", w.claimName())
	next := w.next()
	switch {
	case w.stolen():
		return stolenOutcome(w), nil
	case w.lostPrime():
		// Somebody removed the claim under the filled volume: write another one.
		return outcome, w.run.remember(w.record.Again())
	case w.bound() && next.Record.Result != nil:
		return outcome, w.run.remember(next.Record)
	}
	return outcome, nil
}

// kept tells about a disk that was ready once.
func kept(w *world) steps.Outcome {
	switch {
	case w.claim == nil:
		return steps.Failed(v1alpha2.DiskReasonPVCLost.String(), "PersistentVolumeClaim %s, which held the disk, does not exist any more", w.claimName())
	case w.claim.Status.Phase == corev1.ClaimLost:
		return steps.Failed(v1alpha2.DiskReasonPVCLost.String(), "PersistentVolumeClaim %s has lost its volume %s", w.claimName(), w.claim.Spec.VolumeName)
	case w.claim.DeletionTimestamp != nil:
		return steps.Failed(v1alpha2.DiskReasonPVCLost.String(), "PersistentVolumeClaim %s, which holds the disk, is being deleted", w.claimName())
	}
	return steps.Done(v1alpha2.DiskReasonReady.String(), "The disk can be used")
}

func removingOutcome(w *world) steps.Outcome {
	if w.record.Result != nil && w.claim != nil && w.claim.DeletionTimestamp == nil {
		return steps.Done(v1alpha2.DiskReasonReady.String(), "The disk can be used")
	}
	return steps.Waiting(v1alpha2.DiskReasonProvisioningNotStarted.String(), "The disk is being deleted")
}

func stolenOutcome(w *world) steps.Outcome {
	return steps.Failed(v1alpha2.DiskReasonProvisioningFailed.String(),
		"PersistentVolumeClaim %s was bound to volume %s, which was not filled for it: delete the claim, and make sure that no unclaimed volume of StorageClass %s is left",
		w.claimName(), w.claim.Spec.VolumeName, w.className)
}

func fillingOutcome(w *world, next attempt.Step) steps.Outcome {
	record, verdict, name := next.Record, next.Verdict, w.podName()
	switch {
	case w.stolen():
		return stolenOutcome(w)
	case w.dangling() != nil && next.Move != attempt.GiveUp:
		return steps.Waiting(v1alpha2.DiskReasonProvisioning.String(), "%s", proofWanted(w.dangling()))
	case next.Move == attempt.GiveUp:
		return steps.Failed(v1alpha2.DiskReasonProvisioningFailedTerminally.String(), "%s", record.Failure.Message)
	case next.Move == attempt.Pausing:
		return steps.Failed(v1alpha2.DiskReasonProvisioningFailed.String(), "%s", retryMessage(record)).Within(next.Wait)
	case next.Move == attempt.Watch && verdict.State == attempt.Running:
		return steps.Waiting(v1alpha2.DiskReasonProvisioning.String(), "The disk is being filled by pod %s", name).Within(progressPeriod)
	case record.Failure != nil:
		return steps.Failed(v1alpha2.DiskReasonProvisioningFailed.String(), "%s", retryMessage(record))
	case pullFailed(verdict):
		return steps.Failed(v1alpha2.DiskReasonImagePullFailed.String(), "Pod %s cannot start: its container image %s cannot be pulled", name, w.importerImage)
	case w.prime != nil && w.prime.Status.Phase != corev1.ClaimBound:
		return steps.Waiting(v1alpha2.DiskReasonProvisioning.String(),
			"Waiting for StorageClass %s to provide a volume for PersistentVolumeClaim %s", w.className, w.prime.Name)
	case next.Move == attempt.Watch && verdict.Why != "":
		return steps.Waiting(v1alpha2.DiskReasonProvisioning.String(), "Pod %s waits: %s", name, oneLine(verdict.Why))
	}
	return steps.Waiting(v1alpha2.DiskReasonProvisioning.String(), "The disk is about to be filled")
}

// proofWanted says what a pod that is being deleted is kept for.
func proofWanted(p *corev1.Pod) string {
	if p.Spec.NodeName == "" {
		return fmt.Sprintf("Pod %s is being stopped", p.Name)
	}
	return fmt.Sprintf("Waiting until pod %s has stopped on node %s, since it may still write the volume; "+
		"if that node is powered off for good, put the taint node.kubernetes.io/out-of-service on it", p.Name, p.Spec.NodeName)
}

func pullFailed(v attempt.Verdict) bool {
	return v.Waits == "ErrImagePull" || v.Waits == "ImagePullBackOff" || v.Waits == "InvalidImageName"
}

func retryMessage(r attempt.Record) string {
	return fmt.Sprintf("%s; attempt %d of %d failed, it is tried again", r.Failure.Message, r.Failures, attempt.Limit)
}

func inUse(w *world) (steps.Outcome, steps.Act) {
	if len(w.holders) == 0 {
		return steps.Done(v1alpha2.DiskReasonNotInUse.String(), "No machine uses the disk").As(metav1.ConditionFalse), nil
	}
	return steps.Done(v1alpha2.DiskReasonAttachedToVirtualMachine.String(), "Attached to VirtualMachine %s", strings.Join(w.holders, ", ")), nil
}

// terminating waits for machines, then for everything that was made, then lets the disk go.
func terminating(w *world) (steps.Outcome, steps.Act) {
	pending := func(format string, args ...any) (steps.Outcome, steps.Act) {
		return steps.Waiting(v1alpha2.DiskReasonCleanupPending.String(), format, args...).As(metav1.ConditionTrue), nil
	}
	switch {
	case !w.deleting():
		return steps.Absent(), nil
	case len(w.holders) > 0:
		return pending("The disk is attached to VirtualMachine %s", strings.Join(w.holders, ", "))
	case w.dangling() != nil:
		return pending("%s", proofWanted(w.dangling()))
	case len(w.pods) > 0:
		return pending("Pod %s is being stopped", w.pods[0].Name)
	case w.prime != nil:
		return pending("PersistentVolumeClaim %s is being deleted", w.prime.Name)
	case w.claim != nil:
		return pending("PersistentVolumeClaim %s is being deleted", w.claim.Name)
	}
	outcome, _ := pending("The disk is being released")
	return outcome, steps.Release{Object: w.disk, Finalizer: v1alpha2.FinalizerVirtualDiskCleanup}
}

// claim makes the disk's claim and removes one that was made for other wishes.
func claim(w *world) (steps.Outcome, steps.Act) {
	switch w.stage() {
	case removing:
		if w.claim != nil && w.claim.DeletionTimestamp == nil && len(w.holders) == 0 {
			return steps.Absent(), steps.Delete{Object: w.claim}
		}
	case replacing:
		if stale(w.claim, w.record.Work) && w.claim.DeletionTimestamp == nil {
			return steps.Absent(), steps.Delete{Object: w.claim}
		}
	case parked, filling:
		if w.claim == nil && w.record.Work == w.work() {
			return steps.Absent(), steps.Create{Object: w.claims().Claim()}
		}
	case handing:
		if w.claim == nil {
			return steps.Absent(), steps.Create{Object: w.claims().Claim()}
		}
	case finished, blocked:
	}
	return steps.Absent(), nil
}

// prime makes the prime once the node is known (if that matters), and removes it when
// its volume has been handed over or nobody wants it.
func prime(w *world) (steps.Outcome, steps.Act) {
	remove := func() (steps.Outcome, steps.Act) {
		if w.prime == nil || w.prime.DeletionTimestamp != nil {
			return steps.Absent(), nil
		}
		return steps.Absent(), steps.Delete{Object: w.prime}
	}
	switch w.stage() {
	case removing:
		if len(w.holders) == 0 {
			return remove()
		}
	case finished:
		return remove()
	case replacing:
		if stale(w.prime, w.record.Work) {
			return remove()
		}
	case filling:
		if w.next().Move == attempt.GiveUp || w.prime != nil && w.prime.Status.Phase == corev1.ClaimLost {
			return remove()
		}
		if w.prime == nil && w.claim != nil && w.claim.Spec.VolumeName == "" && w.record.Work == w.work() && w.wantsPod() {
			return steps.Absent(), steps.Create{Object: w.claims().Prime(w.node())}
		}
	case blocked, parked, handing:
	}
	return steps.Absent(), nil
}

// wantsPod reports that the attempt that is remembered is to run or runs.
func (w *world) wantsPod() bool {
	m := w.next().Move
	return m == attempt.Start || m == attempt.Watch
}

// pod makes the populating pod once there is a prime and no other can write it, removes
// every pod whose outcome has been recorded or whose attempt is over, and lets go of
// one only on proof that it has stopped.
func pod(w *world) (steps.Outcome, steps.Act) {
	stage := w.stage()
	for i := range w.pods {
		switch p := &w.pods[i]; {
		case p.DeletionTimestamp == nil && w.obsolete(p, stage):
			return steps.Absent(), steps.Delete{Object: p}
		case p.DeletionTimestamp != nil && w.stopped(p) && (w.obsolete(p, stage) || !w.tells(p)) &&
			slices.Contains(p.Finalizers, v1alpha2.FinalizerPodProtection):
			// Of a node that is out of service nobody is left to end the grace period.
			return steps.Absent(), steps.Delete{Object: p, Finalizer: v1alpha2.FinalizerPodProtection,
				Now: policy.OutOfService(w.nodes[p.Spec.NodeName])}
		}
	}
	if stage == filling && w.next().Move == attempt.Start && w.dangling() == nil &&
		w.prime != nil && w.prime.DeletionTimestamp == nil && !w.stolen() {
		return steps.Absent(), steps.Create{Object: w.data(nil).Pod()}
	}
	return steps.Absent(), nil
}

// tells reports that a pod still has to say how the present attempt ended.
func (w *world) tells(p *corev1.Pod) bool {
	s := attempt.Judge(p).State
	return p.Name == w.podName() && (s == attempt.Succeeded || s == attempt.Failed)
}

func (w *world) obsolete(p *corev1.Pod, s stage) bool {
	switch s {
	case removing, finished, replacing:
		return true
	case filling, parked, blocked:
		// A failed pod stays until its failure has been recorded.
		return p.Name != w.podName() || w.record.FailedAt != nil
	case handing:
		return false
	}
	return false
}

// config gives a starting pod its Secret.
func config(w *world) (steps.Outcome, steps.Act) {
	p := w.pod()
	if w.stage() != filling || p == nil || p.DeletionTimestamp != nil || !w.configMissing {
		return steps.Absent(), nil
	}
	return steps.Absent(), w.run.configure(p)
}

// handover gives the filled volume to the disk's claim.
func handover(w *world) (steps.Outcome, steps.Act) {
	if w.stage() != handing || w.handedOver() != nil || w.stolen() || w.claim == nil || w.dangling() != nil {
		return steps.Absent(), nil
	}
	if volume := w.primed(); volume != nil {
		return steps.Absent(), w.run.rebind(volume)
	}
	return steps.Absent(), nil
}

// reschedule takes back the choice of a node when the provisioner could not make a
// volume there (it says so by removing the choice from the prime), or when the
// scheduler has chosen another one.
func reschedule(w *world) (steps.Outcome, steps.Act) {
	if w.stage() != filling || !w.late() || w.prime == nil || w.prime.DeletionTimestamp != nil || w.prime.Spec.VolumeName != "" {
		return steps.Absent(), nil
	}
	chosen, made := w.node(), w.prime.Annotations[plan.SelectedNodeAnnotation]
	switch {
	case chosen == made:
		return steps.Absent(), nil
	case made == "":
		return steps.Absent(), w.run.unselect()
	}
	return steps.Absent(), steps.Delete{Object: w.prime}
}

func (w *world) claimName() string { return plan.DiskClaimName(w.disk.Name, w.disk.UID) }

func upper(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

func oneLine(s string) string { return strings.TrimSuffix(strings.Join(strings.Fields(s), " "), ".") }

func sorted(names []string) []string {
	slices.Sort(names)
	return slices.Compact(names)
}
