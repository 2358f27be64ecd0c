//go:build integration

package vm

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"orlop.dev/orlop/api/core/v1alpha2"
	deckhousev1alpha1 "orlop.dev/orlop/api/deckhouse/v1alpha1"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	addresses "orlop.dev/orlop/internal/controller/address"
	attachments "orlop.dev/orlop/internal/controller/attachment"
	classes "orlop.dev/orlop/internal/controller/class"
	"orlop.dev/orlop/internal/controller/operation"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/settings"
	"orlop.dev/orlop/internal/testkit"
)

const patience = 20 * time.Second

// world of the tests: a namespace with one ready disk, a node and the controllers.
type stage struct {
	t         *testing.T
	client    client.Client
	namespace string
	node      string
}

func newStage(t *testing.T) *stage {
	t.Helper()
	api := testkit.API(t)
	s := &stage{t: t, client: api.Client(t), namespace: api.Namespace(t), node: "node-" + api.Namespace(t)}
	s.create(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: s.node, Labels: map[string]string{
		v1alpha2.LabelNodeSchedulable: "true", v1alpha2.LabelNodeAccelerator: "tcg"}}})
	t.Cleanup(func() {
		_ = s.client.Delete(context.Background(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: s.node}})
	})
	s.furnish()
	s.disk("root")
	s.controllers(api)
	return s
}

// furnish makes the settings and the class.
func (s *stage) furnish() {
	s.t.Helper()
	t := s.t
	config := &deckhousev1alpha1.ModuleConfig{
		ObjectMeta: metav1.ObjectMeta{Name: "virtualization", Annotations: map[string]string{v1alpha2.AnnotationAllowEmulation: "true"}},
	}
	config.Spec.Version = 1
	config.Spec.Settings = &runtime.RawExtension{Raw: []byte(
		`{"virtualMachineCIDRs":["10.66.10.0/24"],"dvcr":{"storage":{"type":"PersistentVolumeClaim","persistentVolumeClaim":{"size":"1G"}}}}`)}
	if err := s.client.Create(t.Context(), config); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	generic := testkit.Class("generic").Fresh()
	if err := s.client.Create(t.Context(), generic); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
}

// controllers runs the ones that a machine needs until the test ends.
func (s *stage) controllers(api *testkit.Server) {
	s.t.Helper()
	m, err := ctrl.NewManager(api.Config(), ctrl.Options{Scheme: testkit.Scheme(), Metrics: server.Options{BindAddress: "0"},
		Controller: ctrlconfig.Controller{SkipNameValidation: new(true)}})
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	err = errors.Join(Setup(ctx, m, settings.Platform{LauncherImage: "launcher", ClusterDNS: []string{"10.96.0.10"}, ClusterDomain: "cluster.local"}),
		attachments.Setup(ctx, m), operation.Setup(ctx, m), addresses.Setup(ctx, m, addresses.Retention), classes.Setup(ctx, m))
	if err != nil {
		s.t.Fatal(err)
	}
	go func() { done <- m.Start(ctx) }()
	s.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Errorf("manager: %v", err)
		}
	})
}

func (s *stage) create(o client.Object) {
	s.t.Helper()
	if err := s.client.Create(s.t.Context(), o); err != nil {
		s.t.Fatalf("create %T: %v", o, err)
	}
}

// disk makes a disk as the disk controller would leave it.
func (s *stage) disk(name string) {
	s.t.Helper()
	s.create(&corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "claim-" + name, Namespace: s.namespace},
		Spec: corev1.PersistentVolumeClaimSpec{AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}}}})
	d := testkit.Disk(name).Namespace(s.namespace).Size("1Gi").Fresh()
	s.create(d)
	d.Status = v1alpha2.VirtualDiskStatus{Phase: v1alpha2.DiskReady, Capacity: "1Gi",
		Target: v1alpha2.VirtualDiskTarget{PersistentVolumeClaimName: "claim-" + name}}
	if err := s.client.Status().Update(s.t.Context(), d); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stage) machine(name string, change func(*v1alpha2.VirtualMachine)) {
	s.t.Helper()
	vm := testkit.VM(name).Namespace(s.namespace).Disk("root").UserData("#cloud-config\n").Fresh()
	if change != nil {
		change(vm)
	}
	s.create(vm)
}

