//go:build e2e

package e2e

import (
	"fmt"
	"strings"
)

// image is a VirtualImage of a guest served by the test.
func image(name, file string) string {
	return fmt.Sprintf(`---
apiVersion: virtualization.deckhouse.io/v1alpha2
kind: VirtualImage
metadata: {name: %s}
spec:
  storage: ContainerRegistry
  dataSource: {type: HTTP, http: {url: "${GUESTS}/%s"}}
`, name, file)
}

// disk is a VirtualDisk made from a VirtualImage.
func disk(name, class, size, image string) string {
	return fmt.Sprintf(`---
apiVersion: virtualization.deckhouse.io/v1alpha2
kind: VirtualDisk
metadata: {name: %s}
spec:
  persistentVolumeClaim: {storageClassName: %s, size: %s}
  dataSource: {type: ObjectRef, objectRef: {kind: VirtualImage, name: %s}}
`, name, class, size, image)
}

// blank is an empty VirtualDisk.
func blank(name, class, size string) string {
	return fmt.Sprintf(`---
apiVersion: virtualization.deckhouse.io/v1alpha2
kind: VirtualDisk
metadata: {name: %s}
spec:
  persistentVolumeClaim: {storageClassName: %s, size: %s}
`, name, class, size)
}

// machine is a small VirtualMachine; more lines of spec may follow.
func machine(name, memory string, disks []string, more ...string) string {
	var refs strings.Builder
	for _, disk := range disks {
		fmt.Fprintf(&refs, "  - {kind: VirtualDisk, name: %s}\n", disk)
	}
	extra := ""
	for _, line := range more {
		extra += "  " + line + "\n"
	}
	return fmt.Sprintf(`---
apiVersion: virtualization.deckhouse.io/v1alpha2
kind: VirtualMachine
metadata: {name: %[1]s, labels: {app: %[1]s}}
spec:
  cpu: {cores: 1, coreFraction: 10%%}
  memory: {size: %[2]s}
  virtualMachineClassName: generic
  blockDeviceRefs:
%[3]s%[4]s`, name, memory, refs.String(), extra)
}
