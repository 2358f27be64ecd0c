package operation

import (
	"strings"
	"time"

	"orlop.dev/orlop/internal/steps"
)

// A finished operation is kept as a record for a day, and of one machine's no more
// than the newest ten.
const (
	keptFor = 24 * time.Hour
	keptOf  = 10
)

// retention removes a finished operation when its time is over or newer ones need
// its place.
func retention(w *world) (steps.Outcome, steps.Act) {
	left := w.operation.CreationTimestamp.Add(keptFor).Sub(w.now)
	if left <= 0 || newer(w) >= keptOf {
		return steps.Outcome{}, steps.Delete{Object: w.operation}
	}
	return steps.Outcome{}.Within(left), nil
}

// newer counts the finished operations of the same machine that came later; the
// names decide within one second.
func newer(w *world) int {
	n := 0
	for i := range w.finished {
		o := &w.finished[i]
		order := o.CreationTimestamp.Compare(w.operation.CreationTimestamp.Time)
		if order > 0 || order == 0 && strings.Compare(o.Name, w.operation.Name) > 0 {
			n++
		}
	}
	return n
}
