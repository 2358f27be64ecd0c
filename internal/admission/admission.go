package admission

import (
	"fmt"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"

	"orlop.dev/orlop/internal/settings"
)

// Setup registers every webhook with the manager's server.
func Setup(m ctrl.Manager, platform settings.Platform) error {
	for name, add := range map[string]func(ctrl.Manager, settings.Platform) error{
		"VirtualDisk":                         disks,
		"VirtualImage":                        images,
		"ClusterVirtualImage":                 clusterImages,
		"VirtualMachine":                      machines,
		"VirtualMachineClass":                 classes,
		"VirtualMachineBlockDeviceAttachment": attachments,
		"VirtualMachineOperation":             operations,
		"VirtualMachineIPAddress":             addresses,
		"VirtualMachineIPAddressLease":        leases,
		"ModuleConfig":                        moduleConfigs,
		"VirtualMachineMACAddress":            macAddresses,
		"VirtualMachineMACAddressLease":       macLeases,
		"Eviction":                            evictions,
	} {
		if err := add(m, platform); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// problems collects everything that is wrong, so that the user sees it at once.
type problems []string

func (p *problems) add(format string, args ...any) { *p = append(*p, fmt.Sprintf(format, args...)) }

// err is nil when nothing is wrong.
func (p *problems) err() error {
	if len(*p) == 0 {
		return nil
	}
	return fmt.Errorf("%s", strings.Join(*p, "; "))
}

// deleting says that an object is on its way out, when only finalizers change.
func deleting(o metav1.Object) bool { return o.GetDeletionTimestamp() != nil }
