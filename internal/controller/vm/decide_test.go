package vm

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sort"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/plan"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/steps"
	"orlop.dev/orlop/internal/testkit"
)

var noon = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)

// calm is a world in which a machine can start and nothing of it exists yet.
func calm(changes ...func(*world)) *world {
	vm := testkit.VM("a").Disk("root").UserData("#cloud-config\n").Object()
	disk := disk{ref: vm.Spec.BlockDeviceRefs[0], object: testkit.Disk("root").Object(),
		claim: &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "claim"}}}
	disk.object.Status.Phase = v1alpha2.DiskReady
	disk.object.Annotations = map[string]string{policy.HolderAnnotation: policy.Holder(vm)}
	class := testkit.Class("generic").Ready().Object()
	address := testkit.Address("a-x")
	address.Status = v1alpha2.VirtualMachineIPAddressStatus{Phase: v1alpha2.VirtualMachineIPAddressAttached, Address: "10.66.10.2", VirtualMachineName: "a"}
	w := &world{now: noon, vm: vm, class: class, address: address, userData: []byte("#cloud-config\n"),
		cidrs: []netip.Prefix{netip.MustParsePrefix("10.66.10.0/24")}, act: &actor{}}
	w.disks, w.held = append(w.disks, disk), append(w.held, disk.object)
	for _, change := range changes {
		change(w)
	}
	return w
}

// recorded says that process 1 is the present one.
func recorded(w *world) {
	w.record = v1alpha2.InstanceRecord{Counter: 1, Name: "virt-launcher-a-1"}
}

// created adds its Instance and pod.
func created(w *world) {
	recorded(w)
	i, err := plan.Instance(w.launch())
	if err != nil {
		panic(err)
	}
	i.UID = "instance"
	w.instance = i
	w.pod = plan.LauncherPod(w.launch(), i)
	w.pod.UID = "pod"
	w.record.PodUID = "pod"
	w.running, w.runningClass = w.vm.Spec.DeepCopy(), w.class.Spec.DeepCopy()
}

// placed gives it to a node.
func placed(w *world) {
	created(w)
	w.node = &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{v1alpha2.LabelNodeAccelerator: "kvm"}}}
	w.pod.Spec.NodeName, w.record.NodeName = "n", "n"
	w.instance = plan.OnNode(w.instance, "n", "pod", v1alpha1.AcceleratorKVM)
}

// up lets the guest run.
func up(w *world) {
	placed(w)
	w.instance.Status = v1alpha1.InstanceStatus{PodUID: "pod", Phase: v1alpha1.InstanceRunning, StartTime: new(metav1.NewTime(noon.Add(-time.Hour)))}
	for _, d := range w.instance.Spec.Machine.Disks {
		w.instance.Status.Disks = append(w.instance.Status.Disks, v1alpha1.DiskStatus{ID: d.ID, Attached: true, Size: d.Size})
	}
}

// over records the end of process 1, whose objects are gone.
func over(cause v1alpha1.ExitCause, power v1alpha2.InstancePower) func(*world) {
	return func(w *world) {
		recorded(w)
		w.record.Exit, w.record.Power, w.record.ExitTime = string(cause), power, new(metav1.NewTime(noon))
	}
}

func asked(kind v1alpha2.OperationType, force bool) func(*world) {
	return func(w *world) {
		o := *testkit.Operation(kind, "a")
		o.UID = "op"
		o.Spec.Force = new(force)
		o.Status.Phase = v1alpha2.OperationInProgress
		w.operations = append(w.operations, o)
	}
}

func signal(kind v1alpha2.OperationType, force bool, power v1alpha2.InstancePower) func(*world) {
	return func(w *world) {
		w.record.Signal = &v1alpha2.InstanceSignal{Operation: "op", Type: kind, Counter: 1, Force: force}
		w.record.Power = power
	}
}

func deleted(w *world) { w.vm.DeletionTimestamp = new(metav1.NewTime(noon)) }

// describe names an act without its content.
func describe(a steps.Act) string {
	switch a := a.(type) {
	case steps.Create:
		return fmt.Sprintf("create %T", a.Object)
	case steps.Apply:
		return fmt.Sprintf("apply %T", a.Object)
	case steps.Delete:
		return fmt.Sprintf("delete %T", a.Object)
	case steps.Release:
		return fmt.Sprintf("release %T", a.Object)
	case steps.Call:
		return a.Name
	}
	return ""
}

func acts(d steps.Decision) []string {
	var all []string
	for _, f := range d {
		if f.Act != nil {
			all = append(all, describe(f.Act))
		}
	}
	sort.Strings(all)
	return all
}

