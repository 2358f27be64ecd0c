package v1alpha2

// Reason is the machine-readable cause of a condition's status. The texts are a
// public contract, including those that look misspelt or irregular.
type Reason string

// String returns the text as it stands in a condition.
func (r Reason) String() string { return string(r) }

// Reasons that any condition may have.
const (
	// ReasonUnknown: not evaluated yet.
	ReasonUnknown Reason = "Unknown"
	// ReasonError: something the controller tried went wrong and is tried again; the message says what.
	ReasonError Reason = "Error"
)

// Reasons of VirtualMachine.
const (
	// Condition VirtualMachineIPAddressReady.
	MachineReasonVirtualMachineIPAddressReady        Reason = "VirtualMachineIPAddressReady"
	MachineReasonVirtualMachineIPAddressNotReady     Reason = "VirtualMachineIPAddressNotReady"
	MachineReasonVirtualMachineIPAddressNotAssigned  Reason = "VirtualMachineIPAddressNotAssigned"
	MachineReasonVirtualMachineIPAddressNotAvailable Reason = "VirtualMachineIPAddressNotAvailable"

	// Condition VirtualMachineMACAddressReady.
	MachineReasonVirtualMachineMACAddressReady        Reason = "VirtualMachineMACAddressReady"
	MachineReasonVirtualMachineMACAddressNotReady     Reason = "VirtualMachineMACAddressNotReady"
	MachineReasonVirtualMachineMACAddressNotAvailable Reason = "VirtualMachineMACAddressNotAvailable"

	// Condition VirtualMachineClassReady.
	MachineReasonVirtualMachineClassReady    Reason = "VirtualMachineClassReady"
	MachineReasonVirtualMachineClassNotReady Reason = "VirtualMachineClassNotReady"

	// Condition BlockDevicesReady.
	MachineReasonBlockDevicesReady                                   Reason = "BlockDevicesReady"
	MachineReasonWaitingForWaitForFirstConsumerBlockDevicesToBeReady Reason = "WaitingForWaitForFirstConsumerBlockDevicesToBeReady"
	MachineReasonBlockDevicesNotReady                                Reason = "BlockDevicesNotReady"
	MachineReasonBlockDeviceLimitExceeded                            Reason = "BlockDeviceLimitExceeded"

	// Condition ProvisioningReady.
	MachineReasonProvisioningReady             Reason = "ProvisioningReady"
	MachineReasonProvisioningNotReady          Reason = "ProvisioningNotReady"
	MachineReasonProvisioningReadyWithWarnings Reason = "ProvisioningReadyWithWarnings"

	// Condition Running.
	MachineReasonNotRunning                  Reason = "NotRunning"
	MachineReasonRunning                     Reason = "Running"
	MachineReasonNoBootableDevice            Reason = "NoBootableDevice"
	MachineReasonInternalVirtualMachineError Reason = "InternalVirtualMachineError"
	MachineReasonPodNotStarted               Reason = "PodNotStarted"
	MachineReasonPodTerminating              Reason = "PodTerminating"
	MachineReasonPodNotFound                 Reason = "PodNotFound"
	MachineReasonPodConditionMissing         Reason = "PodConditionMissing"
	MachineReasonGuestNotRunning             Reason = "GuestNotRunning"

	// Condition Migratable.
	MachineReasonVirtualMachineMigratable               Reason = "VirtualMachineMigratable"
	MachineReasonVirtualMachineNonMigratable            Reason = "VirtualMachineNonMigratable"
	MachineReasonVirtualMachineDisksNotMigratable       Reason = "VirtualMachineDisksNotMigratable"
	MachineReasonVirtualMachineDisksShouldBeMigrating   Reason = "VirtualMachineDisksShouldBeMigrating"
	MachineReasonVirtualMachineHostDevicesNotMigratable Reason = "VirtualMachineHostDevicesNotMigratable"

	// Condition Migrating.
	MachineReasonPending        Reason = "Pending"
	MachineReasonReadyToMigrate Reason = "ReadyToMigrate"
	MachineReasonInProgress     Reason = "InProgress"

	// Condition AgentReady.
	MachineReasonAgentReady    Reason = "AgentReady"
	MachineReasonAgentNotReady Reason = "AgentNotReady"

	// Condition AgentVersionNotSupported.
	MachineReasonAgentVersionSupported    Reason = "AgentVersionSupported"
	MachineReasonAgentVersionNotSupported Reason = "AgentVersionNotSupported"

	// Condition ConfigurationApplied.
	MachineReasonConfigurationApplied    Reason = "ConfigurationApplied"
	MachineReasonConfigurationNotApplied Reason = "ConfigurationNotApplied"

	// Condition AwaitingRestartToApplyConfiguration.
	MachineReasonChangesPendingRestart Reason = "ChangesPendingRestart"
	MachineReasonNoRestartRequired     Reason = "NoRestartRequired"
	MachineReasonUnexpectedState       Reason = "UnexpectedState"

	// Condition SizingPolicyMatched.
	MachineReasonSizingPolicyNotMatched         Reason = "SizingPolicyNotMatched"
	MachineReasonVirtualMachineClassTerminating Reason = "VirtualMachineClassTerminating"
	MachineReasonVirtualMachineClassNotFound    Reason = "VirtualMachineClassNotFound"

	// Condition FirmwareUpToDate.
	MachineReasonFirmwareUpToDate  Reason = "FirmwareUpToDate"
	MachineReasonFirmwareOutOfDate Reason = "FirmwareOutOfDate"

	// Condition FilesystemFrozen.
	MachineReasonFrozen Reason = "Frozen"

	// Condition Snapshotting.
	MachineReasonWaitingForTheSnapshotToStart Reason = "WaitingForTheSnapshotToStart"
	MachineReasonSnapshottingInProgress       Reason = "SnapshottingInProgress"

	// Condition EvictionRequired.
	MachineReasonEvictionRequired Reason = "EvictionRequired"

	// Condition NetworkReady.
	MachineReasonNetworkReady      Reason = "NetworkReady"
	MachineReasonNetworkNotReady   Reason = "NetworkNotReady"
	MachineReasonSDNModuleDisabled Reason = "SDNModuleDisabled"

	// Condition Maintenance.
	MachineReasonRestoreInProgress Reason = "RestoreInProgress"

	// Condition GPUClassReady.
	MachineReasonGPUClassReady    Reason = "GPUClassReady"
	MachineReasonGPUClassNotFound Reason = "GPUClassNotFound"
	MachineReasonGPUClassNotReady Reason = "GPUClassNotReady"

	// Condition CoreFractionAutoscaling.
	MachineReasonCoreFractionAutoscalingEnabled  Reason = "CoreFractionAutoscalingEnabled"
	MachineReasonWaitingForRecommendation        Reason = "WaitingForRecommendation"
	MachineReasonCoreFractionAutoscalingDisabled Reason = "CoreFractionAutoscalingDisabled"
	MachineReasonInPlaceResizeDisabled           Reason = "InPlaceResizeDisabled"
	MachineReasonSizingPolicyHasNoSteps          Reason = "SizingPolicyHasNoSteps"
)

