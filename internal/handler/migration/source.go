package migration

import (
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/qmp"
)

// source decides at the end that the guest is to leave.
//
//	(endpoint known) ─► Transferring ─► Switching ─► Completed ─► told ─► process ended
//	                        └───────────────┴─► Failed ─► guest runs on ─► told
func source(m *memory, now time.Time) (act, time.Time) {
	sourceReport(m, now)
	if final(m.report.Phase) {
		return sourceEnd(m)
	}
	if !m.living() || m.view.Order.Endpoint == "" && m.report.Phase == "" && !m.view.Order.Abort {
		return "", time.Time{}
	}
	if m.qemu == nil {
		return actObserve, time.Time{}
	}
	switch m.qemu.migrate.Status {
	case qmp.MigrationSetup, qmp.MigrationActive, qmp.MigrationWaitUnplug, qmp.MigrationDevice:
		if m.cancelling != "" {
			return actCancel, time.Time{}
		}
		return "", now.Add(tempo(m))
	case qmp.MigrationPreSwitchover:
		if m.cancelling != "" {
			return actCancel, time.Time{}
		}
		return actContinue, time.Time{}
	case qmp.MigrationCancelling:
		return "", now.Add(haste)
	default: // there is none under way
		if m.qemu.run == qmp.StateFinishMigrate {
			return "", now.Add(haste) // one is about to say how it ended
		}
	}
	if m.report.Phase != v1alpha1.MigrationTransferring || !m.accepted(v1alpha1.MigrationTransferring) {
		return "", time.Time{} // it is written before it is done
	}
	if !m.listening {
		return actListen, time.Time{}
	}
	if m.issued {
		return "", now.Add(haste)
	}
	return actSend, time.Time{}
}

// tempo is how soon a migration is looked at again without a reason.
func tempo(m *memory) time.Duration {
	if m.qemu.migrate.Status == qmp.MigrationDevice {
		return haste
	}
	return pace
}

// sourceEnd is what is left to do once the report is final.
func sourceEnd(m *memory) (act, time.Time) {
	completed := m.report.Phase == v1alpha1.MigrationCompleted
	if !completed && !m.told && m.living() && m.view.Launcher.PauseReason != "Migrated" {
		if m.qemu == nil {
			return actObserve, time.Time{}
		}
		if strandedBy(m.qemu) {
			return actResume, time.Time{}
		}
	}
	switch {
	case !m.accepted(m.report.Phase):
		return "", time.Time{} // nobody is told what is not on record
	case !m.told && m.view.Order.Endpoint != "" && (m.living() || m.goodbyes < goodbyes):
		return actTell, time.Time{}
	case completed && m.told && m.living():
		return actEnd, time.Time{}
	default:
		return "", time.Time{}
	}
}

// strandedBy says whether a migration that has failed left the guest standing. QEMU
// lets it run on by itself, unless it could not take its disks back at once.
func strandedBy(q *observed) bool {
	ended := q.migrate.Status == qmp.MigrationFailed || q.migrate.Status == qmp.MigrationCancelled
	return ended && (q.run == qmp.StatePaused || q.run == qmp.StateFinishMigrate || q.run == qmp.StatePostMigrate)
}

// sourceReport brings the report up to date.
func sourceReport(m *memory, now time.Time) {
	if final(m.report.Phase) {
		return
	}
	if x := m.view.Launcher.Exit; x != nil {
		if x.Cause == v1alpha1.ExitMigrated && m.report.Phase != "" {
			m.completed(now)
			return
		}
		m.fail(now, ReasonError, fmt.Sprintf("QEMU has ended: %s %s", x.Cause, x.Message))
		return
	}
	if m.view.Launcher.PauseReason == "Migrated" && m.qemu == nil && m.failures[actObserve] > 3 {
		m.completed(now) // it does not answer us, but its launcher knows
		return
	}
	if m.refused != "" {
		m.fail(now, ReasonIncompatible, m.refused)
		return
	}
	if m.qemu == nil {
		return
	}
	m.judge(now)
	switch q := m.qemu.migrate; q.Status {
	case qmp.MigrationCompleted:
		if m.qemu.run != qmp.StatePostMigrate {
			// It is the guest's arrival in this process that has completed.
			m.idle(now, q)
			return
		}
		m.report.DowntimeMilliseconds = q.Downtime
		m.numbers(now, q)
		m.completed(now)
	case qmp.MigrationSetup, qmp.MigrationActive, qmp.MigrationWaitUnplug, qmp.MigrationCancelling:
		m.begun(now)
		if m.report.Phase != v1alpha1.MigrationSwitching {
			m.report.Phase = v1alpha1.MigrationTransferring
		}
		if now.Sub(m.progress.reported) >= reportEvery {
			m.progress.reported = now
			m.numbers(now, q)
		}
	case qmp.MigrationPreSwitchover, qmp.MigrationDevice:
		m.begun(now)
		if m.report.Phase != v1alpha1.MigrationSwitching {
			m.report.Phase = v1alpha1.MigrationSwitching
			m.numbers(now, q)
		}
	default:
		m.idle(now, q)
	}
}

