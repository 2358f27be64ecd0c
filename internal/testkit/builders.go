package testkit

import (
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	corev1alpha2 "orlop.dev/orlop/api/core/v1alpha2"
)

// Builders make objects as they are read back from the API server: with defaults, a
// namespace ("default"), a UID ("<name>-uid") and generation 1. Object returns the
// result; Fresh returns it without the server-set fields, for creation.

// meta is the part that all builders have.
func meta(namespace, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(name + "-uid"), Generation: 1}
}

func fresh(m *metav1.ObjectMeta) {
	m.UID, m.Generation, m.ResourceVersion = "", 0, ""
}

// MachineBuilder makes a VirtualMachine.
type MachineBuilder struct{ vm corev1alpha2.VirtualMachine }

// VM begins a VirtualMachine with 1 core, 256Mi and class "generic"; it has no block devices yet.
func VM(name string) *MachineBuilder {
	return &MachineBuilder{corev1alpha2.VirtualMachine{
		TypeMeta:   metav1.TypeMeta{APIVersion: corev1alpha2.GroupVersion.String(), Kind: corev1alpha2.VirtualMachineKind},
		ObjectMeta: meta("default", name),
		Spec: corev1alpha2.VirtualMachineSpec{
			RunPolicy:                     corev1alpha2.AlwaysOnUnlessStoppedManually,
			Disruptions:                   &corev1alpha2.Disruptions{RestartApprovalMode: corev1alpha2.RestartManual},
			TerminationGracePeriodSeconds: new(int64(60)),
			EnableParavirtualization:      new(true),
			OSType:                        corev1alpha2.OSTypeGeneric,
			Bootloader:                    corev1alpha2.BIOS,
			VirtualMachineClassName:       "generic",
			LiveMigrationPolicy:           corev1alpha2.PreferSafe,
			CPU:                           corev1alpha2.CPUSpec{Cores: 1, CoreFraction: "100%"},
			Memory:                        corev1alpha2.MemorySpec{Size: resource.MustParse("256Mi")},
		},
	}}
}

// Namespace sets the namespace.
func (b *MachineBuilder) Namespace(name string) *MachineBuilder { b.vm.Namespace = name; return b }

// Disk appends a VirtualDisk.
func (b *MachineBuilder) Disk(name string) *MachineBuilder {
	return b.device(corev1alpha2.DiskDevice, name)
}

// Image appends a VirtualImage.
func (b *MachineBuilder) Image(name string) *MachineBuilder {
	return b.device(corev1alpha2.ImageDevice, name)
}

// ClusterImage appends a ClusterVirtualImage.
func (b *MachineBuilder) ClusterImage(name string) *MachineBuilder {
	return b.device(corev1alpha2.ClusterImageDevice, name)
}

func (b *MachineBuilder) device(kind corev1alpha2.BlockDeviceKind, name string) *MachineBuilder {
	b.vm.Spec.BlockDeviceRefs = append(b.vm.Spec.BlockDeviceRefs, corev1alpha2.BlockDeviceSpecRef{Kind: kind, Name: name})
	return b
}

// Cores sets the number of cores.
func (b *MachineBuilder) Cores(n int32) *MachineBuilder { b.vm.Spec.CPU.Cores = n; return b }

// Memory sets the memory, such as "1Gi".
func (b *MachineBuilder) Memory(size string) *MachineBuilder {
	b.vm.Spec.Memory.Size = resource.MustParse(size)
	return b
}

// Class sets the class.
func (b *MachineBuilder) Class(name string) *MachineBuilder {
	b.vm.Spec.VirtualMachineClassName = name
	return b
}

// RunPolicy sets the run policy.
func (b *MachineBuilder) RunPolicy(policy corev1alpha2.RunPolicy) *MachineBuilder {
	b.vm.Spec.RunPolicy = policy
	return b
}

// UserData sets inline first-boot data.
func (b *MachineBuilder) UserData(text string) *MachineBuilder {
	b.vm.Spec.Provisioning = &corev1alpha2.Provisioning{Type: corev1alpha2.ProvisioningUserData, UserData: text}
	return b
}

