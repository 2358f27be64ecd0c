//go:build integration

package vm

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/testkit"
)

// pair is a stage with a second node and a disk that both can use. The test plays
// both handlers.
type pair struct {
	*stage
	other string
}

func newPair(t *testing.T) *pair {
	t.Helper()
	s := newStage(t)
	p := &pair{stage: s, other: s.node + "-b"}
	s.secondNode(p.other)
	s.sharedDisk("common")
	return p
}

func (s *stage) secondNode(name string) {
	s.t.Helper()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
		v1alpha2.LabelNodeSchedulable: "true", v1alpha2.LabelNodeAccelerator: "tcg"}}}
	s.create(node)
	s.t.Cleanup(func() { _ = s.client.Delete(context.Background(), node) })
}

// sharedDisk makes a disk on a volume of all nodes.
func (s *stage) sharedDisk(name string) {
	s.t.Helper()
	s.create(&corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "claim-" + name, Namespace: s.namespace},
		Spec: corev1.PersistentVolumeClaimSpec{AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany},
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}}}})
	d := testkit.Disk(name).Namespace(s.namespace).Size("1Gi").Fresh()
	s.create(d)
	d.Status = v1alpha2.VirtualDiskStatus{Phase: v1alpha2.DiskReady, Capacity: "1Gi",
		Target: v1alpha2.VirtualDiskTarget{PersistentVolumeClaimName: "claim-" + name}}
	if err := s.client.Status().Update(s.t.Context(), d); err != nil {
		s.t.Fatal(err)
	}
}

func onShared(vm *v1alpha2.VirtualMachine) { vm.Spec.BlockDeviceRefs[0].Name = "common" }

// place plays the scheduler, for the pod of a target.
func (p *pair) place(name, node string) {
	p.t.Helper()
	testkit.Eventually(p.t, patience, "pod "+name+" exists and is bound", func() error {
		pod := &corev1.Pod{}
		if err := p.get(name, pod); err != nil {
			return err
		}
		if pod.Spec.NodeName != "" {
			return nil
		}
		return p.client.SubResource("binding").Create(p.t.Context(), pod, &corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: node}})
	})
}

// end plays a handler: it writes into the status of an Instance once the Instance is
// as the handler waits for it.
func (p *pair) end(name, what string, ready func(*v1alpha1.Instance) bool, write func(*v1alpha1.Instance)) *v1alpha1.Instance {
	p.t.Helper()
	i := &v1alpha1.Instance{}
	testkit.Eventually(p.t, patience, name+" "+what, func() error {
		if err := p.get(name, i); err != nil {
			return err
		}
		if !ready(i) {
			return fmt.Errorf("order %+v, power %s", i.Spec.Migration, i.Spec.Power)
		}
		write(i)
		return p.client.Status().Update(p.t.Context(), i)
	})
	return i
}

func onNode(node string) func(*v1alpha1.Instance) bool {
	return func(i *v1alpha1.Instance) bool { return i.Spec.NodeName == node && i.Spec.PodUID != "" }
}

func says(phase v1alpha1.MigrationPhase, change ...func(*v1alpha1.InstanceStatus)) func(*v1alpha1.Instance) {
	return func(i *v1alpha1.Instance) {
		if i.Status.Migration == nil || i.Status.Migration.ID != i.Spec.Migration.ID {
			i.Status.Migration = &v1alpha1.MigrationStatus{ID: i.Spec.Migration.ID}
		}
		i.Status.Migration.Phase = phase
		for _, c := range change {
			c(&i.Status)
		}
	}
}

func listens(s *v1alpha1.InstanceStatus) {
	s.PodUID, s.Phase = "x", v1alpha1.InstanceStarting
	s.Migration.Endpoint = "192.0.2.7:4135"
}

// told and aborted are about the order to move to one target: the order of the last
// migration stays until the next.
func told(target string) func(*v1alpha1.Instance) bool {
	return func(i *v1alpha1.Instance) bool {
		return i.Spec.Migration != nil && i.Spec.Migration.Peer == target && i.Spec.Migration.Endpoint != ""
	}
}

