package qemu

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"orlop.dev/orlop/api/instance/v1alpha1"
)

// tcgBufferMiB bounds the code that TCG keeps translated. Without it QEMU takes up
// to a quarter of the guest's memory on top.
const tcgBufferMiB = 32

// nicDrivers maps interface models to QEMU's drivers.
var nicDrivers = map[string]string{
	"virtio":  "virtio-net-pci",
	"e1000":   "e1000",
	"rtl8139": "rtl8139",
}

// Command is QEMU's argument vector without argv[0]. The machine starts paused; the
// caller lets it run by QMP.
func Command(m v1alpha1.Machine, e Environment) ([]string, error) {
	if err := Validate(m); err != nil {
		return nil, err
	}
	b := &builder{machine: m, env: e}
	b.base()
	b.processor()
	b.memory()
	b.monitors()
	b.rootPorts()
	b.fixedDevices()
	for _, d := range m.Disks {
		if err := b.disk(d); err != nil {
			return nil, err
		}
	}
	for _, i := range m.Interfaces {
		if err := b.nic(i); err != nil {
			return nil, err
		}
	}
	return b.args, nil
}

// builder collects arguments, section by section.
type builder struct {
	machine v1alpha1.Machine
	env     Environment
	args    []string
	fdSets  int
}

// add appends one option with its comma-separated properties.
func (b *builder) add(option string, properties ...string) {
	b.args = append(b.args, "-"+option)
	if len(properties) > 0 {
		b.args = append(b.args, strings.Join(properties, ","))
	}
}

// addJSON appends one option whose value is a JSON object.
func (b *builder) addJSON(option string, value map[string]any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("encode -%s: %w", option, err)
	}
	b.args = append(b.args, "-"+option, string(data))
	return nil
}

// prop is a property whose value may hold anything: commas are doubled.
func prop(key, value string) string { return key + "=" + strings.ReplaceAll(value, ",", ",,") }

func num[T int | int32 | int64](key string, value T) string {
	return key + "=" + strconv.FormatInt(int64(value), 10)
}

func addr(slot int) string { return fmt.Sprintf("addr=0x%02x", slot) }

// fdSet hands descriptors of one file to QEMU and returns the file name under which
// its drivers find them.
func (b *builder) fdSet(opaque string, fds ...int) string {
	b.fdSets++
	for _, fd := range fds {
		b.add("add-fd", num("fd", fd), num("set", b.fdSets), prop("opaque", opaque))
	}
	return fdSetName(b.fdSets)
}

// base is what every machine has, and what the process may not do.
func (b *builder) base() {
	m := b.machine
	b.add("name", prop("guest", m.Hostname), "debug-threads=on")
	b.add("no-user-config")
	b.add("nodefaults")
	b.add("sandbox", "on", "obsolete=deny", "elevateprivileges=deny", "spawn=deny", "resourcecontrol=deny")
	b.add("S")
	if b.env.Incoming {
		b.add("incoming", "defer")
	}
	b.add("msg", "timestamp=on")
	machine := []string{m.Type, "usb=off", "vmport=off", "dump-guest-core=off", "memory-backend=ram", "graphics=on"}
	if m.Accelerator == v1alpha1.AcceleratorKVM {
		machine = append(machine, "hpet=off") // kvmclock is better and needs no timer interrupts
	}
	if !b.hasSATA() {
		machine = append(machine, "sata=off") // firmware and guest need not look for disks there
	}
	b.add("machine", machine...)
	b.add("action", "reboot=reset", "shutdown=poweroff", "panic=shutdown", "watchdog=reset")
	b.add("boot", "menu=off", "strict=on")
	b.add("rtc", "base=utc", "driftfix=slew")
	b.add("uuid", m.UUID)
	b.add("smbios", "type=1", "manufacturer=Flant", "product=DeckhouseVirtualizationPlatform",
		prop("uuid", m.UUID), "family=Deckhouse")
}

func (b *builder) hasSATA() bool {
	for _, d := range b.machine.Disks {
		if d.Bus == "sata" {
			return true
		}
	}
	return false
}

// processor chooses the accelerator and the CPU model. A named model is enforced
// under KVM, where a missing feature would break a later migration; TCG lacks some
// features of every model, and does not migrate to KVM.
func (b *builder) processor() {
	c := b.machine.CPU
	model := c.Model
	if b.machine.Accelerator == v1alpha1.AcceleratorKVM {
		b.add("accel", "kvm", "device="+b.fdSet("kvm", b.env.KVM))
		if name, _, _ := strings.Cut(model, ","); name != "host" && name != "max" {
			model += ",enforce"
		}
	} else {
		b.add("accel", "tcg", "thread=multi", num("tb-size", tcgBufferMiB))
		if name, features, more := strings.Cut(model, ","); name == "host" {
			model = "max"
			if more {
				model += "," + features
			}
		}
	}
	b.add("cpu", model)
	sockets := c.Sockets
	if c.MaxCPUs > VCPUs(c) {
		sockets = c.MaxCPUs / c.CoresPerSocket
	}
	b.add("smp", num("cpus", VCPUs(c)), num("maxcpus", sockets*c.CoresPerSocket),
		num("sockets", sockets), num("cores", c.CoresPerSocket), "threads=1")
}

