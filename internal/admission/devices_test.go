package admission

import (
	"context"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/testkit"
)

// shelf is a reader of the objects on it; it knows those of one name only once.
type shelf []client.Object

func (s shelf) Get(_ context.Context, key client.ObjectKey, into client.Object, _ ...client.GetOption) error {
	for _, o := range s {
		if client.ObjectKeyFromObject(o) == key && fmt.Sprintf("%T", o) == fmt.Sprintf("%T", into) {
			content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
			if err != nil {
				return err
			}
			return runtime.DefaultUnstructuredConverter.FromUnstructured(content, into)
		}
	}
	return apierrors.NewNotFound(schema.GroupResource{}, key.Name)
}

func (s shelf) List(_ context.Context, into client.ObjectList, _ ...client.ListOption) error {
	var found []runtime.Object
	for _, o := range s {
		if fmt.Sprintf("%TList", o) == fmt.Sprintf("%T", into) {
			found = append(found, o)
		}
	}
	return meta.SetList(into, found)
}

func attaches(name, disk string) *v1alpha2.VirtualMachineBlockDeviceAttachment {
	a := &v1alpha2.VirtualMachineBlockDeviceAttachment{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
	a.Spec.VirtualMachineName = "a"
	a.Spec.BlockDeviceRef = v1alpha2.AttachmentDeviceRef{Kind: v1alpha2.DiskDevice, Name: disk}
	return a
}

// many is a machine with so many disks.
func many(n int) *testkit.MachineBuilder {
	vm := testkit.VM("a")
	for i := range n {
		vm.Disk(fmt.Sprintf("d%d", i))
	}
	return vm
}

// local is a ready disk whose volume can be used on node n1 only, and the two nodes.
func local(name string) shelf {
	d := testkit.Disk(name).Ready().Object()
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: d.Status.Target.PersistentVolumeClaimName},
		Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "pv"}}
	volume := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv"}}
	volume.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
		MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "n", Operator: corev1.NodeSelectorOpIn, Values: []string{"n1"}}}}}}}
	node := func(name string) *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"n": name}}}
	}
	return shelf{d, claim, volume, node("n1"), node("n2")}
}

func on(node string) func(*v1alpha2.VirtualMachine) {
	return func(vm *v1alpha2.VirtualMachine) { vm.Status.NodeName = node }
}

func expect(t *testing.T, err error, want string) {
	t.Helper()
	if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		t.Errorf("got %v, want %q", err, want)
	}
}

func TestAttachmentCreate(t *testing.T) {
	cases := map[string]struct {
		objects shelf
		want    string
	}{
		"a machine that does not exist yet": {nil, ""},
		"the usual":                         {shelf{many(1).Object()}, ""},
		"the 16th device":                   {shelf{many(14).Object(), attaches("x", "other")}, ""},
		"the 17th device":                   {shelf{many(15).Object(), attaches("x", "other")}, "17 block devices"},
		"attached already":                  {shelf{many(1).Object(), attaches("x", "data")}, "attaches VirtualDisk data to VirtualMachine a already"},
		"a legacy machine": {shelf{many(1).With(func(vm *v1alpha2.VirtualMachine) {
			vm.Spec.OSType, vm.Spec.EnableParavirtualization = v1alpha2.OSTypeLegacy, new(false)
		}).Object()}, "osType Legacy"},
		"a disk of the machine's node":  {append(local("data"), many(1).With(on("n1")).Object()), ""},
		"a disk of another node":        {append(local("data"), many(1).With(on("n2")).Object()), "cannot be used on node n2"},
		"a machine that is off, anyhow": {append(local("data"), many(1).Object()), ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			w := &attachment{client: c.objects}
			_, err := w.ValidateCreate(t.Context(), attaches("new", "data"))
			expect(t, err, c.want)
		})
	}
}

func TestMachineDevices(t *testing.T) {
	booted := func(vm *v1alpha2.VirtualMachine) {
		vm.Status.BlockDeviceRefs = []v1alpha2.BlockDeviceStatusRef{{Kind: v1alpha2.DiskDevice, Name: "d0", Attached: true, BootOrder: new(1)}}
	}
	image := func(cdrom bool) shelf {
		i := testkit.Image("tools").Ready("1024").Object()
		i.Status.CDROM = cdrom
		return shelf{i}
	}
	cases := map[string]struct {
		objects     shelf
		before, now *testkit.MachineBuilder
		want        string
	}{
		"a new machine":                           {nil, nil, many(2), ""},
		"an image as the second device":           {image(false), nil, many(1).Image("tools"), ""},
		"an optical disc as the first":            {image(true), nil, testkit.VM("a").Image("tools"), ""},
		"another image as the first":              {image(false), nil, testkit.VM("a").Image("tools"), "no optical disc"},
		"room beside the attachments":             {shelf{attaches("x", "other")}, many(1), many(15), ""},
		"no room beside the attachments":          {shelf{attaches("x", "other")}, many(1), many(16), "17 block devices"},
		"a device that is attached":               {shelf{attaches("x", "d1")}, many(1), many(2), "delete that first"},
		"the boot disk of a running guest":        {nil, many(2).With(booted), testkit.VM("a").Disk("d1"), "has booted from VirtualDisk d0"},
		"another disk of a running guest":         {nil, many(2).With(booted), many(1), ""},
		"a disk of another node than the machine": {local("data"), many(1), many(1).Disk("data").With(on("n2")), "cannot be used on node n2"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var before *v1alpha2.VirtualMachine
			if c.before != nil {
				before = c.before.Object()
			}
			var p problems
			if err := (&machine{client: c.objects}).devices(t.Context(), &p, before, c.now.Object()); err != nil {
				t.Fatal(err)
			}
			expect(t, p.err(), c.want)
		})
	}
}