func aborted(target string) func(*v1alpha1.Instance) bool {
	return func(i *v1alpha1.Instance) bool { return told(target)(i) && i.Spec.Migration.Abort }
}

func killed(i *v1alpha1.Instance) bool { return i.Spec.Power == v1alpha1.PowerKill }

// ready takes a migration to where the source has been told to begin.
func (p *pair) ready(source, target, node string) {
	p.t.Helper()
	p.place(target, node)
	p.end(target, "is given to its node", onNode(node), says(v1alpha1.MigrationReady, listens))
	p.end(source, "is told to begin", told(target), says(v1alpha1.MigrationTransferring, func(s *v1alpha1.InstanceStatus) {
		s.Migration.TotalBytes, s.Migration.RemainingBytes, s.Migration.Iteration = 100<<20, 50<<20, 1
	}))
}

// buried waits until a process is killed, plays its death and waits until nothing is left of it.
func (p *pair) buried(name string, cause v1alpha1.ExitCause) {
	p.t.Helper()
	p.end(name, "is killed", killed, func(i *v1alpha1.Instance) { ends(cause)(&i.Status) })
	p.reap(name)
	testkit.Eventually(p.t, patience, "instance "+name+" is gone", func() error {
		if err := p.get(name, &v1alpha1.Instance{}); !apierrors.IsNotFound(err) {
			return fmt.Errorf("still there: %w", err)
		}
		return nil
	})
}

func (p *pair) reason(o *v1alpha2.VirtualMachineOperation, want v1alpha2.Reason) {
	p.t.Helper()
	testkit.Eventually(p.t, patience, fmt.Sprintf("operation says %s", want), func() error {
		if err := p.get(o.Name, o); err != nil {
			return err
		}
		c := meta.FindStatusCondition(o.Status.Conditions, v1alpha2.OperationConditionCompleted)
		if c == nil || c.Reason != want.String() {
			return fmt.Errorf("phase %s progress %s condition %+v", o.Status.Phase, o.Status.Progress, c)
		}
		return nil
	})
}

