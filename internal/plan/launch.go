package plan

import (
	"crypto/md5" //nolint:gosec // a name, not a secret: guests know disks by this serial number
	"encoding/base32"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"net/netip"
	"sort"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/qemu"
)

// Annotations of an Instance: what it was made from, for comparing with what is
// wanted later.
const (
	LastAppliedSpecAnnotation      = "internal.virtualization.deckhouse.io/vm.last-applied-spec"
	LastAppliedClassSpecAnnotation = "internal.virtualization.deckhouse.io/vmclass.last-applied-spec"
)

// mebibyte is the grain of guest memory.
const mebibyte = 1 << 20

// hotPlugBus takes devices at any time.
const hotPlugBus = "scsi"

// ISO is the format of images that guests get as optical drives.
const ISO = "iso"

// firstBootDisk is the id of the device and of the pod's volume with first-boot data.
const firstBootDisk = "firstboot"

// Launch is everything that goes into the objects of one new instance.
type Launch struct {
	VM    *v1alpha2.VirtualMachine
	Class *v1alpha2.VirtualMachineClass
	// Name of the Instance and its Pod.
	Name string
	// Disks are those of spec.blockDeviceRefs, in order, then those of attachments.
	Disks []LaunchDisk
	// Slots are those of the machine's last process.
	Slots   []v1alpha2.DeviceSlot
	Network v1alpha1.Network
	// LauncherImage is the image of the compute container.
	LauncherImage string
	// AllowEmulation lets the pod go to nodes without KVM.
	AllowEmulation bool
}

// LaunchDisk is one block device with what was found out about it.
type LaunchDisk struct {
	Ref v1alpha2.BlockDeviceSpecRef
	// UID of the disk or image.
	UID types.UID
	// ClaimName and Mode (Filesystem or Block) are the volume of a disk; an image has none.
	ClaimName string
	Mode      string
	// Size is what the guest is to see of a disk, in bytes; 0 is whatever there is.
	Size int64
	// Image is the content of an image, nil for a disk.
	Image *v1alpha1.ImageSource
	// Attachment is true for a device that an attachment brings; it never boots.
	Attachment bool
}

// InstanceName is the name of the nth Instance of a machine and of its Pod; the
// machine's part gives way where the whole would not fit a label.
func InstanceName(vm string, counter int64) string {
	suffix := fmt.Sprintf("-%d", counter)
	return "virt-launcher-" + cut(strings.ReplaceAll(vm, ".", "-"), 63-len("virt-launcher-")-len(suffix)) + suffix
}

// AddressName is the name of the address claim made for a machine that names none.
// It follows from the machine's UID, so that two passes never make two.
func AddressName(vm string, uid types.UID) string {
	h := fnv.New64a()
	_, _ = h.Write([]byte(uid)) // a hash never fails
	suffix := strings.ToLower(base32.StdEncoding.EncodeToString(h.Sum(nil)))[:5]
	return cut(vm, 57) + "-" + suffix
}

// DiskID is the stable id of a block device and the name of its pod volume.
func DiskID(ref v1alpha2.BlockDeviceSpecRef) string {
	switch ref.Kind {
	case v1alpha2.ClusterImageDevice:
		return "cvi-" + cut(ref.Name, 49)
	case v1alpha2.ImageDevice:
		return "vi-" + cut(ref.Name, 49)
	default:
		return "vd-" + cut(ref.Name, 60)
	}
}

// MAC is the guest's address on the Main network: 02:00 and the IPv4 address.
func MAC(address string) (string, error) {
	a, err := netip.ParseAddr(address)
	if err != nil || !a.Is4() {
		return "", fmt.Errorf("address %q is not IPv4", address)
	}
	b := a.As4()
	return fmt.Sprintf("02:00:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3]), nil
}

// Instance describes the process of a launch. It belongs to no node yet.
func Instance(l Launch) (*v1alpha1.Instance, error) {
	machine, err := machine(l)
	if err != nil {
		return nil, err
	}
	spec, err := json.Marshal(l.VM.Spec)
	if err != nil {
		return nil, fmt.Errorf("encode spec of machine %s: %w", l.VM.Name, err)
	}
	classSpec, err := json.Marshal(l.Class.Spec)
	if err != nil {
		return nil, fmt.Errorf("encode spec of class %s: %w", l.Class.Name, err)
	}
	network := l.Network
	instance := &v1alpha1.Instance{
		ObjectMeta: metav1.ObjectMeta{
			Name: l.Name, Namespace: l.VM.Namespace,
			Labels: map[string]string{v1alpha2.LabelVirtualMachineUID: string(l.VM.UID)},
			Annotations: map[string]string{
				LastAppliedSpecAnnotation:      string(spec),
				LastAppliedClassSpecAnnotation: string(classSpec),
			},
			Finalizers:      []string{v1alpha2.FinalizerPodProtection},
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(l.VM, v1alpha2.GroupVersion.WithKind(v1alpha2.VirtualMachineKind))},
		},
		Spec: v1alpha1.InstanceSpec{
			VirtualMachine:     v1alpha1.VirtualMachineReference{Name: l.VM.Name, UID: l.VM.UID},
			Power:              v1alpha1.PowerOn,
			GracePeriodSeconds: GracePeriod(l.VM),
			RebootAction:       v1alpha1.RebootReset,
			Machine:            machine,
			Network:            &network,
		},
	}
	if l.VM.Spec.Provisioning != nil {
		instance.Spec.FirstBoot = &v1alpha1.FirstBoot{Type: "NoCloud", SecretName: l.Name}
	}
	return instance, nil
}

