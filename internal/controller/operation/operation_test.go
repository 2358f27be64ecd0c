package operation

import (
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/steps"
	"orlop.dev/orlop/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

var noon = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)

func stage(kind v1alpha2.OperationType, phase v1alpha2.MachinePhase, changes ...func(*world)) *world {
	w := &world{now: noon, operation: testkit.Operation(kind, "a"), vm: testkit.VM("a").Object()}
	w.operation.CreationTimestamp = metav1.NewTime(noon)
	w.vm.Status.Phase = phase
	for _, change := range changes {
		change(w)
	}
	return w
}

func accepted(w *world) { w.operation.Status.Phase = v1alpha2.OperationInProgress }

func signal(counter, now int64) func(*world) {
	return func(w *world) {
		w.vm.Status.Instance = &v1alpha2.InstanceRecord{Counter: now,
			Signal: &v1alpha2.InstanceSignal{Operation: w.operation.UID, Type: w.operation.Spec.Type, Counter: counter}}
	}
}

func other(kind v1alpha2.OperationType, force bool, after time.Duration) func(*world) {
	return func(w *world) {
		o := *testkit.Operation(kind, "a")
		o.UID = types.UID("other")
		o.Spec.Force = new(force)
		o.CreationTimestamp = metav1.NewTime(noon.Add(after))
		w.others = append(w.others, o)
	}
}

func TestJudge(t *testing.T) {
	const start, stop, restart = v1alpha2.OperationStart, v1alpha2.OperationStop, v1alpha2.OperationRestart
	cases := map[string]struct {
		world  *world
		phase  v1alpha2.OperationPhase
		reason v1alpha2.Reason
	}{
		"a machine that does not exist": {
			stage(stop, "", func(w *world) { w.vm = nil }), v1alpha2.OperationFailed, v1alpha2.OperationReasonVirtualMachineNotFound},
		"a machine being deleted": {
			stage(stop, v1alpha2.MachineRunning, func(w *world) { w.vm.DeletionTimestamp = new(metav1.NewTime(noon)) }),
			v1alpha2.OperationFailed, v1alpha2.OperationReasonOperationFailed},
		"an always-on machine cannot be stopped": {
			stage(stop, v1alpha2.MachineRunning, func(w *world) { w.vm.Spec.RunPolicy = v1alpha2.AlwaysOn }),
			v1alpha2.OperationFailed, v1alpha2.OperationReasonNotApplicableForVirtualMachineRunPolicy},
		"an always-on machine can be restarted": {
			stage(restart, v1alpha2.MachineRunning, func(w *world) { w.vm.Spec.RunPolicy = v1alpha2.AlwaysOn }),
			v1alpha2.OperationInProgress, v1alpha2.OperationReasonRestartInProgress},
		"a running machine cannot be started": {
			stage(start, v1alpha2.MachineRunning), v1alpha2.OperationFailed, v1alpha2.OperationReasonNotApplicableForVirtualMachinePhase},
		"a machine nobody has looked at yet": {
			stage(stop, ""), v1alpha2.OperationPending, v1alpha2.OperationReasonNotReadyToBeExecuted},
		"an older operation that may not be superseded": {
			stage(stop, v1alpha2.MachineRunning, other(restart, false, -time.Minute)), v1alpha2.OperationPending, v1alpha2.OperationReasonNotReadyToBeExecuted},
		"an older operation that may": {
			stage(stop, v1alpha2.MachineStopped, func(w *world) { w.vm.Status.Phase = v1alpha2.MachinePending }, other(start, false, -time.Minute)),
			v1alpha2.OperationInProgress, v1alpha2.OperationReasonStopInProgress},
		"a newer operation takes the place": {
			stage(stop, v1alpha2.MachineStopping, accepted, signal(1, 1), other(stop, true, time.Minute)),
			v1alpha2.OperationSuperseded, v1alpha2.OperationReasonSuperseded},
		"accepted but not taken up yet, although the phase looks done": {
			stage(stop, v1alpha2.MachineStopped, accepted), v1alpha2.OperationInProgress, v1alpha2.OperationReasonStopInProgress},
		"a stop that is done": {
			stage(stop, v1alpha2.MachineStopped, accepted, signal(1, 1)), v1alpha2.OperationCompleted, v1alpha2.OperationReasonOperationCompleted},
		"a restart whose old process still runs": {
			stage(restart, v1alpha2.MachineRunning, accepted, signal(1, 1)), v1alpha2.OperationInProgress, v1alpha2.OperationReasonRestartInProgress},
		"a restart whose new process runs": {
			stage(restart, v1alpha2.MachineRunning, accepted, signal(1, 2)), v1alpha2.OperationCompleted, v1alpha2.OperationReasonOperationCompleted},
		"a start that waits for a disk": {
			stage(start, v1alpha2.MachinePending, accepted, signal(1, 1)), v1alpha2.OperationInProgress, v1alpha2.OperationReasonStartInProgress},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			d := steps.Decide(c.world, all...)
			s := status(c.world, d, nil)
			if s.Phase != c.phase || d.Outcome(v1alpha2.OperationConditionCompleted).Reason != c.reason.String() {
				t.Errorf("got %s, %+v", s.Phase, s.Conditions)
			}
		})
	}
}

func TestSignalSentIsRemembered(t *testing.T) {
	w := stage(v1alpha2.OperationStop, v1alpha2.MachineStopping, accepted, signal(1, 1))
	w.operation.Status = status(w, steps.Decide(w, all...), nil)
	w.vm.Status.Instance.Signal = nil
	s := status(w, steps.Decide(w, all...), nil)
	if find(s.Conditions, v1alpha2.OperationConditionSignalSent) == nil {
		t.Errorf("conditions %+v", s.Conditions)
	}
}

func TestRetention(t *testing.T) {
	record := func(name string, age time.Duration) v1alpha2.VirtualMachineOperation {
		o := *testkit.Operation(v1alpha2.OperationStop, "a")
		o.Name, o.CreationTimestamp = name, metav1.NewTime(noon.Add(-age))
		return o
	}
	others := func(n int, age time.Duration) []v1alpha2.VirtualMachineOperation {
		var all []v1alpha2.VirtualMachineOperation
		for i := range n {
			all = append(all, record(string(rune('b'+i)), age))
		}
		return all
	}
	cases := map[string]struct {
		age    time.Duration
		others []v1alpha2.VirtualMachineOperation
		gone   bool
		again  time.Duration
	}{
		"a young one stays until its day is over": {time.Hour, nil, false, 23 * time.Hour},
		"an old one goes":                         {24 * time.Hour, nil, true, 0},
		"ten newer ones take its place":           {time.Hour, others(10, time.Minute), true, 0},
		"nine newer ones do not":                  {time.Hour, others(9, time.Minute), false, 23 * time.Hour},
		"older ones do not count":                 {time.Hour, others(20, 2*time.Hour), false, 23 * time.Hour},
		"within one second the names decide":      {time.Hour, others(10, time.Hour), true, 0},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			o := record("a", c.age)
			d := steps.Decide(&world{now: noon, operation: &o, finished: c.others}, past...)
			if _, gone := d[0].Act.(steps.Delete); gone != c.gone || d.After() != c.again {
				t.Errorf("gone %v, again in %v", gone, d.After())
			}
		})
	}
}
