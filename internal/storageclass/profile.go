package storageclass

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
)

// Annotations that override what is known about a storage, on a disk or on a
// StorageClass. The disk's win.
const (
	// VolumeModeAnnotation is "Block" or "Filesystem".
	VolumeModeAnnotation = "virtualdisk.virtualization.deckhouse.io/volume-mode"
	// AccessModeAnnotation is "ReadWriteOnce" or "ReadWriteMany".
	AccessModeAnnotation = "virtualdisk.virtualization.deckhouse.io/access-mode"
	// BindingModeAnnotation is "Immediate".
	BindingModeAnnotation = "virtualdisk.virtualization.deckhouse.io/binding-mode"
)

// Modes is how a volume is asked for.
type Modes struct {
	Volume corev1.PersistentVolumeMode
	Access corev1.PersistentVolumeAccessMode
}

// String names the pair the way users write it in annotations.
func (m Modes) String() string { return fmt.Sprintf("%s, %s", m.Volume, m.Access) }

// The four pairs, best first: shared storage lets a VM migrate without copying,
// a block device saves a file system below the guest's.
var (
	sharedBlock      = Modes{corev1.PersistentVolumeBlock, corev1.ReadWriteMany}
	sharedFilesystem = Modes{corev1.PersistentVolumeFilesystem, corev1.ReadWriteMany}
	nodeBlock        = Modes{corev1.PersistentVolumeBlock, corev1.ReadWriteOnce}
	nodeFilesystem   = Modes{corev1.PersistentVolumeFilesystem, corev1.ReadWriteOnce}
)

// known is what each provisioner can do, best pair first. Storage that is not
// listed gets the one pair every provisioner has, a file system for one node.
var known = map[string][]Modes{
	"cephfs.csi.ceph.com":                   {sharedFilesystem, nodeFilesystem},
	"cinder.csi.openstack.org":              {nodeBlock, nodeFilesystem},
	"csi.hpe.com":                           {sharedBlock, nodeBlock, nodeFilesystem},
	"csi.huawei.com":                        {sharedBlock, nodeBlock, nodeFilesystem},
	"csi.vsphere.vmware.com":                {nodeBlock, nodeFilesystem},
	"disk.csi.azure.com":                    {nodeBlock, nodeFilesystem},
	"driver.longhorn.io":                    {sharedBlock, sharedFilesystem, nodeBlock, nodeFilesystem},
	"ebs.csi.aws.com":                       {nodeBlock, nodeFilesystem},
	"efs.csi.aws.com":                       {sharedFilesystem},
	"file.csi.azure.com":                    {sharedFilesystem},
	"linstor.csi.linbit.com":                {sharedBlock, nodeBlock, nodeFilesystem},
	"local.csi.storage.deckhouse.io":        {nodeBlock, nodeFilesystem},
	"nfs.csi.k8s.io":                        {sharedFilesystem},
	"nfs.csi.storage.deckhouse.io":          {sharedFilesystem},
	"openebs.io/local":                      {nodeFilesystem},
	"pd.csi.storage.gke.io":                 {nodeBlock, nodeFilesystem},
	"rancher.io/local-path":                 {nodeFilesystem},
	"rbd.csi.ceph.com":                      {sharedBlock, nodeBlock, nodeFilesystem},
	"replicated.csi.storage.deckhouse.io":   {sharedBlock, nodeBlock, nodeFilesystem},
	"tatlinunified.csi.yadro.com":           {sharedBlock, nodeBlock, nodeFilesystem},
	"topolvm.io":                            {nodeBlock, nodeFilesystem},
	"rook-ceph.cephfs.csi.ceph.com":         {sharedFilesystem, nodeFilesystem},
	"rook-ceph.rbd.csi.ceph.com":            {sharedBlock, nodeBlock, nodeFilesystem},
	"d8-cephfs.csi.storage.deckhouse.io":    {sharedFilesystem, nodeFilesystem},
	"yadro.csi.storage.deckhouse.io":        {sharedBlock, nodeBlock, nodeFilesystem},
	"huawei.csi.storage.deckhouse.io":       {sharedBlock, nodeBlock, nodeFilesystem},
	"hpe.csi.storage.deckhouse.io":          {sharedBlock, nodeBlock, nodeFilesystem},
	"scsi-generic.csi.storage.deckhouse.io": {sharedBlock, nodeBlock, nodeFilesystem},
}