// Reasons of VirtualMachineClass.
const (
	// Condition Ready.
	ClassReasonSuitableNodesFound   Reason = "SuitableNodesFound"
	ClassReasonNoSuitableNodesFound Reason = "NoSuitableNodesFound"
	ClassReasonNoCPUFeaturesEnabled Reason = "NoCpuFeaturesEnabled"

	// Condition Discovered.
	ClassReasonDiscoverySucceeded Reason = "DiscoverySucceeded"
	ClassReasonDiscoverySkip      Reason = "DiscoverySkip"
	ClassReasonDiscoveryFailed    Reason = "DiscoveryFailed"

	// Condition InUse.
	ClassReasonVirtualMachineClassInUse Reason = "VirtualMachineClassInUse"
)

// Reasons of VirtualMachineOperation.
const (
	// Condition Completed.
	OperationReasonVirtualMachineNotFound                     Reason = "VirtualMachineNotFound"
	OperationReasonNotApplicableForVirtualMachineRunPolicy    Reason = "NotApplicableForVirtualMachineRunPolicy"
	OperationReasonNotApplicableForVirtualMachinePhase        Reason = "NotApplicableForVirtualMachinePhase"
	OperationReasonNotApplicableForLiveMigrationPolicy        Reason = "NotApplicableForLiveMigrationPolicy"
	OperationReasonNotReadyToBeExecuted                       Reason = "NotReadyToBeExecuted"
	OperationReasonStartInProgress                            Reason = "StartInProgress"
	OperationReasonStopInProgress                             Reason = "StopInProgress"
	OperationReasonRestartInProgress                          Reason = "RestartInProgress"
	OperationReasonRestoreInProgress                          Reason = "RestoreInProgress"
	OperationReasonCloneInProgress                            Reason = "CloneInProgress"
	OperationReasonMigrationPending                           Reason = "MigrationPending"
	OperationReasonWaitingForVirtualMachineToBeReadyToMigrate Reason = "WaitingForVirtualMachineToBeReadyToMigrate"
	OperationReasonOtherMigrationInProgress                   Reason = "OtherMigrationInProgress"
	OperationReasonHotplugDisksNotShared                      Reason = "HotplugDisksNotShared"
	OperationReasonQuotaExceeded                              Reason = "QuotaExceeded"
	OperationReasonMigrationNetworkUnavailable                Reason = "MigrationNetworkUnavailable"
	OperationReasonTargetScheduling                           Reason = "TargetScheduling"
	OperationReasonTargetUnschedulable                        Reason = "TargetUnschedulable"
	OperationReasonTargetPreparing                            Reason = "TargetPreparing"
	OperationReasonTargetDiskError                            Reason = "TargetDiskError"
	OperationReasonWaitingForSyncSlot                         Reason = "WaitingForSyncSlot"
	OperationReasonSyncing                                    Reason = "Syncing"
	OperationReasonNotConverging                              Reason = "NotConverging"
	OperationReasonSourceSuspended                            Reason = "SourceSuspended"
	OperationReasonTargetResumed                              Reason = "TargetResumed"
	OperationReasonCompleted                                  Reason = "Completed"
	OperationReasonAborted                                    Reason = "Aborted"
	OperationReasonFailed                                     Reason = "Failed"
	OperationReasonMigrationPrepareTarget                     Reason = "MigrationPrepareTarget"
	OperationReasonMigrationTargetReady                       Reason = "MigrationTargetReady"
	OperationReasonMigrationRunning                           Reason = "MigrationRunning"
	OperationReasonOperationCompleted                         Reason = "OperationCompleted"
	OperationReasonOperationFailed                            Reason = "OperationFailed"
	OperationReasonSuperseded                                 Reason = "Superseded"

	// Condition SignalSent.
	OperationReasonSignalSentSuccess Reason = "SignalSentSuccess"
	OperationReasonSignalSentError   Reason = "SignalSentError"

	// Condition MaintenanceMode.
	OperationReasonMaintenanceModeEnabled  Reason = "MaintenanceModeEnabled"
	OperationReasonMaintenanceModeDisabled Reason = "MaintenanceModeDisabled"
	OperationReasonMaintenanceModeFailure  Reason = "MaintenanceModeFailure"

	// Condition SnapshotReady.
	OperationReasonSnapshotInProgress Reason = "SnapshotInProgress"
	OperationReasonSnapshotReady      Reason = "SnapshotReady"
	OperationReasonSnapshotCleanedUp  Reason = "SnapshotCleanedUp"
	OperationReasonSnapshotFailed     Reason = "SnapshotFailed"
)

