package plan

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"

	"orlop.dev/orlop/internal/storageclass"
)

const uid = types.UID("0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0")

func diskClaim() DiskClaim {
	return DiskClaim{
		Namespace: "default", Disk: "root", DiskUID: uid,
		Owner:       metav1.OwnerReference{APIVersion: "virtualization.deckhouse.io/v1alpha2", Kind: "VirtualDisk", Name: "root", UID: uid},
		Class:       "local",
		Modes:       storageclass.Modes{Volume: corev1.PersistentVolumeFilesystem, Access: corev1.ReadWriteOnce},
		VirtualSize: 10 * gibi, Work: "abc",
	}
}

func TestDiskClaims(t *testing.T) {
	golden(t, "disk-claim", diskClaim().Claim())
	golden(t, "disk-prime", diskClaim().Prime("node-1"))
}

func TestDiskClaimNames(t *testing.T) {
	if got := DiskClaimName("root", uid); got != "vd-root-0f1e2d3c" {
		t.Errorf("claim of root: %s", got)
	}
	for _, disk := range []string{"root", strings.Repeat("x", 60), strings.Repeat("x-", 126)} {
		for _, name := range []string{DiskClaimName(disk, uid), DiskPrimeName(disk, uid)} {
			if problems := validation.IsDNS1123Label(name); len(problems) > 0 {
				t.Errorf("%s: %v", name, problems)
			}
		}
	}
	if DiskClaimName(strings.Repeat("x", 100), uid) == DiskClaimName(strings.Repeat("x", 101), uid) {
		t.Error("two long names become one")
	}
}

func TestDiskRebound(t *testing.T) {
	volume := &corev1.PersistentVolume{Spec: corev1.PersistentVolumeSpec{
		ClaimRef:                      &corev1.ObjectReference{Namespace: "default", Name: "vd-root-0f1e2d3c-prime", UID: "prime", ResourceVersion: "1"},
		PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
	}}
	claim := diskClaim().Claim()
	claim.UID, claim.ResourceVersion = "claim", "7"
	got := DiskRebound(volume, claim, uid)
	if got.Spec.ClaimRef.UID != "claim" || got.Spec.ClaimRef.Name != claim.Name || got.Spec.ClaimRef.ResourceVersion != "7" {
		t.Errorf("claimRef %+v", got.Spec.ClaimRef)
	}
	if got.Annotations[PopulatedForAnnotation] != string(uid) {
		t.Error("the volume is not marked in the same patch")
	}
	if got.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimDelete || volume.Annotations != nil {
		t.Error("something else was changed")
	}
}
