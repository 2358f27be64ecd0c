package plan

import (
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"orlop.dev/orlop/internal/storageclass"
)

// Annotations of the claims and volumes of disks.
const (
	// SelectedNodeAnnotation is written by the scheduler on a claim that waits for
	// its first consumer: the node its pod will run on.
	SelectedNodeAnnotation = "volume.kubernetes.io/selected-node"
	// PopulatedForAnnotation on a PersistentVolume is the UID of the disk whose
	// content it holds. It is written in the same patch that hands the volume to
	// the disk's claim, so that a volume is never taken for a filled one by mistake.
	PopulatedForAnnotation = "internal.virtualization.deckhouse.io/populated-for"
	// WorkAnnotation on a claim says for which version of the disk's wishes it was
	// made; a claim made for another one is replaced.
	WorkAnnotation = "internal.virtualization.deckhouse.io/work"
	// VirtualSizeAnnotation on a claim is the size the guest will see, in bytes.
	VirtualSizeAnnotation = "internal.virtualization.deckhouse.io/virtual-size"
	// ClassAnnotation, VolumeModeAnnotation and AccessModeAnnotation tell storage
	// modules how a claim was made.
	ClassAnnotation      = "virtualization.deckhouse.io/storage-class-name"
	VolumeModeAnnotation = "virtualization.deckhouse.io/volume-mode"
	AccessModeAnnotation = "virtualization.deckhouse.io/access-mode"
)

// longestClaim leaves room for the suffix of the prime claim in 63 bytes.
const longestClaim = 57

// DiskClaim describes the claim of a disk, and the prime claim that it is filled through.
type DiskClaim struct {
	Namespace string
	Disk      string
	DiskUID   types.UID
	Owner     metav1.OwnerReference
	Class     string
	Modes     storageclass.Modes
	// VirtualSize is what the guest will see, in bytes; the claim asks for more (ClaimSize).
	VirtualSize int64
	// Work identifies everything the claim was made for.
	Work string
}

// DiskClaimName is the name of the claim that holds a disk.
func DiskClaimName(disk string, uid types.UID) string {
	name := "vd-" + disk + "-" + shortUID(uid)
	if len(name) <= longestClaim {
		return name
	}
	// The UID is unique by itself; the rest of the name is for readers.
	return "vd-" + cut(disk, longestClaim-len("vd-")-9) + "-" + shortUID(uid)
}

// DiskPrimeName is the name of the claim through which a disk is filled.
func DiskPrimeName(disk string, uid types.UID) string { return DiskClaimName(disk, uid) + "-prime" }

// Claim is what the disk's users mount. No provisioner touches it, because its
// data source is of our kind; it is bound when the filled volume is handed over.
func (d DiskClaim) Claim() *corev1.PersistentVolumeClaim {
	claim := d.base(DiskClaimName(d.Disk, d.DiskUID))
	claim.Spec.DataSourceRef = &corev1.TypedObjectReference{
		APIGroup: new("virtualization.deckhouse.io"), Kind: "VirtualDisk", Name: d.Disk,
	}
	return claim
}

// Prime is the claim a provisioner makes the volume for. node is the one the
// scheduler chose for the first consumer, or empty.
func (d DiskClaim) Prime(node string) *corev1.PersistentVolumeClaim {
	claim := d.base(DiskPrimeName(d.Disk, d.DiskUID))
	if node != "" {
		claim.Annotations[SelectedNodeAnnotation] = node
	}
	return claim
}

func (d DiskClaim) base(name string) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolumeClaim"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: d.Namespace,
			Name:      name,
			Labels:    map[string]string{"heritage": "deckhouse", "module": "virtualization"},
			Annotations: map[string]string{
				ClassAnnotation:       d.Class,
				VolumeModeAnnotation:  string(d.Modes.Volume),
				AccessModeAnnotation:  string(d.Modes.Access),
				WorkAnnotation:        d.Work,
				VirtualSizeAnnotation: strconv.FormatInt(d.VirtualSize, 10),
			},
			OwnerReferences: []metav1.OwnerReference{d.Owner},
		},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes:      []corev1.PersistentVolumeAccessMode{d.Modes.Access},
			StorageClassName: new(d.Class),
			VolumeMode:       new(d.Modes.Volume),
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{
				corev1.ResourceStorage: *resource.NewQuantity(ClaimSize(d.VirtualSize), resource.BinarySI),
			}},
		},
	}
}

// DiskRebound is the volume as it shall be once it belongs to the disk's claim.
//
// One patch does it all, so a crash leaves either the old or the new owner, and
// at no time is the volume released: the reclaim policy never gets its turn.
func DiskRebound(volume *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim, disk types.UID) *corev1.PersistentVolume {
	after := volume.DeepCopy()
	if after.Annotations == nil {
		after.Annotations = map[string]string{}
	}
	after.Annotations[PopulatedForAnnotation] = string(disk)
	after.Spec.ClaimRef = &corev1.ObjectReference{
		APIVersion:      "v1",
		Kind:            "PersistentVolumeClaim",
		Namespace:       claim.Namespace,
		Name:            claim.Name,
		UID:             claim.UID,
		ResourceVersion: claim.ResourceVersion,
	}
	return after
}
