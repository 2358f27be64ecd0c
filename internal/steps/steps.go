// Package steps is the reconciler kit: observe → decide → act → status → patch.
//
// A step is a pure function of the observed world. It owns one condition type,
// returns the outcome for it and at most one act. Decide evaluates every step,
// Perform executes the acts, Conditions turns outcomes into the conditions the
// controller owns, Transitions finds the events to emit, PatchStatus writes the
// result once.
//
// Steps never see each other and never read a condition their controller wrote
// earlier: the order in which they are listed must not matter. There is no
// registry and no shared state here, and there must never be.
package steps

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ReasonError is the reason of a condition whose act went wrong; backoff retries it.
const ReasonError = "Error"

// State is how far a step has come.
type State int

// The states. None means that the step has no condition to show at present.
const (
	None State = iota
	DoneState
	WaitingState
	FailedState
)

// Outcome is what a step found.
type Outcome struct {
	State   State
	Reason  string
	Message string
	// Status is the condition's status; by default True when done, else False.
	Status metav1.ConditionStatus
	// After asks for another pass after this time, for deadlines no watch announces.
	After time.Duration
}

// Done says that nothing is left to do.
func Done[R ~string](reason R, format string, args ...any) Outcome {
	return Outcome{State: DoneState, Status: metav1.ConditionTrue, Reason: string(reason), Message: sentence(format, args)}
}

// Waiting says that someone else must finish first; a watch brings us back.
func Waiting[R ~string](reason R, format string, args ...any) Outcome {
	return Outcome{State: WaitingState, Status: metav1.ConditionFalse, Reason: string(reason), Message: sentence(format, args)}
}

// Failed says that the user must act; the message tells what to do.
func Failed[R ~string](reason R, format string, args ...any) Outcome {
	return Outcome{State: FailedState, Status: metav1.ConditionFalse, Reason: string(reason), Message: sentence(format, args)}
}

// Absent says that the condition does not apply now and is removed.
func Absent() Outcome { return Outcome{} }

// As overrides the status, for conditions whose True is not the good state.
func (o Outcome) As(status metav1.ConditionStatus) Outcome {
	o.Status = status
	return o
}

// Within asks for another pass after d.
func (o Outcome) Within(d time.Duration) Outcome {
	o.After = d
	return o
}

func sentence(format string, args []any) string {
	if len(args) == 0 {
		return format
	}
	return fmt.Sprintf(format, args...)
}

// Step is one pure decision about the world W.
type Step[W any] struct {
	// Condition is the type this step owns; empty for a step that only acts.
	Condition string
	Decide    func(W) (Outcome, Act)
}

// Finding is the outcome of one step, and its act or nil.
type Finding struct {
	Condition string
	Outcome   Outcome
	Act       Act
}

// Decision is what all steps found, in the order of the steps.
type Decision []Finding

// Decide evaluates every step.
func Decide[W any](w W, all ...Step[W]) Decision {
	d := make(Decision, 0, len(all))
	for _, s := range all {
		outcome, act := s.Decide(w)
		d = append(d, Finding{Condition: s.Condition, Outcome: outcome, Act: act})
	}
	return d
}

// Outcome returns the outcome of the step that owns a condition type.
func (d Decision) Outcome(condition string) Outcome {
	for _, f := range d {
		if f.Condition == condition {
			return f.Outcome
		}
	}
	return Outcome{}
}

// After is the earliest wanted next pass, or 0.
func (d Decision) After() time.Duration {
	var least time.Duration
	for _, f := range d {
		if a := f.Outcome.After; a > 0 && (least == 0 || a < least) {
			least = a
		}
	}
	return least
}

// Conditions replaces the conditions owned by the steps of d, leaves all others as
// they are, and sorts them by type, so that the order of the steps never shows. A
// failed act turns its condition Unknown, unless it failed by a conflict: then the
// outcome stands and another pass will tell.
func Conditions(old []metav1.Condition, d Decision, errs Errors, generation int64, now time.Time) []metav1.Condition {
	result := slices.DeleteFunc(slices.Clone(old), func(c metav1.Condition) bool {
		return slices.ContainsFunc(d, func(f Finding) bool { return f.Condition == c.Type })
	})
	for i, f := range d {
		o := f.Outcome
		if f.Condition == "" || o.State == None {
			continue
		}
		c := metav1.Condition{Type: f.Condition, Status: o.Status, Reason: o.Reason, Message: o.Message,
			ObservedGeneration: generation, LastTransitionTime: metav1.NewTime(now.Truncate(time.Second))}
		if err := errs[i]; err != nil && !transient(err) {
			c.Status, c.Reason, c.Message = metav1.ConditionUnknown, ReasonError, err.Error()
		}
		if was := meta.FindStatusCondition(old, c.Type); was != nil && was.Status == c.Status {
			c.LastTransitionTime = was.LastTransitionTime
		}
		result = append(result, c)
	}
	slices.SortFunc(result, func(a, b metav1.Condition) int { return strings.Compare(a.Type, b.Type) })
	return result
}