// embedded is the driver of the embedded cluster. Its classes differ in what
// they can share: a class that binds late is bound to a node.
const embedded = "local.orlop"

// Profile returns the pairs of modes a class offers, best first; never empty.
func Profile(class *storagev1.StorageClass) []Modes {
	if class.Provisioner == embedded {
		if BindsLate(class) {
			return []Modes{nodeBlock, nodeFilesystem}
		}
		return []Modes{sharedBlock, sharedFilesystem, nodeBlock, nodeFilesystem}
	}
	if modes, ok := known[class.Provisioner]; ok {
		return modes
	}
	return []Modes{nodeFilesystem}
}

// ModesFor chooses the pair of modes for a new volume: the annotations of the
// disk, then those of the class, then the class's profile. Pairs that accept
// refuses are passed over in the profile; an explicit annotation is never passed
// over, it is an error instead. A half override keeps the best pair that agrees with it.
func ModesFor(class *storagev1.StorageClass, diskAnnotations map[string]string, accept func(Modes) bool) (Modes, error) {
	volume, err := override(VolumeModeAnnotation, class, diskAnnotations,
		string(corev1.PersistentVolumeBlock), string(corev1.PersistentVolumeFilesystem))
	if err != nil {
		return Modes{}, err
	}
	access, err := override(AccessModeAnnotation, class, diskAnnotations,
		string(corev1.ReadWriteOnce), string(corev1.ReadWriteMany))
	if err != nil {
		return Modes{}, err
	}
	if volume != "" && access != "" {
		m := Modes{corev1.PersistentVolumeMode(volume), corev1.PersistentVolumeAccessMode(access)}
		if !accept(m) {
			return Modes{}, fmt.Errorf("volumes of mode %s are not supported yet", m)
		}
		return m, nil
	}
	for _, m := range Profile(class) {
		if volume != "" && string(m.Volume) != volume || access != "" && string(m.Access) != access || !accept(m) {
			continue
		}
		return m, nil
	}
	return partial(class, volume, access, accept)
}

// partial serves an override that the profile does not know: the administrator's
// word about the storage is better than our table.
func partial(class *storagev1.StorageClass, volume, access string, accept func(Modes) bool) (Modes, error) {
	if volume == "" && access == "" {
		return Modes{}, fmt.Errorf("StorageClass %q (%s) offers only volumes of a mode that is not supported yet; set the annotation %s: Filesystem on it if it can do more",
			class.Name, class.Provisioner, VolumeModeAnnotation)
	}
	m := nodeFilesystem
	if volume != "" {
		m.Volume = corev1.PersistentVolumeMode(volume)
	}
	if access != "" {
		m.Access = corev1.PersistentVolumeAccessMode(access)
	}
	if !accept(m) {
		return Modes{}, fmt.Errorf("volumes of mode %s are not supported yet", m)
	}
	return m, nil
}

func override(key string, class *storagev1.StorageClass, disk map[string]string, allowed ...string) (string, error) {
	value, ok := disk[key]
	if !ok {
		value, ok = class.Annotations[key]
	}
	if !ok || value == "" {
		return "", nil
	}
	if slices.Contains(allowed, value) {
		return value, nil
	}
	return "", fmt.Errorf("annotation %s has value %q, must be one of %v", key, value, allowed)
}

// BindsLate reports whether volumes of the class wait for their first consumer.
func BindsLate(class *storagev1.StorageClass) bool {
	return class.VolumeBindingMode != nil && *class.VolumeBindingMode == storagev1.VolumeBindingWaitForFirstConsumer
}

// WaitsForConsumer reports whether a disk of this class is to be filled only when
// a pod wants it: the class binds late and nobody asked for Immediate.
func WaitsForConsumer(class *storagev1.StorageClass, diskAnnotations map[string]string) (bool, error) {
	value, err := override(BindingModeAnnotation, class, diskAnnotations, string(storagev1.VolumeBindingImmediate))
	if err != nil {
		return false, err
	}
	return BindsLate(class) && value == "", nil
}