func TestMigration(t *testing.T) {
	p := newPair(t)
	p.machine("m", onShared)
	source := p.start("m", 1)
	secret := &corev1.Secret{}
	testkit.Eventually(t, patience, "the first-boot secret exists", func() error { return p.get(source, secret) })

	evict := p.operate("m", v1alpha2.OperationEvict, false)
	const target = "virt-launcher-m-2"
	p.reason(evict, v1alpha2.OperationReasonTargetScheduling)
	pod, in, from := &corev1.Pod{}, &v1alpha1.Instance{}, &v1alpha1.Instance{}
	testkit.Eventually(t, patience, "the target has all it needs", func() error {
		return errors.Join(p.get(target, pod), p.get(target, in), p.get(source, from), p.get(target, secret), p.get("virt-launcher-m", &policyv1.PodDisruptionBudget{}))
	})
	if in.Spec.Machine.Interfaces[0].MAC != from.Spec.Machine.Interfaces[0].MAC || in.Spec.Network.Address != from.Spec.Network.Address {
		t.Errorf("the target has another address: %+v", in.Spec)
	}
	fields := pod.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms[0].MatchFields
	if len(fields) != 1 || fields[0].Values[0] != p.node || fields[0].Operator != corev1.NodeSelectorOpNotIn {
		t.Errorf("the pod may go back to its node: %+v", pod.Spec.Affinity)
	}
	p.ready(source, target, p.other)
	p.reason(evict, v1alpha2.OperationReasonSyncing)
	vm := p.phase("m", v1alpha2.MachineMigrating)
	if vm.Status.NodeName != p.node || vm.Status.MigrationState == nil || vm.Status.MigrationState.Target.Pod != target {
		t.Errorf("status while it moves: %+v", vm.Status)
	}
	p.end(source, "completes", told(target), says(v1alpha1.MigrationCompleted, func(s *v1alpha1.InstanceStatus) { s.Phase = v1alpha1.InstancePaused }))
	p.end(target, "is told that the source has completed", func(i *v1alpha1.Instance) bool { return i.Spec.Migration.SourceCompleted },
		says(v1alpha1.MigrationCompleted, runs))
	p.operationPhase(evict, v1alpha2.OperationCompleted)
	if evict.Status.Progress != "100%" {
		t.Errorf("progress %s", evict.Status.Progress)
	}
	p.buried(source, v1alpha1.ExitMigrated)
	vm = p.phase("m", v1alpha2.MachineRunning)
	if vm.Status.NodeName != p.other || vm.Status.MigrationState.Result != v1alpha2.MigrationSucceeded || vm.Status.Instance.Counter != 2 {
		t.Errorf("status afterwards: %+v", vm.Status)
	}
	testkit.Eventually(t, patience, "nothing is remembered of the source", func() error {
		vm, err := p.vm("m")
		if err != nil || len(vm.Status.Instance.Former) > 0 {
			return fmt.Errorf("%+v %w", vm.Status.Instance, err)
		}
		if err := p.get("virt-launcher-m", &policyv1.PodDisruptionBudget{}); !apierrors.IsNotFound(err) {
			return fmt.Errorf("the budget is left: %w", err)
		}
		return nil
	})

	// And back: the present process is a target of old.
	back := p.operate("m", v1alpha2.OperationMigrate, false)
	p.ready(target, "virt-launcher-m-3", p.node)
	p.end(target, "completes", told("virt-launcher-m-3"), says(v1alpha1.MigrationCompleted))
	p.end("virt-launcher-m-3", "runs", onNode(p.node), says(v1alpha1.MigrationCompleted, runs))
	p.operationPhase(back, v1alpha2.OperationCompleted)
	p.buried(target, v1alpha1.ExitMigrated)
	p.phase("m", v1alpha2.MachineRunning)
}

