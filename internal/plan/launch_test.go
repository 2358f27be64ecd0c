package plan

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/qemu"
)

func launch(change func(*Launch)) Launch {
	vm := &v1alpha2.VirtualMachine{
		ObjectMeta: metav1.ObjectMeta{Name: "linux", Namespace: "default", UID: "11111111-2222-3333-4444-555555555555",
			Labels:      map[string]string{"app": "web", "kubernetes.io/forged": "x"},
			Annotations: map[string]string{"note": "hi", v1alpha2.AnnotationPodAddress: "1.2.3.4", "cni.cilium.io/ipAddress": "1.2.3.4"}},
		Spec: v1alpha2.VirtualMachineSpec{
			VirtualMachineClassName: "generic",
			CPU:                     v1alpha2.CPUSpec{Cores: 2, CoreFraction: "20%"},
			Memory:                  v1alpha2.MemorySpec{Size: resource.MustParse("1Gi")},
			BlockDeviceRefs:         []v1alpha2.BlockDeviceSpecRef{{Kind: v1alpha2.DiskDevice, Name: "root"}, {Kind: v1alpha2.DiskDevice, Name: "data"}},
			Provisioning:            &v1alpha2.Provisioning{Type: v1alpha2.ProvisioningUserData, UserData: "#cloud-config\n"},
		},
	}
	class := &v1alpha2.VirtualMachineClass{ObjectMeta: metav1.ObjectMeta{Name: "generic"},
		Spec: v1alpha2.VirtualMachineClassSpec{CPU: v1alpha2.VirtualMachineClassCPU{Type: v1alpha2.CPUTypeModel, Model: "Nehalem"}}}
	l := Launch{VM: vm, Class: class, Name: InstanceName("linux", 3), LauncherImage: "orlop.internal/virt-launcher:dev",
		Disks: []LaunchDisk{
			{Ref: vm.Spec.BlockDeviceRefs[0], UID: "root-uid", ClaimName: "vd-root-1", Mode: "Filesystem"},
			{Ref: vm.Spec.BlockDeviceRefs[1], UID: "data-uid", ClaimName: "vd-data-2", Mode: "Block"}},
		Network: v1alpha1.Network{AddressSource: v1alpha1.AddressFromLease, Address: "10.66.10.2", CIDR: "10.66.10.0/24",
			Nameservers: []string{"10.96.0.10"}, SearchDomains: []string{"default.svc.cluster.local"}}}
	if change != nil {
		change(&l)
	}
	return l
}

func TestGoldenLaunch(t *testing.T) {
	l := launch(nil)
	i, err := Instance(l)
	if err != nil {
		t.Fatal(err)
	}
	i.UID = "instance-uid"
	golden(t, "instance", i)
	golden(t, "launcher-pod", LauncherPod(l, i))
	golden(t, "first-boot", FirstBootSecret(l.VM, i, []byte("#cloud-config\n")))
	bound := OnNode(i, "node-1", "pod-uid", v1alpha1.AcceleratorTCG)
	if err := qemu.Validate(bound.Spec.Machine); err != nil {
		t.Errorf("the machine cannot be built: %v", err)
	}
}

// TestPodFollowsTheInstance: a machine may be changed between the two.
func TestPodFollowsTheInstance(t *testing.T) {
	l := launch(nil)
	i, err := Instance(l)
	if err != nil {
		t.Fatal(err)
	}
	changed := launch(func(l *Launch) { l.Disks, l.VM.Spec.Provisioning = l.Disks[:1], nil })
	if diff := cmp.Diff(LauncherPod(l, i).Spec, LauncherPod(changed, i).Spec); diff != "" {
		t.Error(diff)
	}
}

func TestPlacement(t *testing.T) {
	l := launch(func(l *Launch) {
		l.AllowEmulation = true
		l.Class.Spec.NodeSelector = v1alpha2.NodeSelector{MatchLabels: map[string]string{"zone": "a"}}
		l.Class.Spec.Tolerations = []corev1.Toleration{{Key: "class", Operator: corev1.TolerationOpExists}}
		s := &l.VM.Spec
		s.NodeSelector = map[string]string{"disk": "ssd", v1alpha2.LabelNodeSchedulable: "false"}
		s.Tolerations = []corev1.Toleration{{Key: "vm", Operator: corev1.TolerationOpExists}}
		s.PriorityClassName = "high"
		s.TerminationGracePeriodSeconds = new(int64(5))
		s.TopologySpreadConstraints = []v1alpha2.TopologySpreadConstraint{{MaxSkew: 1, TopologyKey: "zone", WhenUnsatisfiable: corev1.DoNotSchedule}}
		s.Affinity = &v1alpha2.VMAffinity{
			NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{
				{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "x", Operator: corev1.NodeSelectorOpExists}}},
				{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "y", Operator: corev1.NodeSelectorOpExists}}}}}},
			VirtualMachineAndPodAntiAffinity: &v1alpha2.VirtualMachineAndPodAntiAffinity{
				RequiredDuringSchedulingIgnoredDuringExecution: []v1alpha2.VirtualMachineAndPodAffinityTerm{{
					LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}, TopologyKey: "kubernetes.io/hostname"}}},
		}
	})
	i, err := Instance(l)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "launcher-pod-placement", LauncherPod(l, i).Spec)
}

