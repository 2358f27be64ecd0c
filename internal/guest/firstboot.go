package guest

import (
	"fmt"
	"io"

	"orlop.dev/orlop/api/instance/v1alpha1"
)

// maxFirstBoot bounds the payload in bytes: a Secret holds 1 MiB at most.
const maxFirstBoot = 2 << 20

// The volume labels by which guests recognise the disc.
const (
	noCloudLabel = "cidata"
	sysprepLabel = "unattendCD"
)

// noCloudKeys are the files cloud-init knows; the first two must exist for it to
// take the disc for its own.
var noCloudKeys = []string{"meta-data", "user-data", "network-config", "vendor-data"}

// Keys are the names of the Secret's entries that go onto the disc of this type.
func Keys(t string) ([]string, error) {
	switch t {
	case "NoCloud":
		return noCloudKeys, nil
	case "Sysprep":
		return []string{"unattend.xml", "autounattend.xml"}, nil
	default:
		return nil, fmt.Errorf("first-boot data of type %q is not supported", t)
	}
}

// WriteDisc writes the ISO image with first-boot data, given by key.
func WriteDisc(w io.Writer, f v1alpha1.FirstBoot, data map[string][]byte) error {
	keys, err := Keys(f.Type)
	if err != nil {
		return err
	}
	total := 0
	files := map[string][]byte{}
	for _, k := range keys {
		if content, ok := data[k]; ok {
			files[k] = content
			total += len(content)
		}
	}
	if total > maxFirstBoot {
		return fmt.Errorf("first-boot data has %d bytes, at most %d are possible", total, maxFirstBoot)
	}
	if f.Type == "NoCloud" {
		if _, ok := files["user-data"]; !ok {
			return fmt.Errorf("first-boot data has no user-data")
		}
		if _, ok := files["meta-data"]; !ok {
			files["meta-data"] = nil // an empty one is valid, a missing one is not
		}
		return writeISO(w, noCloudLabel, files)
	}
	// Windows Setup looks for autounattend.xml, its later passes for unattend.xml.
	answer, ok := files["unattend.xml"]
	if !ok {
		answer, ok = files["autounattend.xml"]
	}
	if !ok {
		return fmt.Errorf("first-boot data has no unattend.xml")
	}
	return writeISO(w, sysprepLabel, map[string][]byte{"unattend.xml": answer, "autounattend.xml": answer})
}
