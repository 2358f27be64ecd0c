package attempt

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orlop.dev/orlop/internal/importer"
)

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

func earlier(d time.Duration) *time.Time {
	t := noon.Add(-d)
	return &t
}

func TestNext(t *testing.T) {
	again := importer.Failure{Reason: importer.ReasonNotFound, Message: "gone", Retry: true}
	final := importer.Failure{Reason: importer.ReasonChecksumMismatch, Message: "wrong"}
	result := importer.Result{Format: "qcow2", VirtualSize: 1}
	cases := map[string]struct {
		record  Record
		verdict Verdict
		want    Step
	}{
		"new work is remembered before anything is done": {
			want: Step{Move: Remember, Record: Record{Work: "w", Number: 1}},
		},
		"changed work gets a new number, so that an old pod cannot be taken for the new one": {
			record:  Record{Work: "old", Number: 4, Failures: 3, Failure: &again},
			verdict: Verdict{State: Succeeded, Result: result},
			want:    Step{Move: Remember, Record: Record{Work: "w", Number: 5}, Verdict: Verdict{State: Succeeded, Result: result}},
		},
		"the pod of a remembered attempt is created": {
			record: Record{Work: "w", Number: 2},
			want:   Step{Move: Start, Record: Record{Work: "w", Number: 2}},
		},
		"a running pod is watched": {
			record:  Record{Work: "w", Number: 2},
			verdict: Verdict{State: Running},
			want:    Step{Move: Watch, Record: Record{Work: "w", Number: 2}, Verdict: Verdict{State: Running}},
		},
		"success is remembered before the pod may go": {
			record:  Record{Work: "w", Number: 2, Failures: 1, Failure: &again},
			verdict: Verdict{State: Succeeded, Result: result},
			want:    Step{Move: Remember, Record: Record{Work: "w", Number: 2, Result: &result}, Verdict: Verdict{State: Succeeded, Result: result}},
		},
		"a failure is remembered with its time": {
			record:  Record{Work: "w", Number: 2, Failures: 1},
			verdict: Verdict{State: Failed, Failure: again, At: *earlier(time.Second)},
			want: Step{Move: Remember, Record: Record{Work: "w", Number: 2, Failures: 2, Failure: &again, FailedAt: earlier(time.Second)},
				Verdict: Verdict{State: Failed, Failure: again, At: *earlier(time.Second)}},
		},
		"a failure that may pass is tried again after a pause": {
			record: Record{Work: "w", Number: 2, Failures: 2, Failure: &again, FailedAt: earlier(time.Second)},
			want:   Step{Move: Pausing, Record: Record{Work: "w", Number: 2, Failures: 2, Failure: &again, FailedAt: earlier(time.Second)}, Wait: 2 * time.Second},
		},
		"after the pause comes a new attempt that remembers the old failure": {
			record: Record{Work: "w", Number: 2, Failures: 2, Failure: &again, FailedAt: earlier(3 * time.Second)},
			want:   Step{Move: Remember, Record: Record{Work: "w", Number: 3, Failures: 2, Failure: &again}},
		},
		"a failure that repeats for ever is given up at once": {
			record: Record{Work: "w", Number: 1, Failures: 1, Failure: &final, FailedAt: earlier(time.Hour)},
			want:   Step{Move: GiveUp, Record: Record{Work: "w", Number: 1, Failures: 1, Failure: &final, FailedAt: earlier(time.Hour)}},
		},
		"after twenty failures it is given up": {
			record: Record{Work: "w", Number: 20, Failures: 20, Failure: &again, FailedAt: earlier(time.Hour)},
			want:   Step{Move: GiveUp, Record: Record{Work: "w", Number: 20, Failures: 20, Failure: &again, FailedAt: earlier(time.Hour)}},
		},
		"finished work stays finished without a pod": {
			record: Record{Work: "w", Number: 1, Result: &result},
			want:   Step{Move: Finished, Record: Record{Work: "w", Number: 1, Result: &result}},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got := Next(c.record, "w", c.verdict, noon)
			if diff := cmp.Diff(c.want, got, cmpopts.IgnoreUnexported(importer.Failure{})); diff != "" {
				t.Error(diff)
			}
			if back := Parse(got.Record.String()); !cmp.Equal(got.Record, back, cmpopts.IgnoreUnexported(importer.Failure{})) {
				t.Errorf("record does not survive the annotation: %v", back)
			}
		})
	}
}

func TestPause(t *testing.T) {
	var total time.Duration
	for n := 1; n < Limit; n++ {
		total += Pause(n)
	}
	if total < 15*time.Minute || total > 18*time.Minute {
		t.Errorf("all pauses take %s, want about 17 minutes", total)
	}
}

func TestJudge(t *testing.T) {
	container := func(s corev1.ContainerState) []corev1.ContainerStatus { return []corev1.ContainerStatus{{State: s}} }
	end := metav1.NewTime(noon)
	cases := map[string]struct {
		pod  *corev1.Pod
		want Verdict
	}{
		"no pod": {nil, Verdict{State: Missing}},
		"a pod no node has room for says so": {
			&corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodPending, Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: "Unschedulable", Message: "no room"}}}},
			Verdict{State: Starting, Waits: "Unschedulable", Why: "no room"},
		},
		"a container image that cannot be pulled": {
			&corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodPending, ContainerStatuses: container(corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ErrImagePull", Message: "no such host"}})}},
			Verdict{State: Starting, Waits: "ErrImagePull", Why: "no such host"},
		},
		"running": {&corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: container(corev1.ContainerState{Running: &corev1.ContainerStateRunning{}})}}, Verdict{State: Running}},
		"a result": {
			&corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodSucceeded, ContainerStatuses: container(corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Message: `{"format":"iso","virtualSize":7,"storedSize":5}`, FinishedAt: end}})}},
			Verdict{State: Succeeded, Result: importer.Result{Format: "iso", VirtualSize: 7, StoredSize: 5}, At: end.Time},
		},
		"a failure with its own words": {
			&corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodFailed, ContainerStatuses: container(corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 1, Message: `{"reason":"NotFound","message":"404","retry":true}`, FinishedAt: end}})}},
			Verdict{State: Failed, Failure: importer.Failure{Reason: importer.ReasonNotFound, Message: "404", Retry: true}, At: end.Time},
		},
		"killed before a word": {
			&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Status: corev1.PodStatus{Phase: corev1.PodFailed, ContainerStatuses: container(corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 137, Reason: "OOMKilled", FinishedAt: end}})}},
			Verdict{State: Failed, Failure: internal("Pod p ran out of memory"), At: end.Time},
		},
		"evicted": {
			&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Status: corev1.PodStatus{Phase: corev1.PodFailed, Reason: "Evicted", Message: "The node was low on disk"}},
			Verdict{State: Failed, Failure: internal("Pod p was stopped: The node was low on disk")},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, Judge(c.pod), cmpopts.IgnoreUnexported(importer.Failure{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}
