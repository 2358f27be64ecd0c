package policy

import (
	"slices"
	"time"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
)

// Exit causes that the controller finds out by itself, beside those of the handler.
const (
	// ExitNeverStarted: the process was called off before any node had it.
	ExitNeverStarted v1alpha1.ExitCause = "NeverStarted"
	// ExitPodTerminated: the kubelet saw the launcher's container end; nobody knows more.
	ExitPodTerminated v1alpha1.ExitCause = "PodTerminated"
	// ExitNodeFenced: the node was declared out of service.
	ExitNodeFenced v1alpha1.ExitCause = "NodeFenced"
)

// WantsOn says whether a machine should run, by its policy and what was last asked for.
func WantsOn(run v1alpha2.RunPolicy, asked v1alpha2.InstancePower) bool {
	switch run {
	case v1alpha2.AlwaysOn:
		return true
	case v1alpha2.AlwaysOff:
		return false
	case v1alpha2.Manual:
		return asked == v1alpha2.InstancePowerOn
	default:
		return asked != v1alpha2.InstancePowerOff
	}
}

// RememberPower is what a policy leaves behind for the one that may follow it: a
// machine that was kept on stays on under Manual, and one that was kept off starts
// afresh, so that going from AlwaysOff to AlwaysOnUnlessStoppedManually starts it.
func RememberPower(run v1alpha2.RunPolicy, asked v1alpha2.InstancePower) v1alpha2.InstancePower {
	switch run {
	case v1alpha2.AlwaysOn:
		return v1alpha2.InstancePowerOn
	case v1alpha2.AlwaysOff:
		return ""
	default:
		return asked
	}
}

// PowerAfterExit is what the end of a process means for the wish to run. Operations
// and restarts of our own have already said what they want, so asked stands for
// them: pass restarting for those.
func PowerAfterExit(run v1alpha2.RunPolicy, asked v1alpha2.InstancePower, cause v1alpha1.ExitCause, restarting bool) v1alpha2.InstancePower {
	if restarting || cause == v1alpha1.ExitGuestReset || cause == ExitNeverStarted {
		return asked
	}
	switch {
	case run == v1alpha2.Manual:
		return v1alpha2.InstancePowerOff
	case run == v1alpha2.AlwaysOnUnlessStoppedManually && cause == v1alpha1.ExitGuestShutdown:
		return v1alpha2.InstancePowerOff
	}
	return asked
}

// OperationAllowed says whether a power operation is possible under a policy.
func OperationAllowed(operation v1alpha2.OperationType, run v1alpha2.RunPolicy) bool {
	switch operation {
	case v1alpha2.OperationStart, v1alpha2.OperationStop:
		return run == v1alpha2.Manual || run == v1alpha2.AlwaysOnUnlessStoppedManually
	case v1alpha2.OperationRestart, v1alpha2.OperationEvict, v1alpha2.OperationMigrate:
		return run != v1alpha2.AlwaysOff
	default:
		return true
	}
}

// possiblePhases are those in which a power operation makes sense without force.
var possiblePhases = map[v1alpha2.OperationType][]v1alpha2.MachinePhase{
	v1alpha2.OperationStart: {v1alpha2.MachineStopped, v1alpha2.MachineStopping},
	v1alpha2.OperationStop: {v1alpha2.MachineRunning, v1alpha2.MachineDegraded, v1alpha2.MachineStarting, v1alpha2.MachinePause,
		v1alpha2.MachinePending, v1alpha2.MachineMigrating},
	v1alpha2.OperationRestart: {v1alpha2.MachineRunning, v1alpha2.MachineDegraded, v1alpha2.MachineStarting, v1alpha2.MachinePause,
		v1alpha2.MachineMigrating},
	v1alpha2.OperationEvict:   {v1alpha2.MachineRunning},
	v1alpha2.OperationMigrate: {v1alpha2.MachineRunning},
}

// OperationPossible says whether a power operation makes sense in a phase.
func OperationPossible(operation v1alpha2.OperationType, force bool, phase v1alpha2.MachinePhase) bool {
	hurries := force && phase == v1alpha2.MachineStopping && (operation == v1alpha2.OperationStop || operation == v1alpha2.OperationRestart)
	return hurries || slices.Contains(possiblePhases[operation], phase)
}

// Supersedes says whether a new operation may take the place of an unfinished one.
func Supersedes(next, active v1alpha2.VirtualMachineOperationSpec) bool {
	forced := func(s v1alpha2.VirtualMachineOperationSpec) bool { return s.Force != nil && *s.Force }
	stops := next.Type == v1alpha2.OperationStop || next.Type == v1alpha2.OperationRestart
	switch active.Type {
	case v1alpha2.OperationStart:
		return next.Type == v1alpha2.OperationStop
	case v1alpha2.OperationStop, v1alpha2.OperationRestart:
		return !forced(active) && stops && forced(next)
	case v1alpha2.OperationMigrate, v1alpha2.OperationEvict:
		return stops
	default:
		return false
	}
}

// OperationFinished says whether an operation has reached a final phase.
func OperationFinished(phase v1alpha2.OperationPhase) bool {
	switch phase {
	case v1alpha2.OperationCompleted, v1alpha2.OperationFailed, v1alpha2.OperationSuperseded:
		return true
	default:
		return false
	}
}

// The pause between attempts to run a machine that keeps failing.
const (
	firstRetry   = 5 * time.Second
	longestRetry = 5 * time.Minute
	// provenStable is the uptime after which a crash counts as the first again.
	provenStable = 5 * time.Minute
)

// FailuresAfterExit counts attempts that went wrong one after another.
func FailuresAfterExit(before int32, cause v1alpha1.ExitCause, uptime time.Duration) int32 {
	switch cause {
	case v1alpha1.ExitStartFailed, v1alpha1.ExitCrashed, ExitPodTerminated:
		if uptime >= provenStable {
			return 1
		}
		return before + 1
	case ExitNeverStarted:
		return before
	default:
		return 0
	}
}

// RetryIn is how long the next attempt has to wait after the last one ended; zero
// or less means that it may begin.
func RetryIn(failures int32, ended, now time.Time) time.Duration {
	if failures == 0 {
		return 0
	}
	pause := firstRetry
	for range min(failures-1, 10) {
		pause *= 2
	}
	return ended.Add(min(pause, longestRetry)).Sub(now)
}
