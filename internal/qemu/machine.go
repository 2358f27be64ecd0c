package qemu

import (
	"fmt"
	"regexp"
	"strings"

	"orlop.dev/orlop/api/instance/v1alpha1"
)

// DefaultMachineType is given to new virtual machines. Old ones keep theirs.
const DefaultMachineType = "pc-q35-10.0"

// Sockets that QEMU makes in Environment.RunDir.
const (
	// HandlerMonitorSocket is the second QMP monitor, for virt-handler.
	HandlerMonitorSocket = "qmp-handler"
	// SerialSocket is the serial console: raw bytes, one client at a time.
	SerialSocket = "serial"
	// VNCSocket speaks RFB.
	VNCSocket = "vnc"
	// MigrateSocket carries the memory of a migration: the target's QEMU listens there,
	// the source's connects to it.
	MigrateSocket = "migrate"
	// GuestAgentSocket is the host end of the guest agent's channel.
	GuestAgentSocket = "qga"
)

// GuestAgentDevice is QEMU's name for the host end of the guest agent's channel.
const GuestAgentDevice = "qga"

// GuestAgentChannel is the name under which guests find the agent's channel.
const GuestAgentChannel = "org.qemu.guest_agent.0"

// Limits of the topology below.
const (
	maxSCSIUnits = 256 // LUNs of one target that every guest finds
	maxSATAPorts = 18  // the chipset's controller and two more
	maxPCISlots  = 16  // two PCI devices of eight root ports each
	portsPerAHCI = 6
	mebibyte     = 1 << 20
)

// Addresses on the root bus. They are guest-visible: never reuse one.
const (
	addrVGA       = 0x01
	addrRootPorts = 0x02 // and 0x03
	addrUSB       = 0x04
	addrSerial    = 0x05
	addrRNG       = 0x06
	addrSCSI      = 0x07
	addrAHCI      = 0x08 // and 0x09
	addrLegacyNIC = 0x10 // and upwards, one for each slot
)

// Environment is what the launcher has opened for the process. Descriptors are the
// numbers they have inside QEMU.
type Environment struct {
	// RunDir holds QEMU's sockets, without a trailing slash; short, for their paths
	// are limited to 108 bytes.
	RunDir string
	// Monitor is a connected stream socket: the launcher's own QMP monitor.
	Monitor int
	// Incoming makes the process wait for a guest that arrives by a migration.
	Incoming bool
	// KVM is an open /dev/kvm, needed by accelerator KVM only.
	KVM int
	// Disks by disk id.
	Disks map[string]Backing
	// Taps by interface id.
	Taps map[string]Tap
}

// Backing is the open file or device behind a disk.
type Backing struct {
	// FDs are descriptors of one file, one for each access mode.
	FDs []int
	// Device is true for a block device.
	Device bool
	// Buffered is true if the descriptors lack O_DIRECT.
	Buffered bool
}

// Tap is the host end of an interface.
type Tap struct {
	FD int
	// MTU told to the guest, in bytes; 0 tells nothing.
	MTU int32
}

// QEMU's ids must start with a letter; everything else the API allows is allowed here.
var validID = regexp.MustCompile(`^[a-z][-a-z0-9]*$`)

// portID is what root ports are called.
var portID = regexp.MustCompile(`^port[0-9]+$`)

// Validate says why a machine cannot be built, or nil. It needs no environment, so
// that a start can be refused before anything is opened.
func Validate(m v1alpha1.Machine) error {
	if !strings.HasPrefix(m.Type, "pc-q35-") {
		return fmt.Errorf("machine type %q is not supported, only versions of pc-q35", m.Type)
	}
	if m.Firmware != "" && m.Firmware != "BIOS" {
		return fmt.Errorf("firmware %s is not supported, only BIOS", m.Firmware)
	}
	if m.Accelerator != v1alpha1.AcceleratorKVM && m.Accelerator != v1alpha1.AcceleratorTCG {
		return fmt.Errorf("accelerator %q is not supported", m.Accelerator)
	}
	if m.Memory.Size.Value() < mebibyte || m.Memory.Size.Value()%mebibyte != 0 {
		return fmt.Errorf("memory size %s is not a multiple of 1Mi", m.Memory.Size.String())
	}
	if err := validateCPU(m.CPU); err != nil {
		return err
	}
	return validateDevices(m)
}

