package migration

import (
	"fmt"
	"time"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/qmp"
)

// target decides at the end that the guest is to reach.
//
//	Preparing ─► Ready ─► memory complete ─► the source's word ─► guest runs: Completed
//	     └─────────┴─────────────┴─► the source's word, or called off: Failed, killed
func target(m *memory, now time.Time) (act, time.Time) {
	targetReport(m, now)
	switch {
	case m.report.Phase == v1alpha1.MigrationCompleted, !m.living():
		return "", time.Time{}
	case m.report.Phase == v1alpha1.MigrationFailed:
		return actEnd, time.Time{}
	case m.calledOff() && !m.cut:
		// Before the question whether the memory is complete: the answer must still be
		// true when it is acted upon.
		return actCut, time.Time{}
	case m.qemu == nil:
		return actObserve, time.Time{}
	}
	switch m.qemu.migrate.Status {
	case qmp.MigrationNone:
		return actReceive, time.Time{}
	case qmp.MigrationCompleted:
		if m.word() {
			return actRun, time.Time{}
		}
		return "", time.Time{}
	default:
		return "", now.Add(pace)
	}
}

// word says whether the source's QEMU has reported `completed`.
func (m *memory) word() bool { return m.sourceCompleted || m.view.Order.SourceCompleted }

// calledOff says whether the controller gives this target up.
func (m *memory) calledOff() bool { return m.view.Order.Abort && !m.word() }

// targetReport brings the report up to date.
func targetReport(m *memory, now time.Time) {
	l := m.view.Launcher
	switch {
	case final(m.report.Phase):
	case l.Exit != nil && l.StartTime == nil:
		m.fail(now, ReasonTargetDied, fmt.Sprintf("QEMU has ended before the guest ran: %s %s", l.Exit.Cause, l.Exit.Message))
	case l.StartTime != nil:
		m.report.Phase, m.report.Message = v1alpha1.MigrationCompleted, ""
		m.end(now)
	case m.word():
		// Whatever else is heard, this guest is the only one.
	case m.sourceFailed != "":
		m.fail(now, ReasonError, "The source has given up: "+m.sourceFailed)
	case m.refused != "":
		m.fail(now, ReasonIncompatible, m.refused)
	case m.qemu == nil:
		if m.report.Phase == "" {
			m.report.Phase = v1alpha1.MigrationPreparing
		}
	case m.calledOff() && m.cut && m.qemu.migrate.Status != qmp.MigrationCompleted:
		m.fail(now, ReasonAborted, "The migration was called off")
	case m.qemu.migrate.Status == qmp.MigrationFailed:
		m.fail(now, ReasonError, "The guest's state could not be loaded: "+m.qemu.migrate.ErrorDescription)
	case m.qemu.migrate.Status == qmp.MigrationNone:
		m.report.Phase = v1alpha1.MigrationPreparing
	default:
		m.report.Phase, m.report.Endpoint = v1alpha1.MigrationReady, m.endpoint
	}
}