// Reasons of VirtualDisk.
const (
	// Condition DatasourceReady.
	DiskReasonDatasourceReady                 Reason = "DatasourceReady"
	DiskReasonContainerRegistrySecretNotFound Reason = "ContainerRegistrySecretNotFound"
	DiskReasonImageNotReady                   Reason = "ImageNotReady"
	DiskReasonClusterImageNotReady            Reason = "ClusterImageNotReady"
	DiskReasonImageNotFound                   Reason = "ImageNotFound"
	DiskReasonClusterImageNotFound            Reason = "ClusterImageNotFound"
	DiskReasonVirtualDiskSnapshotNotReady     Reason = "VirtualDiskSnapshot"

	// Condition StorageClassReady.
	DiskReasonStorageClassReady    Reason = "StorageClassReady"
	DiskReasonStorageClassNotReady Reason = "StorageClassNotReady"

	// Condition Ready.
	DiskReasonWaitForUserUpload               Reason = "WaitForUserUpload"
	DiskReasonWaitForUserUploadTimeout        Reason = "WaitForUserUploadTimeout"
	DiskReasonProvisioning                    Reason = "Provisioning"
	DiskReasonProvisioningNotStarted          Reason = "ProvisioningNotStarted"
	DiskReasonWaitingForFirstConsumer         Reason = "WaitingForFirstConsumer"
	DiskReasonProvisioningFailed              Reason = "ProvisioningFailed"
	DiskReasonProvisioningFailedTerminally    Reason = "ProvisioningFailedTerminally"
	DiskReasonDatasourceIsNotReady            Reason = "DatasourceIsNotReady"
	DiskReasonDatasourceIsNotFound            Reason = "DatasourceIsNotFound"
	DiskReasonStorageClassIsNotReady          Reason = "StorageClassIsNotReady"
	DiskReasonStorageClassProvisionerMismatch Reason = "StorageClassProvisionerMismatch"
	DiskReasonQuotaExceeded                   Reason = "QuotaExceeded"
	DiskReasonImagePullFailed                 Reason = "ImagePullFailed"
	DiskReasonExporting                       Reason = "Exporting"
	DiskReasonReady                           Reason = "Ready"
	DiskReasonPVCLost                         Reason = "PVCLost"
	DiskReasonProvisioningPostponed           Reason = "ProvisioningPostponed"

	// Condition Resizing.
	DiskReasonInProgress   Reason = "InProgress"
	DiskReasonNotAvailable Reason = "NotAvailable"

	// Condition Snapshotting.
	DiskReasonSnapshotting Reason = "Snapshotting"

	// Condition InUse.
	DiskReasonAttachedToVirtualMachine Reason = "AttachedToVirtualMachine"
	DiskReasonUsedForImageCreation     Reason = "UsedForImageCreation"
	DiskReasonUsedForDataExport        Reason = "UsedForDataExport"
	DiskReasonNotInUse                 Reason = "NotInUse"

	// Condition Migrating.
	DiskReasonWaitForTargetReady         Reason = "WaitForTargetReady"
	DiskReasonWaitForTargetVolumeRelease Reason = "WaitForTargetVolumeRelease"
	DiskReasonWaitForSourceVolumeRelease Reason = "WaitForSourceVolumeRelease"
	DiskReasonResizingInProgress         Reason = "ResizingInProgress"
	DiskReasonSnapshottingInProgress     Reason = "SnapshottingInProgress"
	DiskReasonStorageClassNotFound       Reason = "StorageClassNotFound"

	// Condition Terminating.
	DiskReasonCleanupPending Reason = "CleanupPending"
)