func TestPass(t *testing.T) {
	const createInstance, createPod, createSecret = "create *v1alpha1.Instance", "create *v1.Pod", "create *v1.Secret"
	cases := map[string]struct {
		world   *world
		acts    []string
		phase   v1alpha2.MachinePhase
		counter int64
		exit    v1alpha1.ExitCause
		power   v1alpha2.InstancePower
	}{
		"the counter is raised before anything is created": {
			world: calm(), phase: v1alpha2.MachineStarting, counter: 1},
		"then the instance": {
			world: calm(recorded), acts: []string{createInstance}, phase: v1alpha2.MachineStarting, counter: 1},
		"then its pod and its secret": {
			world: calm(created, func(w *world) { w.pod, w.record.PodUID = nil, "" }),
			acts:  []string{createPod, createSecret}, phase: v1alpha2.MachineStarting, counter: 1},
		"a machine whose address is missing asks for one and stays pending": {
			world: calm(func(w *world) { w.address = nil }), acts: []string{"create *v1alpha2.VirtualMachineIPAddress"}, phase: v1alpha2.MachinePending},
		"an unready disk keeps it pending": {
			world: calm(func(w *world) { w.disks[0].object.Status.Phase = v1alpha2.DiskProvisioning }), phase: v1alpha2.MachinePending},
		"a disk that nobody holds is taken before the counter is raised": {
			world: calm(func(w *world) { w.disks[0].object.Annotations = nil }), acts: []string{"hold disks"}, phase: v1alpha2.MachinePending},
		"a bindable disk lets it start: its pod is the first consumer": {
			world: calm(func(w *world) { w.disks[0].object.Status.Phase = v1alpha2.DiskWaitForFirstConsumer }), phase: v1alpha2.MachineStarting, counter: 1},
		"a bound pod gives the instance to its node": {
			world: calm(created, func(w *world) {
				w.pod.Spec.NodeName = "n"
				w.node = &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{v1alpha2.LabelNodeAccelerator: "tcg"}}}
			}), acts: []string{"apply *v1alpha1.Instance", createSecret}, phase: v1alpha2.MachineStarting, counter: 1},
		"a pod whose UID was not recorded yet does not get it": {
			world: calm(created, func(w *world) {
				w.pod.Spec.NodeName, w.record.PodUID, w.firstBootExists = "n", "", true
				w.node = &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{v1alpha2.LabelNodeAccelerator: "tcg"}}}
			}), phase: v1alpha2.MachineStarting, counter: 1},
		"a running machine needs nothing": {
			world: calm(up, func(w *world) { w.firstBootExists = true }), phase: v1alpha2.MachineRunning, counter: 1},
		"a stop is recorded before the instance is told": {
			world: calm(up, asked(v1alpha2.OperationStop, false), func(w *world) { w.firstBootExists = true }),
			phase: v1alpha2.MachineRunning, counter: 1, power: v1alpha2.InstancePowerOff},
		"then it is told": {
			world: calm(up, signal(v1alpha2.OperationStop, false, v1alpha2.InstancePowerOff)),
			acts:  []string{"apply *v1alpha1.Instance"}, phase: v1alpha2.MachineStopping, counter: 1, power: v1alpha2.InstancePowerOff},
		"the end is recorded before anything is removed": {
			world: calm(up, signal(v1alpha2.OperationStop, false, v1alpha2.InstancePowerOff), func(w *world) {
				w.instance.Spec.Power = v1alpha1.PowerOff
				w.instance.Status.Exit = &v1alpha1.Exit{Cause: v1alpha1.ExitHostShutdown}
			}), phase: v1alpha2.MachineStopping, counter: 1, exit: v1alpha1.ExitHostShutdown, power: v1alpha2.InstancePowerOff},
		"then both objects go": {
			world: calm(up, over(v1alpha1.ExitHostShutdown, v1alpha2.InstancePowerOff)),
			acts:  []string{"delete *v1.Pod", "delete *v1alpha1.Instance"}, phase: v1alpha2.MachineStopping, counter: 1,
			exit: v1alpha1.ExitHostShutdown, power: v1alpha2.InstancePowerOff},
		"then the disk is let go": {
			world: calm(over(v1alpha1.ExitHostShutdown, v1alpha2.InstancePowerOff)), acts: []string{"release disks"},
			phase: v1alpha2.MachineStopped, counter: 1, exit: v1alpha1.ExitHostShutdown, power: v1alpha2.InstancePowerOff},
		"a restart keeps the disk and raises the counter": {
			world: calm(over(v1alpha1.ExitHostShutdown, v1alpha2.InstancePowerOn)), phase: v1alpha2.MachineStarting, counter: 2, power: v1alpha2.InstancePowerOn},
		"a guest that powers itself off stays off": {
			world: calm(up, func(w *world) {
				w.firstBootExists = true
				w.instance.Status.Exit = &v1alpha1.Exit{Cause: v1alpha1.ExitGuestShutdown}
			}), phase: v1alpha2.MachineStopping, counter: 1, exit: v1alpha1.ExitGuestShutdown, power: v1alpha2.InstancePowerOff},
		"a start that comes while it is stopping starts it again": {
			world: calm(up, signal(v1alpha2.OperationStart, false, v1alpha2.InstancePowerOn), func(w *world) {
				w.firstBootExists = true
				w.instance.Spec.Power = v1alpha1.PowerOff
				w.instance.Status.Exit = &v1alpha1.Exit{Cause: v1alpha1.ExitGuestShutdown}
			}), phase: v1alpha2.MachineStopping, counter: 1, exit: v1alpha1.ExitGuestShutdown, power: v1alpha2.InstancePowerOn},
		"a failed start waits before the next": {
			world: calm(over(v1alpha1.ExitStartFailed, ""), func(w *world) { w.record.Failures = 1 }),
			phase: v1alpha2.MachinePending, counter: 1, exit: v1alpha1.ExitStartFailed},
		"a pod being deleted takes the instance down, and proves nothing": {
			world: calm(up, func(w *world) { w.firstBootExists = true; w.pod.DeletionTimestamp = new(metav1.NewTime(noon)) }),
			acts:  []string{"apply *v1alpha1.Instance"}, phase: v1alpha2.MachineStopping, counter: 1},
		"a pod that is gone by force blocks": {
			world: calm(up, func(w *world) {
				w.firstBootExists, w.pod = true, nil
				w.instance.Spec.Power = v1alpha1.PowerOff
			}), phase: v1alpha2.MachineStopping, counter: 1},
		"an instance torn away from its pod is not made again; the kubelet ends the pod": {
			world: calm(up, func(w *world) { w.firstBootExists, w.instance = true, nil }), acts: []string{"delete *v1.Pod"},
			phase: v1alpha2.MachineStopping, counter: 1},
		"a process that was called off before anything was created is over": {
			world: calm(recorded, signal(v1alpha2.OperationStop, false, v1alpha2.InstancePowerOff)),
			phase: v1alpha2.MachineStopping, counter: 1, exit: policy.ExitNeverStarted, power: v1alpha2.InstancePowerOff},
		"an instance given to a node but not claimed goes by way of its pod": {
			world: calm(placed, signal(v1alpha2.OperationStop, false, v1alpha2.InstancePowerOff), func(w *world) { w.instance.Spec.Power = v1alpha1.PowerOff }),
			acts:  []string{"delete *v1.Pod"}, phase: v1alpha2.MachineStopping, counter: 1, power: v1alpha2.InstancePowerOff},
		"one that was claimed but whose QEMU never ran, too": {
			world: calm(placed, signal(v1alpha2.OperationStop, false, v1alpha2.InstancePowerOff), func(w *world) {
				w.instance.Spec.Power = v1alpha1.PowerOff
				w.instance.Status = v1alpha1.InstanceStatus{PodUID: "pod", Phase: v1alpha1.InstanceStarting}
			}), acts: []string{"delete *v1.Pod"}, phase: v1alpha2.MachineStopping, counter: 1, power: v1alpha2.InstancePowerOff},
		"an instance deleted by somebody before it ran is called off: no handler starts it": {
			world: calm(placed, func(w *world) {
				w.firstBootExists = true
				w.instance.DeletionTimestamp = new(metav1.NewTime(noon))
			}), acts: []string{"apply *v1alpha1.Instance"}, phase: v1alpha2.MachineStopping, counter: 1},
		"one deleted under a running guest leaves it alone": {
			world: calm(up, func(w *world) {
				w.firstBootExists = true
				w.instance.DeletionTimestamp = new(metav1.NewTime(noon))
			}), phase: v1alpha2.MachineRunning, counter: 1},
		"deletion shuts the guest down first": {
			world: calm(up, deleted), acts: []string{"apply *v1alpha1.Instance"}, phase: v1alpha2.MachineTerminating, counter: 1},
		"deletion ends when nothing is left": {
			world: calm(deleted, over(v1alpha1.ExitHostShutdown, ""), func(w *world) { w.held = nil }),
			acts:  []string{"release *v1alpha2.VirtualMachine"}, phase: v1alpha2.MachineTerminating, counter: 1, exit: v1alpha1.ExitHostShutdown},
		"deletion of a machine that never ran": {
			world: calm(deleted, func(w *world) { w.held, w.disks = nil, nil }), acts: []string{"release *v1alpha2.VirtualMachine"}, phase: v1alpha2.MachineTerminating},
		"a pod that cannot be placed makes it pending": {
			world: calm(created, func(w *world) {
				w.firstBootExists = true
				w.pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Message: "0/1 nodes are available."}}
			}), phase: v1alpha2.MachinePending, counter: 1},
		"a paused guest": {
			world: calm(up, func(w *world) {
				w.firstBootExists = true
				w.instance.Status.Phase, w.instance.Status.PauseReason = v1alpha1.InstancePaused, "NoSpace"
			}), phase: v1alpha2.MachinePause, counter: 1},
		"a stray instance of another counter is removed before the next is prepared": {
			world: calm(func(w *world) {
				w.strayInstances = []*v1alpha1.Instance{{ObjectMeta: metav1.ObjectMeta{Name: "virt-launcher-a-0"}}}
			}),
			acts: []string{"delete *v1alpha1.Instance"}, phase: v1alpha2.MachinePending},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			d := steps.Decide(c.world, all...)
			if diff := cmp.Diff(c.acts, acts(d), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("acts: %s", diff)
			}
			s := status(c.world, d, nil)
			if s.Phase != c.phase {
				t.Errorf("phase %s, want %s", s.Phase, c.phase)
			}
			r := ptr.Deref(s.Instance, v1alpha2.InstanceRecord{})
			if r.Counter != c.counter || r.Exit != string(c.exit) || r.Power != c.power {
				t.Errorf("remembers counter %d exit %q power %q", r.Counter, r.Exit, r.Power)
			}
			if s.Phase == v1alpha2.MachineRunning != (d.Outcome(v1alpha2.MachineConditionRunning).Status == metav1.ConditionTrue) {
				t.Errorf("phase %s and condition Running %+v disagree", s.Phase, d.Outcome(v1alpha2.MachineConditionRunning))
			}
		})
	}
}