// idle is a QEMU without a migration under way: ours has failed, or is to begin.
func (m *memory) idle(now time.Time, q qmp.Migration) {
	if m.qemu.run == qmp.StateFinishMigrate {
		return
	}
	over := q.Status == qmp.MigrationFailed || q.Status == qmp.MigrationCancelled
	switch {
	case over && (m.issued || m.adopted && m.report.Phase != ""):
		reason, message := m.cause(q)
		m.fail(now, reason, message)
	case m.issued:
		// Ordered, and not begun yet.
	case m.view.Order.Abort:
		m.fail(now, ReasonAborted, "The migration was called off")
	case m.view.Order.Endpoint != "":
		m.begun(now)
		m.report.Phase = v1alpha1.MigrationTransferring
	}
}

func (m *memory) begun(now time.Time) {
	if m.report.StartTime == nil {
		t := metav1.NewTime(now.Truncate(time.Second))
		m.report.StartTime = &t
	}
}

func (m *memory) completed(now time.Time) {
	m.begun(now)
	m.report.Phase, m.report.Reason, m.report.Message = v1alpha1.MigrationCompleted, "", ""
	m.report.NotConverging = false
	m.end(now)
}

// cause says why a migration has failed.
func (m *memory) cause(q qmp.Migration) (reason, message string) {
	switch {
	case m.cancelling != "":
		return m.cancelling, m.cancelMessage
	case m.broken != "":
		return ReasonConnectionLost, m.broken
	case !m.issued:
		return ReasonConnectionLost, "The handler of the source was restarted while it relayed the memory"
	case q.ErrorDescription != "":
		return ReasonError, q.ErrorDescription
	default:
		return ReasonError, "QEMU gives no reason"
	}
}

// numbers copies QEMU's progress into the report.
func (m *memory) numbers(now time.Time, q qmp.Migration) {
	if q.RAM.Total == 0 {
		return // not measured yet, or not any more
	}
	m.report.TotalBytes, m.report.RemainingBytes, m.report.TransferredBytes = q.RAM.Total, q.RAM.Remaining, q.RAM.Transferred
	m.report.Iteration, m.report.ThrottlePercent = q.RAM.Syncs, q.Throttle
	throttled := !m.view.Order.AutoConverge || q.Throttle >= throttleMost
	m.report.NotConverging = throttled && m.progress.stalled(now) >= patience
}

// judge decides whether a migration under way is to be called off.
func (m *memory) judge(now time.Time) {
	q, o := m.qemu.migrate, m.view.Order
	switch q.Status {
	case qmp.MigrationSetup, qmp.MigrationActive, qmp.MigrationWaitUnplug:
		m.progress.see(now, q)
	case qmp.MigrationPreSwitchover, qmp.MigrationDevice:
	default:
		return
	}
	seconds := func(s int64) time.Duration { return time.Duration(s) * time.Second }
	switch {
	case m.cancelling != "":
	case o.Abort:
		m.cancelling, m.cancelMessage = ReasonAborted, "The migration was called off"
	case o.CompletionTimeoutSeconds > 0 && m.report.StartTime != nil && now.Sub(m.report.StartTime.Time) > seconds(o.CompletionTimeoutSeconds):
		m.cancelling, m.cancelMessage = ReasonNotConverging, fmt.Sprintf("The migration was not finished within %d s", o.CompletionTimeoutSeconds)
	case o.ProgressTimeoutSeconds > 0 && m.progress.stalled(now) > seconds(o.ProgressTimeoutSeconds):
		m.cancelling, m.cancelMessage = ReasonNotConverging,
			fmt.Sprintf("The memory left to copy has not become less for %d s", o.ProgressTimeoutSeconds)
	}
}
