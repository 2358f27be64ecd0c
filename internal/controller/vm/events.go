package vm

import (
	corev1 "k8s.io/api/core/v1"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/steps"
)

// Event reasons for what has been done.
const (
	eventStarted = "Started"
	eventStopped = "Stopped"
	eventFailed  = "Failed"
)

// powerEvents tells of starts and ends: one event for each.
func powerEvents(before, after *v1alpha2.VirtualMachine) []steps.Event {
	var all []steps.Event
	was, is := before.Status.Instance, after.Status.Instance
	if is == nil {
		return nil
	}
	if is.Exit != "" && (was == nil || was.Exit == "" || was.Counter != is.Counter) {
		all = append(all, exitEvent(is))
	}
	if after.Status.Phase == v1alpha2.MachineRunning && before.Status.Phase != v1alpha2.MachineRunning &&
		before.Status.Phase != v1alpha2.MachinePause {
		all = append(all, steps.Event{Type: corev1.EventTypeNormal, Reason: eventStarted,
			Message: "The machine was started on node " + after.Status.NodeName})
	}
	return all
}

func exitEvent(r *v1alpha2.InstanceRecord) steps.Event {
	switch v1alpha1.ExitCause(r.Exit) {
	case v1alpha1.ExitCrashed, v1alpha1.ExitStartFailed:
		return steps.Event{Type: corev1.EventTypeWarning, Reason: eventFailed, Message: "The process of pod " + r.Name + " ended: " + failure(*r)}
	default:
		return steps.Event{Type: corev1.EventTypeNormal, Reason: eventStopped, Message: "The process of pod " + r.Name + " ended: " + r.Exit}
	}
}
