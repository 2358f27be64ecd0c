package qemu

import (
	"fmt"
	"strconv"
	"strings"

	"orlop.dev/orlop/api/instance/v1alpha1"
)

// l2CacheBytes bounds the table cache of each qcow2 disk: enough for 64 GiB in use.
const l2CacheBytes = 8 * mebibyte

// Plug is a disk in QMP's terms, for a machine that runs. It is made of the same parts
// as the command line, so that the guest cannot tell when a disk came.
type Plug struct {
	// Nodes are the arguments of blockdev-add, the lowest first.
	Nodes []map[string]any
	// Device is the arguments of device_add.
	Device map[string]any
}

// HotPlug describes a disk whose descriptors are in a set of the running QEMU. Only the
// SCSI bus takes disks from a running machine: it needs no new PCI slot.
func HotPlug(d v1alpha1.Disk, backing Backing, set int) (Plug, error) {
	if d.Bus != "scsi" {
		return Plug{}, fmt.Errorf("disk %s: bus %q takes no disks from a running machine", d.ID, d.Bus)
	}
	if err := validateDevices(v1alpha1.Machine{Disks: []v1alpha1.Disk{d}}); err != nil {
		return Plug{}, err
	}
	nodes, err := blockNodes(d, backing, fdSetName(set))
	if err != nil {
		return Plug{}, err
	}
	device := d
	device.BootIndex = 0 // firmware has read the order; the place in it is taken at the next start
	return Plug{Nodes: nodes, Device: diskDevice(device).arguments()}, nil
}

// NodeNames are the block nodes of a disk by the name of its upper one, the order in
// which they are deleted.
func NodeNames(upper string) []string { return []string{upper, upper + "-file"} }

// fdSetName is the file name under which drivers find the descriptors of a set.
func fdSetName(set int) string { return fmt.Sprintf("/dev/fdset/%d", set) }

// disk adds the block nodes of a disk and the device on top.
func (b *builder) disk(d v1alpha1.Disk) error {
	backing, ok := b.env.Disks[d.ID]
	if !ok || len(backing.FDs) == 0 {
		return fmt.Errorf("disk %s: no descriptor", d.ID)
	}
	nodes, err := blockNodes(d, backing, b.fdSet(d.ID, backing.FDs...))
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if err := b.addJSON("blockdev", n); err != nil {
			return err
		}
	}
	b.add("device", diskDevice(d).argument())
	return nil
}

// blockNodes are the file and the format on top of it. Nothing outside the given
// descriptors is opened: a qcow2 file cannot name a backing file here.
func blockNodes(d v1alpha1.Disk, backing Backing, filename string) ([]map[string]any, error) {
	readOnly := ReadOnly(d)
	if backing.Buffered && !readOnly {
		return nil, fmt.Errorf("disk %s: writable, but opened without O_DIRECT", d.ID)
	}
	layer, err := format(d)
	if err != nil {
		return nil, err
	}
	name, driver := NodeName(d), "file"
	if backing.Device {
		driver = "host_device"
	}
	cache := map[string]any{"direct": !backing.Buffered, "no-flush": false}
	file := map[string]any{
		"driver": driver, "node-name": name + "-file", "filename": filename,
		"aio": "threads", "cache": cache, "read-only": readOnly, "auto-read-only": false, "discard": "unmap",
	}
	node := map[string]any{
		"driver": layer, "node-name": name, "file": name + "-file",
		"cache": cache, "read-only": readOnly, "auto-read-only": false, "discard": "unmap", "detect-zeroes": "off",
	}
	if layer == "qcow2" {
		node["backing"] = nil
		node["l2-cache-size"] = l2CacheBytes
	}
	return []map[string]any{file, node}, nil
}

// property is one setting of a device: a string or an int32.
type property struct {
	key   string
	value any
}

// device is a driver with its properties, in the order of the command line.
type device struct {
	driver     string
	properties []property
}

// argument is the device as `-device` takes it: commas in values are doubled.
func (d device) argument() string {
	var b strings.Builder
	b.WriteString(d.driver)
	for _, p := range d.properties {
		value := fmt.Sprint(p.value)
		b.WriteString("," + p.key + "=" + strings.ReplaceAll(value, ",", ",,"))
	}
	return b.String()
}

// arguments is the device as device_add takes it.
func (d device) arguments() map[string]any {
	all := map[string]any{"driver": d.driver}
	for _, p := range d.properties {
		all[p.key] = p.value
	}
	return all
}

// diskDevice is what the guest sees of a disk. Every kind stops the guest on an I/O
// error instead of telling it: the cause is ours to repair.
func diskDevice(d v1alpha1.Disk) device {
	kind := "hd"
	if d.CDROM {
		kind = "cd"
	}
	v := device{properties: []property{{"id", d.ID}}}
	add := func(key string, value any) { v.properties = append(v.properties, property{key, value}) }
	switch d.Bus {
	case "sata":
		v.driver = "ide-" + kind
		add("bus", sataPort(d.Slot))
		add("unit", int32(0))
	case "virtio":
		v.driver = "virtio-blk-pci"
		add("bus", rootPort(d.Slot))
		add("addr", "0x00")
	default:
		v.driver = "scsi-" + kind
		add("bus", "scsi.0")
		add("channel", int32(0))
		add("scsi-id", int32(0))
		add("lun", d.Slot)
	}
	add("drive", NodeName(d))
	if d.Serial != "" {
		add("serial", d.Serial)
		if d.Bus == "scsi" {
			add("device_id", d.Serial)
		}
	}
	if d.BootIndex > 0 {
		add("bootindex", d.BootIndex)
	}
	if !d.CDROM {
		add("write-cache", "on")
	}
	add("werror", "stop")
	add("rerror", "stop")
	return v
}

// sataPort is the bus of a port: six on the chipset's controller, then six on each
// further one.
func sataPort(slot int32) string {
	if slot < portsPerAHCI {
		return "ide." + strconv.Itoa(int(slot))
	}
	return fmt.Sprintf("sata%d.%d", slot/portsPerAHCI, slot%portsPerAHCI)
}
