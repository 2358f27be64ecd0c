package storageclass

import (
	"fmt"
	"slices"

	storagev1 "k8s.io/api/storage/v1"
)

// DefaultAnnotation marks the cluster's default class.
const DefaultAnnotation = "storageclass.kubernetes.io/is-default-class"

// Rules is what the platform's settings say about classes for disks.
type Rules struct {
	// Default is the module's default class name; empty means the cluster's default.
	Default string
	// Allowed lists the classes a spec may name; empty allows all.
	Allowed []string
}

// Name decides which class a new volume uses: the one named in the spec, else
// the module's default, else the newest default of the cluster. It returns ""
// when there is none.
func Name(spec string, rules Rules, classes []storagev1.StorageClass) string {
	if spec != "" {
		return spec
	}
	if rules.Default != "" {
		return rules.Default
	}
	return clusterDefault(classes)
}

func clusterDefault(classes []storagev1.StorageClass) string {
	var best *storagev1.StorageClass
	for i := range classes {
		c := &classes[i]
		if c.Annotations[DefaultAnnotation] != "true" || !c.DeletionTimestamp.IsZero() {
			continue
		}
		// Kubernetes breaks ties of age by name; so do we, else two components would differ.
		if best == nil || best.CreationTimestamp.Before(&c.CreationTimestamp) ||
			best.CreationTimestamp.Equal(&c.CreationTimestamp) && c.Name < best.Name {
			best = c
		}
	}
	if best == nil {
		return ""
	}
	return best.Name
}

// Check says why a class may not be used for a new volume, or nil. class is nil
// when it does not exist; explicit is true when the user's spec names it, for the
// allowed list binds users, not the administrator's own default.
func Check(name string, class *storagev1.StorageClass, explicit bool, rules Rules) error {
	switch {
	case name == "":
		return fmt.Errorf("no StorageClass is named and the cluster has no default one")
	case class == nil:
		return fmt.Errorf("StorageClass %q does not exist", name)
	case !class.DeletionTimestamp.IsZero():
		return fmt.Errorf("StorageClass %q is being deleted", name)
	case explicit && len(rules.Allowed) > 0 && !slices.Contains(rules.Allowed, name):
		return fmt.Errorf("StorageClass %q is not allowed by the module's settings (allowed: %v)", name, rules.Allowed)
	case Deprecated(class):
		return fmt.Errorf("StorageClass %q is deprecated: it belongs to the local-path-provisioner module", name)
	}
	return nil
}

// Deprecated reports whether new disks may no longer use the class.
func Deprecated(class *storagev1.StorageClass) bool {
	return class.Labels["module"] == "local-path-provisioner"
}
