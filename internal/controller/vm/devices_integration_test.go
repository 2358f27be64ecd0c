//go:build integration

package vm

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/plan"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/testkit"
)

// nodeLife plays the scheduler, the kubelet and the handler for the devices of an
// instance until the test ends: pods run and end, devices come and go one at a time.
// A device whose volume was taken away while it was open is an error.
func (s *stage) nodeLife(instance string) {
	s.t.Helper()
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
				s.serve(instance)
			}
		}
	}()
	s.t.Cleanup(func() { close(stop); <-done })
}

// serve makes one round. Conflicts are for the next one.
func (s *stage) serve(instance string) {
	ctx := s.t.Context()
	// The instance first: what it names must be there afterwards.
	in := &v1alpha1.Instance{}
	known := s.get(instance, in) == nil && in.Status.Exit == nil
	pods := &corev1.PodList{}
	if s.client.List(ctx, pods, client.InNamespace(s.namespace), client.MatchingLabels{v1alpha2.LabelLauncher: v1alpha2.HotplugValue}) != nil {
		return
	}
	running := map[string]bool{}
	for i := range pods.Items {
		p := &pods.Items[i]
		switch {
		case p.DeletionTimestamp != nil:
			_ = s.client.Delete(ctx, p, client.GracePeriodSeconds(0))
		case p.Spec.NodeName == "":
			_ = s.client.SubResource("binding").Create(ctx, p, &corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: s.node}})
		case p.Status.Phase != corev1.PodRunning:
			p.Status.Phase = corev1.PodRunning
			_ = s.client.Status().Update(ctx, p)
		default:
			running[string(p.UID)] = true
		}
	}
	if !known {
		return
	}
	disks := in.Status.Disks
	for _, d := range disks {
		if policy.Device(in, d.ID) == nil { // one at a time
			in.Status.Disks = slices.DeleteFunc(slices.Clone(disks), func(o v1alpha1.DiskStatus) bool { return o.ID == d.ID })
			break
		}
	}
	if len(in.Status.Disks) == len(disks) {
		for _, d := range in.Spec.Machine.Disks {
			if policy.DeviceStatus(in, d.ID) != nil {
				continue
			}
			if c := d.Source.PersistentVolumeClaim; c != nil && c.Pod != nil && !running[string(c.Pod.UID)] {
				s.t.Errorf("device %s is to be opened through pod %s, which does not run", d.ID, c.Pod.Name)
			}
			in.Status.Disks = append(in.Status.Disks, v1alpha1.DiskStatus{ID: d.ID, Attached: true, Size: d.Size})
			break
		}
	}
	if len(in.Status.Disks) == len(disks) && in.Status.ObservedGeneration == in.Generation {
		return
	}
	in.Status.ObservedGeneration = in.Generation
	_ = s.client.Status().Update(ctx, in)
}

func (s *stage) attach(name, vm string, kind v1alpha2.BlockDeviceKind, device string) *v1alpha2.VirtualMachineBlockDeviceAttachment {
	s.t.Helper()
	a := &v1alpha2.VirtualMachineBlockDeviceAttachment{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: s.namespace},
		Spec: v1alpha2.VirtualMachineBlockDeviceAttachmentSpec{VirtualMachineName: vm, BlockDeviceRef: v1alpha2.AttachmentDeviceRef{Kind: kind, Name: device}}}
	s.create(a)
	return a
}

func (s *stage) attachmentPhase(name string, want v1alpha2.AttachmentPhase) {
	s.t.Helper()
	testkit.Eventually(s.t, patience, fmt.Sprintf("attachment %s is %s", name, want), func() error {
		a := &v1alpha2.VirtualMachineBlockDeviceAttachment{}
		if err := s.get(name, a); err != nil {
			return err
		}
		if a.Status.Phase != want {
			return fmt.Errorf("phase %s, conditions %+v", a.Status.Phase, a.Status.Conditions)
		}
		return nil
	})
}