func TestOrderOfStepsDoesNotMatter(t *testing.T) {
	worlds := map[string]func() *world{
		"new": func() *world { return calm() }, "recorded": func() *world { return calm(recorded) },
		"created": func() *world { return calm(created) }, "running": func() *world { return calm(up) },
		"stopping": func() *world { return calm(up, signal(v1alpha2.OperationStop, true, v1alpha2.InstancePowerOff)) },
		"over":     func() *world { return calm(up, over(v1alpha1.ExitCrashed, "")) },
		"deleting": func() *world { return calm(up, deleted) },
	}
	for name, make := range worlds {
		t.Run(name, func(t *testing.T) {
			first := steps.Decide(make(), all...)
			want := status(make(), first, nil)
			for seed := range uint64(20) {
				shuffled := slices.Clone(all)
				rand.New(rand.NewPCG(seed, 1)).Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
				w := make()
				d := steps.Decide(w, shuffled...)
				if diff := cmp.Diff(want, status(w, d, nil)); diff != "" {
					t.Fatalf("status: %s", diff)
				}
				if diff := cmp.Diff(acts(first), acts(d)); diff != "" {
					t.Fatalf("acts: %s", diff)
				}
			}
		})
	}
}

// events are what one pass over a machine tells, given its status before.
func passEvents(w *world, before v1alpha2.VirtualMachineStatus) []string {
	w.vm.Status = before
	d := steps.Decide(w, all...)
	after := w.vm.DeepCopy()
	after.Status = status(w, d, nil)
	var told []string
	for _, e := range slices.Concat(transitions(before.Conditions, after.Status.Conditions, d), powerEvents(w.vm, after), changeEvents(w.vm, after)) {
		told = append(told, e.Type+" "+e.Reason+": "+e.Message)
	}
	return told
}

