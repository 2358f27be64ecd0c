package vm

import (
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/steps"
)

// oldestAgent is the first version of the guest agent that does all that is asked of it.
var oldestAgent = [2]int{5, 2}

// guest is what the agent in a guest that has been started says, or nil; started is
// false while there is no guest to ask.
func (w *world) guest() (g *v1alpha1.Guest, started bool) {
	if !w.live() || w.instance == nil || w.instance.Status.StartTime == nil || w.instance.Status.Exit != nil {
		return nil, false
	}
	return w.instance.Status.Guest, true
}

// agentReady exists only while a guest runs.
func agentReady(w *world) (steps.Outcome, steps.Act) {
	g, started := w.guest()
	switch {
	case !started:
		return steps.Absent(), nil
	case g == nil:
		return steps.Waiting(v1alpha2.MachineReasonAgentNotReady,
			"The guest agent does not answer: install and start qemu-guest-agent in the guest"), nil
	}
	return steps.Done(v1alpha2.MachineReasonAgentReady, "The guest agent answers"), nil
}

// agentVersion is shown only in the bad state, which is True.
func agentVersion(w *world) (steps.Outcome, steps.Act) {
	g, _ := w.guest()
	if g == nil || !oldAgent(g.AgentVersion) {
		return steps.Absent(), nil
	}
	return steps.Failed(v1alpha2.MachineReasonAgentVersionNotSupported,
		"The guest agent has version %s: update qemu-guest-agent in the guest to 5.2.0 or newer", g.AgentVersion).As(metav1.ConditionTrue), nil
}

// oldAgent judges a version such as "9.2.0"; what cannot be read is not held against it.
func oldAgent(version string) bool {
	var major, minor int
	if n, _ := fmt.Sscanf(version, "%d.%d", &major, &minor); n != 2 {
		return false
	}
	return major < oldestAgent[0] || major == oldestAgent[0] && minor < oldestAgent[1]
}

// filesystemFrozen exists only while the guest cannot write.
func filesystemFrozen(w *world) (steps.Outcome, steps.Act) {
	if g, _ := w.guest(); g == nil || !g.Frozen {
		return steps.Absent(), nil
	}
	return steps.Done(v1alpha2.MachineReasonFrozen, "The file systems of the guest are frozen"), nil
}

// guestOSInfo is the guest's word on itself. What it said stays true while its agent
// is away, and ends with the process.
func guestOSInfo(w *world) v1alpha2.GuestOSInfo {
	g, started := w.guest()
	switch {
	case !started:
		return v1alpha2.GuestOSInfo{}
	case g == nil:
		return w.vm.Status.GuestOSInfo
	}
	return v1alpha2.GuestOSInfo{
		ID: g.OS.ID, Name: g.OS.Name, PrettyName: g.OS.PrettyName, Version: g.OS.Version, VersionID: g.OS.VersionID,
		KernelRelease: g.OS.KernelRelease, KernelVersion: g.OS.KernelVersion, Machine: g.OS.Machine,
	}
}

// agentStarting is the time from the start of the guest until its agent first answered,
// once that is known; was is what was known before.
func agentStarting(w *world, was *metav1.Duration) *metav1.Duration {
	g, _ := w.guest()
	if was != nil || g == nil || g.Since == nil || g.Since.Before(w.instance.Status.StartTime) {
		return was
	}
	return &metav1.Duration{Duration: g.Since.Sub(w.instance.Status.StartTime.Time)}
}
