package operation

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/steps"
)

// world is everything a pass knows.
type world struct {
	now       time.Time
	operation *v1alpha2.VirtualMachineOperation
	// vm is nil if the machine does not exist.
	vm *v1alpha2.VirtualMachine
	// source and target are the two ends of this operation's migration, pod the
	// target's; each may be nil.
	source, target *v1alpha1.Instance
	pod            *corev1.Pod
	// systemPolicy overrides the machine's live migration policy.
	systemPolicy string
	// others are the unfinished operations of the same machine.
	others []v1alpha2.VirtualMachineOperation
	// finished are those that only tell of the past.
	finished []v1alpha2.VirtualMachineOperation
}

var all = []steps.Step[*world]{
	{Condition: v1alpha2.OperationConditionCompleted, Decide: completed},
	{Condition: v1alpha2.OperationConditionSignalSent, Decide: signalSent},
	{Decide: finalizer},
}

// past are the steps for an operation that has finished.
var past = []steps.Step[*world]{{Decide: retention}}

// verdict is where an operation stands.
type verdict struct {
	phase   v1alpha2.OperationPhase
	outcome steps.Outcome
	// percent is how far a migration is; it is never shown to go back.
	percent int
}

func (w *world) accepted() bool { return w.operation.Status.Phase == v1alpha2.OperationInProgress }

func (w *world) forced() bool {
	f := w.operation.Spec.Force
	return f != nil && *f
}

// judge is the heart of the controller.
func judge(w *world) verdict {
	switch {
	case w.vm == nil:
		return failed(v1alpha2.OperationReasonVirtualMachineNotFound, "VirtualMachine %s does not exist", w.operation.Spec.VirtualMachineName)
	case w.vm.DeletionTimestamp != nil:
		return failed(v1alpha2.OperationReasonOperationFailed, "VirtualMachine %s is being deleted", w.vm.Name)
	case w.superseder() != nil:
		return verdict{phase: v1alpha2.OperationSuperseded,
			outcome: steps.Waiting(v1alpha2.OperationReasonSuperseded, "VirtualMachineOperation %s took its place", w.superseder().Name)}
	case w.accepted():
		return progress(w)
	}
	return precheck(w)
}

// precheck decides whether the operation may begin.
func precheck(w *world) verdict {
	spec, vm := w.operation.Spec, w.vm
	switch {
	case !supported(spec.Type):
		return failed(v1alpha2.OperationReasonOperationFailed, "Type %s is not supported in this release", spec.Type)
	case !policy.OperationAllowed(spec.Type, vm.Spec.RunPolicy):
		return failed(v1alpha2.OperationReasonNotApplicableForVirtualMachineRunPolicy, "%s is not possible with run policy %s", spec.Type, vm.Spec.RunPolicy)
	case vm.Status.Phase == "":
		return pending("VirtualMachine %s has no phase yet", vm.Name)
	case policy.Migrates(spec.Type):
		return precheckMigration(w)
	case !policy.OperationPossible(spec.Type, w.forced(), vm.Status.Phase):
		return failed(v1alpha2.OperationReasonNotApplicableForVirtualMachinePhase, "%s is not possible in phase %s", spec.Type, vm.Status.Phase)
	}
	for i := range w.others {
		if o := &w.others[i]; older(o, w.operation) && !policy.Supersedes(spec, o.Spec) {
			return pending("VirtualMachineOperation %s has to finish first", o.Name)
		}
	}
	return underWay(spec)
}

// progress reads from the machine's status how far an accepted operation is.
func progress(w *world) verdict {
	record := w.vm.Status.Instance
	if policy.Migrates(w.operation.Spec.Type) {
		return migrationProgress(w)
	}
	if !w.signalled() {
		return underWay(w.operation.Spec)
	}
	done := false
	switch w.operation.Spec.Type {
	case v1alpha2.OperationStart:
		done = w.vm.Status.Phase == v1alpha2.MachineRunning
	case v1alpha2.OperationStop:
		done = w.vm.Status.Phase == v1alpha2.MachineStopped
	case v1alpha2.OperationRestart:
		done = w.vm.Status.Phase == v1alpha2.MachineRunning && record.Counter > record.Signal.Counter
	default: // not accepted, see supported
	}
	if !done {
		return underWay(w.operation.Spec)
	}
	return verdict{phase: v1alpha2.OperationCompleted, outcome: steps.Done(v1alpha2.OperationReasonOperationCompleted,
		"%s of VirtualMachine %s is done", w.operation.Spec.Type, w.vm.Name)}
}

func supported(t v1alpha2.OperationType) bool {
	return t == v1alpha2.OperationStart || t == v1alpha2.OperationStop || t == v1alpha2.OperationRestart || policy.Migrates(t)
}

func (w *world) signalled() bool {
	record := w.vm.Status.Instance
	if record != nil && policy.Migrates(w.operation.Spec.Type) {
		return w.moving() || w.moved()
	}
	return record != nil && record.Signal != nil && record.Signal.Operation == w.operation.UID
}