// refs changes the device list of a machine.
func (s *stage) refs(vm string, disks ...string) {
	s.t.Helper()
	testkit.Eventually(s.t, patience, "the device list is changed", func() error {
		o, err := s.vm(vm)
		if err != nil {
			return err
		}
		o.Spec.BlockDeviceRefs = nil
		for _, d := range disks {
			o.Spec.BlockDeviceRefs = append(o.Spec.BlockDeviceRefs, v1alpha2.BlockDeviceSpecRef{Kind: v1alpha2.DiskDevice, Name: d})
		}
		return s.client.Update(s.t.Context(), o)
	})
}

// settled waits until exactly some disks are attached to a machine and held by it, and
// nothing is left of any other.
func (s *stage) settled(vm, instance string, disks ...string) {
	s.t.Helper()
	testkit.Eventually(s.t, patience, fmt.Sprintf("machine %s has %v", vm, disks), func() error {
		return s.has(vm, instance, disks)
	})
}

func (s *stage) has(vm, instance string, disks []string) error {
	o, err := s.vm(vm)
	in := &v1alpha1.Instance{}
	if err := errors.Join(err, s.get(instance, in)); err != nil {
		return err
	}
	var attached []string
	for _, d := range o.Status.BlockDeviceRefs {
		if !d.Attached {
			return fmt.Errorf("%s is not attached: %+v", d.Name, o.Status.Conditions)
		}
		attached = append(attached, d.Name)
	}
	slices.Sort(attached)
	slices.Sort(disks)
	if !slices.Equal(attached, disks) || !devicesSettled(in) {
		return fmt.Errorf("attached are %v, instance %+v %+v", attached, in.Spec.Machine.Disks, in.Status.Disks)
	}
	pods := &corev1.PodList{}
	if err := s.client.List(s.t.Context(), pods, client.InNamespace(s.namespace), client.MatchingLabels{v1alpha2.LabelLauncher: v1alpha2.HotplugValue}); err != nil {
		return err
	}
	for i := range pods.Items {
		p := &pods.Items[i]
		d := policy.Device(in, p.Annotations[plan.AttachmentDeviceAnnotation])
		if d == nil || d.Source.PersistentVolumeClaim == nil || d.Source.PersistentVolumeClaim.Pod == nil || d.Source.PersistentVolumeClaim.Pod.UID != p.UID {
			return fmt.Errorf("pod %s is left over", p.Name)
		}
	}
	all := &v1alpha2.VirtualDiskList{}
	if err := s.client.List(s.t.Context(), all, client.InNamespace(s.namespace)); err != nil {
		return err
	}
	for i := range all.Items {
		d := &all.Items[i]
		holder, _ := policy.DiskHolder(d)
		if (holder == vm) != slices.Contains(disks, d.Name) {
			return fmt.Errorf("disk %s is held by %q", d.Name, holder)
		}
	}
	return nil
}

func TestAttachmentComesAndGoes(t *testing.T) {
	s := newStage(t)
	s.disk("data")
	s.machine("h", nil)
	name := s.start("h", 1)
	s.nodeLife(name)
	a := s.attach("extra", "h", v1alpha2.DiskDevice, "data")
	s.attachmentPhase("extra", v1alpha2.AttachmentAttached)
	s.settled("h", name, "root", "data")
	vm, err := s.vm("h")
	if err != nil {
		t.Fatal(err)
	}
	if d := vm.Status.BlockDeviceRefs[1]; !d.Hotplugged || d.VirtualMachineBlockDeviceAttachmentName != "extra" || d.BootOrder != nil {
		t.Errorf("device of the attachment: %+v", d)
	}
	if c := meta.FindStatusCondition(vm.Status.Conditions, v1alpha2.MachineConditionConfigurationApplied); c == nil || c.Status != metav1.ConditionTrue {
		t.Errorf("configuration %+v", c)
	}
	in := &v1alpha1.Instance{}
	if err := s.get(name, in); err != nil {
		t.Fatal(err)
	}
	if d := policy.Device(in, "vd-data"); d == nil || d.Source.PersistentVolumeClaim.Pod == nil || d.BootIndex != 0 || d.Slot == policy.Device(in, "vd-root").Slot {
		t.Errorf("device in the instance: %+v", d)
	}
	if err := s.client.Delete(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, patience, "the attachment is gone", func() error {
		if err := s.get("extra", a); !apierrors.IsNotFound(err) {
			return fmt.Errorf("%w %+v", err, a.Status)
		}
		return nil
	})
	s.settled("h", name, "root")
}

