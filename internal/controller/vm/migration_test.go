package vm

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/plan"
	"orlop.dev/orlop/internal/settings"
	"orlop.dev/orlop/internal/steps"
)

// movable is a running machine that another node could take, with an accepted
// operation that moves it.
func movable(w *world) {
	up(w)
	asked(v1alpha2.OperationEvict, false)(w)
	w.firstBootExists, w.elsewhere, w.turn, w.migration = true, true, true, settings.DefaultMigration()
	w.disks[0].claim.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}
}

// targeted has its target recorded, created and given to node b.
func targeted(w *world) {
	movable(w)
	w.record.Counter = 2
	w.record.Target = &v1alpha2.MigrationTarget{Operation: "op", Type: v1alpha2.OperationEvict, Name: "virt-launcher-a-2", PodUID: "pod2", NodeName: "b",
		StartTime: metav1.NewTime(noon.Add(-time.Minute))}
	i := plan.TargetInstance(w.instance, "virt-launcher-a-2", v1alpha1.Migration{ID: "op", Role: v1alpha1.MigrationTarget, Peer: "virt-launcher-a-1", PeerNode: "n"})
	w.target.instance = plan.OnNode(i, "b", "pod2", v1alpha1.AcceleratorKVM)
	w.target.instance.UID = "instance2"
	w.target.node = &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "b", Labels: w.node.Labels}}
	w.target.pod = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "virt-launcher-a-2", UID: "pod2"}, Spec: corev1.PodSpec{NodeName: "b"}}
	w.budget = plan.MigrationBudget(w.vm)
	targetSays(v1alpha1.MigrationReady)(w)
}

// told has recorded that the source may be told, and has told it.
func toldSource(w *world) {
	targeted(w)
	w.record.Target.Syncing = true
	w.instance.Spec.Migration = w.sourceOrder()
}

func sourceSays(phase v1alpha1.MigrationPhase) func(*world) {
	return func(w *world) { w.instance.Status.Migration = &v1alpha1.MigrationStatus{ID: "op", Phase: phase} }
}

func targetSays(phase v1alpha1.MigrationPhase) func(*world) {
	return func(w *world) {
		w.target.instance.Status.Migration = &v1alpha1.MigrationStatus{ID: "op", Phase: phase, Endpoint: "192.0.2.1:4135"}
	}
}

func withoutOperation(w *world) { w.operations = nil }

func dies(cause v1alpha1.ExitCause) func(*world) {
	return func(w *world) { w.instance.Status.Exit = &v1alpha1.Exit{Cause: cause} }
}

func targetDies(w *world) {
	w.target.instance.Status.Exit = &v1alpha1.Exit{Cause: v1alpha1.ExitCrashed}
}