func (s *stage) get(name string, o client.Object) error {
	return s.client.Get(context.Background(), client.ObjectKey{Namespace: s.namespace, Name: name}, o)
}

func (s *stage) vm(name string) (*v1alpha2.VirtualMachine, error) {
	vm := &v1alpha2.VirtualMachine{}
	return vm, s.get(name, vm)
}

// phase waits for a phase.
func (s *stage) phase(name string, want v1alpha2.MachinePhase) *v1alpha2.VirtualMachine {
	s.t.Helper()
	var last *v1alpha2.VirtualMachine
	testkit.Eventually(s.t, patience, fmt.Sprintf("machine %s is %s", name, want), func() error {
		vm, err := s.vm(name)
		if err != nil {
			return err
		}
		last = vm
		if vm.Status.Phase != want {
			return fmt.Errorf("phase %s, record %+v, conditions %+v", vm.Status.Phase, vm.Status.Instance, vm.Status.Conditions)
		}
		return nil
	})
	return last
}

// bind plays the scheduler, for the pod of an instance.
func (s *stage) bind(name string) {
	s.t.Helper()
	testkit.Eventually(s.t, patience, "pod "+name+" exists and is bound", func() error {
		if err := s.get(name, &corev1.Pod{}); err != nil {
			return err
		}
		return s.client.SubResource("binding").Create(s.t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: s.namespace}},
			&corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: s.node}})
	})
}

// report plays the handler: it waits for the instance to be given to the node and
// writes its status.
func (s *stage) report(name string, change func(*v1alpha1.InstanceStatus)) {
	s.t.Helper()
	testkit.Eventually(s.t, patience, "instance "+name+" has a node and takes a status", func() error {
		i := &v1alpha1.Instance{}
		if err := s.get(name, i); err != nil {
			return err
		}
		if i.Spec.NodeName != s.node || i.Spec.PodUID == "" {
			return fmt.Errorf("node %q pod %q", i.Spec.NodeName, i.Spec.PodUID)
		}
		change(&i.Status)
		return s.client.Status().Update(s.t.Context(), i)
	})
}

func runs(status *v1alpha1.InstanceStatus) {
	status.Phase, status.QEMUVersion, status.StartTime = v1alpha1.InstanceRunning, "10.0.2", new(metav1.Now())
}

func ends(cause v1alpha1.ExitCause) func(*v1alpha1.InstanceStatus) {
	return func(status *v1alpha1.InstanceStatus) {
		status.Phase = v1alpha1.InstanceStopped
		status.Exit = &v1alpha1.Exit{Cause: cause, Time: metav1.Now()}
	}
}

// reap plays the kubelet that ends a pod being deleted.
func (s *stage) reap(name string) {
	s.t.Helper()
	testkit.Eventually(s.t, patience, "pod "+name+" is deleted and gone", func() error {
		p := &corev1.Pod{}
		if err := s.get(name, p); apierrors.IsNotFound(err) {
			return nil
		} else if err != nil {
			return err
		}
		if p.DeletionTimestamp == nil {
			return errors.New("nobody deleted it")
		}
		if p.DeletionGracePeriodSeconds != nil && *p.DeletionGracePeriodSeconds > 0 {
			if err := s.client.Delete(s.t.Context(), p, client.GracePeriodSeconds(0)); client.IgnoreNotFound(err) != nil {
				return err
			}
		}
		return errors.New("still there")
	})
}

// start takes a machine's present process to Running.
func (s *stage) start(vm string, counter int) string {
	s.t.Helper()
	name := fmt.Sprintf("virt-launcher-%s-%d", vm, counter)
	s.bind(name)
	s.report(name, runs)
	s.phase(vm, v1alpha2.MachineRunning)
	return name
}

func (s *stage) operate(vm string, kind v1alpha2.OperationType, force bool) *v1alpha2.VirtualMachineOperation {
	s.t.Helper()
	o := testkit.Operation(kind, vm)
	o.ObjectMeta = metav1.ObjectMeta{GenerateName: "op-", Namespace: s.namespace}
	if force {
		o.Spec.Force = new(true)
	}
	s.create(o)
	return o
}