// superseder is another operation that takes this one's place.
func (w *world) superseder() *v1alpha2.VirtualMachineOperation {
	for i := range w.others {
		o := &w.others[i]
		if !older(o, w.operation) && o.DeletionTimestamp == nil && policy.Supersedes(o.Spec, w.operation.Spec) {
			return o
		}
	}
	return nil
}

// older says that a is certainly older than b; within one second nobody can tell.
func older(a, b *v1alpha2.VirtualMachineOperation) bool {
	return a.CreationTimestamp.Before(&b.CreationTimestamp)
}

func failed(reason v1alpha2.Reason, format string, args ...any) verdict {
	return verdict{phase: v1alpha2.OperationFailed, outcome: steps.Failed(reason, format, args...)}
}

func pending(format string, args ...any) verdict {
	return verdict{phase: v1alpha2.OperationPending, outcome: steps.Waiting(v1alpha2.OperationReasonNotReadyToBeExecuted, format, args...)}
}

func underWay(spec v1alpha2.VirtualMachineOperationSpec) verdict {
	reason := map[v1alpha2.OperationType]v1alpha2.Reason{
		v1alpha2.OperationStart:   v1alpha2.OperationReasonStartInProgress,
		v1alpha2.OperationStop:    v1alpha2.OperationReasonStopInProgress,
		v1alpha2.OperationRestart: v1alpha2.OperationReasonRestartInProgress,
	}[spec.Type]
	return verdict{phase: v1alpha2.OperationInProgress, outcome: steps.Waiting(reason, "%s of VirtualMachine %s is under way", spec.Type, spec.VirtualMachineName)}
}

func completed(w *world) (steps.Outcome, steps.Act) { return judge(w).outcome, nil }

func signalSent(w *world) (steps.Outcome, steps.Act) {
	if w.vm == nil || !w.signalled() {
		return steps.Absent(), nil
	}
	return steps.Done(v1alpha2.OperationReasonSignalSentSuccess, "VirtualMachine %s has taken the operation up", w.vm.Name), nil
}

// finalizer lets a deleted operation go at once: what the machine took up it goes on
// with, and what it did not take up it forgets.
func finalizer(w *world) (steps.Outcome, steps.Act) {
	if w.operation.DeletionTimestamp == nil {
		return steps.Outcome{}, nil
	}
	// An evacuation is held by its machine's controller until it has taken the request
	// back; without a machine there is nothing to take back.
	if controllerutil.ContainsFinalizer(w.operation, v1alpha2.FinalizerVirtualMachineOperationByEvacuation) {
		if w.vm != nil {
			return steps.Outcome{}, nil
		}
		return steps.Outcome{}, steps.Release{Object: w.operation, Finalizer: v1alpha2.FinalizerVirtualMachineOperationByEvacuation}
	}
	return steps.Outcome{}, steps.Release{Object: w.operation, Finalizer: v1alpha2.FinalizerVirtualMachineOperationCleanup}
}

// status is the only writer of an operation's status. SignalSent is remembered: the
// machine may long have taken up something else.
func status(w *world, d steps.Decision, errs steps.Errors) v1alpha2.VirtualMachineOperationStatus {
	s := *w.operation.Status.DeepCopy()
	s.ObservedGeneration = w.operation.Generation
	sent := find(s.Conditions, v1alpha2.OperationConditionSignalSent)
	s.Conditions = steps.Conditions(s.Conditions, d, errs, w.operation.Generation, w.now)
	if sent != nil && find(s.Conditions, sent.Type) == nil {
		s.Conditions = append(s.Conditions, *sent)
	}
	v := judge(w)
	s.Phase = v.phase
	if policy.Migrates(w.operation.Spec.Type) && v.phase != v1alpha2.OperationSuperseded {
		s.Progress = percent(s.Progress, v.percent)
	}
	if w.operation.DeletionTimestamp != nil {
		s.Phase = v1alpha2.OperationTerminating
	}
	return s
}

func find(conditions []metav1.Condition, kind string) *metav1.Condition {
	for i := range conditions {
		if conditions[i].Type == kind {
			return conditions[i].DeepCopy()
		}
	}
	return nil
}

// phaseEvents tells of a change of phase.
func phaseEvents(before, after *v1alpha2.VirtualMachineOperation) []steps.Event {
	if before.Status.Phase == after.Status.Phase {
		return nil
	}
	reason := map[v1alpha2.OperationPhase]string{
		v1alpha2.OperationPending:    "VirtualMachineOperationPending",
		v1alpha2.OperationInProgress: "VirtualMachineOperationInProgress",
		v1alpha2.OperationCompleted:  "VirtualMachineOperationSucceeded",
		v1alpha2.OperationFailed:     "VirtualMachineOperationFailed",
	}[after.Status.Phase]
	if reason == "" {
		return nil
	}
	e := steps.Event{Type: corev1.EventTypeNormal, Reason: reason,
		Message: string(after.Spec.Type) + " of VirtualMachine " + after.Spec.VirtualMachineName + " is " + string(after.Status.Phase)}
	if c := find(after.Status.Conditions, v1alpha2.OperationConditionCompleted); c != nil && after.Status.Phase == v1alpha2.OperationFailed {
		e.Type, e.Message = corev1.EventTypeWarning, c.Message
	}
	return []steps.Event{e}
}