func TestMigrationPass(t *testing.T) {
	const applies = "apply *v1alpha1.Instance"
	cases := map[string]struct {
		world *world
		acts  []string
		phase v1alpha2.MachinePhase
		// what is remembered at the end of the pass
		name, target string
		syncing      bool
		calledOff    v1alpha2.Reason
		ended        v1alpha2.Reason
		former       []v1alpha2.FormerProcess
		exit         v1alpha1.ExitCause
	}{
		"the target is recorded before it is made": {
			world: calm(movable), phase: v1alpha2.MachineRunning, name: "virt-launcher-a-1", target: "virt-launcher-a-2"},
		"not before its turn": {
			world: calm(movable, func(w *world) { w.turn = false }), phase: v1alpha2.MachineRunning, name: "virt-launcher-a-1"},
		"nor from a volume of one node": {
			world: calm(movable, func(w *world) {
				w.disks[0].claim.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
			}),
			phase: v1alpha2.MachineRunning, name: "virt-launcher-a-1"},
		"nor while a process that may hold the guest is not proven dead": {
			world: calm(movable, func(w *world) {
				w.record.Former = []v1alpha2.FormerProcess{{Name: "virt-launcher-a-0", PodUID: "x", Blocks: true}}
				w.former = []process{{}}
			}), phase: v1alpha2.MachineRunning, name: "virt-launcher-a-1", former: []v1alpha2.FormerProcess{{Name: "virt-launcher-a-0", PodUID: "x", Blocks: true}}},
		"an operation that has had its migration gets no other": {
			world: calm(movable, func(w *world) {
				w.record.Migrated = &v1alpha2.MigrationOutcome{Operation: "op", Reason: v1alpha2.OperationReasonFailed}
			}),
			phase: v1alpha2.MachineRunning, name: "virt-launcher-a-1", ended: v1alpha2.OperationReasonFailed},
		"that the source may be told is recorded before it is told": {
			world: calm(targeted), phase: v1alpha2.MachineMigrating, name: "virt-launcher-a-1", target: "virt-launcher-a-2", syncing: true},
		"then it is told": {
			world: calm(targeted, func(w *world) { w.record.Target.Syncing = true }), acts: []string{applies},
			phase: v1alpha2.MachineMigrating, name: "virt-launcher-a-1", target: "virt-launcher-a-2", syncing: true},
		"a target that was never given the word is dropped at once": {
			world: calm(targeted, withoutOperation), phase: v1alpha2.MachineMigrating, name: "virt-launcher-a-1", ended: v1alpha2.OperationReasonAborted,
			former: []v1alpha2.FormerProcess{{Name: "virt-launcher-a-2", PodUID: "pod2", NodeName: "b"}}},
		"one that may get the guest is kept until the source has spoken": {
			world: calm(toldSource, withoutOperation), phase: v1alpha2.MachineMigrating, name: "virt-launcher-a-1", target: "virt-launcher-a-2", syncing: true,
			calledOff: v1alpha2.OperationReasonAborted},
		"the source says that the guest stays": {
			world: calm(toldSource, sourceSays(v1alpha1.MigrationFailed)), phase: v1alpha2.MachineMigrating, name: "virt-launcher-a-1", ended: v1alpha2.OperationReasonFailed,
			former: []v1alpha2.FormerProcess{{Name: "virt-launcher-a-2", PodUID: "pod2", NodeName: "b"}}},
		"a node that does not answer calls it off": {
			world: calm(toldSource, func(w *world) {
				w.target.node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionUnknown}}
			}), phase: v1alpha2.MachineMigrating, name: "virt-launcher-a-1", target: "virt-launcher-a-2", syncing: true, calledOff: v1alpha2.OperationReasonFailed},
		"a stop waits for the source's word": {
			world: calm(toldSource, signal(v1alpha2.OperationStop, false, v1alpha2.InstancePowerOff), func(w *world) { w.record.Signal.Counter = 2 }),
			phase: v1alpha2.MachineStopping, name: "virt-launcher-a-1", target: "virt-launcher-a-2", syncing: true, calledOff: v1alpha2.OperationReasonAborted},
		"a source that dies without a word leaves a target that blocks": {
			world: calm(toldSource, dies(v1alpha1.ExitCrashed)), phase: v1alpha2.MachineStopping, name: "virt-launcher-a-1", ended: v1alpha2.OperationReasonAborted,
			former: []v1alpha2.FormerProcess{{Name: "virt-launcher-a-2", PodUID: "pod2", NodeName: "b", Blocks: true}}, exit: v1alpha1.ExitCrashed},
		"the source has completed: neither end is touched, whatever is wanted": {
			world: calm(toldSource, sourceSays(v1alpha1.MigrationCompleted), withoutOperation), phase: v1alpha2.MachineMigrating,
			name: "virt-launcher-a-1", target: "virt-launcher-a-2", syncing: true},
		"its end is not the machine's": {
			world: calm(toldSource, sourceSays(v1alpha1.MigrationCompleted), dies(v1alpha1.ExitMigrated)), phase: v1alpha2.MachineMigrating,
			name: "virt-launcher-a-1", target: "virt-launcher-a-2", syncing: true},
		"the target is told once that is recorded": {
			world: calm(toldSource, sourceSays(v1alpha1.MigrationCompleted), func(w *world) { w.record.Target.SourceCompleted = true }),
			acts:  []string{applies}, phase: v1alpha2.MachineMigrating, name: "virt-launcher-a-1", target: "virt-launcher-a-2", syncing: true},
		"the target that runs the guest is the present process": {
			world: calm(toldSource, sourceSays(v1alpha1.MigrationCompleted), targetSays(v1alpha1.MigrationCompleted)), phase: v1alpha2.MachineMigrating,
			name: "virt-launcher-a-2", ended: v1alpha2.OperationReasonCompleted,
			former: []v1alpha2.FormerProcess{{Name: "virt-launcher-a-1", PodUID: "pod", NodeName: "n", Blocks: true}}},
		"a guest lost on the way ends its old process": {
			world: calm(toldSource, sourceSays(v1alpha1.MigrationCompleted), targetDies), acts: []string{applies}, phase: v1alpha2.MachineStopping,
			name: "virt-launcher-a-1", target: "virt-launcher-a-2", syncing: true},
		"and then the machine's": {
			world: calm(toldSource, sourceSays(v1alpha1.MigrationCompleted), targetDies, dies(v1alpha1.ExitKilled), func(w *world) { w.instance.Spec.Power = v1alpha1.PowerKill }),
			phase: v1alpha2.MachineStopping, name: "virt-launcher-a-1", ended: v1alpha2.OperationReasonFailed, exit: v1alpha1.ExitKilled,
			former: []v1alpha2.FormerProcess{{Name: "virt-launcher-a-2", PodUID: "pod2", NodeName: "b", Blocks: true}}},
		"a target that is not ready in time": {
			world: calm(targeted, targetSays(v1alpha1.MigrationPreparing), func(w *world) { w.record.Target.StartTime = metav1.NewTime(noon.Add(-prepareTime)) }),
			phase: v1alpha2.MachineMigrating, name: "virt-launcher-a-1", ended: v1alpha2.OperationReasonFailed,
			former: []v1alpha2.FormerProcess{{Name: "virt-launcher-a-2", PodUID: "pod2", NodeName: "b"}}},
		"what is left behind is killed": {
			world: calm(up, left("")), acts: []string{applies}, phase: v1alpha2.MachineRunning, name: "virt-launcher-a-1",
			former: []v1alpha2.FormerProcess{{Name: "virt-launcher-a-0", PodUID: "pod0", Blocks: true}}},
		"its death is recorded before anything is removed": {
			world: calm(up, left(""), func(w *world) {
				w.former[0].instance.Spec.Power = v1alpha1.PowerKill
				w.former[0].instance.Status.Exit = &v1alpha1.Exit{Cause: v1alpha1.ExitMigrated}
			}), phase: v1alpha2.MachineRunning, name: "virt-launcher-a-1",
			former: []v1alpha2.FormerProcess{{Name: "virt-launcher-a-0", PodUID: "pod0", Blocks: true, Exit: "Migrated"}}},
		"then it is removed": {
			world: calm(up, left("Migrated")), acts: []string{"delete *v1.Pod", "delete *v1alpha1.Instance"}, phase: v1alpha2.MachineRunning, name: "virt-launcher-a-1",
			former: []v1alpha2.FormerProcess{{Name: "virt-launcher-a-0", PodUID: "pod0", Blocks: true, Exit: "Migrated"}}},
		"and forgotten": {
			world: calm(up, left("Migrated"), func(w *world) { w.former[0] = process{} }), phase: v1alpha2.MachineRunning, name: "virt-launcher-a-1"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			c.world.firstBootExists = true
			d := steps.Decide(c.world, all...)
			if diff := cmp.Diff(c.acts, acts(d), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("acts: %s", diff)
			}
			s := status(c.world, d, nil)
			if s.Phase != c.phase {
				t.Errorf("phase %s, want %s", s.Phase, c.phase)
			}
			r := s.Instance
			got := v1alpha2.MigrationTarget{}
			if r.Target != nil {
				got = *r.Target
			}
			if r.Name != c.name || got.Name != c.target || got.Syncing != c.syncing || got.Reason != c.calledOff || r.Exit != string(c.exit) {
				t.Errorf("remembers name %s, exit %q, target %+v", r.Name, r.Exit, got)
			}
			ended := v1alpha2.Reason("")
			if r.Migrated != nil {
				ended = r.Migrated.Reason
			}
			if ended != c.ended {
				t.Errorf("the migration ended %q, want %q", ended, c.ended)
			}
			if diff := cmp.Diff(c.former, r.Former, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("former: %s", diff)
			}
		})
	}
}

