package disk

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orlop.dev/orlop/api/core/v1alpha2"
	instancev1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/plan"
	"orlop.dev/orlop/internal/steps"
)

const twoGi = int64(2) << 30

// grows is a ready disk of 1 GiB that is to have 2, with a volume of its own.
func grows(changes ...func(*world)) *world {
	return blank(append([]func(*world){begun, claimed, boundTo("pv"), done, func(w *world) {
		w.class.AllowVolumeExpansion = new(true)
		w.disk.Spec.PersistentVolumeClaim.Size = new(resource.MustParse("2Gi"))
		w.volumes = []corev1.PersistentVolume{{ObjectMeta: metav1.ObjectMeta{Name: "pv"}, Spec: corev1.PersistentVolumeSpec{
			ClaimRef: &corev1.ObjectReference{Namespace: "default", Name: w.claim.Name, UID: w.claim.UID}}}}
	}}, changes...)...)
}

func requested(w *world) {
	w.claim.Spec.Resources.Requests[corev1.ResourceStorage] = *resource.NewQuantity(plan.ClaimSize(twoGi), resource.BinarySI)
}

func volumeGrew(w *world) {
	w.volumes[0].Spec.Capacity = corev1.ResourceList{corev1.ResourceStorage: *resource.NewQuantity(plan.ClaimSize(twoGi), resource.BinarySI)}
}

func fileSystemGrew(w *world) {
	w.claim.Status.Capacity = corev1.ResourceList{corev1.ResourceStorage: *resource.NewQuantity(plan.ClaimSize(twoGi), resource.BinarySI)}
}

func announced(w *world) { w.claim.Annotations[plan.VirtualSizeAnnotation] = "2147483648" }

// guestSees adds a process whose guest sees so many bytes.
func guestSees(size int64) func(*world) {
	return func(w *world) {
		in := &instancev1.Instance{}
		in.Spec.VirtualMachine.Name = "vm"
		in.Spec.Machine.Disks = []instancev1.Disk{{ID: "vd-data", Source: instancev1.VolumeSource{
			PersistentVolumeClaim: &instancev1.PersistentVolumeClaimSource{ClaimName: w.claim.Name}}}}
		in.Status.Disks = []instancev1.DiskStatus{{ID: "vd-data", Attached: true, Size: size}}
		w.processes, w.holders = append(w.processes, in), append(w.holders, "vm")
	}
}

func TestGrowth(t *testing.T) {
	cases := map[string]struct {
		world  *world
		act    string
		reason string
		says   string
		phase  v1alpha2.DiskPhase
	}{
		"the claim asks for more":        {grows(), "grow claim", "InProgress", "is being grown", v1alpha2.DiskResizing},
		"then the storage is waited for": {grows(requested), "", "InProgress", "Waiting for the volume", v1alpha2.DiskResizing},
		"a volume that nobody uses is grown without its file system": {
			grows(requested, volumeGrew), "announce size", "InProgress", "being grown to 2Gi", v1alpha2.DiskResizing},
		"one in use has to be grown with it": {
			grows(requested, volumeGrew, guestSees(1<<30)), "", "InProgress", "Waiting for the volume", v1alpha2.DiskResizing},
		"then guests are told": {
			grows(requested, volumeGrew, fileSystemGrew, guestSees(1<<30)), "announce size", "InProgress", "being grown to 2Gi", v1alpha2.DiskResizing},
		"and must see it": {
			grows(requested, fileSystemGrew, announced, guestSees(1<<30)), "", "InProgress", "guest of VirtualMachine vm", v1alpha2.DiskResizing},
		"then it is done":               {grows(requested, fileSystemGrew, announced, guestSees(twoGi)), "remember attempt", "InProgress", "has grown", v1alpha2.DiskResizing},
		"a disk nobody uses needs none": {grows(requested, volumeGrew, announced), "remember attempt", "InProgress", "has grown", v1alpha2.DiskResizing},
		"a class that does not grow": {
			grows(func(w *world) { w.class.AllowVolumeExpansion = nil }), "", "NotAvailable", "does not allow", v1alpha2.DiskReady},
		"storage that fails says why": {grows(requested, guestSees(1<<30), func(w *world) {
			w.claim.Status.Conditions = []corev1.PersistentVolumeClaimCondition{{
				Type: corev1.PersistentVolumeClaimControllerResizeError, Status: corev1.ConditionTrue, Message: "no space"}}
		}), "", "InProgress", "does not grow: no space", v1alpha2.DiskResizing},
		"a disk that is large enough": {grows(func(w *world) { w.record.Result.VirtualSize = twoGi }), "", "", "", v1alpha2.DiskReady},
		"a lost claim does not grow":  {grows(func(w *world) { w.claim = nil }), "", "", "", v1alpha2.DiskPVCLost},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			d := steps.Decide(c.world, all()...)
			if got := acts(d); got != c.act {
				t.Errorf("acts %q, want %q", got, c.act)
			}
			o := d.Outcome(v1alpha2.DiskConditionResizing)
			if o.Reason != c.reason || !strings.Contains(o.Message, c.says) {
				t.Errorf("Resizing: %s %q", o.Reason, o.Message)
			}
			if s := show(c.world, d, nil); s.Phase != c.phase {
				t.Errorf("phase %s", s.Phase)
			}
		})
	}
}

func TestGrowthEvents(t *testing.T) {
	disk := func(reason, message, capacity string) *v1alpha2.VirtualDisk {
		d := &v1alpha2.VirtualDisk{}
		d.Status.Capacity = capacity
		if reason != "" {
			d.Status.Conditions = []metav1.Condition{{Type: v1alpha2.DiskConditionResizing, Reason: reason, Message: message}}
		}
		return d
	}
	cases := map[string]struct {
		before, after *v1alpha2.VirtualDisk
		want          []string
	}{
		"begins":          {disk("", "", "1Gi"), disk("InProgress", "x", "1Gi"), []string{eventGrowthStarted}},
		"goes on":         {disk("InProgress", "x", "1Gi"), disk("InProgress", "y", "1Gi"), nil},
		"is done":         {disk("InProgress", "x", "1Gi"), disk("", "", "2Gi"), []string{eventGrowthCompleted}},
		"is called off":   {disk("InProgress", "x", "1Gi"), disk("", "", "1Gi"), nil},
		"is not possible": {disk("", "", "1Gi"), disk("NotAvailable", "x", "1Gi"), []string{eventGrowthNotAvailable}},
		"goes wrong":      {disk("InProgress", "x", "1Gi"), disk("InProgress", "it does not grow: y", "1Gi"), []string{eventGrowthFailed}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, e := range growthEvents(c.before, c.after) {
				got = append(got, e.Reason)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}