// UserDataRef takes first-boot data from a Secret.
func (b *MachineBuilder) UserDataRef(secret string) *MachineBuilder {
	b.vm.Spec.Provisioning = &corev1alpha2.Provisioning{
		Type:        corev1alpha2.ProvisioningUserDataRef,
		UserDataRef: &corev1alpha2.UserDataRef{Kind: corev1alpha2.SecretKindSecret, Name: secret},
	}
	return b
}

// With changes whatever has no method of its own.
func (b *MachineBuilder) With(change func(*corev1alpha2.VirtualMachine)) *MachineBuilder {
	change(&b.vm)
	return b
}

// Object returns the machine.
func (b *MachineBuilder) Object() *corev1alpha2.VirtualMachine { return b.vm.DeepCopy() }

// Fresh returns the machine without server-set fields.
func (b *MachineBuilder) Fresh() *corev1alpha2.VirtualMachine {
	vm := b.vm.DeepCopy()
	fresh(&vm.ObjectMeta)
	return vm
}

// DiskBuilder makes a VirtualDisk.
type DiskBuilder struct{ disk corev1alpha2.VirtualDisk }

// Disk begins a VirtualDisk without size and source.
func Disk(name string) *DiskBuilder {
	return &DiskBuilder{corev1alpha2.VirtualDisk{
		TypeMeta:   metav1.TypeMeta{APIVersion: corev1alpha2.GroupVersion.String(), Kind: corev1alpha2.VirtualDiskKind},
		ObjectMeta: meta("default", name),
	}}
}

// Namespace sets the namespace.
func (b *DiskBuilder) Namespace(name string) *DiskBuilder { b.disk.Namespace = name; return b }

// Size sets the size, such as "1Gi".
func (b *DiskBuilder) Size(size string) *DiskBuilder {
	b.disk.Spec.PersistentVolumeClaim.Size = new(resource.MustParse(size))
	return b
}

// StorageClass sets the StorageClass.
func (b *DiskBuilder) StorageClass(name string) *DiskBuilder {
	b.disk.Spec.PersistentVolumeClaim.StorageClassName = &name
	return b
}

// FromImage fills the disk from a VirtualImage.
func (b *DiskBuilder) FromImage(name string) *DiskBuilder {
	return b.from(corev1alpha2.VirtualDiskFromVirtualImage, name)
}

// FromClusterImage fills the disk from a ClusterVirtualImage.
func (b *DiskBuilder) FromClusterImage(name string) *DiskBuilder {
	return b.from(corev1alpha2.VirtualDiskFromClusterVirtualImage, name)
}

func (b *DiskBuilder) from(kind corev1alpha2.VirtualDiskObjectRefKind, name string) *DiskBuilder {
	b.disk.Spec.DataSource = &corev1alpha2.VirtualDiskDataSource{
		Type:      corev1alpha2.DataSourceObjectRef,
		ObjectRef: &corev1alpha2.VirtualDiskObjectRef{Kind: kind, Name: name},
	}
	return b
}

// With changes whatever has no method of its own.
func (b *DiskBuilder) With(change func(*corev1alpha2.VirtualDisk)) *DiskBuilder {
	change(&b.disk)
	return b
}

// Ready makes the disk look finished, on a claim of its name.
func (b *DiskBuilder) Ready() *DiskBuilder {
	b.disk.Status.Phase = corev1alpha2.DiskReady
	b.disk.Status.Target.PersistentVolumeClaimName = "vd-" + b.disk.Name
	b.disk.Status.Conditions = []metav1.Condition{ready(corev1alpha2.DiskReasonReady)}
	return b
}

// Object returns the disk.
func (b *DiskBuilder) Object() *corev1alpha2.VirtualDisk { return b.disk.DeepCopy() }

// Fresh returns the disk without server-set fields.
func (b *DiskBuilder) Fresh() *corev1alpha2.VirtualDisk {
	disk := b.disk.DeepCopy()
	fresh(&disk.ObjectMeta)
	return disk
}

// ImageBuilder makes a VirtualImage.
type ImageBuilder struct{ image corev1alpha2.VirtualImage }

