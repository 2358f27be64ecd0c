package v1alpha2

// Condition types. A condition that was not evaluated yet is Unknown with reason
// Unknown. Those marked "only while" are removed when they do not apply.

// Condition types of VirtualMachine.
const (
	// MachineConditionVirtualMachineIPAddressReady: the address of the Main network is reserved.
	MachineConditionVirtualMachineIPAddressReady = "VirtualMachineIPAddressReady"
	// MachineConditionVirtualMachineMACAddressReady: the MAC addresses of additional networks are reserved.
	MachineConditionVirtualMachineMACAddressReady = "VirtualMachineMACAddressReady"
	// MachineConditionVirtualMachineClassReady: the class exists and is ready.
	MachineConditionVirtualMachineClassReady = "VirtualMachineClassReady"
	// MachineConditionBlockDevicesReady: all block devices can be used.
	MachineConditionBlockDevicesReady = "BlockDevicesReady"
	// MachineConditionProvisioningReady: the first-boot data can be used.
	MachineConditionProvisioningReady = "ProvisioningReady"
	// MachineConditionRunning: the guest runs.
	MachineConditionRunning = "Running"
	// MachineConditionMigratable: the machine can move to another node while it runs.
	MachineConditionMigratable = "Migratable"
	// MachineConditionMigrating: only while the machine moves.
	MachineConditionMigrating = "Migrating"
	// MachineConditionAgentReady: the guest agent answers; only while the guest runs.
	MachineConditionAgentReady = "AgentReady"
	// MachineConditionAgentVersionNotSupported: the guest agent is too old; only while it is connected.
	MachineConditionAgentVersionNotSupported = "AgentVersionNotSupported"
	// MachineConditionConfigurationApplied: the running machine is as specified; only while it runs.
	MachineConditionConfigurationApplied = "ConfigurationApplied"
	// MachineConditionAwaitingRestartToApplyConfiguration: changes wait for a restart; only while the machine runs.
	MachineConditionAwaitingRestartToApplyConfiguration = "AwaitingRestartToApplyConfiguration"
	// MachineConditionSizingPolicyMatched: only while the size breaks the rules of the class.
	MachineConditionSizingPolicyMatched = "SizingPolicyMatched"
	// MachineConditionFirmwareUpToDate: only while the machine runs with an older release of the platform.
	MachineConditionFirmwareUpToDate = "FirmwareUpToDate"
	// MachineConditionFilesystemFrozen: only while the file systems of the guest are frozen.
	MachineConditionFilesystemFrozen = "FilesystemFrozen"
	// MachineConditionSnapshotting: only while a snapshot of the machine is taken.
	MachineConditionSnapshotting = "Snapshotting"
	// MachineConditionEvictionRequired: only while the node asks the machine to leave.
	MachineConditionEvictionRequired = "EvictionRequired"
	// MachineConditionNetworkReady: the additional networks are attached; only if there are any.
	MachineConditionNetworkReady = "NetworkReady"
	// MachineConditionMaintenance: only while the machine is stopped for a restore.
	MachineConditionMaintenance = "Maintenance"
	// MachineConditionGPUClassReady: the classes of the graphics processors exist; only if there are any.
	MachineConditionGPUClassReady = "GPUClassReady"
	// MachineConditionCoreFractionAutoscaling: the share of a core is set by the platform; only with coreFraction Auto.
	MachineConditionCoreFractionAutoscaling = "CoreFractionAutoscaling"
)

// Condition types of VirtualMachineClass.
const (
	// ClassConditionReady: at least one node can run machines of the class.
	ClassConditionReady = "Ready"
	// ClassConditionDiscovered: the processor features of the nodes were found.
	ClassConditionDiscovered = "Discovered"
	// ClassConditionInUse: a machine refers to the class, which blocks its deletion.
	ClassConditionInUse = "InUse"
)