func shown(w *world) v1alpha2.VirtualMachineStatus { return status(w, steps.Decide(w, all...), nil) }

func TestEvents(t *testing.T) {
	cases := map[string]struct {
		before v1alpha2.VirtualMachineStatus
		world  *world
		want   []string
	}{
		"a machine that has all it needs is no news": {
			world: calm()},
		"one whose class does not exist is": {
			world: calm(func(w *world) { w.class = nil }),
			want:  []string{"Warning VirtualMachineClassNotReady: VirtualMachineClass generic does not exist"}},
		"what it waited for has come": {
			before: shown(calm(func(w *world) { w.disks[0].object.Status.Phase = v1alpha2.DiskProvisioning })),
			world:  calm(),
			want:   []string{"Normal BlockDevicesReady: All block devices can be used"}},
		"a guest that runs is told of once": {
			before: shown(calm(placed)), world: calm(up, func(w *world) { w.firstBootExists = true }),
			want: []string{"Normal Started: The machine was started on node n"}},
		"one that runs on is not": {
			before: shown(calm(up)), world: calm(up)},
		"a change that waits for a restart is told of once": {
			before: shown(calm(up)), world: calm(up, func(w *world) { w.vm.Spec.RunPolicy, w.vm.Spec.PriorityClassName = v1alpha2.AlwaysOn, "high" }),
			want: []string{"Normal RestartAwaitingChanges: Restart the machine to apply changes of priorityClassName"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, passEvents(c.world, c.before)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestGoodConditionsSaySomething: a condition without a message leaves its reader
// with a reason alone.
func TestGoodConditionsSaySomething(t *testing.T) {
	for _, c := range shown(calm(up)).Conditions {
		if c.Message == "" {
			t.Errorf("condition %s is %s without a word", c.Type, c.Status)
		}
	}
}

func TestForceKills(t *testing.T) {
	w := calm(up, signal(v1alpha2.OperationStop, true, v1alpha2.InstancePowerOff))
	if got := w.wantedInstance().Spec.Power; got != v1alpha1.PowerKill {
		t.Errorf("power %s", got)
	}
	// Taking the force back does not revive what was told to die.
	w.record.Signal.Force = false
	w.instance.Spec.Power = v1alpha1.PowerKill
	if got := w.wantedInstance().Spec.Power; got != v1alpha1.PowerKill {
		t.Errorf("power went up to %s", got)
	}
}

func TestDevicesKeepTheirPlaces(t *testing.T) {
	w := calm(up, func(w *world) {
		w.instance.Spec.Machine.Disks[0].Slot = 3
		w.instance.Status.Exit = &v1alpha1.Exit{Cause: v1alpha1.ExitCrashed}
	})
	// The place is in the record together with the end, which is what lets the Instance go.
	r := remember(w)
	if r.Exit == "" || len(r.Slots) == 0 || r.Slots[0] != (v1alpha2.DeviceSlot{ID: "vd-root", Bus: "scsi", Slot: 3}) {
		t.Fatalf("remembers %+v", r)
	}
	next := calm(func(w *world) {
		w.record = *r
		w.record.Exit = ""
		w.record.Counter, w.record.Name = 2, "virt-launcher-a-2"
	})
	i, err := plan.Instance(next.launch())
	if err != nil {
		t.Fatal(err)
	}
	if slot := i.Spec.Machine.Disks[0].Slot; slot != 3 {
		t.Errorf("the disk moved to %d", slot)
	}
}

func TestTargetCountsDisksOnly(t *testing.T) {
	all := []v1alpha1.Disk{{ID: "late", Bus: "scsi", Slot: 4}, {ID: "firstboot", Bus: "scsi", Slot: 1, CDROM: true}, {ID: "root", Bus: "scsi"}}
	for id, want := range map[string]string{"root": "sda", "late": "sdb", "firstboot": "", "unknown": ""} {
		if got := target(all, id); got != want {
			t.Errorf("%s is %q, want %q", id, got, want)
		}
	}
}

func TestStatsKeepTheLastTransitions(t *testing.T) {
	w := calm()
	for i, phase := range []v1alpha2.MachinePhase{v1alpha2.MachinePending, v1alpha2.MachineStarting, v1alpha2.MachineRunning,
		v1alpha2.MachineStopping, v1alpha2.MachineStopped, v1alpha2.MachinePending, v1alpha2.MachineStarting} {
		w.now = noon.Add(time.Duration(i) * time.Second)
		w.vm.Status.Stats = stats(w, phase)
		w.vm.Status.Phase = phase
		if phase == v1alpha2.MachineRunning && w.vm.Status.Stats.LaunchTimeDuration.VirtualMachineStarting.Duration != time.Second {
			t.Errorf("launch time %+v", w.vm.Status.Stats.LaunchTimeDuration)
		}
	}
	s := w.vm.Status.Stats
	if len(s.PhasesTransitions) != rememberedTransitions || s.PhasesTransitions[4].Phase != v1alpha2.MachineStarting {
		t.Errorf("transitions %+v", s.PhasesTransitions)
	}
	if d := s.LaunchTimeDuration.WaitingForDependencies; d == nil || d.Duration != time.Second {
		t.Errorf("a new start keeps the old times: %+v", s.LaunchTimeDuration)
	}
}