// Reasons of VirtualImage.
const (
	// Condition DatasourceReady.
	ImageReasonDatasourceReady                     Reason = "DatasourceReady"
	ImageReasonContainerRegistrySecretNotFound     Reason = "ContainerRegistrySecretNotFound"
	ImageReasonImageNotReady                       Reason = "ImageNotReady"
	ImageReasonClusterImageNotReady                Reason = "ClusterImageNotReady"
	ImageReasonVirtualDiskNotReady                 Reason = "VirtualDiskNotReady"
	ImageReasonVirtualDiskSnapshotNotReady         Reason = "VirtualDiskSnapshotNotReady"
	ImageReasonVirtualDiskNotReadyForUse           Reason = "VirtualDiskNotReadyForUse"
	ImageReasonVirtualDiskAttachedToVirtualMachine Reason = "VirtualDiskAttachedToVirtualMachine"

	// Condition StorageClassReady.
	ImageReasonStorageClassReady    Reason = "StorageClassReady"
	ImageReasonStorageClassNotFound Reason = "StorageClassNotFound"
	ImageReasonStorageClassNotReady Reason = "StorageClassNotReady"
	ImageReasonDVCRTypeUsed         Reason = "DVCRTypeUsed"

	// Condition Ready.
	ImageReasonWaitForUserUpload            Reason = "WaitForUserUpload"
	ImageReasonWaitForUserUploadTimeout     Reason = "WaitForUserUploadTimeout"
	ImageReasonProvisioning                 Reason = "Provisioning"
	ImageReasonProvisioningNotStarted       Reason = "ProvisioningNotStarted"
	ImageReasonProvisioningFailed           Reason = "ProvisioningFailed"
	ImageReasonProvisioningFailedTerminally Reason = "ProvisioningFailedTerminally"
	ImageReasonDatasourceNotReady           Reason = "DatasourceNotReady"
	ImageReasonQuotaExceeded                Reason = "QuotaExceeded"
	ImageReasonImagePullFailed              Reason = "ImagePullFailed"
	ImageReasonReady                        Reason = "Ready"
	ImageReasonImageLost                    Reason = "ImageLost"
	ImageReasonPVCLost                      Reason = "PVCLost"
	ImageReasonProvisioningPostponed        Reason = "ProvisioningPostponed"

	// Condition InUse.
	ImageReasonAttachedToVirtualMachine Reason = "AttachedToVirtualMachine"
	ImageReasonNotInUse                 Reason = "NotInUse"

	// Condition Terminating.
	ImageReasonCleanupPending Reason = "CleanupPending"
)