// TestAttachmentOfAStoppedMachine comes with the next start, from the launcher pod, and
// its pods do not outlive the process.
func TestAttachmentOfAStoppedMachine(t *testing.T) {
	s := newStage(t)
	s.disk("data")
	s.disk("late")
	s.machine("i", func(vm *v1alpha2.VirtualMachine) { vm.Spec.RunPolicy = v1alpha2.Manual })
	s.phase("i", v1alpha2.MachineStopped)
	s.attach("extra", "i", v1alpha2.DiskDevice, "data")
	s.attachmentPhase("extra", v1alpha2.AttachmentPending)
	s.operate("i", v1alpha2.OperationStart, false)
	name := s.start("i", 1)
	s.nodeLife(name)
	s.attachmentPhase("extra", v1alpha2.AttachmentAttached)
	in := &v1alpha1.Instance{}
	if err := s.get(name, in); err != nil {
		t.Fatal(err)
	}
	if d := policy.Device(in, "vd-data"); d == nil || d.Source.PersistentVolumeClaim.Pod != nil || d.BootIndex != 0 {
		t.Errorf("device in the instance: %+v", d)
	}
	s.attach("more", "i", v1alpha2.DiskDevice, "late")
	s.attachmentPhase("more", v1alpha2.AttachmentAttached)
	s.operate("i", v1alpha2.OperationStop, true)
	s.power(name, v1alpha1.PowerKill)
	s.report(name, ends(v1alpha1.ExitKilled))
	s.reap(name)
	s.phase("i", v1alpha2.MachineStopped)
	s.attachmentPhase("more", v1alpha2.AttachmentPending)
	pods := &corev1.PodList{}
	if err := s.client.List(t.Context(), pods, client.InNamespace(s.namespace)); err != nil || len(pods.Items) > 0 {
		t.Errorf("pods of a stopped machine: %v %d", err, len(pods.Items))
	}
}

func TestDeviceListIsAppliedLive(t *testing.T) {
	s := newStage(t)
	s.disk("data")
	s.disk("more")
	s.machine("j", nil)
	name := s.start("j", 1)
	s.nodeLife(name)
	s.refs("j", "root", "data", "more")
	s.settled("j", name, "root", "data", "more")
	s.refs("j", "root", "more")
	s.settled("j", name, "root", "more")
	testkit.Eventually(t, patience, "the instance says what it was made from", func() error {
		vm, err := s.vm("j")
		if err != nil {
			return err
		}
		if len(vm.Status.RestartAwaitingChanges) > 0 {
			return fmt.Errorf("changes %+v", vm.Status.RestartAwaitingChanges)
		}
		if c := meta.FindStatusCondition(vm.Status.Conditions, v1alpha2.MachineConditionConfigurationApplied); c == nil || c.Status != metav1.ConditionTrue {
			return fmt.Errorf("configuration %+v", c)
		}
		return nil
	})
	// The order is for the next boot, which then has to be another process.
	s.refs("j", "more", "root")
	testkit.Eventually(t, patience, "the next boot follows the order", func() error {
		in := &v1alpha1.Instance{}
		if err := s.get(name, in); err != nil {
			return err
		}
		if in.Spec.RebootAction != v1alpha1.RebootShutdown {
			return fmt.Errorf("reboot action %s", in.Spec.RebootAction)
		}
		return nil
	})
	s.settled("j", name, "root", "more")
	// What it has booted from stays until the next process, should admission not have refused this.
	s.refs("j", "more")
	testkit.Eventually(t, patience, "the change waits for a restart", func() error {
		vm, err := s.vm("j")
		if err != nil {
			return err
		}
		if c := vm.Status.RestartAwaitingChanges; len(c) != 1 || c[0].Operation != v1alpha2.ChangeRemove {
			return fmt.Errorf("changes %+v", c)
		}
		return nil
	})
}