func (s *stage) operationPhase(o *v1alpha2.VirtualMachineOperation, want v1alpha2.OperationPhase) {
	s.t.Helper()
	testkit.Eventually(s.t, patience, fmt.Sprintf("operation %s is %s", o.Spec.Type, want), func() error {
		if err := s.get(o.Name, o); err != nil {
			return err
		}
		if o.Status.Phase != want {
			return fmt.Errorf("phase %s %+v", o.Status.Phase, o.Status.Conditions)
		}
		return nil
	})
}

// power waits until an instance is told a power state.
func (s *stage) power(name string, want v1alpha1.PowerState) {
	s.t.Helper()
	testkit.Eventually(s.t, patience, fmt.Sprintf("instance %s is told %s", name, want), func() error {
		i := &v1alpha1.Instance{}
		if err := s.get(name, i); err != nil {
			return err
		}
		if i.Spec.Power != want {
			return fmt.Errorf("power %s", i.Spec.Power)
		}
		return nil
	})
}

func TestMachineLifecycle(t *testing.T) {
	s := newStage(t)
	s.machine("a", nil)
	first := s.start("a", 1)

	vm, err := s.vm("a")
	if err != nil {
		t.Fatal(err)
	}
	if vm.Status.NodeName != s.node || vm.Status.IPAddress == "" || vm.Status.Versions.QEMU != "10.0.2" ||
		len(vm.Status.VirtualMachinePods) != 1 || !vm.Status.VirtualMachinePods[0].Active {
		t.Fatalf("status of a running machine: %+v", vm.Status)
	}
	if err := s.get(first, &corev1.Secret{}); err != nil {
		t.Fatalf("first-boot secret: %v", err)
	}

	restart := s.operate("a", v1alpha2.OperationRestart, false)
	s.power(first, v1alpha1.PowerOff)
	s.report(first, ends(v1alpha1.ExitHostShutdown))
	s.reap(first)
	second := s.start("a", 2)
	s.operationPhase(restart, v1alpha2.OperationCompleted)

	stop := s.operate("a", v1alpha2.OperationStop, true)
	s.power(second, v1alpha1.PowerKill)
	s.report(second, ends(v1alpha1.ExitKilled))
	s.reap(second)
	s.phase("a", v1alpha2.MachineStopped)
	s.operationPhase(stop, v1alpha2.OperationCompleted)

	again := s.operate("a", v1alpha2.OperationStart, false)
	third := s.start("a", 3)
	s.operationPhase(again, v1alpha2.OperationCompleted)

	if err := s.client.Delete(t.Context(), vm); err != nil {
		t.Fatal(err)
	}
	s.power(third, v1alpha1.PowerOff)
	s.report(third, ends(v1alpha1.ExitHostShutdown))
	s.reap(third)
	testkit.Eventually(t, patience, "the machine is gone and its disk is free", func() error {
		if _, err := s.vm("a"); !apierrors.IsNotFound(err) {
			return fmt.Errorf("machine: %w", err)
		}
		d := &v1alpha2.VirtualDisk{}
		if err := s.get("root", d); err != nil {
			return err
		}
		if holder, _ := policy.DiskHolder(d); holder != "" {
			return fmt.Errorf("held by %s", holder)
		}
		return nil
	})
}

func TestForceDeletedPodStartsNoSecond(t *testing.T) {
	s := newStage(t)
	s.machine("b", nil)
	name := s.start("b", 1)
	p := &corev1.Pod{}
	if err := s.get(name, p); err != nil {
		t.Fatal(err)
	}
	if err := s.client.Delete(t.Context(), p, client.GracePeriodSeconds(0)); err != nil {
		t.Fatal(err)
	}
	s.power(name, v1alpha1.PowerOff)
	// Even without the finalizer there is no proof.
	testkit.Eventually(t, patience, "the finalizer is torn off", func() error {
		if err := s.get(name, p); err != nil {
			return err
		}
		p.Finalizers = nil
		return s.client.Update(t.Context(), p)
	})
	testkit.Never(t, time.Second, "a second process is prepared", func() error {
		vm, err := s.vm("b")
		if err != nil {
			return err
		}
		if vm.Status.Instance.Counter != 1 || vm.Status.Instance.Exit != "" {
			return fmt.Errorf("record %+v", vm.Status.Instance)
		}
		return nil
	})
	// An administrator vouches for the node.
	node := &corev1.Node{}
	if err := s.client.Get(t.Context(), client.ObjectKey{Name: s.node}, node); err != nil {
		t.Fatal(err)
	}
	node.Spec.Taints = append(node.Spec.Taints, corev1.Taint{Key: corev1.TaintNodeOutOfService, Value: "nodeshutdown", Effect: corev1.TaintEffectNoExecute})
	if err := s.client.Update(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, patience, "the next process is prepared", func() error {
		return s.get("virt-launcher-b-2", &v1alpha1.Instance{})
	})
}

