package attempt

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"orlop.dev/orlop/internal/importer"
)

// State is how far the pod of an attempt is.
type State int

// The states of a pod.
const (
	// Missing: there is none.
	Missing State = iota
	// Starting: it exists, its container has not run yet.
	Starting
	// Running: the importer runs.
	Running
	// Succeeded and Failed: it has ended.
	Succeeded
	Failed
)

// Verdict is what a pod says about its attempt.
type Verdict struct {
	State State
	// Waits says what a Starting pod waits for: one word, and a sentence's tail.
	Waits, Why string
	Result     importer.Result
	Failure    importer.Failure
	// At is when it ended; zero if the pod does not say.
	At time.Time
}

// Judge reads a pod; nil means that there is none.
func Judge(pod *corev1.Pod) Verdict {
	if pod == nil {
		return Verdict{State: Missing}
	}
	for _, c := range pod.Status.ContainerStatuses {
		if t := c.State.Terminated; t != nil {
			return ended(pod, t)
		}
		if w := c.State.Waiting; w != nil && pod.Status.Phase == corev1.PodPending {
			return Verdict{State: Starting, Waits: w.Reason, Why: w.Message}
		}
	}
	switch pod.Status.Phase {
	case corev1.PodFailed, corev1.PodSucceeded:
		// Evicted, or the deadline passed before the container ever ran.
		return Verdict{State: Failed, Failure: lost(pod)}
	case corev1.PodRunning:
		return Verdict{State: Running}
	case corev1.PodPending, corev1.PodUnknown:
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			return Verdict{State: Starting, Waits: c.Reason, Why: c.Message}
		}
	}
	return Verdict{State: Starting}
}

func ended(pod *corev1.Pod, t *corev1.ContainerStateTerminated) Verdict {
	at := t.FinishedAt.Time
	result, failure, err := importer.ParseTermination(t.Message)
	switch {
	case err == nil && result != nil && t.ExitCode == 0:
		return Verdict{State: Succeeded, Result: *result, At: at}
	case err == nil && failure != nil:
		return Verdict{State: Failed, Failure: *failure, At: at}
	case pod.Status.Phase == corev1.PodFailed && pod.Status.Reason != "":
		return Verdict{State: Failed, Failure: lost(pod), At: at}
	case t.Reason == "OOMKilled":
		return Verdict{State: Failed, At: at, Failure: internal("Pod %s ran out of memory", pod.Name)}
	}
	return Verdict{State: Failed, At: at, Failure: internal("Pod %s ended with exit code %d and did not say why", pod.Name, t.ExitCode)}
}

func lost(pod *corev1.Pod) importer.Failure {
	why := pod.Status.Message
	if why == "" {
		why = pod.Status.Reason
	}
	if why == "" {
		why = "it ended without a word"
	}
	return internal("Pod %s was stopped: %s", pod.Name, why)
}

func internal(format string, args ...any) importer.Failure {
	return importer.Failure{Reason: importer.ReasonInternal, Message: fmt.Sprintf(format, args...), Retry: true}
}