// left adds a source of old that has to go.
func left(exit string) func(*world) {
	return func(w *world) {
		i := w.instance.DeepCopy()
		i.Name, i.UID = "virt-launcher-a-0", "instance0"
		w.record.Former = []v1alpha2.FormerProcess{{Name: i.Name, PodUID: "pod0", Blocks: true, Exit: exit}}
		w.former = []process{{instance: i, pod: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: i.Name, UID: "pod0"}}}}
	}
}

// TestNobodyBesideANewProcess: the next process waits for whoever may hold the guest.
func TestNobodyBesideANewProcess(t *testing.T) {
	former := func(f v1alpha2.FormerProcess) func(*world) {
		return func(w *world) { w.record.Former, w.former = []v1alpha2.FormerProcess{f}, []process{{}} }
	}
	for name, c := range map[string]struct {
		former v1alpha2.FormerProcess
		next   int64
	}{
		"a source that is not proven dead":       {v1alpha2.FormerProcess{Name: "x", PodUID: "x", Blocks: true}, 1},
		"a source that is":                       {v1alpha2.FormerProcess{Name: "x", PodUID: "x", Blocks: true, Exit: "Migrated"}, 2},
		"a target that was never given the word": {v1alpha2.FormerProcess{Name: "x", PodUID: "x"}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			if r := remember(calm(over(v1alpha1.ExitCrashed, v1alpha2.InstancePowerOn), former(c.former))); r.Counter != c.next {
				t.Errorf("counter %d, want %d", r.Counter, c.next)
			}
		})
	}
}

