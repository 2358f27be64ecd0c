package qemu_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/resource"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/qemu"
)

var update = flag.Bool("update", false, "rewrite golden files")

// machine is the shape of the quick start: one disk, first-boot data, one interface.
func machine(change ...func(*v1alpha1.Machine)) v1alpha1.Machine {
	m := v1alpha1.Machine{
		Type:        qemu.DefaultMachineType,
		Accelerator: v1alpha1.AcceleratorTCG,
		UUID:        "3a4b1c55-9a53-4ee8-9d7b-8d1f40bb2b47",
		Hostname:    "linux-vm",
		Firmware:    "BIOS",
		CPU:         v1alpha1.CPU{Model: "Nehalem", Sockets: 1, CoresPerSocket: 2},
		Memory:      v1alpha1.Memory{Size: resource.MustParse("1Gi")},
		Disks: []v1alpha1.Disk{
			{ID: "vd-root", Bus: "scsi", Slot: 0, Serial: "b6589fc6ab0dc82cf12099d1c2d40ab9", BootIndex: 1, Source: filesystem("root")},
			{ID: "firstboot", Bus: "scsi", Slot: 1, CDROM: true, Source: v1alpha1.VolumeSource{FirstBoot: &v1alpha1.FirstBootSource{}}},
		},
		Interfaces: []v1alpha1.Interface{{ID: "net0", Model: "virtio", MAC: "02:00:0a:42:0a:02", Slot: 0}},
	}
	for _, c := range change {
		c(&m)
	}
	return m
}

func filesystem(claim string) v1alpha1.VolumeSource {
	return v1alpha1.VolumeSource{PersistentVolumeClaim: &v1alpha1.PersistentVolumeClaimSource{ClaimName: claim, Mode: "Filesystem"}}
}

func environment() qemu.Environment {
	return qemu.Environment{
		RunDir:  "/run/orlop",
		Monitor: 3,
		KVM:     4,
		Disks: map[string]qemu.Backing{
			"vd-root":   {FDs: []int{5}},
			"firstboot": {FDs: []int{6}, Buffered: true},
			"vd-data":   {FDs: []int{7}, Device: true},
			"vi-debian": {FDs: []int{8}},
			"cvi-tools": {FDs: []int{9}},
		},
		Taps: map[string]qemu.Tap{"net0": {FD: 10, MTU: 1450}, "net1": {FD: 11}},
	}
}

func block(m *v1alpha1.Machine) {
	m.Disks = append(m.Disks, v1alpha1.Disk{
		ID: "vd-data", Bus: "scsi", Slot: 2, BootIndex: 2,
		Source: v1alpha1.VolumeSource{PersistentVolumeClaim: &v1alpha1.PersistentVolumeClaimSource{ClaimName: "data", Mode: "Block"}},
	})
}

func images(m *v1alpha1.Machine) {
	m.Disks = append(m.Disks,
		v1alpha1.Disk{ID: "vi-debian", Bus: "scsi", Slot: 3, Source: v1alpha1.VolumeSource{Image: &v1alpha1.ImageSource{Format: "qcow2"}}},
		v1alpha1.Disk{ID: "cvi-tools", Bus: "scsi", Slot: 4, CDROM: true, Source: v1alpha1.VolumeSource{Image: &v1alpha1.ImageSource{Format: "iso"}}},
	)
}

func TestCommandGolden(t *testing.T) {
	cases := map[string]v1alpha1.Machine{
		"tcg":    machine(),
		"kvm":    machine(func(m *v1alpha1.Machine) { m.Accelerator = v1alpha1.AcceleratorKVM }),
		"block":  machine(block),
		"images": machine(images),
		"sata": machine(func(m *v1alpha1.Machine) {
			m.Disks[0].Bus, m.Disks[1].Bus, m.Disks[1].Slot = "sata", "sata", 7
			m.Interfaces[0].Model = "e1000"
		}),
		"virtio": machine(func(m *v1alpha1.Machine) {
			m.Disks[0].Bus, m.Disks[0].Slot = "virtio", 3
			m.Interfaces = append(m.Interfaces, v1alpha1.Interface{ID: "net1", Model: "virtio", MAC: "02:00:00:00:00:02", Slot: 9})
		}),
		"host-cpu-under-tcg": machine(func(m *v1alpha1.Machine) { m.CPU.Model = "host,-vmx" }),
		"host-cpu-under-kvm": machine(func(m *v1alpha1.Machine) {
			m.CPU.Model, m.Accelerator = "host", v1alpha1.AcceleratorKVM
			m.CPU.MaxCPUs = 8
		}),
	}
	for name, m := range cases {
		t.Run(name, func(t *testing.T) {
			args, err := qemu.Command(m, environment())
			if err != nil {
				t.Fatal(err)
			}
			golden(t, name+".args", render(args))
		})
	}
	t.Run("the target of a migration differs in nothing but its waiting", func(t *testing.T) {
		e := environment()
		e.Incoming = true
		args, err := qemu.Command(machine(), e)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "incoming.args", render(args))
	})
}

// render puts each option on a line of its own.
func render(args []string) string {
	var b strings.Builder
	for i, a := range args {
		switch {
		case i == 0:
		case strings.HasPrefix(a, "-"):
			b.WriteByte('\n')
		default:
			b.WriteByte(' ')
		}
		b.WriteString(a)
	}
	return b.String() + "\n"
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got), refresh with -update:\n%s", path, diff)
	}
}