func TestGuestPowerOffUnderEachPolicy(t *testing.T) {
	s := newStage(t)
	s.disk("manual")
	s.disk("on")
	for name, want := range map[string]struct {
		policy v1alpha2.RunPolicy
		disk   string
		stays  bool
	}{
		"until": {v1alpha2.AlwaysOnUnlessStoppedManually, "root", true},
		"man":   {v1alpha2.Manual, "manual", true},
		"on":    {v1alpha2.AlwaysOn, "on", false},
	} {
		t.Run(string(want.policy), func(t *testing.T) {
			s := &stage{t: t, client: s.client, namespace: s.namespace, node: s.node}
			s.machine(name, func(vm *v1alpha2.VirtualMachine) {
				vm.Spec.RunPolicy, vm.Spec.BlockDeviceRefs[0].Name = want.policy, want.disk
			})
			if want.policy == v1alpha2.Manual {
				s.phase(name, v1alpha2.MachineStopped)
				s.operate(name, v1alpha2.OperationStart, false)
			}
			first := s.start(name, 1)
			s.report(first, ends(v1alpha1.ExitGuestShutdown))
			s.reap(first)
			if want.stays {
				s.phase(name, v1alpha2.MachineStopped)
				return
			}
			s.start(name, 2)
		})
	}
}

func TestDiskBelongsToOneMachine(t *testing.T) {
	s := newStage(t)
	s.machine("c", nil)
	first := s.start("c", 1)
	s.machine("d", nil)
	testkit.Eventually(t, patience, "the second machine says whose the disk is", func() error {
		vm, err := s.vm("d")
		if err != nil {
			return err
		}
		for _, c := range vm.Status.Conditions {
			if c.Type == v1alpha2.MachineConditionBlockDevicesReady && c.Status == metav1.ConditionFalse &&
				c.Message == "VirtualDisk root is used by VirtualMachine c: stop it or detach the disk there" {
				return nil
			}
		}
		return fmt.Errorf("%+v", vm.Status.Conditions)
	})
	if vm, err := s.vm("d"); err != nil || vm.Status.Phase != v1alpha2.MachinePending {
		t.Fatalf("phase %v %v", vm.Status.Phase, err)
	}
	s.operate("c", v1alpha2.OperationStop, false)
	s.power(first, v1alpha1.PowerOff)
	s.report(first, ends(v1alpha1.ExitHostShutdown))
	s.reap(first)
	s.start("d", 1)
}

func TestChangesWaitForARestart(t *testing.T) {
	s := newStage(t)
	s.machine("e", nil)
	name := s.start("e", 1)
	testkit.Eventually(t, patience, "memory is changed", func() error {
		vm, err := s.vm("e")
		if err != nil {
			return err
		}
		vm.Spec.Memory.Size = resource.MustParse("512Mi")
		vm.Labels = map[string]string{"app": "x"}
		return s.client.Update(t.Context(), vm)
	})
	testkit.Eventually(t, patience, "the change is listed, the reboot action set and the label copied", func() error {
		vm, err := s.vm("e")
		if err != nil {
			return err
		}
		i, p := &v1alpha1.Instance{}, &corev1.Pod{}
		if err := errors.Join(s.get(name, i), s.get(name, p)); err != nil {
			return err
		}
		if len(vm.Status.RestartAwaitingChanges) != 1 || vm.Status.RestartAwaitingChanges[0].Path != "memory.size" ||
			i.Spec.RebootAction != v1alpha1.RebootShutdown || p.Labels["app"] != "x" {
			return fmt.Errorf("changes %+v, reboot %s, labels %v", vm.Status.RestartAwaitingChanges, i.Spec.RebootAction, p.Labels)
		}
		return nil
	})
	s.report(name, ends(v1alpha1.ExitGuestReset))
	s.reap(name)
	second := s.start("e", 2)
	i := &v1alpha1.Instance{}
	if err := s.get(second, i); err != nil || i.Spec.Machine.Memory.Size.String() != "512Mi" {
		t.Fatalf("memory of the next process %v %v", i.Spec.Machine.Memory.Size.String(), err)
	}
}

