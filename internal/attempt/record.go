package attempt

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"orlop.dev/orlop/internal/importer"
)

// Annotation holds the Record of an object, as JSON.
const Annotation = "internal.virtualization.deckhouse.io/attempt"

// Limit is how many attempts in a row may fail before the work is given up.
const Limit = 20

// The pause before another attempt grows threefold from the first to the longest:
// about 17 minutes for all of them.
const (
	firstPause   = time.Second
	longestPause = time.Minute
	growth       = 3
)

// Record is what is remembered about the work for one object.
type Record struct {
	// Work identifies what is wanted (Digest of the source); when it changes, the work begins anew.
	Work string `json:"work"`
	// Number of the current attempt, 1 for the first one ever; it never falls.
	Number int `json:"number"`
	// Failures is how many attempts at this work have failed.
	Failures int `json:"failures,omitempty"`
	// Failure is how the last attempt ended, if it failed.
	Failure *importer.Failure `json:"failure,omitempty"`
	// FailedAt is when it did; nil while an attempt is under way.
	FailedAt *time.Time `json:"failedAt,omitempty"`
	// Result is the outcome of the attempt that succeeded.
	Result *importer.Result `json:"result,omitempty"`
}

// Parse reads an annotation. One that is missing or damaged is an empty record:
// the work begins anew, which is always safe before the object was ready.
func Parse(annotation string) Record {
	var r Record
	if err := json.Unmarshal([]byte(annotation), &r); err != nil || r.Number < 0 {
		return Record{}
	}
	return r
}

// String is the annotation's value.
func (r Record) String() string {
	raw, err := json.Marshal(r)
	if err != nil {
		return "" // plain fields only: cannot fail
	}
	return string(raw)
}

// Digest identifies work by everything that defines it.
func Digest(parts ...any) string {
	h := sha256.New()
	for _, p := range parts {
		raw, err := json.Marshal(p)
		if err != nil {
			raw = fmt.Appendf(nil, "%#v", p)
		}
		_, _ = h.Write(append(raw, 0)) // a hash never fails
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}

// Begin is the record of the first attempt at some work.
func (r Record) Begin(work string) Record {
	return Record{Work: work, Number: r.Number + 1}
}

// Again is the record of the next attempt at the same work. The last failure is
// kept for readers.
func (r Record) Again() Record {
	return Record{Work: r.Work, Number: r.Number + 1, Failures: r.Failures, Failure: r.Failure}
}

// Succeeded is the record once the current attempt has succeeded.
func (r Record) Succeeded(result importer.Result) Record {
	return Record{Work: r.Work, Number: r.Number, Result: &result}
}

// Failed is the record once the current attempt has failed.
func (r Record) Failed(failure importer.Failure, at time.Time) Record {
	at = at.UTC().Truncate(time.Second)
	return Record{Work: r.Work, Number: r.Number, Failures: r.Failures + 1,
		Failure: &importer.Failure{Reason: failure.Reason, Message: failure.Message, Retry: failure.Retry}, FailedAt: &at}
}

// GivenUp reports that no further attempt will be made at this work.
func (r Record) GivenUp() bool {
	return r.FailedAt != nil && (!r.Failure.Retry || r.Failures >= Limit)
}

// Pause is how long to wait after so many failures in a row.
func Pause(failures int) time.Duration {
	pause := firstPause
	for range failures - 1 {
		pause = min(pause*growth, longestPause)
	}
	return pause
}