func TestResources(t *testing.T) {
	cases := map[string]struct {
		share    string
		cpu, max string
	}{
		"a fifth of two cores":                     {"20%", "400m", "2"},
		"a whole share, which makes it Guaranteed": {"100%", "2", "2"},
		"no share is a whole one":                  {"", "2", "2"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			l := launch(func(l *Launch) { l.VM.Spec.CPU.CoreFraction = c.share })
			i, err := Instance(l)
			if err != nil {
				t.Fatal(err)
			}
			r := LauncherPod(l, i).Spec.Containers[0].Resources
			memory := i.Spec.Machine.Memory.Size.DeepCopy()
			memory.Add(qemu.Overhead(i.Spec.Machine))
			if r.Requests.Cpu().Cmp(resource.MustParse(c.cpu)) != 0 || r.Limits.Cpu().Cmp(resource.MustParse(c.max)) != 0 ||
				r.Requests.Memory().Cmp(memory) != 0 || r.Limits.Memory().Cmp(memory) != 0 {
				t.Errorf("resources %+v", r)
			}
		})
	}
}

func TestBootOrder(t *testing.T) {
	refs := func(orders ...int) []v1alpha2.BlockDeviceSpecRef {
		all := make([]v1alpha2.BlockDeviceSpecRef, len(orders))
		for i, o := range orders {
			if o > 0 {
				all[i].BootOrder = new(o)
			}
		}
		return all
	}
	cases := map[string]struct {
		refs []v1alpha2.BlockDeviceSpecRef
		want []int32
	}{
		"the order of the list":                     {refs(0, 0, 0), []int32{1, 2, 3}},
		"once one has an order, others do not boot": {refs(0, 2, 1), []int32{0, 2, 1}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, BootIndexes(c.refs)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestRefreshedMetadata(t *testing.T) {
	l := launch(nil)
	i, err := Instance(l)
	if err != nil {
		t.Fatal(err)
	}
	pod := LauncherPod(l, i)
	pod.Labels["injected"] = "by somebody"
	if _, changed := RefreshedMetadata(pod, l.VM); changed {
		t.Error("a fresh pod is changed")
	}
	vm := l.VM.DeepCopy()
	vm.Labels = map[string]string{"tier": "back", v1alpha2.LabelVirtualMachineName: "forged"}
	fresh, changed := RefreshedMetadata(pod, vm)
	want := map[string]string{"tier": "back", "injected": "by somebody", v1alpha2.LabelLauncher: v1alpha2.LauncherValue,
		v1alpha2.LabelVirtualMachineName: "linux", v1alpha2.LabelVirtualMachineUID: string(vm.UID)}
	if diff := cmp.Diff(want, fresh.Labels); diff != "" || !changed {
		t.Errorf("changed %v, labels %s", changed, diff)
	}
	if fresh.Annotations[v1alpha2.AnnotationPodAddress] != "10.66.10.2" {
		t.Error("the address is lost")
	}
}

func TestNamesFit(t *testing.T) {
	long := strings.Repeat("a", 63)
	for name, got := range map[string]string{
		"an instance": InstanceName(long, 1234567), "a disk": DiskID(v1alpha2.BlockDeviceSpecRef{Kind: v1alpha2.DiskDevice, Name: long}),
		"an address": AddressName(long, "uid"),
	} {
		if len(got) > 63 {
			t.Errorf("%s has a name of %d bytes: %s", name, len(got), got)
		}
	}
	if InstanceName(long, 1) == InstanceName(long[:62]+"b", 1) {
		t.Error("two long names give one")
	}
	if mac, err := MAC("10.66.10.2"); err != nil || mac != "02:00:0a:42:0a:02" {
		t.Errorf("MAC %s %v", mac, err)
	}
}

func TestUserDataWarning(t *testing.T) {
	cases := map[string]struct {
		data string
		want bool
	}{
		"cloud-config":        {"#cloud-config\nusers: []\n", false},
		"a script":            {"#!/bin/sh\n", false},
		"YAML without header": {"users: []\n", true},
		"nothing":             {"", true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := UserDataWarning([]byte(c.data)); (got != "") != c.want {
				t.Errorf("got %q", got)
			}
		})
	}
}