// A guest finds its devices by their addresses; adding or removing others must not
// move them.
func TestAddressesDoNotDependOnOtherDevices(t *testing.T) {
	find := func(m v1alpha1.Machine, id string) string {
		args, err := qemu.Command(m, environment())
		if err != nil {
			t.Fatal(err)
		}
		for i, a := range args {
			if a == "-device" && strings.Contains(args[i+1]+",", ",id="+id+",") {
				return args[i+1]
			}
		}
		t.Fatalf("no device %s", id)
		return ""
	}
	alone := machine(func(m *v1alpha1.Machine) { m.Disks = m.Disks[:1] })
	crowd := machine(block, images, func(m *v1alpha1.Machine) {
		m.Disks[0], m.Disks[3] = m.Disks[3], m.Disks[0]
		m.Interfaces = append([]v1alpha1.Interface{{ID: "net1", Model: "virtio", Slot: 2}}, m.Interfaces...)
	})
	for _, id := range []string{"vd-root", "net0", "port0", "scsi", "video", "rng", "channels", "usb"} {
		if diff := cmp.Diff(find(alone, id), find(crowd, id)); diff != "" {
			t.Errorf("%s moved:\n%s", id, diff)
		}
	}
}

func TestCommandRefuses(t *testing.T) {
	cases := map[string]struct {
		change func(*v1alpha1.Machine)
		want   string
	}{
		"an alias that means another machine tomorrow": {func(m *v1alpha1.Machine) { m.Type = "q35" }, `machine type "q35"`},
		"i440fx":                    {func(m *v1alpha1.Machine) { m.Type = "pc-i440fx-10.0" }, "machine type"},
		"firmware that is not here": {func(m *v1alpha1.Machine) { m.Firmware = "EFI" }, "firmware EFI"},
		"an unresolved accelerator": {func(m *v1alpha1.Machine) { m.Accelerator = "" }, "accelerator"},
		"half a mebibyte":           {func(m *v1alpha1.Machine) { m.Memory.Size = resource.MustParse("1025Ki") }, "multiple of 1Mi"},
		"no CPUs":                   {func(m *v1alpha1.Machine) { m.CPU.Sockets = 0 }, "CPU topology"},
		"fewer CPUs than there are": {func(m *v1alpha1.Machine) { m.CPU.MaxCPUs = 1 }, "at most 1"},
		"two disks in one place":    {func(m *v1alpha1.Machine) { m.Disks[1].Slot = 0 }, "vd-root and firstboot share scsi slot 0"},
		"two devices of one id":     {func(m *v1alpha1.Machine) { m.Interfaces[0].ID = "vd-root" }, "used twice"},
		"an id that ends an option": {func(m *v1alpha1.Machine) { m.Disks[0].ID = "a,readonly=on" }, "not valid"},
		"a bus of another chipset":  {func(m *v1alpha1.Machine) { m.Disks[0].Bus = "ide" }, `bus "ide"`},
		"a SATA port too many":      {func(m *v1alpha1.Machine) { m.Disks[0].Bus, m.Disks[0].Slot = "sata", 18 }, "slot 18 does not exist"},
		"an unknown card":           {func(m *v1alpha1.Machine) { m.Interfaces[0].Model = "ne2k" }, "ne2k"},
		"a disk without a source":   {func(m *v1alpha1.Machine) { m.Disks[0].Source = v1alpha1.VolumeSource{} }, "volume source"},
		"a disk nobody opened":      {func(m *v1alpha1.Machine) { m.Disks[0].ID = "vd-other" }, "disk vd-other: no descriptor"},
		"a card nobody opened":      {func(m *v1alpha1.Machine) { m.Interfaces[0].ID = "net7" }, "interface net7: no descriptor"},
		"a buffered writable disk":  {func(m *v1alpha1.Machine) { m.Disks[1].CDROM = false; m.Disks[1].Source = filesystem("x") }, "without O_DIRECT"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := qemu.Command(machine(tc.change), environment())
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want error with %q", err, tc.want)
			}
		})
	}
}

func TestHostnameCannotAddProperties(t *testing.T) {
	args, err := qemu.Command(machine(func(m *v1alpha1.Machine) { m.Hostname = "a,process=b" }), environment())
	if err != nil {
		t.Fatal(err)
	}
	if args[1] != "guest=a,,process=b,debug-threads=on" {
		t.Errorf("got %q", args[1])
	}
}

func TestOverhead(t *testing.T) {
	cases := map[string]struct {
		machine v1alpha1.Machine
		want    string
	}{
		"TCG":                              {machine(), "218Mi"},
		"KVM needs no translated code":     {machine(func(m *v1alpha1.Machine) { m.Accelerator = v1alpha1.AcceleratorKVM }), "146Mi"},
		"an unknown accelerator is TCG":    {machine(func(m *v1alpha1.Machine) { m.Accelerator = "" }), "218Mi"},
		"four times the memory adds pages": {machine(func(m *v1alpha1.Machine) { m.Memory.Size = resource.MustParse("4Gi") }), "230Mi"},
		"CPUs to come are paid in advance": {machine(func(m *v1alpha1.Machine) { m.CPU.MaxCPUs = 4 }), "250Mi"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			got := qemu.Overhead(tc.machine)
			if got.String() != tc.want {
				t.Errorf("got %s, want %s", got.String(), tc.want)
			}
		})
	}
}
