package policy

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
)

func refs(names ...string) []v1alpha2.BlockDeviceSpecRef {
	var all []v1alpha2.BlockDeviceSpecRef
	for _, n := range names {
		all = append(all, v1alpha2.BlockDeviceSpecRef{Kind: v1alpha2.DiskDevice, Name: n})
	}
	return all
}

func TestDeviceRestartChanges(t *testing.T) {
	off := new(false)
	cases := map[string]struct {
		running, wanted v1alpha2.VirtualMachineSpec
		kept            string
		want            []string
	}{
		"a disk added waits for nothing":    {v1alpha2.VirtualMachineSpec{BlockDeviceRefs: refs("a")}, v1alpha2.VirtualMachineSpec{BlockDeviceRefs: refs("a", "b")}, "", nil},
		"nor does one removed, nor order":   {v1alpha2.VirtualMachineSpec{BlockDeviceRefs: refs("a", "b", "c")}, v1alpha2.VirtualMachineSpec{BlockDeviceRefs: refs("c", "a")}, "", nil},
		"the boot disk stays until the end": {v1alpha2.VirtualMachineSpec{BlockDeviceRefs: refs("b", "a")}, v1alpha2.VirtualMachineSpec{BlockDeviceRefs: refs("b")}, "a", []string{"remove blockDeviceRefs.1"}},
		"without paravirtualization everything waits": {
			v1alpha2.VirtualMachineSpec{EnableParavirtualization: off, BlockDeviceRefs: refs("a")},
			v1alpha2.VirtualMachineSpec{EnableParavirtualization: off, BlockDeviceRefs: refs("a", "b")}, "", []string{"add blockDeviceRefs.1"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var kept *v1alpha2.BlockDeviceSpecRef
			if c.kept != "" {
				kept = &refs(c.kept)[0]
			}
			var got []string
			for _, change := range DeviceRestartChanges(&c.running, &c.wanted, kept) {
				got = append(got, string(change.Operation)+" "+change.Path)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestJudgeAttachments(t *testing.T) {
	vm := &v1alpha2.VirtualMachine{}
	vm.Spec.BlockDeviceRefs = refs("root", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13")
	attach := func(name, disk string, age int, leaving bool) v1alpha2.VirtualMachineBlockDeviceAttachment {
		a := v1alpha2.VirtualMachineBlockDeviceAttachment{}
		a.Name, a.CreationTimestamp = name, metav1.NewTime(time.Unix(int64(1000-age), 0))
		a.Spec.BlockDeviceRef = v1alpha2.AttachmentDeviceRef{Kind: v1alpha2.DiskDevice, Name: disk}
		if leaving {
			a.DeletionTimestamp = new(metav1.Now())
		}
		return a
	}
	got := map[string]AttachmentVerdict{}
	for _, j := range JudgeAttachments(vm, []v1alpha2.VirtualMachineBlockDeviceAttachment{
		attach("seventeenth", "z", 1, false), attach("second", "y", 5, false), attach("first", "x", 9, false),
		attach("again", "x", 4, false), attach("listed", "root", 10, false), attach("leaving", "w", 10, true),
	}) {
		got[j.Name] = j.Verdict
	}
	want := map[string]AttachmentVerdict{"first": AttachmentAccepted, "second": AttachmentAccepted, "seventeenth": AttachmentTooMany,
		"again": AttachmentTwice, "listed": AttachmentInSpec, "leaving": AttachmentLeaving}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestFirstBootDevice(t *testing.T) {
	list := refs("a", "b", "c")
	if got := FirstBootDevice(list).Name; got != "a" {
		t.Errorf("by place: %s", got)
	}
	list[2].BootOrder, list[1].BootOrder = new(2), new(5)
	if got := FirstBootDevice(list).Name; got != "c" {
		t.Errorf("by order: %s", got)
	}
}

// A handler that has not seen the order to detach may still be attaching.
func TestDeviceGone(t *testing.T) {
	instance := func(change func(*v1alpha1.Instance)) *v1alpha1.Instance {
		i := &v1alpha1.Instance{}
		i.Generation, i.Spec.NodeName, i.Status.ObservedGeneration = 3, "n", 3
		change(i)
		return i
	}
	cases := map[string]struct {
		instance *v1alpha1.Instance
		want     bool
	}{
		"not wanted, not reported":    {instance(func(*v1alpha1.Instance) {}), true},
		"wanted":                      {instance(func(i *v1alpha1.Instance) { i.Spec.Machine.Disks = []v1alpha1.Disk{{ID: "d"}} }), false},
		"still reported":              {instance(func(i *v1alpha1.Instance) { i.Status.Disks = []v1alpha1.DiskStatus{{ID: "d"}} }), false},
		"the handler has not seen it": {instance(func(i *v1alpha1.Instance) { i.Status.ObservedGeneration = 2 }), false},
		"no node ever had it":         {instance(func(i *v1alpha1.Instance) { i.Spec.NodeName, i.Status.ObservedGeneration = "", 0 }), true},
		"the process is dead": {instance(func(i *v1alpha1.Instance) {
			i.Status.Disks, i.Status.Exit = []v1alpha1.DiskStatus{{ID: "d"}}, &v1alpha1.Exit{}
		}), true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := DeviceGone(c.instance, "d"); got != c.want {
				t.Errorf("gone %v", got)
			}
		})
	}
}

func TestDevicesFrozen(t *testing.T) {
	cases := map[string]struct {
		role  v1alpha1.MigrationRole
		id    string
		phase v1alpha1.MigrationPhase
		want  bool
	}{
		"no order":                          {want: false},
		"an order nobody has answered":      {role: v1alpha1.MigrationSource, want: true},
		"an answer to the last one":         {role: v1alpha1.MigrationSource, id: "old", phase: v1alpha1.MigrationFailed, want: true},
		"under way":                         {role: v1alpha1.MigrationSource, id: "m", phase: v1alpha1.MigrationTransferring, want: true},
		"the guest has left":                {role: v1alpha1.MigrationSource, id: "m", phase: v1alpha1.MigrationCompleted, want: true},
		"it stays after all":                {role: v1alpha1.MigrationSource, id: "m", phase: v1alpha1.MigrationFailed, want: false},
		"the target waits":                  {role: v1alpha1.MigrationTarget, id: "m", phase: v1alpha1.MigrationReady, want: true},
		"the guest runs in the target":      {role: v1alpha1.MigrationTarget, id: "m", phase: v1alpha1.MigrationCompleted, want: false},
		"a target that failed never may do": {role: v1alpha1.MigrationTarget, id: "m", phase: v1alpha1.MigrationFailed, want: true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			i := &v1alpha1.Instance{}
			if c.role != "" {
				i.Spec.Migration = &v1alpha1.Migration{ID: "m", Role: c.role}
			}
			if c.id != "" {
				i.Status.Migration = &v1alpha1.MigrationStatus{ID: c.id, Phase: c.phase}
			}
			if got := DevicesFrozen(i); got != c.want {
				t.Errorf("frozen %v", got)
			}
		})
	}
}
