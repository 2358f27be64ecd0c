package handler

import (
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/wire"
)

// statusOf is what the Instance's status should say. A launcher that cannot be
// asked changes nothing but the message.
func statusOf(m *memory, now time.Time) v1alpha1.InstanceStatus {
	s := *m.status.DeepCopy()
	if order := m.instance.Spec.Migration; order != nil && m.migration != nil && m.migration.ID == order.ID {
		s.Migration = m.migration.DeepCopy()
	}
	if s.Phase == v1alpha1.InstanceStopped {
		return s // the rest is final
	}
	s.Message = message(m)
	switch {
	case m.fresh():
		if m.wanted() {
			s.Phase, s.PodUID = v1alpha1.InstanceStarting, m.instance.Spec.PodUID
			s.ObservedGeneration = m.instance.Generation
		}
	case m.started():
		report(&s, m, now)
	}
	return s
}

// report copies the launcher's word.
func report(s *v1alpha1.InstanceStatus, m *memory, now time.Time) {
	l := m.launcher
	s.PodUID = m.instance.Spec.PodUID
	s.ObservedGeneration = m.instance.Generation
	s.QEMUVersion = l.QEMUVersion
	s.Disks = diskStatuses(m)
	s.Guest = guestStatus(m)
	if l.StartTime != nil {
		t := metav1.NewTime(l.StartTime.Truncate(time.Second)) // what JSON keeps of it
		s.StartTime = &t
	}
	if l.Exit != nil {
		s.Phase, s.PauseReason, s.Exit, s.Message = v1alpha1.InstanceStopped, "", l.Exit.DeepCopy(), ""
		return
	}
	if l.Phase == v1alpha1.InstanceRunning && s.Phase == v1alpha1.InstancePaused && now.Before(m.resumedAt.Add(settle)) {
		return // not to be believed yet
	}
	s.Phase, s.PauseReason = phase(l), l.PauseReason
}

func phase(l *wire.State) v1alpha1.InstancePhase {
	if l.Phase == v1alpha1.InstancePending {
		return v1alpha1.InstanceStarting
	}
	return l.Phase
}

// message says what the handler waits for, or what keeps going wrong.
func message(m *memory) string {
	in := m.instance
	switch {
	case m.launcher != nil && !m.fresh() && !m.started():
		return fmt.Sprintf("Pod %s runs another instance", in.Name)
	case m.fresh() && m.status.Phase != v1alpha1.InstancePending && m.status.Phase != v1alpha1.InstanceStarting:
		return fmt.Sprintf("The launcher of pod %s knows of no QEMU any more; waiting for the pod to end", in.Name)
	}
	for _, a := range []act{actStart, actWire, actConnect} {
		if p := m.problems[a]; p != "" && m.retries[a].failures > patience(a) {
			return p
		}
	}
	return ""
}

// patience is how many failures of an act go unmentioned: a pod that is being
// created cannot be reached for a while, and nobody needs to know.
func patience(a act) int {
	if a == actConnect {
		return 10
	}
	return quiet
}