// Reasons of ClusterVirtualImage.
const (
	// Condition DatasourceReady.
	ClusterImageReasonDatasourceReady                     Reason = "DatasourceReady"
	ClusterImageReasonContainerRegistrySecretNotFound     Reason = "ContainerRegistrySecretNotFound"
	ClusterImageReasonImageNotReady                       Reason = "ImageNotReady"
	ClusterImageReasonClusterImageNotReady                Reason = "ClusterImageNotReady"
	ClusterImageReasonVirtualDiskNotReady                 Reason = "VirtualDiskNotReady"
	ClusterImageReasonVirtualDiskNotReadyForUse           Reason = "VirtualDiskNotReadyForUse"
	ClusterImageReasonVirtualDiskAttachedToVirtualMachine Reason = "VirtualDiskAttachedToVirtualMachine"
	ClusterImageReasonVirtualDiskSnapshotNotReady         Reason = "VirtualDiskSnapshotNotReady"

	// Condition Ready.
	ClusterImageReasonWaitForUserUpload            Reason = "WaitForUserUpload"
	ClusterImageReasonWaitForUserUploadTimeout     Reason = "WaitForUserUploadTimeout"
	ClusterImageReasonProvisioning                 Reason = "Provisioning"
	ClusterImageReasonProvisioningNotStarted       Reason = "ProvisioningNotStarted"
	ClusterImageReasonProvisioningFailed           Reason = "ProvisioningFailed"
	ClusterImageReasonProvisioningFailedTerminally Reason = "ProvisioningFailedTerminally"
	ClusterImageReasonReady                        Reason = "Ready"
	ClusterImageReasonImageLost                    Reason = "ImageLost"
	ClusterImageReasonProvisioningPostponed        Reason = "ProvisioningPostponed"

	// Condition InUse.
	ClusterImageReasonAttachedToVirtualMachine Reason = "AttachedToVirtualMachine"
	ClusterImageReasonNotInUse                 Reason = "NotInUse"

	// Condition Terminating.
	ClusterImageReasonCleanupPending Reason = "CleanupPending"
)