func validateCPU(c v1alpha1.CPU) error {
	if c.Model == "" {
		return fmt.Errorf("no CPU model")
	}
	if c.Sockets < 1 || c.CoresPerSocket < 1 {
		return fmt.Errorf("CPU topology of %d sockets with %d cores is not possible", c.Sockets, c.CoresPerSocket)
	}
	if c.MaxCPUs != 0 && (c.MaxCPUs < c.Sockets*c.CoresPerSocket || c.MaxCPUs%c.CoresPerSocket != 0) {
		return fmt.Errorf("at most %d CPUs do not fit sockets of %d cores", c.MaxCPUs, c.CoresPerSocket)
	}
	return nil
}

func validateDevices(m v1alpha1.Machine) error {
	ids, slots := map[string]bool{}, map[string]string{}
	for _, own := range []string{"scsi", "usb", "tablet", "video", "serial0", "channels", "agent", "rng", "sata1", "sata2", "kvm"} {
		ids[own] = true
	}
	claim := func(id, bus string, slot, limit int32) error {
		if !validID.MatchString(id) || portID.MatchString(id) {
			return fmt.Errorf("device id %q is not valid", id)
		}
		if ids[id] {
			return fmt.Errorf("device id %s is used twice", id)
		}
		ids[id] = true
		if slot < 0 || slot >= limit {
			return fmt.Errorf("device %s: %s slot %d does not exist", id, bus, slot)
		}
		key := fmt.Sprintf("%s slot %d", bus, slot)
		if other, taken := slots[key]; taken {
			return fmt.Errorf("devices %s and %s share %s", other, id, key)
		}
		slots[key] = id
		return nil
	}
	for _, d := range m.Disks {
		limits := map[string]int32{"scsi": maxSCSIUnits, "sata": maxSATAPorts, "virtio": maxPCISlots}
		limit, known := limits[d.Bus]
		if !known {
			return fmt.Errorf("disk %s: bus %q is not supported", d.ID, d.Bus)
		}
		bus := d.Bus
		if bus == "virtio" {
			if d.CDROM {
				return fmt.Errorf("disk %s: there are no virtio CD-ROM drives", d.ID)
			}
			bus = "PCI"
		}
		if err := claim(d.ID, bus, d.Slot, limit); err != nil {
			return err
		}
		if _, err := format(d); err != nil {
			return err
		}
	}
	for _, i := range m.Interfaces {
		if _, known := nicDrivers[i.Model]; !known {
			return fmt.Errorf("interface %s: model %q is not supported", i.ID, i.Model)
		}
		if err := claim(i.ID, "PCI", i.Slot, maxPCISlots); err != nil {
			return err
		}
	}
	return nil
}

// format is the block driver that reads a disk's bytes.
func format(d v1alpha1.Disk) (string, error) {
	switch s := d.Source; {
	case s.FirstBoot != nil:
		return "raw", nil
	case s.PersistentVolumeClaim != nil && s.PersistentVolumeClaim.Mode == "Filesystem":
		return "qcow2", nil
	case s.PersistentVolumeClaim != nil && s.PersistentVolumeClaim.Mode == "Block":
		return "raw", nil
	case s.Image != nil && s.Image.Format == "qcow2":
		return "qcow2", nil
	case s.Image != nil && s.Image.Format == "iso":
		return "raw", nil
	default:
		return "", fmt.Errorf("disk %s: its volume source is not supported", d.ID)
	}
}

// ReadOnly says whether the guest may not write to a disk; its file is then opened
// for reading only.
func ReadOnly(d v1alpha1.Disk) bool {
	return d.ReadOnly || d.CDROM || d.Source.Image != nil || d.Source.FirstBoot != nil
}

// NodeName is the block node of a disk, for QMP commands such as block_resize. It
// is made of the place and not of the id, since QEMU allows it only 31 characters.
func NodeName(d v1alpha1.Disk) string { return fmt.Sprintf("node-%s-%d", d.Bus, d.Slot) }

// VCPUs is the number of vCPUs the guest starts with.
func VCPUs(c v1alpha1.CPU) int32 { return c.Sockets * c.CoresPerSocket }
