package migration

import (
	"time"

	"orlop.dev/orlop/internal/qmp"
)

// progress judges whether a copy converges. Within one pass over the memory what
// remains always falls; what counts is whether a pass begins with less than any before.
type progress struct {
	pass int32
	// low is the smallest remainder that a pass has begun with, floor the smallest of
	// the present pass, in bytes.
	low, floor int64
	// record is true while the present pass is the one that began lowest.
	record bool
	// at is when there was progress last.
	at time.Time
	// reported is when progress was reported last.
	reported time.Time
}

// see takes in what QEMU says.
func (p *progress) see(now time.Time, q qmp.Migration) {
	remaining := q.RAM.Remaining
	if q.RAM.Syncs != p.pass || p.at.IsZero() {
		p.record = p.at.IsZero() || p.pass <= 1 || remaining < p.low-p.low/16 // a sixteenth is what measuring late makes
		p.pass, p.floor = q.RAM.Syncs, remaining
		if p.record {
			p.low, p.at = remaining, now
		}
		return
	}
	if p.record && remaining < p.floor {
		p.floor, p.at = remaining, now
	}
}

// stalled is for how long there has been no progress.
func (p *progress) stalled(now time.Time) time.Duration {
	if p.at.IsZero() {
		return 0
	}
	return now.Sub(p.at)
}
