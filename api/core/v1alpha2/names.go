package v1alpha2

// Finalizers. A "cleanup" finalizer belongs to the controller of the object itself,
// which drops it when everything made for the object is gone; a "protection"
// finalizer is put on an object by somebody who still uses it.
const (
	FinalizerVirtualMachineCleanup               = "virtualization.deckhouse.io/vm-cleanup"
	FinalizerVirtualMachineClassCleanup          = "virtualization.deckhouse.io/vmclass-cleanup"
	FinalizerVirtualMachineOperationCleanup      = "virtualization.deckhouse.io/vmop-cleanup"
	FinalizerVirtualDiskCleanup                  = "virtualization.deckhouse.io/vd-cleanup"
	FinalizerVirtualImageCleanup                 = "virtualization.deckhouse.io/vi-cleanup"
	FinalizerClusterVirtualImageCleanup          = "virtualization.deckhouse.io/cvi-cleanup"
	FinalizerVirtualMachineIPAddressCleanup      = "virtualization.deckhouse.io/vmip-cleanup"
	FinalizerVirtualMachineIPAddressLeaseCleanup = "virtualization.deckhouse.io/vmipl-cleanup"
	// FinalizerAttachmentCleanup is that of a VirtualMachineBlockDeviceAttachment.
	FinalizerAttachmentCleanup                    = "virtualization.deckhouse.io/vmbda-cleanup"
	FinalizerVirtualMachineMACAddressCleanup      = "virtualization.deckhouse.io/vmmac-cleanup"
	FinalizerVirtualMachineMACAddressLeaseCleanup = "virtualization.deckhouse.io/vmmacl-cleanup"

	// FinalizerVirtualMachineOperationByEvacuation keeps an evacuation that is deleted
	// until the request to evict has been taken back.
	FinalizerVirtualMachineOperationByEvacuation = "virtualization.deckhouse.io/vmop-protection-by-evacuation-controller"

	FinalizerClusterVirtualImageProtection     = "virtualization.deckhouse.io/cvi-protection"
	FinalizerVirtualImageProtection            = "virtualization.deckhouse.io/vi-protection"
	FinalizerVirtualDiskProtection             = "virtualization.deckhouse.io/vd-protection"
	FinalizerVirtualMachineIPAddressProtection = "virtualization.deckhouse.io/vmip-protection"
	FinalizerPodProtection                     = "virtualization.deckhouse.io/pod-protection"
	FinalizerPVCProtection                     = "virtualization.deckhouse.io/pvc-protection"
)

// Annotations and labels on user-visible objects.
const (
	// AnnotationDefaultClass with value "true" marks the one default VirtualMachineClass.
	AnnotationDefaultClass = "virtualmachineclass.virtualization.deckhouse.io/is-default-class"
	// AnnotationImportStallTimeout on the ModuleConfig is how long the server of an image
	// may send nothing, as a Go duration.
	AnnotationImportStallTimeout = "internal.virtualization.deckhouse.io/import-stall-timeout"
	// AnnotationAllowEmulation with value "true" on the ModuleConfig lets machines run without KVM.
	AnnotationAllowEmulation = "virtualization.deckhouse.io/allow-emulation"

	// AnnotationSystemMigrationPolicy on the ModuleConfig overrides the live migration policy of every machine.
	AnnotationSystemMigrationPolicy = "virtualization.deckhouse.io/system-migration-policy"
	// AnnotationEvacuation on an operation says that the platform made it to empty a node.
	AnnotationEvacuation = "virtualization.deckhouse.io/evacuation"
	// AnnotationEvacuationRequested on a launcher pod says that somebody asked to evict
	// it; its value is the node to be left.
	AnnotationEvacuationRequested = "internal.virtualization.deckhouse.io/evacuation-requested"

	// AnnotationVolumeMode, AnnotationAccessMode and AnnotationBindingMode on a
	// StorageClass or VirtualDisk override what is detected about the storage.
	AnnotationVolumeMode  = "virtualdisk.virtualization.deckhouse.io/volume-mode"
	AnnotationAccessMode  = "virtualdisk.virtualization.deckhouse.io/access-mode"
	AnnotationBindingMode = "virtualdisk.virtualization.deckhouse.io/binding-mode"

	// LabelVirtualMachineUID links an object to the machine it was made for.
	LabelVirtualMachineUID = "virtualization.deckhouse.io/virtual-machine-uid"
	// LabelVirtualMachineIPAddressUID links a lease to its claim.
	LabelVirtualMachineIPAddressUID = "virtualization.deckhouse.io/virtual-machine-ip-address-uid"
	// LabelVirtualMachineMACAddressUID links a lease to its claim.
	LabelVirtualMachineMACAddressUID = "virtualization.deckhouse.io/virtual-machine-mac-address-uid"

	// LabelLauncher with value LauncherValue is on every launcher pod.
	LabelLauncher = "kubevirt.internal.virtualization.deckhouse.io"
	// LauncherValue is the value of LabelLauncher.
	LauncherValue = "virt-launcher"
	// HotplugValue is the value of LabelLauncher on a pod that holds one hot-plugged volume.
	HotplugValue = "hotplug-disk"
	// LabelVirtualMachineName on a launcher pod names the machine.
	LabelVirtualMachineName = "vm.kubevirt.internal.virtualization.deckhouse.io/name"

	// AnnotationPodAddress on a launcher pod is the address that vm-ipam gives it.
	AnnotationPodAddress = "internal.virtualization.deckhouse.io/ip-address"
	// AnnotationCiliumAddress on a launcher pod is the address for Cilium's address management.
	AnnotationCiliumAddress = "cni.cilium.io/ipAddress"
	// AnnotationCalicoAddresses on a launcher pod is the address for Calico's address management, in a JSON list.
	AnnotationCalicoAddresses = "cni.projectcalico.org/ipAddrs"
	// AnnotationKubeOVNAddress on a launcher pod is the address for Kube-OVN's address management.
	AnnotationKubeOVNAddress = "ovn.kubernetes.io/ip_address"
	// AnnotationQEMUVersion on a launcher pod is the version shown in status.versions.
	AnnotationQEMUVersion = "versions.virtualization.deckhouse.io/qemu-version"

	// LabelHeritage and LabelModule are on every object of the module.
	LabelHeritage = "heritage"
	LabelModule   = "module"
	// HeritageValue and ModuleValue are the values of the two labels above.
	HeritageValue = "deckhouse"
	ModuleValue   = "virtualization"
)

// Node labels.
const (
	// LabelNodeSchedulable with value "true": machines may run on the node.
	LabelNodeSchedulable = "kubevirt.internal.virtualization.deckhouse.io/schedulable"
	// LabelNodeKVM with value "true": a 64-bit guest really ran under KVM there.
	LabelNodeKVM = "virtualization.deckhouse.io/kvm-enabled"
	// LabelNodeAccelerator has the value "kvm" or "tcg".
	LabelNodeAccelerator = "internal.virtualization.deckhouse.io/accelerator"
	// LabelNodeCPUModelPrefix and LabelNodeCPUFeaturePrefix precede the CPU models
	// and features a node offers to guests.
	LabelNodeCPUModelPrefix   = "cpu-model.node.virtualization.deckhouse.io/"
	LabelNodeCPUFeaturePrefix = "cpu-feature.node.virtualization.deckhouse.io/"
)