func TestMigrationFails(t *testing.T) {
	p := newPair(t)
	p.machine("f", onShared)
	source := p.start("f", 1)
	first := p.operate("f", v1alpha2.OperationEvict, false)
	p.ready(source, "virt-launcher-f-2", p.other)
	p.end(source, "fails", told("virt-launcher-f-2"), says(v1alpha1.MigrationFailed, func(s *v1alpha1.InstanceStatus) {
		s.Migration.Reason, s.Migration.Message = "NotConverging", "The guest changes its memory faster than it can be copied"
	}))
	p.operationPhase(first, v1alpha2.OperationFailed)
	p.reason(first, v1alpha2.OperationReasonNotConverging)
	p.buried("virt-launcher-f-2", v1alpha1.ExitKilled)
	p.phase("f", v1alpha2.MachineRunning)

	// A new one is called off by deleting it; the source says that the guest stays.
	second := p.operate("f", v1alpha2.OperationEvict, false)
	p.ready(source, "virt-launcher-f-3", p.other)
	if err := p.client.Delete(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	p.end(source, "is told to stop", aborted("virt-launcher-f-3"), says(v1alpha1.MigrationFailed, func(s *v1alpha1.InstanceStatus) { s.Migration.Reason = "Aborted" }))
	p.buried("virt-launcher-f-3", v1alpha1.ExitKilled)
	vm := p.phase("f", v1alpha2.MachineRunning)
	if vm.Status.MigrationState.Result != v1alpha2.MigrationFailed || vm.Status.NodeName != p.node {
		t.Errorf("status %+v", vm.Status.MigrationState)
	}

	// The word that comes too late: the source had completed before it heard of the stop.
	third := p.operate("f", v1alpha2.OperationEvict, false)
	p.ready(source, "virt-launcher-f-4", p.other)
	stop := p.operate("f", v1alpha2.OperationStop, false)
	p.operationPhase(third, v1alpha2.OperationSuperseded)
	p.end(source, "completes all the same", aborted("virt-launcher-f-4"), says(v1alpha1.MigrationCompleted))
	p.end("virt-launcher-f-4", "runs", func(i *v1alpha1.Instance) bool { return i.Spec.Migration.SourceCompleted },
		says(v1alpha1.MigrationCompleted, runs))
	p.power("virt-launcher-f-4", v1alpha1.PowerOff)
	p.end("virt-launcher-f-4", "is shut down", onNode(p.other), func(i *v1alpha1.Instance) { ends(v1alpha1.ExitHostShutdown)(&i.Status) })
	p.reap("virt-launcher-f-4")
	p.buried(source, v1alpha1.ExitMigrated)
	p.phase("f", v1alpha2.MachineStopped)
	p.operationPhase(stop, v1alpha2.OperationCompleted)
}

func TestMigrationOfALostGuest(t *testing.T) {
	p := newPair(t)
	p.machine("l", onShared)
	source := p.start("l", 1)
	evict := p.operate("l", v1alpha2.OperationEvict, false)
	p.ready(source, "virt-launcher-l-2", p.other)
	p.end(source, "completes", told("virt-launcher-l-2"), says(v1alpha1.MigrationCompleted))
	p.end("virt-launcher-l-2", "dies before it runs", onNode(p.other), func(i *v1alpha1.Instance) { ends(v1alpha1.ExitCrashed)(&i.Status) })
	p.power(source, v1alpha1.PowerKill)
	p.report(source, ends(v1alpha1.ExitKilled))
	p.reap(source)
	p.reap("virt-launcher-l-2")
	p.operationPhase(evict, v1alpha2.OperationFailed)
	p.start("l", 3)
}

func TestNotMigratable(t *testing.T) {
	p := newPair(t)
	p.machine("n", nil)
	p.start("n", 1)
	testkit.Eventually(t, patience, "the machine says why it cannot move", func() error {
		vm, err := p.vm("n")
		if err != nil {
			return err
		}
		c := meta.FindStatusCondition(vm.Status.Conditions, v1alpha2.MachineConditionMigratable)
		if c == nil || c.Reason != v1alpha2.MachineReasonVirtualMachineDisksNotMigratable.String() {
			return fmt.Errorf("condition %+v", c)
		}
		return nil
	})
	p.reason(p.operate("n", v1alpha2.OperationEvict, false), v1alpha2.OperationReasonWaitingForVirtualMachineToBeReadyToMigrate)
}

func TestMigrationsTakeTurns(t *testing.T) {
	p := newPair(t)
	p.sharedDisk("second")
	p.machine("a", onShared)
	p.machine("b", func(vm *v1alpha2.VirtualMachine) { vm.Spec.BlockDeviceRefs[0].Name = "second" })
	first, second := p.start("a", 1), p.start("b", 1)
	one := p.operate("a", v1alpha2.OperationEvict, false)
	p.reason(one, v1alpha2.OperationReasonTargetScheduling)
	two := p.operate("b", v1alpha2.OperationEvict, false)
	p.reason(two, v1alpha2.OperationReasonMigrationPending)
	testkit.Never(t, time.Second, "the second machine has a target", func() error {
		if err := p.get("virt-launcher-b-2", &v1alpha1.Instance{}); !apierrors.IsNotFound(err) {
			return fmt.Errorf("it has: %w", err)
		}
		return nil
	})
	p.ready(first, "virt-launcher-a-2", p.other)
	p.end(first, "completes", told("virt-launcher-a-2"), says(v1alpha1.MigrationCompleted))
	p.end("virt-launcher-a-2", "runs", onNode(p.other), says(v1alpha1.MigrationCompleted, runs))
	p.operationPhase(one, v1alpha2.OperationCompleted)
	p.ready(second, "virt-launcher-b-2", p.other)
	p.end(second, "completes", told("virt-launcher-b-2"), says(v1alpha1.MigrationCompleted))
	p.end("virt-launcher-b-2", "runs", onNode(p.other), says(v1alpha1.MigrationCompleted, runs))
	p.operationPhase(two, v1alpha2.OperationCompleted)
}

func TestEvacuation(t *testing.T) {
	p := newPair(t)
	p.machine("e", onShared)
	source := p.start("e", 1)
	ask := func(pod string) {
		t.Helper()
		testkit.Eventually(t, patience, "somebody asks to evict "+pod, func() error {
			o := &corev1.Pod{}
			if err := p.get(pod, o); err != nil {
				return err
			}
			o.Annotations[v1alpha2.AnnotationEvacuationRequested] = o.Spec.NodeName
			return p.client.Update(t.Context(), o)
		})
	}
	ask(source)
	made := &v1alpha2.VirtualMachineOperation{ObjectMeta: metav1.ObjectMeta{Name: "evacuation-" + source}}
	p.operationPhase(made, v1alpha2.OperationInProgress)

	// Deleting it cancels the evacuation, and with it the request. The machine has taken
	// it up by then: the number of the next target depends on that.
	p.reason(made, v1alpha2.OperationReasonTargetScheduling)
	if err := p.client.Delete(t.Context(), made); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, patience, "the request is taken back", func() error {
		o := &corev1.Pod{}
		if err := p.get(source, o); err != nil || o.Annotations[v1alpha2.AnnotationEvacuationRequested] != "" {
			return fmt.Errorf("%v %w", o.Annotations, err)
		}
		if err := p.get(made.Name, made); !apierrors.IsNotFound(err) {
			return fmt.Errorf("the operation is still there: %w", err)
		}
		return nil
	})
	testkit.Eventually(t, patience, "its target goes", func() error {
		vm, err := p.vm("e")
		if err != nil || vm.Status.Instance.Target != nil {
			return fmt.Errorf("%+v %w", vm.Status.Instance, err)
		}
		return nil
	})

	// Asked again, it is done; a failure stands in the way of the next attempt.
	ask(source)
	again := &v1alpha2.VirtualMachineOperation{ObjectMeta: metav1.ObjectMeta{Name: "evacuation-" + source}}
	p.operationPhase(again, v1alpha2.OperationInProgress)
	p.ready(source, "virt-launcher-e-3", p.other)
	p.end(source, "fails", told("virt-launcher-e-3"), says(v1alpha1.MigrationFailed, func(s *v1alpha1.InstanceStatus) { s.Migration.Reason = "ConnectionLost" }))
	p.operationPhase(again, v1alpha2.OperationFailed)
	testkit.Eventually(t, patience, "the machine says that it has to leave", func() error {
		vm, err := p.vm("e")
		if err != nil {
			return err
		}
		c := meta.FindStatusCondition(vm.Status.Conditions, v1alpha2.MachineConditionEvictionRequired)
		if c == nil || c.Status != metav1.ConditionTrue || !strings.Contains(c.Message, again.Name) {
			return fmt.Errorf("condition %+v", c)
		}
		return nil
	})
	if err := p.client.Delete(t.Context(), again); err != nil {
		t.Fatal(err)
	}
	third := &v1alpha2.VirtualMachineOperation{ObjectMeta: metav1.ObjectMeta{Name: "evacuation-" + source}}
	p.operationPhase(third, v1alpha2.OperationInProgress)
	p.ready(source, "virt-launcher-e-4", p.other)
	p.end(source, "completes", told("virt-launcher-e-4"), says(v1alpha1.MigrationCompleted))
	p.end("virt-launcher-e-4", "runs", onNode(p.other), says(v1alpha1.MigrationCompleted, runs))
	p.operationPhase(third, v1alpha2.OperationCompleted)
	testkit.Eventually(t, patience, "nothing asks it to leave", func() error {
		vm, err := p.vm("e")
		if err != nil || meta.FindStatusCondition(vm.Status.Conditions, v1alpha2.MachineConditionEvictionRequired) != nil {
			return fmt.Errorf("%+v %w", vm.Status.Conditions, err)
		}
		return nil
	})
}