// Image begins a VirtualImage in the registry, from "http://images.example/<name>.qcow2".
func Image(name string) *ImageBuilder {
	return &ImageBuilder{corev1alpha2.VirtualImage{
		TypeMeta:   metav1.TypeMeta{APIVersion: corev1alpha2.GroupVersion.String(), Kind: corev1alpha2.VirtualImageKind},
		ObjectMeta: meta("default", name),
		Spec: corev1alpha2.VirtualImageSpec{
			Storage: corev1alpha2.StorageContainerRegistry,
			DataSource: corev1alpha2.VirtualImageDataSource{
				Type: corev1alpha2.DataSourceHTTP,
				HTTP: &corev1alpha2.DataSourceHTTPSource{URL: "http://images.example/" + name + ".qcow2"},
			},
		},
	}}
}

// Namespace sets the namespace.
func (b *ImageBuilder) Namespace(name string) *ImageBuilder { b.image.Namespace = name; return b }

// URL sets the address to download from.
func (b *ImageBuilder) URL(url string) *ImageBuilder {
	b.image.Spec.DataSource = corev1alpha2.VirtualImageDataSource{
		Type: corev1alpha2.DataSourceHTTP, HTTP: &corev1alpha2.DataSourceHTTPSource{URL: url},
	}
	return b
}

// With changes whatever has no method of its own.
func (b *ImageBuilder) With(change func(*corev1alpha2.VirtualImage)) *ImageBuilder {
	change(&b.image)
	return b
}

// Ready makes the image look finished, with a virtual size of the given bytes.
func (b *ImageBuilder) Ready(unpackedBytes string) *ImageBuilder {
	b.image.Status.Phase = corev1alpha2.ImageReady
	b.image.Status.Size.UnpackedBytes = unpackedBytes
	b.image.Status.Target.RegistryURL = "dvcr.d8-virtualization.svc:5000/vi/" + b.image.Namespace + "/" + b.image.Name + ":" + string(b.image.UID)
	b.image.Status.Conditions = []metav1.Condition{ready(corev1alpha2.ImageReasonReady)}
	return b
}

// Object returns the image.
func (b *ImageBuilder) Object() *corev1alpha2.VirtualImage { return b.image.DeepCopy() }

// Fresh returns the image without server-set fields.
func (b *ImageBuilder) Fresh() *corev1alpha2.VirtualImage {
	image := b.image.DeepCopy()
	fresh(&image.ObjectMeta)
	return image
}

// ClusterImageBuilder makes a ClusterVirtualImage.
type ClusterImageBuilder struct {
	image corev1alpha2.ClusterVirtualImage
}

// ClusterImage begins a ClusterVirtualImage from "http://images.example/<name>.qcow2".
func ClusterImage(name string) *ClusterImageBuilder {
	return &ClusterImageBuilder{corev1alpha2.ClusterVirtualImage{
		TypeMeta:   metav1.TypeMeta{APIVersion: corev1alpha2.GroupVersion.String(), Kind: corev1alpha2.ClusterVirtualImageKind},
		ObjectMeta: meta("", name),
		Spec: corev1alpha2.ClusterVirtualImageSpec{DataSource: corev1alpha2.ClusterVirtualImageDataSource{
			Type: corev1alpha2.DataSourceHTTP,
			HTTP: &corev1alpha2.DataSourceHTTPSource{URL: "http://images.example/" + name + ".qcow2"},
		}},
	}}
}

// URL sets the address to download from.
func (b *ClusterImageBuilder) URL(url string) *ClusterImageBuilder {
	b.image.Spec.DataSource = corev1alpha2.ClusterVirtualImageDataSource{
		Type: corev1alpha2.DataSourceHTTP, HTTP: &corev1alpha2.DataSourceHTTPSource{URL: url},
	}
	return b
}

// With changes whatever has no method of its own.
func (b *ClusterImageBuilder) With(change func(*corev1alpha2.ClusterVirtualImage)) *ClusterImageBuilder {
	change(&b.image)
	return b
}

