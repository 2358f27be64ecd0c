package steps

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var (
	then = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	now  = then.Add(time.Hour)
)

func conflict() error {
	return apierrors.NewConflict(schema.GroupResource{Resource: "pods"}, "a", errors.New("changed"))
}

func condition(kind string, status metav1.ConditionStatus, reason string, at time.Time) metav1.Condition {
	return metav1.Condition{Type: kind, Status: status, Reason: reason, LastTransitionTime: metav1.NewTime(at), ObservedGeneration: 2}
}

func TestConditions(t *testing.T) {
	cases := map[string]struct {
		old  []metav1.Condition
		d    Decision
		errs Errors
		want []metav1.Condition
	}{
		"a status that stays keeps its time, also under another reason": {
			old:  []metav1.Condition{condition("A", metav1.ConditionFalse, "Old", then)},
			d:    Decision{{Condition: "A", Outcome: Waiting("New", "")}},
			want: []metav1.Condition{condition("A", metav1.ConditionFalse, "New", then)},
		},
		"a status that changes gets the time of the pass": {
			old:  []metav1.Condition{condition("A", metav1.ConditionFalse, "Old", then)},
			d:    Decision{{Condition: "A", Outcome: Done("Ready", "")}},
			want: []metav1.Condition{condition("A", metav1.ConditionTrue, "Ready", now)},
		},
		"a condition of another controller is left alone": {
			old:  []metav1.Condition{condition("Theirs", metav1.ConditionTrue, "X", then)},
			d:    Decision{{Condition: "A", Outcome: Done("Ready", "")}},
			want: []metav1.Condition{condition("A", metav1.ConditionTrue, "Ready", now), condition("Theirs", metav1.ConditionTrue, "X", then)},
		},
		"a condition that does not apply is removed": {
			old: []metav1.Condition{condition("A", metav1.ConditionTrue, "X", then)},
			d:   Decision{{Condition: "A", Outcome: Absent()}},
		},
		"a failed act makes its condition unknown, because nobody knows what came of it": {
			d:    Decision{{Condition: "A", Outcome: Waiting("W", "")}},
			errs: Errors{0: errors.New("boom")},
			want: []metav1.Condition{{Type: "A", Status: metav1.ConditionUnknown, Reason: ReasonError, Message: "boom",
				LastTransitionTime: metav1.NewTime(now), ObservedGeneration: 2}},
		},
		"a conflict is not shown to anybody": {
			d:    Decision{{Condition: "A", Outcome: Waiting("W", "")}},
			errs: Errors{0: conflict()},
			want: []metav1.Condition{condition("A", metav1.ConditionFalse, "W", now)},
		},
		"a condition whose True is bad keeps the status it was given": {
			d:    Decision{{Condition: "A", Outcome: Waiting("W", "").As(metav1.ConditionTrue)}},
			want: []metav1.Condition{condition("A", metav1.ConditionTrue, "W", now)},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got := Conditions(c.old, c.d, c.errs, 2, now)
			if len(got) == 0 {
				got = nil
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestConditionsDoNotDependOnTheOrderOfSteps(t *testing.T) {
	a, b := Finding{Condition: "A", Outcome: Done("X", "")}, Finding{Condition: "B", Outcome: Waiting("Y", "")}
	one := Conditions(nil, Decision{a, b}, nil, 1, now)
	other := Conditions(nil, Decision{b, a}, nil, 1, now)
	if diff := cmp.Diff(one, other); diff != "" {
		t.Error(diff)
	}
}

func TestTransitions(t *testing.T) {
	cases := map[string]struct {
		before, after []metav1.Condition
		outcome       Outcome
		want          []Event
	}{
		"nothing changed, nothing is said": {
			[]metav1.Condition{condition("A", metav1.ConditionTrue, "X", then)},
			[]metav1.Condition{condition("A", metav1.ConditionTrue, "X", then)}, Done("X", ""), nil,
		},
		"what the user must act on is a warning": {
			nil, []metav1.Condition{{Type: "A", Status: metav1.ConditionFalse, Reason: "X", Message: "Do something"}}, Failed("X", "Do something"),
			[]Event{{corev1.EventTypeWarning, "X", "Do something"}},
		},
		"beginning by waiting is no news": {
			nil, []metav1.Condition{condition("A", metav1.ConditionFalse, "X", then)}, Waiting("X", ""), nil,
		},
		"beginning in the good state is none": {
			nil, []metav1.Condition{condition("A", metav1.ConditionTrue, "X", then)}, Done("X", ""), nil,
		},
		"getting there is": {
			[]metav1.Condition{condition("A", metav1.ConditionFalse, "X", then)},
			[]metav1.Condition{{Type: "A", Status: metav1.ConditionTrue, Reason: "Y", Message: "It is done"}}, Done("Y", "It is done"),
			[]Event{{corev1.EventTypeNormal, "Y", "It is done"}},
		},
		"waiting on after an error is not": {
			[]metav1.Condition{condition("A", metav1.ConditionUnknown, ReasonError, then)},
			[]metav1.Condition{condition("A", metav1.ConditionFalse, "X", then)}, Waiting("X", ""), nil,
		},
		"another reason is news": {
			[]metav1.Condition{condition("A", metav1.ConditionFalse, "X", then)},
			[]metav1.Condition{condition("A", metav1.ConditionFalse, "Y", then)}, Waiting("Y", ""),
			[]Event{{corev1.EventTypeNormal, "Y", "A is False"}},
		},
		"a passing error is not for users": {
			nil, []metav1.Condition{condition("A", metav1.ConditionUnknown, ReasonError, then)}, Waiting("X", ""), nil,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got := Transitions(c.before, c.after, Decision{{Condition: "A", Outcome: c.outcome}})
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestResult(t *testing.T) {
	waits := Decision{{Outcome: Waiting("W", "").Within(time.Minute)}, {Outcome: Waiting("W", "").Within(time.Second)}}
	cases := map[string]struct {
		errs    Errors
		patch   error
		want    time.Duration
		wantErr bool
	}{
		"the earliest deadline counts":                 {nil, nil, time.Second, false},
		"a conflict leads to a quiet second pass":      {Errors{1: conflict()}, nil, retryConflict, false},
		"a conflict of the patch does so too":          {nil, conflict(), retryConflict, false},
		"an error goes to backoff even with conflicts": {Errors{0: errors.New("x")}, conflict(), 0, true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := Result(waits, c.errs, c.patch)
			if got.RequeueAfter != c.want || (err != nil) != c.wantErr {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
}

func TestSettled(t *testing.T) {
	pods := schema.GroupResource{Resource: "pods"}
	terminating := apierrors.NewForbidden(pods, "a", errors.New("no"))
	terminating.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: corev1.NamespaceTerminatingCause}}
	cases := map[string]struct {
		err  error
		want bool
	}{
		"what exists need not be made again":                {apierrors.NewAlreadyExists(pods, "a"), true},
		"nothing is made any more in a namespace that goes": {terminating, true},
		"a refusal by a quota may pass":                     {apierrors.NewForbidden(pods, "a", errors.New("quota")), false},
		"an API hiccup is tried again":                      {errors.New("connection refused"), false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := settled(c.err); got != c.want {
				t.Errorf("got %v", got)
			}
		})
	}
}
