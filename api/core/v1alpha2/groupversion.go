package v1alpha2

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is virtualization.deckhouse.io/v1alpha2.
var GroupVersion = schema.GroupVersion{Group: "virtualization.deckhouse.io", Version: "v1alpha2"}

// SchemeBuilder collects the functions that add this group to a scheme.
var SchemeBuilder = runtime.NewSchemeBuilder(addKnownTypes)

// AddToScheme adds this group's kinds to a scheme.
var AddToScheme = SchemeBuilder.AddToScheme

// Resource qualifies a plural resource name with this group.
func Resource(resource string) schema.GroupResource {
	return GroupVersion.WithResource(resource).GroupResource()
}

// Kinds of this group, as they stand in manifests and owner references.
const (
	VirtualMachineKind               = "VirtualMachine"
	VirtualMachineClassKind          = "VirtualMachineClass"
	VirtualMachineOperationKind      = "VirtualMachineOperation"
	VirtualDiskKind                  = "VirtualDisk"
	VirtualImageKind                 = "VirtualImage"
	ClusterVirtualImageKind          = "ClusterVirtualImage"
	VirtualMachineIPAddressKind      = "VirtualMachineIPAddress"
	VirtualMachineIPAddressLeaseKind = "VirtualMachineIPAddressLease"
	VirtualDiskSnapshotKind          = "VirtualDiskSnapshot"

	VirtualMachineBlockDeviceAttachmentKind = "VirtualMachineBlockDeviceAttachment"
	VirtualMachineMACAddressKind            = "VirtualMachineMACAddress"
	VirtualMachineMACAddressLeaseKind       = "VirtualMachineMACAddressLease"
)

// Plural resource names of this group, as they stand in URLs and RBAC rules.
const (
	VirtualMachineResource               = "virtualmachines"
	VirtualMachineClassResource          = "virtualmachineclasses"
	VirtualMachineOperationResource      = "virtualmachineoperations"
	VirtualDiskResource                  = "virtualdisks"
	VirtualImageResource                 = "virtualimages"
	ClusterVirtualImageResource          = "clustervirtualimages"
	VirtualMachineIPAddressResource      = "virtualmachineipaddresses"
	VirtualMachineIPAddressLeaseResource = "virtualmachineipaddressleases"

	VirtualMachineBlockDeviceAttachmentResource = "virtualmachineblockdeviceattachments"
	VirtualMachineMACAddressResource            = "virtualmachinemacaddresses"
	VirtualMachineMACAddressLeaseResource       = "virtualmachinemacaddressleases"
)

func addKnownTypes(scheme *runtime.Scheme) error {
	scheme.AddKnownTypes(GroupVersion,
		&VirtualMachine{}, &VirtualMachineList{},
		&VirtualMachineClass{}, &VirtualMachineClassList{},
		&VirtualMachineOperation{}, &VirtualMachineOperationList{},
		&VirtualDisk{}, &VirtualDiskList{},
		&VirtualImage{}, &VirtualImageList{},
		&ClusterVirtualImage{}, &ClusterVirtualImageList{},
		&VirtualMachineIPAddress{}, &VirtualMachineIPAddressList{},
		&VirtualMachineIPAddressLease{}, &VirtualMachineIPAddressLeaseList{},
		&VirtualMachineBlockDeviceAttachment{}, &VirtualMachineBlockDeviceAttachmentList{},
		&VirtualMachineMACAddress{}, &VirtualMachineMACAddressList{},
		&VirtualMachineMACAddressLease{}, &VirtualMachineMACAddressLeaseList{},
	)
	metav1.AddToGroupVersion(scheme, GroupVersion)
	return nil
}