// Reasons of VirtualMachineIPAddress.
const (
	// Condition Bound.
	AddressReasonBound                                       Reason = "Bound"
	AddressReasonVirtualMachineIPAddressIsOutOfTheValidRange Reason = "VirtualMachineIPAddressIsOutOfTheValidRange"
	AddressReasonVirtualMachineIPAddressLeaseAlreadyExists   Reason = "VirtualMachineIPAddressLeaseAlreadyExists"
	AddressReasonVirtualMachineIPAddressLeaseLost            Reason = "VirtualMachineIPAddressLeaseLost"
	AddressReasonVirtualMachineIPAddressLeaseNotFound        Reason = "VirtualMachineIPAddressLeaseNotFound"
	AddressReasonVirtualMachineIPAddressLeaseNotReady        Reason = "VirtualMachineIPAddressLeaseNotReady"

	// Condition Attached.
	AddressReasonAttached               Reason = "Attached"
	AddressReasonVirtualMachineNotFound Reason = "VirtualMachineNotFound"
)

// Reasons of VirtualMachineIPAddressLease.
const (
	// Condition Bound.
	LeaseReasonBound    Reason = "Bound"
	LeaseReasonReleased Reason = "Released"
)

// Reasons of VirtualMachineBlockDeviceAttachment.
const (
	// Condition BlockDeviceReady.
	AttachmentReasonBlockDeviceReady    Reason = "BlockDeviceReady"
	AttachmentReasonBlockDeviceNotReady Reason = "BlockDeviceNotReady"

	// Condition VirtualMachineReady.
	AttachmentReasonVirtualMachineReady    Reason = "VirtualMachineReady"
	AttachmentReasonVirtualMachineNotReady Reason = "VirtualMachineNotReady"

	// Condition Attached.
	AttachmentReasonAttached                 Reason = "Attached"
	AttachmentReasonNotAttached              Reason = "NotAttached"
	AttachmentReasonAttachmentRequestSent    Reason = "AttachmentRequestSent"
	AttachmentReasonConflict                 Reason = "Conflict"
	AttachmentReasonDeviceNotAvailableOnNode Reason = "DeviceNotAvailableOnNode"

	// Condition DiskAttachmentCapacityAvailableType.
	AttachmentReasonCapacityAvailable Reason = "CapacityAvailable"
	AttachmentReasonCapacityReached   Reason = "CapacityReached"
	AttachmentReasonCapacityUnknown   Reason = "CapacityUnknown"

	// Condition Terminating.
	AttachmentReasonDetachPending Reason = "DetachPending"
)

// Reasons of VirtualMachineMACAddress.
const (
	// Condition Bound.
	MACAddressReasonBound                                      Reason = "Bound"
	MACAddressReasonVirtualMachineMACAddressLeaseAlreadyExists Reason = "VirtualMachineMACAddressLeaseAlreadyExists"
	MACAddressReasonVirtualMachineMACAddressLeaseLost          Reason = "VirtualMachineMACAddressLeaseLost"
	MACAddressReasonVirtualMachineMACAddressLeaseNotFound      Reason = "VirtualMachineMACAddressLeaseNotFound"
	MACAddressReasonVirtualMachineMACAddressLeaseNotReady      Reason = "VirtualMachineMACAddressLeaseNotReady"

	// Condition Attached.
	MACAddressReasonAttached               Reason = "Attached"
	MACAddressReasonVirtualMachineNotFound Reason = "VirtualMachineNotFound"
)

// Reasons of VirtualMachineMACAddressLease.
const (
	// Condition Bound.
	MACLeaseReasonBound Reason = "Bound"
)
