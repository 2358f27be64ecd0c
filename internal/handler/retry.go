package handler

import "time"

// retry spaces out the attempts at one thing.
type retry struct {
	first, most time.Duration
	failures    int
	next        time.Time
}

// due says whether it is time for the next attempt.
func (r *retry) due(now time.Time) bool { return !now.Before(r.next) }

// failed puts the next attempt off, twice as long as the time before.
func (r *retry) failed(now time.Time) {
	wait := r.first << min(r.failures, 20)
	if wait > r.most || wait <= 0 {
		wait = r.most
	}
	r.failures++
	r.next = now.Add(wait)
}

// succeeded forgets past failures.
func (r *retry) succeeded() { r.failures, r.next = 0, time.Time{} }

// earliest returns the sooner of two times, where zero means never.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