func TestStopBeforeAnyNode(t *testing.T) {
	s := newStage(t)
	s.machine("f", nil)
	testkit.Eventually(t, patience, "the pod exists", func() error { return s.get("virt-launcher-f-1", &corev1.Pod{}) })
	stop := s.operate("f", v1alpha2.OperationStop, false)
	s.phase("f", v1alpha2.MachineStopped)
	s.operationPhase(stop, v1alpha2.OperationCompleted)
	if err := s.get("virt-launcher-f-1", &corev1.Pod{}); !apierrors.IsNotFound(err) {
		t.Fatalf("pod of a stopped machine: %v", err)
	}
}

func TestOldOperationsMakeRoom(t *testing.T) {
	s := newStage(t)
	for range 12 { // any of those made in one second may be the one to go
		s.operate("nobody", v1alpha2.OperationStart, false)
	}
	testkit.Eventually(t, patience, "ten are left", func() error {
		list := &v1alpha2.VirtualMachineOperationList{}
		if err := s.client.List(t.Context(), list, client.InNamespace(s.namespace)); err != nil {
			return err
		}
		if n := len(list.Items); n != 10 {
			return fmt.Errorf("there are %d", n)
		}
		for _, o := range list.Items {
			if o.Status.Phase != v1alpha2.OperationFailed {
				return fmt.Errorf("operation %s is %s", o.Name, o.Status.Phase)
			}
		}
		return nil
	})
}

// TestNoGraceIsNoGrace: a machine that allows its guest no time is not given the
// default.
func TestNoGraceIsNoGrace(t *testing.T) {
	s := newStage(t)
	s.machine("g", func(vm *v1alpha2.VirtualMachine) { vm.Spec.TerminationGracePeriodSeconds = new(int64(0)) })
	i := &v1alpha1.Instance{}
	if err := s.get(s.start("g", 1), i); err != nil || i.Spec.GracePeriodSeconds != 0 {
		t.Fatalf("grace period %d %v", i.Spec.GracePeriodSeconds, err)
	}
}

// TestNamespaceGoes plays the namespace's own controller, which deletes what is in it
// in any order: here the process before the machine, so that the machine looks like
// one whose pod was evicted and that wants to start again.
func TestNamespaceGoes(t *testing.T) {
	s := newStage(t)
	s.machine("n", func(vm *v1alpha2.VirtualMachine) { vm.Spec.RunPolicy = v1alpha2.AlwaysOn })
	name := s.start("n", 1)
	if err := s.client.Delete(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.namespace}}); err != nil {
		t.Fatal(err)
	}
	here := client.InNamespace(s.namespace)
	if err := errors.Join(s.client.DeleteAllOf(t.Context(), &corev1.Secret{}, here), s.client.DeleteAllOf(t.Context(), &corev1.Pod{}, here),
		s.client.DeleteAllOf(t.Context(), &v1alpha1.Instance{}, here)); err != nil {
		t.Fatal(err)
	}
	s.power(name, v1alpha1.PowerOff)
	s.report(name, ends(v1alpha1.ExitHostShutdown))
	s.reap(name)
	testkit.Never(t, 2*time.Second, "a second process is made", func() error {
		list := &v1alpha1.InstanceList{}
		if err := s.client.List(t.Context(), list, here); err != nil {
			return err
		}
		for _, i := range list.Items {
			if i.Name != name {
				return fmt.Errorf("instance %s", i.Name)
			}
		}
		return nil
	})
	vm, err := s.vm("n")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.client.Delete(t.Context(), vm); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, patience, "the machine is gone", func() error {
		if _, err := s.vm("n"); !apierrors.IsNotFound(err) {
			return fmt.Errorf("machine: %w", err)
		}
		return nil
	})
}
