package policy

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
)

func TestAutoConverge(t *testing.T) {
	cases := map[string]struct {
		own        v1alpha2.LiveMigrationPolicy
		system     string
		force      *bool
		evacuation bool
		on         bool
		refused    bool
	}{
		"safe is never forced":                     {own: v1alpha2.AlwaysSafe},
		"safe refuses force":                       {own: v1alpha2.AlwaysSafe, force: new(true), refused: true},
		"safe agrees with a no":                    {own: v1alpha2.AlwaysSafe, force: new(false)},
		"the default is gentle":                    {own: v1alpha2.PreferSafe},
		"the default can be forced":                {own: v1alpha2.PreferSafe, force: new(true), on: true},
		"no policy is the default":                 {force: new(true), on: true},
		"prefer forced is forced":                  {own: v1alpha2.PreferForced, on: true},
		"prefer forced can be gentle":              {own: v1alpha2.PreferForced, force: new(false)},
		"forced is always forced":                  {own: v1alpha2.AlwaysForced, on: true},
		"forced refuses a no":                      {own: v1alpha2.AlwaysForced, force: new(false), refused: true},
		"the system overrides machine and wish":    {own: v1alpha2.AlwaysSafe, system: "AlwaysForced", force: new(false), on: true},
		"the system can forbid migration":          {own: v1alpha2.AlwaysForced, system: "Never", refused: true},
		"the system can leave it to users, gently": {own: v1alpha2.AlwaysForced, system: "Manual", force: new(true)},
		"and then does nothing by itself":          {own: v1alpha2.AlwaysForced, system: "Manual", evacuation: true, refused: true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			on, refusal := AutoConverge(c.own, c.system, c.force, c.evacuation)
			if on != c.on || (refusal != "") != c.refused {
				t.Errorf("got %v %q", on, refusal)
			}
		})
	}
}

func TestMigrationProgress(t *testing.T) {
	report := func(phase v1alpha1.MigrationPhase, change func(*v1alpha1.MigrationStatus)) *v1alpha1.Instance {
		s := &v1alpha1.MigrationStatus{ID: "op", Phase: phase}
		if change != nil {
			change(s)
		}
		return &v1alpha1.Instance{Status: v1alpha1.InstanceStatus{Migration: s}}
	}
	copied := func(iteration int32, remaining int64, stuck bool) *v1alpha1.Instance {
		return report(v1alpha1.MigrationTransferring, func(s *v1alpha1.MigrationStatus) {
			s.TotalBytes, s.RemainingBytes, s.Iteration, s.NotConverging = 100, remaining, iteration, stuck
		})
	}
	full := &corev1.Pod{Status: corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Message: "no room."}}}}
	bound := v1alpha2.MigrationTarget{Operation: "op", NodeName: "b"}
	syncing := v1alpha2.MigrationTarget{Operation: "op", NodeName: "b", Syncing: true}
	cases := map[string]struct {
		target       v1alpha2.MigrationTarget
		source, dest *v1alpha1.Instance
		pod          *corev1.Pod
		reason       v1alpha2.Reason
		percent      int
	}{
		"nothing is there yet":                   {v1alpha2.MigrationTarget{Operation: "op"}, nil, nil, nil, v1alpha2.OperationReasonTargetScheduling, 2},
		"no node has room":                       {v1alpha2.MigrationTarget{Operation: "op"}, nil, nil, full, v1alpha2.OperationReasonTargetUnschedulable, 2},
		"a node has it":                          {bound, nil, nil, nil, v1alpha2.OperationReasonTargetPreparing, 3},
		"a volume stands in the way":             {bound, nil, &v1alpha1.Instance{Status: v1alpha1.InstanceStatus{Message: "Volume x is not mounted"}}, nil, v1alpha2.OperationReasonTargetDiskError, 3},
		"it is ready":                            {bound, nil, report(v1alpha1.MigrationReady, nil), nil, v1alpha2.OperationReasonWaitingForSyncSlot, 4},
		"the source has been told":               {syncing, nil, report(v1alpha1.MigrationReady, nil), nil, v1alpha2.OperationReasonSyncing, 10},
		"half of the bulk":                       {syncing, copied(1, 50, false), nil, nil, v1alpha2.OperationReasonSyncing, 27},
		"the second time through":                {syncing, copied(2, 20, false), nil, nil, v1alpha2.OperationReasonSyncing, 81},
		"it does not get less":                   {syncing, copied(9, 20, true), nil, nil, v1alpha2.OperationReasonNotConverging, 81},
		"the guest stands still":                 {syncing, report(v1alpha1.MigrationSwitching, nil), nil, nil, v1alpha2.OperationReasonSourceSuspended, 91},
		"it runs there":                          {syncing, report(v1alpha1.MigrationCompleted, nil), report(v1alpha1.MigrationCompleted, nil), nil, v1alpha2.OperationReasonTargetResumed, 92},
		"the report of an old migration is none": {v1alpha2.MigrationTarget{Operation: "new", NodeName: "b"}, report(v1alpha1.MigrationCompleted, nil), nil, nil, v1alpha2.OperationReasonTargetPreparing, 3},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			m := MigrationProgress(&c.target, c.source, c.dest, c.pod)
			if m.Reason != c.reason || m.Percent != c.percent || m.Message == "" {
				t.Errorf("got %+v", m)
			}
		})
	}
}