// Ready makes the image look finished, with a virtual size of the given bytes.
func (b *ClusterImageBuilder) Ready(unpackedBytes string) *ClusterImageBuilder {
	b.image.Status.Phase = corev1alpha2.ImageReady
	b.image.Status.Size.UnpackedBytes = unpackedBytes
	b.image.Status.Target.RegistryURL = "dvcr.d8-virtualization.svc:5000/cvi/" + b.image.Name + ":" + string(b.image.UID)
	b.image.Status.Conditions = []metav1.Condition{ready(corev1alpha2.ClusterImageReasonReady)}
	return b
}

// Object returns the image.
func (b *ClusterImageBuilder) Object() *corev1alpha2.ClusterVirtualImage { return b.image.DeepCopy() }

// Fresh returns the image without server-set fields.
func (b *ClusterImageBuilder) Fresh() *corev1alpha2.ClusterVirtualImage {
	image := b.image.DeepCopy()
	fresh(&image.ObjectMeta)
	return image
}

// ClassBuilder makes a VirtualMachineClass.
type ClassBuilder struct {
	class corev1alpha2.VirtualMachineClass
}

// Class begins a VirtualMachineClass of processor type Host.
func Class(name string) *ClassBuilder {
	return &ClassBuilder{corev1alpha2.VirtualMachineClass{
		TypeMeta:   metav1.TypeMeta{APIVersion: corev1alpha2.GroupVersion.String(), Kind: corev1alpha2.VirtualMachineClassKind},
		ObjectMeta: meta("", name),
		Spec:       corev1alpha2.VirtualMachineClassSpec{CPU: corev1alpha2.VirtualMachineClassCPU{Type: corev1alpha2.CPUTypeHost}},
	}}
}

// Default makes it the default class.
func (b *ClassBuilder) Default() *ClassBuilder {
	b.class.Annotations = map[string]string{corev1alpha2.AnnotationDefaultClass: "true"}
	return b
}

// With changes whatever has no method of its own.
func (b *ClassBuilder) With(change func(*corev1alpha2.VirtualMachineClass)) *ClassBuilder {
	change(&b.class)
	return b
}

// Ready makes the class look usable.
func (b *ClassBuilder) Ready() *ClassBuilder {
	b.class.Status.Phase = corev1alpha2.VirtualMachineClassReady
	b.class.Status.Conditions = []metav1.Condition{ready(corev1alpha2.ClassReasonSuitableNodesFound)}
	return b
}

// Object returns the class.
func (b *ClassBuilder) Object() *corev1alpha2.VirtualMachineClass { return b.class.DeepCopy() }

// Fresh returns the class without server-set fields.
func (b *ClassBuilder) Fresh() *corev1alpha2.VirtualMachineClass {
	class := b.class.DeepCopy()
	fresh(&class.ObjectMeta)
	return class
}

// Operation makes a VirtualMachineOperation named after what it does.
func Operation(kind corev1alpha2.OperationType, vm string) *corev1alpha2.VirtualMachineOperation {
	return &corev1alpha2.VirtualMachineOperation{
		TypeMeta:   metav1.TypeMeta{APIVersion: corev1alpha2.GroupVersion.String(), Kind: corev1alpha2.VirtualMachineOperationKind},
		ObjectMeta: meta("default", vm+"-"+strings.ToLower(string(kind))),
		Spec:       corev1alpha2.VirtualMachineOperationSpec{Type: kind, VirtualMachineName: vm},
	}
}

// Address makes a VirtualMachineIPAddress of type Auto.
func Address(name string) *corev1alpha2.VirtualMachineIPAddress {
	return &corev1alpha2.VirtualMachineIPAddress{
		TypeMeta:   metav1.TypeMeta{APIVersion: corev1alpha2.GroupVersion.String(), Kind: corev1alpha2.VirtualMachineIPAddressKind},
		ObjectMeta: meta("default", name),
		Spec:       corev1alpha2.VirtualMachineIPAddressSpec{Type: corev1alpha2.VirtualMachineIPAddressAuto},
	}
}

// ready is a true Ready condition of generation 1.
func ready(reason corev1alpha2.Reason) metav1.Condition {
	return metav1.Condition{
		Type: "Ready", Status: metav1.ConditionTrue, Reason: reason.String(),
		ObservedGeneration: 1, LastTransitionTime: metav1.NewTime(clockStart),
	}
}
