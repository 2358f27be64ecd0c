package policy

import (
	"bytes"
	"encoding/json"
	"fmt"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/runtime"

	"orlop.dev/orlop/api/core/v1alpha2"
)

// RestartChanges lists what differs between the specification a process was started
// with and the one wanted now, and that takes effect only with the next process.
// Fields that act at once (runPolicy, liveMigrationPolicy, disruptions) and interface
// ids, which only give names to what is there, never appear.
func RestartChanges(running, wanted *v1alpha2.VirtualMachineSpec) []v1alpha2.RestartAwaitingChange {
	var c changes
	c.cpu(running.CPU, wanted.CPU)
	c.compare("memory.size", running.Memory.Size.String(), wanted.Memory.Size.String())
	c.compare("virtualMachineClassName", running.VirtualMachineClassName, wanted.VirtualMachineClassName)
	c.compare("virtualMachineIPAddress", running.VirtualMachineIPAddressName, wanted.VirtualMachineIPAddressName)
	c.compare("topologySpreadConstraints", running.TopologySpreadConstraints, wanted.TopologySpreadConstraints)
	c.compare("affinity", running.Affinity, wanted.Affinity)
	c.compare("nodeSelector", running.NodeSelector, wanted.NodeSelector)
	c.compare("tolerations", running.Tolerations, wanted.Tolerations)
	c.compare("priorityClassName", running.PriorityClassName, wanted.PriorityClassName)
	c.compare("terminationGracePeriodSeconds", running.TerminationGracePeriodSeconds, wanted.TerminationGracePeriodSeconds)
	c.compare("enableParavirtualization", running.EnableParavirtualization, wanted.EnableParavirtualization)
	c.compare("osType", running.OSType, wanted.OSType)
	c.compare("bootloader", running.Bootloader, wanted.Bootloader)
	c.compare("provisioning", running.Provisioning, wanted.Provisioning)
	c.compare("networks", withoutIDs(running.Networks), withoutIDs(wanted.Networks))
	c.compare("gpus", running.GPUs, wanted.GPUs)
	c.compare("usbDevices", running.USBDevices, wanted.USBDevices)
	return c
}

// DeviceRestartChanges does the same for block devices. A machine whose devices can be
// hot-plugged waits only for the loss of kept, the device it boots from (nil if that
// stays); order and bootOrder take effect at the next boot, whenever that is.
func DeviceRestartChanges(running, wanted *v1alpha2.VirtualMachineSpec, kept *v1alpha2.BlockDeviceSpecRef) []v1alpha2.RestartAwaitingChange {
	var c changes
	hot := HotPlugs(running) && HotPlugs(wanted)
	for i := range max(len(running.BlockDeviceRefs), len(wanted.BlockDeviceRefs)) {
		was := device(running.BlockDeviceRefs, i)
		path := fmt.Sprintf("blockDeviceRefs.%d", i)
		switch {
		case !hot:
			c.compare(path, was, device(wanted.BlockDeviceRefs, i))
		case kept != nil && was != nil && was.Kind == kept.Kind && was.Name == kept.Name:
			c.compare(path, was, (*v1alpha2.BlockDeviceSpecRef)(nil))
		}
	}
	return c
}

// ClassRestartChanges does the same for the placement rules of the class.
func ClassRestartChanges(running, wanted *v1alpha2.VirtualMachineClassSpec) []v1alpha2.RestartAwaitingChange {
	var c changes
	c.compare("VirtualMachineClass:spec.nodeSelector", running.NodeSelector, wanted.NodeSelector)
	c.compare("VirtualMachineClass:spec.tolerations", running.Tolerations, wanted.Tolerations)
	return c
}

type changes []v1alpha2.RestartAwaitingChange

// cpu reports cores and share as one change when both differ: they are one size.
func (c *changes) cpu(running, wanted v1alpha2.CPUSpec) {
	if running.Cores != wanted.Cores && running.CoreFraction != wanted.CoreFraction {
		c.compare("cpu", running, wanted)
		return
	}
	c.compare("cpu.cores", running.Cores, wanted.Cores)
	c.compare("cpu.coreFraction", running.CoreFraction, wanted.CoreFraction)
}

func (c *changes) compare(path string, running, wanted any) {
	if equality.Semantic.DeepEqual(running, wanted) {
		return
	}
	before, after := raw(running), raw(wanted)
	change := v1alpha2.RestartAwaitingChange{Operation: v1alpha2.ChangeReplace, Path: path, CurrentValue: before, DesiredValue: after}
	switch {
	case before == nil && after == nil:
		return
	case before == nil:
		change.Operation = v1alpha2.ChangeAdd
	case after == nil:
		change.Operation = v1alpha2.ChangeRemove
	}
	*c = append(*c, change)
}

// raw returns nil for what is empty in JSON, so that it counts as absent. Keys are
// sorted, as they come back from the API server: else a status would look different
// from what was written.
func raw(value any) *runtime.RawExtension {
	text, err := json.Marshal(value)
	if err != nil || bytes.Equal(text, []byte("null")) || bytes.Equal(text, []byte(`""`)) ||
		bytes.Equal(text, []byte("{}")) || bytes.Equal(text, []byte("[]")) {
		return nil
	}
	var sorted any
	if json.Unmarshal(text, &sorted) == nil {
		if again, err := json.Marshal(sorted); err == nil {
			text = again
		}
	}
	return &runtime.RawExtension{Raw: text}
}

func withoutIDs(networks []v1alpha2.NetworksSpec) []v1alpha2.NetworksSpec {
	// An empty list means the Main network alone.
	if len(networks) == 0 {
		return []v1alpha2.NetworksSpec{{Type: v1alpha2.NetworkMain}}
	}
	all := make([]v1alpha2.NetworksSpec, len(networks))
	for i, n := range networks {
		n.ID = nil
		all[i] = n
	}
	return all
}

func device(list []v1alpha2.BlockDeviceSpecRef, i int) *v1alpha2.BlockDeviceSpecRef {
	if i >= len(list) {
		return nil
	}
	return &list[i]
}