func TestMigrationFailure(t *testing.T) {
	cases := map[string]struct {
		report v1alpha1.MigrationStatus
		want   v1alpha2.Reason
	}{
		"called off":        {v1alpha1.MigrationStatus{Reason: "Aborted", Message: "a disk"}, v1alpha2.OperationReasonAborted},
		"does not converge": {v1alpha1.MigrationStatus{Reason: "NotConverging"}, v1alpha2.OperationReasonNotConverging},
		"no progress":       {v1alpha1.MigrationStatus{Reason: "Error", Message: "no progress for 150 s"}, v1alpha2.OperationReasonNotConverging},
		"a volume":          {v1alpha1.MigrationStatus{Reason: "Error", Message: "Volume x is gone"}, v1alpha2.OperationReasonTargetDiskError},
		"anything else":     {v1alpha1.MigrationStatus{Reason: "ConnectionLost"}, v1alpha2.OperationReasonFailed},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := MigrationFailure(&c.report); got != c.want {
				t.Errorf("got %s", got)
			}
		})
	}
}

func TestCanTake(t *testing.T) {
	labels := map[string]string{v1alpha2.LabelNodeSchedulable: "true", v1alpha2.LabelNodeAccelerator: "kvm", v1alpha2.LabelNodeCPUModelPrefix + "Nehalem": "true"}
	node := func(name string, change func(*corev1.Node)) *corev1.Node {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}}}
		for k, v := range labels {
			n.Labels[k] = v
		}
		if change != nil {
			change(n)
		}
		return n
	}
	in := &v1alpha1.Instance{Spec: v1alpha1.InstanceSpec{Machine: v1alpha1.Machine{Accelerator: v1alpha1.AcceleratorKVM, CPU: v1alpha1.CPU{Model: "Nehalem"}}}}
	wanted := TargetLabels(in, node("a", nil))
	cases := map[string]struct {
		node *corev1.Node
		want bool
	}{
		"its own node":      {node("a", nil), false},
		"a like one":        {node("b", nil), true},
		"a cordoned one":    {node("b", func(n *corev1.Node) { n.Spec.Unschedulable = true }), false},
		"one that emulates": {node("b", func(n *corev1.Node) { n.Labels[v1alpha2.LabelNodeAccelerator] = "tcg" }), false},
		"an older model":    {node("b", func(n *corev1.Node) { delete(n.Labels, v1alpha2.LabelNodeCPUModelPrefix+"Nehalem") }), false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := CanTake(c.node, "a", wanted); got != c.want {
				t.Errorf("got %v", got)
			}
		})
	}
}