// memory uses a memfd, so that other processes can map guest memory later (vhost-user,
// local migration).
func (b *builder) memory() {
	size := b.machine.Memory.Size.Value()
	b.add("m", fmt.Sprintf("size=%dM", size/mebibyte))
	b.add("object", "memory-backend-memfd", "id=ram", num("size", size), "share=on", "prealloc=off")
}

// monitors are the control channels: one of the launcher, connected before QEMU
// starts, and one socket for the handler.
func (b *builder) monitors() {
	b.add("chardev", "socket", "id=qmp", num("fd", b.env.Monitor))
	b.add("mon", "chardev=qmp", "mode=control")
	b.add("chardev", "socket", "id=qmp-handler", "path="+b.socket(HandlerMonitorSocket), "server=on", "wait=off")
	b.add("mon", "chardev=qmp-handler", "mode=control")
}

// socket is the path of one of QEMU's sockets, commas doubled.
func (b *builder) socket(name string) string {
	return strings.ReplaceAll(b.env.RunDir+"/"+name, ",", ",,")
}

// rootPorts gives each used PCI slot a port of its own, up to the highest one.
func (b *builder) rootPorts() {
	highest := int32(-1)
	for _, i := range b.machine.Interfaces {
		if i.Model == "virtio" {
			highest = max(highest, i.Slot)
		}
	}
	for _, d := range b.machine.Disks {
		if d.Bus == "virtio" {
			highest = max(highest, d.Slot)
		}
	}
	for slot := range highest + 1 {
		port := []string{
			"pcie-root-port", "id=" + rootPort(slot), "bus=pcie.0",
			fmt.Sprintf("addr=0x%02x.%d", addrRootPorts+slot/8, slot%8),
			num("chassis", slot+1), num("port", slot+1),
		}
		if slot%8 == 0 {
			port = append(port, "multifunction=on")
		}
		b.add("device", port...)
	}
}

func rootPort(slot int32) string { return fmt.Sprintf("port%d", slot) }

// fixedDevices are the same in every machine.
func (b *builder) fixedDevices() {
	b.add("display", "none")
	b.add("vnc", "unix:"+b.socket(VNCSocket))
	b.add("device", "VGA", "id=video", "bus=pcie.0", addr(addrVGA), "vgamem_mb=16")
	b.add("device", "qemu-xhci", "id=usb", "bus=pcie.0", addr(addrUSB), "p2=8", "p3=8")
	b.add("device", "usb-tablet", "id=tablet", "bus=usb.0", "port=1")
	b.add("chardev", "socket", "id=serial", "path="+b.socket(SerialSocket), "server=on", "wait=off")
	b.add("device", "isa-serial", "id=serial0", "chardev=serial", "index=0")
	b.add("device", "virtio-serial-pci", "id=channels", "bus=pcie.0", addr(addrSerial), "max_ports=8")
	b.add("chardev", "socket", "id="+GuestAgentDevice, "path="+b.socket(GuestAgentSocket), "server=on", "wait=off")
	b.add("device", "virtserialport", "id=agent", "bus=channels.0", "nr=1", "chardev="+GuestAgentDevice, "name="+GuestAgentChannel)
	b.add("object", "rng-builtin", "id=entropy")
	b.add("device", "virtio-rng-pci", "id=rng", "bus=pcie.0", addr(addrRNG), "rng=entropy")
	b.add("device", "virtio-scsi-pci", "id=scsi", "bus=pcie.0", addr(addrSCSI))
	for i := range b.extraSATA() {
		b.add("device", "ich9-ahci", fmt.Sprintf("id=sata%d", i+1), "bus=pcie.0", addr(addrAHCI+i))
	}
}

// extraSATA is how many controllers are needed beside the chipset's.
func (b *builder) extraSATA() int {
	extra := 0
	for _, d := range b.machine.Disks {
		if d.Bus == "sata" {
			extra = max(extra, int(d.Slot)/portsPerAHCI)
		}
	}
	return extra
}

// nic adds an interface. Offloads that a tap has only on newer host kernels are off,
// since a guest keeps them when it migrates to an older one. Conventional PCI cards
// sit on the root bus: they do not belong behind an express port.
func (b *builder) nic(i v1alpha1.Interface) error {
	tap, ok := b.env.Taps[i.ID]
	if !ok {
		return fmt.Errorf("interface %s: no descriptor", i.ID)
	}
	b.add("netdev", "tap", "id=host-"+i.ID, num("fd", tap.FD), "vhost=off")
	device := []string{nicDrivers[i.Model], "id=" + i.ID, "netdev=host-" + i.ID, prop("mac", i.MAC)}
	if i.Model == "virtio" {
		device = append(device, "bus="+rootPort(i.Slot), "addr=0x00",
			"guest_uso4=off", "guest_uso6=off", "host_uso=off", "guest_ufo=off", "host_ufo=off")
		if tap.MTU > 0 {
			device = append(device, num("host_mtu", tap.MTU))
		}
	} else {
		device = append(device, "bus=pcie.0", addr(addrLegacyNIC+int(i.Slot)))
	}
	b.add("device", append(device, "romfile=")...)
	return nil
}
