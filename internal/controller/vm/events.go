package vm

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/steps"
)

// Event reasons for what has been done.
const (
	eventStarted = "Started"
	eventStopped = "Stopped"
	eventFailed  = "Failed"
	eventChanges = "RestartAwaitingChanges"

	eventEvicted  = "Evicted"
	eventMigrated = "Migrated"
)

// transitions are the events of conditions, but for those that the other functions
// here tell better.
func transitions(before, after []metav1.Condition, d steps.Decision) []steps.Event {
	told := slices.DeleteFunc(slices.Clone(d), func(f steps.Finding) bool {
		return f.Condition == v1alpha2.MachineConditionConfigurationApplied ||
			f.Condition == v1alpha2.MachineConditionRunning && f.Outcome.State == steps.DoneState
	})
	return steps.Transitions(before, after, told)
}

// changeEvents tells when changes begin to wait for a restart.
func changeEvents(before, after *v1alpha2.VirtualMachine) []steps.Event {
	if len(before.Status.RestartAwaitingChanges) > 0 || len(after.Status.RestartAwaitingChanges) == 0 {
		return nil
	}
	return []steps.Event{{Type: corev1.EventTypeNormal, Reason: eventChanges,
		Message: "Restart the machine to apply changes of " + paths(after.Status.RestartAwaitingChanges)}}
}

// powerEvents tells of starts and ends: one event for each.
func powerEvents(before, after *v1alpha2.VirtualMachine) []steps.Event {
	var all []steps.Event
	was, is := before.Status.Instance, after.Status.Instance
	if is == nil {
		return nil
	}
	all = append(all, migrationEvents(was, is)...)
	if is.Exit != "" && (was == nil || was.Exit == "" || was.Counter != is.Counter) {
		all = append(all, exitEvent(is))
	}
	if after.Status.Phase == v1alpha2.MachineRunning && before.Status.Phase != v1alpha2.MachineRunning &&
		before.Status.Phase != v1alpha2.MachinePause && before.Status.Phase != v1alpha2.MachineMigrating {
		all = append(all, steps.Event{Type: corev1.EventTypeNormal, Reason: eventStarted,
			Message: "The machine was started on node " + after.Status.NodeName})
	}
	return all
}

// migrationEvents tells how a migration ended.
func migrationEvents(was, is *v1alpha2.InstanceRecord) []steps.Event {
	if was == nil || was.Target == nil || is.Migrated == nil || is.Migrated.Operation != was.Target.Operation {
		return nil
	}
	if is.Migrated.Reason != v1alpha2.OperationReasonCompleted {
		return []steps.Event{{Type: corev1.EventTypeWarning, Reason: eventFailed, Message: "The guest was not moved: " + is.Migrated.Message}}
	}
	reason := eventMigrated
	if was.Target.Type == v1alpha2.OperationEvict {
		reason = eventEvicted
	}
	return []steps.Event{{Type: corev1.EventTypeNormal, Reason: reason, Message: is.Migrated.Message}}
}

func exitEvent(r *v1alpha2.InstanceRecord) steps.Event {
	switch v1alpha1.ExitCause(r.Exit) {
	case v1alpha1.ExitCrashed, v1alpha1.ExitStartFailed:
		return steps.Event{Type: corev1.EventTypeWarning, Reason: eventFailed, Message: "The process of pod " + r.Name + " ended: " + failure(*r)}
	default:
		return steps.Event{Type: corev1.EventTypeNormal, Reason: eventStopped, Message: "The process of pod " + r.Name + " ended: " + r.Exit}
	}
}
