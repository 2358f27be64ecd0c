package attempt

import "time"

// Move is what is to be done about some work.
type Move int

// The moves.
const (
	// Remember: Record is to be patched, nothing else may be done before.
	Remember Move = iota
	// Start: the pod of the current attempt is to be created.
	Start
	// Watch: the pod is under way.
	Watch
	// Pausing: the last attempt failed; Wait says for how long.
	Pausing
	// GiveUp: the work has failed for good, until it is changed.
	GiveUp
	// Finished: the work is done, Record has the result.
	Finished
)

// Step is the next move.
type Step struct {
	Move Move
	// Record to be patched when Move is Remember, else the one in force.
	Record  Record
	Verdict Verdict
	Wait    time.Duration
}

// Next says what to do now about the given work. verdict is about the pod of the
// record's current attempt.
func Next(r Record, work string, verdict Verdict, now time.Time) Step {
	step := Step{Record: r, Verdict: verdict}
	switch {
	case r.Result != nil:
		// Whatever is wanted now: what is finished may be in use already.
		step.Move = Finished
	case r.Work != work:
		step.Record = r.Begin(work)
	case r.GivenUp():
		step.Move = GiveUp
	case r.FailedAt != nil:
		if left := r.FailedAt.Add(Pause(r.Failures)).Sub(now); left > 0 {
			step.Move, step.Wait = Pausing, left
			break
		}
		step.Record = r.Again()
	case verdict.State == Succeeded:
		step.Record = r.Succeeded(verdict.Result)
	case verdict.State == Failed:
		at := verdict.At
		if at.IsZero() {
			at = now
		}
		step.Record = r.Failed(verdict.Failure, at)
	case verdict.State == Missing:
		step.Move = Start
	default:
		step.Move = Watch
	}
	return step
}