func TestGate(t *testing.T) {
	key := func(name string) types.NamespacedName { return types.NamespacedName{Name: name} }
	limits := settings.DefaultMigration()
	var g gate
	enter := func(name string, p passage, others map[types.NamespacedName]passage) bool {
		if others == nil {
			others = map[types.NamespacedName]passage{}
		}
		ok, why := g.enter(key(name), p, others, limits, 5)
		if ok == (why != "") {
			t.Errorf("%s: %v with the reason %q", name, ok, why)
		}
		return ok
	}
	if !enter("a", passage{operation: "1", from: "n"}, nil) || !enter("a", passage{operation: "1", from: "n"}, nil) {
		t.Error("the first is not let through, or is in its own way")
	}
	if enter("b", passage{operation: "2", from: "n"}, nil) {
		t.Error("a second one leaves the node before the first one's record shows it")
	}
	if !enter("c", passage{operation: "3", from: "m"}, nil) {
		t.Error("another node has to wait")
	}
	// The record shows it: the claim is not needed any more, and still counts.
	g.shown(key("a"), true, passage{operation: "1", from: "n"})
	shown := func() map[types.NamespacedName]passage {
		return map[types.NamespacedName]passage{key("a"): {operation: "1", from: "n", to: "x", syncing: true}}
	}
	if enter("b", passage{operation: "2", from: "n"}, shown()) {
		t.Error("a second one leaves the node")
	}
	if enter("c", passage{operation: "3", from: "m", to: "x", syncing: true}, shown()) {
		t.Error("one node receives two")
	}
	if !enter("c", passage{operation: "3", from: "m", to: "y", syncing: true}, shown()) {
		t.Error("another node may not receive")
	}
	g.shown(key("c"), false, passage{})
	if !enter("b", passage{operation: "2", from: "n"}, nil) {
		t.Error("what is over still counts")
	}
}
