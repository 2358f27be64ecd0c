package importer

import (
	"encoding/json"
	"io"
	"net/http"
	"sync"
	"time"
)

// speedWindow is over how long the current speed is measured.
const speedWindow = 2 * time.Second

// share is which part of the whole run a phase is, in percent.
type share struct{ from, to float64 }

// Meter knows how far a run has come. Its methods may be called from anywhere.
type Meter struct {
	now func() time.Time

	mutex    sync.Mutex
	progress Progress
	share    share
	began    time.Time
	// mark is a recent point the current speed is measured from.
	mark      time.Time
	markBytes int64
}

// NewMeter returns a meter that tells time by now.
func NewMeter(now func() time.Time) *Meter {
	return &Meter{now: now, progress: Progress{Phase: PhaseConnecting}}
}

// Progress returns a copy of what is known.
func (m *Meter) Progress() Progress {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	return m.progress
}

// Handler serves ProgressPath and /healthz.
func (m *Meter) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+ProgressPath, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(m.Progress()) // the client has gone: nothing to do
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	return mux
}

// begin enters a phase; total is in bytes, 0 if unknown.
func (m *Meter) begin(p Phase, s share, total int64) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	now := m.now()
	m.share, m.began, m.mark, m.markBytes = s, now, now, 0
	m.progress.Phase, m.progress.BytesDone, m.progress.BytesTotal = p, 0, total
	m.progress.SpeedBytes, m.progress.AverageSpeedBytes = 0, 0
	if total <= 0 && s.from == 0 {
		m.progress.Percent = -1
		return
	}
	m.progress.Percent = max(m.progress.Percent, s.from)
}

// end enters the last phase.
func (m *Meter) end(p Phase) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	m.progress.Phase = p
	if p == PhaseDone {
		m.progress.Percent = 100
	}
}

// add counts bytes of the current phase.
func (m *Meter) add(n int64) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	p := &m.progress
	p.BytesDone += n
	now := m.now()
	if since := now.Sub(m.began).Seconds(); since > 0 {
		p.AverageSpeedBytes = int64(float64(p.BytesDone) / since)
	}
	if since := now.Sub(m.mark); since >= speedWindow {
		p.SpeedBytes = int64(float64(p.BytesDone-m.markBytes) / since.Seconds())
		m.mark, m.markBytes = now, p.BytesDone
	} else if p.SpeedBytes == 0 {
		p.SpeedBytes = p.AverageSpeedBytes
	}
	if p.BytesTotal > 0 {
		m.reach(float64(p.BytesDone) / float64(p.BytesTotal))
	}
}

// fraction sets how much of the current phase is done, from 0 to 1.
func (m *Meter) fraction(f float64) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	m.reach(f)
}

func (m *Meter) reach(f float64) {
	f = min(1, max(0, f))
	m.progress.Percent = max(m.progress.Percent, m.share.from+f*(m.share.to-m.share.from))
}

// counting counts what is read through it.
type counting struct {
	io.Reader

	count func(n int64)
}

func (c *counting) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	if n > 0 {
		c.count(int64(n))
	}
	return n, err
}