// Condition types of VirtualMachineOperation.
const (
	// OperationConditionCompleted: the operation is done.
	OperationConditionCompleted = "Completed"
	// OperationConditionSignalSent: the signal to start, stop, restart or move was delivered.
	OperationConditionSignalSent = "SignalSent"
	// OperationConditionMaintenanceMode: the machine is held stopped; with type Restore only.
	OperationConditionMaintenanceMode = "MaintenanceMode"
	// OperationConditionSnapshotReady: the temporary snapshot; with type Clone only.
	OperationConditionSnapshotReady = "SnapshotReady"
)

// Condition types of VirtualDisk.
const (
	// DiskConditionDatasourceReady: the source can be read.
	DiskConditionDatasourceReady = "DatasourceReady"
	// DiskConditionStorageClassReady: the StorageClass exists and may be used.
	DiskConditionStorageClassReady = "StorageClassReady"
	// DiskConditionReady: the disk can be used.
	DiskConditionReady = "Ready"
	// DiskConditionResizing: only while a resize is wanted.
	DiskConditionResizing = "Resizing"
	// DiskConditionSnapshotting: only while a snapshot is taken.
	DiskConditionSnapshotting = "Snapshotting"
	// DiskConditionInUse: somebody holds the disk.
	DiskConditionInUse = "InUse"
	// DiskConditionMigrating: only while the disk moves to another volume.
	DiskConditionMigrating = "Migrating"
	// DiskConditionTerminating: only while the disk is being deleted.
	DiskConditionTerminating = "Terminating"
)

// Condition types of VirtualImage.
const (
	// ImageConditionDatasourceReady: the source can be read.
	ImageConditionDatasourceReady = "DatasourceReady"
	// ImageConditionStorageClassReady: the StorageClass exists and may be used.
	ImageConditionStorageClassReady = "StorageClassReady"
	// ImageConditionReady: the image can be used.
	ImageConditionReady = "Ready"
	// ImageConditionInUse: a machine uses the image.
	ImageConditionInUse = "InUse"
	// ImageConditionTerminating: only while the image is being deleted.
	ImageConditionTerminating = "Terminating"
)

// Condition types of ClusterVirtualImage.
const (
	// ClusterImageConditionDatasourceReady: the source can be read.
	ClusterImageConditionDatasourceReady = "DatasourceReady"
	// ClusterImageConditionReady: the image can be used.
	ClusterImageConditionReady = "Ready"
	// ClusterImageConditionInUse: a machine uses the image, which blocks its deletion.
	ClusterImageConditionInUse = "InUse"
	// ClusterImageConditionTerminating: only while the image is being deleted.
	ClusterImageConditionTerminating = "Terminating"
)

// Condition types of VirtualMachineIPAddress.
const (
	// AddressConditionBound: a lease is held.
	AddressConditionBound = "Bound"
	// AddressConditionAttached: a machine uses the address.
	AddressConditionAttached = "Attached"
)

// Condition types of VirtualMachineIPAddressLease.
const (
	// LeaseConditionBound: a claim holds the address.
	LeaseConditionBound = "Bound"
)

// Condition types of VirtualMachineBlockDeviceAttachment.
const (
	// AttachmentConditionBlockDeviceReady: the disk or image can be attached.
	AttachmentConditionBlockDeviceReady = "BlockDeviceReady"
	// AttachmentConditionVirtualMachineReady: the machine runs.
	AttachmentConditionVirtualMachineReady = "VirtualMachineReady"
	// AttachmentConditionAttached: the guest has the device.
	AttachmentConditionAttached = "Attached"
	// AttachmentConditionDiskAttachmentCapacityAvailable: the machine has room for the device.
	AttachmentConditionDiskAttachmentCapacityAvailable = "DiskAttachmentCapacityAvailableType"
	// AttachmentConditionTerminating: only while the attachment is being deleted.
	AttachmentConditionTerminating = "Terminating"
)

// Condition types of VirtualMachineMACAddress.
const (
	// MACAddressConditionBound: a lease is held.
	MACAddressConditionBound = "Bound"
	// MACAddressConditionAttached: a machine uses the address.
	MACAddressConditionAttached = "Attached"
)

// Condition types of VirtualMachineMACAddressLease.
const (
	// MACLeaseConditionBound: a claim holds the address.
	MACLeaseConditionBound = "Bound"
)