// TestDevicesInAnyOrder makes wishes faster than they come true; the last one counts.
func TestDevicesInAnyOrder(t *testing.T) {
	s := newStage(t)
	random := rand.New(rand.NewPCG(1, 2))
	disks := []string{"d0", "d1", "d2", "d3"}
	for _, d := range disks {
		s.disk(d)
	}
	s.machine("k", nil)
	name := s.start("k", 1)
	s.nodeLife(name)
	last := []string{"root"}
	for range 40 {
		last = []string{"root"}
		for _, d := range disks {
			if random.IntN(2) == 0 {
				last = append(last, d)
			}
		}
		s.refs("k", last...)
		if random.IntN(4) == 0 {
			time.Sleep(time.Duration(random.IntN(60)) * time.Millisecond)
		}
	}
	s.settled("k", name, last...)
}

func TestImageIsAttached(t *testing.T) {
	s := newStage(t)
	image := testkit.Image("tools").Namespace(s.namespace).Fresh()
	s.create(image)
	image.Status.Phase, image.Status.CDROM = v1alpha2.ImageReady, true
	image.Status.Target.RegistryURL = "dvcr.d8-virtualization.svc:5000/vi/x/tools@sha256:0000000000000000000000000000000000000000000000000000000000000000"
	image.Status.Size.UnpackedBytes = "1048576"
	if err := s.client.Status().Update(t.Context(), image); err != nil {
		t.Fatal(err)
	}
	s.machine("l", nil)
	name := s.start("l", 1)
	s.nodeLife(name)
	s.attach("tools", "l", v1alpha2.ImageDevice, "tools")
	s.attachmentPhase("tools", v1alpha2.AttachmentAttached)
	in := &v1alpha1.Instance{}
	if err := s.get(name, in); err != nil {
		t.Fatal(err)
	}
	d := policy.Device(in, "vi-tools")
	if d == nil || !d.CDROM || !d.ReadOnly || d.Source.Image == nil || d.Source.Image.Format != plan.ISO || d.Source.Image.Reference != image.Status.Target.RegistryURL {
		t.Errorf("device in the instance: %+v", d)
	}
}

// TestConflictsAreSaid: nothing is attached twice, and the older wish wins.
func TestConflictsAreSaid(t *testing.T) {
	s := newStage(t)
	s.disk("data")
	s.disk("other")
	s.machine("m", nil)
	name := s.start("m", 1)
	s.nodeLife(name)
	s.attach("listed", "m", v1alpha2.DiskDevice, "root")
	s.attachmentPhase("listed", v1alpha2.AttachmentFailed)
	s.attach("missing", "m", v1alpha2.DiskDevice, "nothing")
	s.attachmentPhase("missing", v1alpha2.AttachmentPending)
	s.machine("n", func(vm *v1alpha2.VirtualMachine) { vm.Spec.BlockDeviceRefs[0].Name = "other" })
	s.start("n", 1)
	s.attach("foreign", "m", v1alpha2.DiskDevice, "other")
	s.attachmentPhase("foreign", v1alpha2.AttachmentFailed)
	for _, n := range []string{"listed", "missing", "foreign"} {
		a := &v1alpha2.VirtualMachineBlockDeviceAttachment{}
		if err := s.get(n, a); err != nil {
			t.Fatal(err)
		}
		if err := s.client.Delete(t.Context(), a); err != nil {
			t.Fatal(err)
		}
		testkit.Eventually(t, patience, "attachment "+n+" is gone", func() error {
			if err := s.get(n, a); !apierrors.IsNotFound(err) {
				return fmt.Errorf("%w %+v", err, a.Status)
			}
			return nil
		})
	}
	s.attach("first", "m", v1alpha2.DiskDevice, "data")
	s.attachmentPhase("first", v1alpha2.AttachmentAttached)
}

// devicesSettled says that a process has exactly the devices it is meant to have.
func devicesSettled(i *v1alpha1.Instance) bool {
	if i.Status.ObservedGeneration < i.Generation || len(i.Status.Disks) != len(i.Spec.Machine.Disks) {
		return false
	}
	for _, d := range i.Spec.Machine.Disks {
		if s := policy.DeviceStatus(i, d.ID); s == nil || !s.Attached || s.Size > 0 && s.Size < d.Size {
			return false
		}
	}
	return true
}