// GracePeriod is how long a guest may take to shut down, in seconds.
func GracePeriod(vm *v1alpha2.VirtualMachine) int64 {
	if g := vm.Spec.TerminationGracePeriodSeconds; g != nil {
		return *g
	}
	return 60
}

func machine(l Launch) (v1alpha1.Machine, error) {
	vm := l.VM
	sockets, perSocket, ok := policy.Topology(vm.Spec.CPU.Cores)
	if !ok {
		return v1alpha1.Machine{}, fmt.Errorf("%d cores cannot be laid out", vm.Spec.CPU.Cores)
	}
	size := (vm.Spec.Memory.Size.Value() + mebibyte - 1) / mebibyte * mebibyte
	m := v1alpha1.Machine{
		Type:     qemu.DefaultMachineType,
		UUID:     string(vm.UID),
		Hostname: vm.Name,
		Firmware: string(v1alpha2.BIOS),
		CPU: v1alpha1.CPU{Model: cpuModel(l.Class.Spec.CPU), Sockets: sockets, CoresPerSocket: perSocket,
			MaxCPUs: sockets * perSocket},
		Memory: v1alpha1.Memory{Size: *resource.NewQuantity(size, resource.BinarySI)},
		Disks:  disks(l),
	}
	if l.Network.Address != "" {
		mac, err := MAC(l.Network.Address)
		if err != nil {
			return v1alpha1.Machine{}, err
		}
		m.Interfaces = []v1alpha1.Interface{{ID: "net0", Model: "virtio", MAC: mac}}
	}
	return m, nil
}

// cpuModel puts the class's processor into QEMU's words. "host" becomes "max" on a
// node without KVM, see OnNode.
func cpuModel(cpu v1alpha2.VirtualMachineClassCPU) string {
	switch cpu.Type {
	case v1alpha2.CPUTypeModel:
		return cpu.Model
	case v1alpha2.CPUTypeFeatures:
		features := append([]string(nil), cpu.Features...)
		sort.Strings(features)
		return "qemu64,+" + strings.Join(features, ",+")
	default:
		return "host"
	}
}

func disks(l Launch) []v1alpha1.Disk {
	all := make([]v1alpha1.Disk, 0, len(l.Disks)+1)
	order := BootIndexes(l.VM.Spec.BlockDeviceRefs)
	for i, d := range l.Disks {
		device := Device(d)
		if !d.Attachment && i < len(order) {
			device.BootIndex = order[i]
		}
		all = append(all, device)
	}
	if l.VM.Spec.Provisioning != nil {
		all = append(all, v1alpha1.Disk{
			ID: firstBootDisk, Bus: hotPlugBus, CDROM: true, ReadOnly: true,
			Source: v1alpha1.VolumeSource{FirstBoot: &v1alpha1.FirstBootSource{}},
		})
	}
	devices := make([]v1alpha2.DeviceSlot, len(all))
	for i, d := range all {
		devices[i] = v1alpha2.DeviceSlot{ID: d.ID, Bus: d.Bus}
	}
	for i, d := range Slots(l.Slots, devices) {
		all[i].Slot = d.Slot
	}
	return all
}

// Device is a block device as a process gets it, without a slot and a place in the
// boot order. A disk's volume comes from the launcher pod unless said otherwise.
func Device(d LaunchDisk) v1alpha1.Disk {
	serial := md5.Sum([]byte(d.UID)) //nolint:gosec // see the import
	device := v1alpha1.Disk{ID: DiskID(d.Ref), Bus: hotPlugBus, Serial: hex.EncodeToString(serial[:])}
	if d.Image != nil {
		device.ReadOnly, device.CDROM = true, d.Image.Format == ISO
		device.Source.Image = d.Image
		return device
	}
	device.Size = d.Size
	device.Source.PersistentVolumeClaim = &v1alpha1.PersistentVolumeClaimSource{ClaimName: d.ClaimName, Mode: d.Mode}
	return device
}

// BootIndexes numbers the devices the guest boots from: by bootOrder if any has
// one, else in the order of the list.
func BootIndexes(refs []v1alpha2.BlockDeviceSpecRef) []int32 {
	indexes := make([]int32, len(refs))
	explicit := false
	for i, r := range refs {
		if r.BootOrder != nil {
			explicit = true
			indexes[i] = int32(*r.BootOrder)
		}
	}
	if !explicit {
		for i := range refs {
			indexes[i] = int32(i + 1)
		}
	}
	return indexes
}

// OnNode completes an instance with the node its pod was bound to.
func OnNode(instance *v1alpha1.Instance, node string, pod types.UID, accelerator v1alpha1.Accelerator) *v1alpha1.Instance {
	bound := instance.DeepCopy()
	bound.Spec.NodeName, bound.Spec.PodUID, bound.Spec.Machine.Accelerator = node, pod, accelerator
	if accelerator == v1alpha1.AcceleratorTCG && bound.Spec.Machine.CPU.Model == "host" {
		bound.Spec.Machine.CPU.Model = "max"
	}
	return bound
}
