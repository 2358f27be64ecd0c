//go:build integration

package vm

import (
	"fmt"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/testkit"
)

// moveWrites is more than a migration has.
const moveWrites = 40

// TestCrashWhileMoving kills the controller after every single write of a migration,
// of one that succeeds and of one that fails, and expects the same end each time: one
// process, on the side where the guest is, and never two that run it.
func TestCrashWhileMoving(t *testing.T) {
	cached := crashCache(t)
	for name, fails := range map[string]bool{"succeeds": false, "fails": true} {
		var survivors atomic.Int64
		t.Run(name, func(t *testing.T) {
			for n := range int64(moveWrites) {
				t.Run(fmt.Sprintf("after %d writes", n), func(t *testing.T) {
					t.Parallel()
					if crashMoving(t, n, cached, fails) {
						survivors.Add(1)
					}
				})
			}
		})
		if survivors.Load() == 0 {
			t.Errorf("a migration that %s has more than %d writes", name, moveWrites)
		}
	}
}

// crashMoving moves a machine while the controller dies after n writes; it returns
// whether it never did.
func crashMoving(t *testing.T, n int64, cached client.Reader, fails bool) bool {
	t.Helper()
	s := newTheatre(t, int(n), cached)
	other := s.node + "-b"
	s.secondNode(other)
	s.sharedDisk("common")
	p := &pairOfHandlers{theatre: s, other: other, fails: fails}
	s.hands = p.play
	s.restart(1 << 40)
	s.machine("m", onShared)
	s.until("the guest runs", nil, func(now *v1alpha2.VirtualMachine) bool {
		return now != nil && now.Status.Phase == v1alpha2.MachineRunning
	})
	o := testkit.Operation(v1alpha2.OperationEvict, "m")
	o.ObjectMeta = metav1.ObjectMeta{GenerateName: "op-", Namespace: s.namespace}
	s.create(o)
	o.Status.Phase = v1alpha2.OperationInProgress
	if err := s.client.Status().Update(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	s.restart(n)
	want, reason := "virt-launcher-m-2", v1alpha2.OperationReasonCompleted
	if fails {
		want, reason = "virt-launcher-m-1", v1alpha2.OperationReasonFailed
	}
	s.until("the migration is over and the other process gone", nil, func(now *v1alpha2.VirtualMachine) bool {
		if now == nil || now.Status.Instance == nil {
			return false
		}
		r := now.Status.Instance
		return r.Migrated != nil && r.Migrated.Operation == o.UID && r.Migrated.Reason == reason && len(r.Former) == 0 && r.Target == nil &&
			r.Name == want && r.Counter == 2 && now.Status.Phase == v1alpha2.MachineRunning
	})
	if p.running > 1 {
		t.Errorf("%d processes ran the guest at once", p.running)
	}
	left := &v1alpha1.InstanceList{}
	if err := s.client.List(t.Context(), left, client.InNamespace(s.namespace)); err != nil || len(left.Items) != 1 {
		t.Errorf("%d instances are left: %v", len(left.Items), err)
	}
	// What stays would keep the controllers of later tests busy.
	survived := s.writes.Load() < 1<<39
	vm, err := s.vm("m")
	if err == nil {
		err = s.client.Delete(t.Context(), vm)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.until("the machine is gone", nil, func(now *v1alpha2.VirtualMachine) bool { return now == nil })
	return survived
}

// pairOfHandlers plays the handlers of two nodes, and scheduler and kubelet.
type pairOfHandlers struct {
	*theatre
	other   string
	fails   bool
	running int // processes seen to run the guest at once, at most
}

func (p *pairOfHandlers) play(func(*v1alpha1.Instance)) {
	ctx := p.t.Context()
	pods, instances, addresses := &corev1.PodList{}, &v1alpha1.InstanceList{}, &v1alpha2.VirtualMachineIPAddressList{}
	for _, l := range []client.ObjectList{pods, instances, addresses} {
		if err := p.client.List(ctx, l, client.InNamespace(p.namespace)); err != nil {
			p.t.Fatal(err)
		}
	}
	for i := range addresses.Items {
		if a := &addresses.Items[i]; a.Status.Address == "" {
			a.Status = v1alpha2.VirtualMachineIPAddressStatus{Phase: v1alpha2.VirtualMachineIPAddressAttached, Address: "10.66.10.2", VirtualMachineName: "m"}
			_ = p.client.Status().Update(ctx, a)
		}
	}
	for i := range pods.Items {
		p.kubelet(&pods.Items[i])
	}
	running := 0
	for i := range instances.Items {
		in := &instances.Items[i]
		if in.Status.Phase == v1alpha1.InstanceRunning && in.Status.Exit == nil {
			running++
		}
		if in.Spec.NodeName == "" || in.Status.Exit != nil {
			continue
		}
		p.handler(in)
		_ = p.client.Status().Update(ctx, in)
	}
	p.running = max(p.running, running)
}

func (p *pairOfHandlers) kubelet(pod *corev1.Pod) {
	ctx := p.t.Context()
	node := p.node
	if pod.Name == "virt-launcher-m-2" {
		node = p.other
	}
	if pod.Spec.NodeName == "" && pod.DeletionTimestamp == nil {
		_ = p.client.SubResource("binding").Create(ctx, pod, &corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: node}})
	}
	if pod.DeletionTimestamp != nil && ptr.Deref(pod.DeletionGracePeriodSeconds, 0) > 0 {
		_ = p.client.Delete(ctx, pod, client.GracePeriodSeconds(0))
	}
}

// handler does the next thing that a handler would do.
func (p *pairOfHandlers) handler(in *v1alpha1.Instance) {
	order := in.Spec.Migration
	in.Status.PodUID = in.Spec.PodUID
	switch {
	case in.Spec.Power != v1alpha1.PowerOn:
		ends(v1alpha1.ExitKilled)(&in.Status)
	case order == nil:
		runs(&in.Status)
	case order.Role == v1alpha1.MigrationTarget:
		switch {
		case in.Status.StartTime != nil:
		case order.SourceCompleted:
			says(v1alpha1.MigrationCompleted, runs)(in)
		default:
			says(v1alpha1.MigrationReady, listens)(in)
		}
	case in.Status.Migration == nil && order.Endpoint != "":
		says(v1alpha1.MigrationTransferring)(in)
	case in.Status.Migration != nil && in.Status.Migration.Phase == v1alpha1.MigrationTransferring && p.fails:
		says(v1alpha1.MigrationFailed, func(s *v1alpha1.InstanceStatus) { s.Migration.Reason = "Error" })(in)
	case in.Status.Migration != nil && in.Status.Migration.Phase == v1alpha1.MigrationTransferring:
		says(v1alpha1.MigrationCompleted, func(s *v1alpha1.InstanceStatus) { s.Phase = v1alpha1.InstancePaused })(in)
	}
}
