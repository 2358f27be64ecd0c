package plan

import (
	"fmt"
	"hash/fnv"
	"strings"

	"k8s.io/apimachinery/pkg/types"
)

// longestReference is how long host and repository may be together, in bytes.
const longestReference = 255

// ImageRepository is where an image lives in DVCR: "vi/<namespace>/<name>" or,
// with an empty namespace, "cvi/<name>". A name that would make host and
// repository too long is cut and told apart by a hash of the whole.
func ImageRepository(host, namespace, name string) string {
	prefix := "cvi/"
	if namespace != "" {
		prefix = "vi/" + namespace + "/"
	}
	room := longestReference - len(host) - 1 - len(prefix)
	return prefix + cut(name, room)
}

// ImageTag is the tag of an image in its repository. The UID makes a new object
// of an old name a new image.
func ImageTag(uid types.UID) string { return string(uid) }

// DataPodName names the pod of one attempt to import or populate, for an object of
// the given short kind ("vi", "cvi", "vd"). The name says which object and which
// attempt it is, so that a controller that forgot everything makes the same one.
func DataPodName(kind string, uid types.UID, attempt int) string {
	return fmt.Sprintf("dvcr-importer-%s-%s-%d", kind, shortUID(uid), attempt)
}

func shortUID(uid types.UID) string {
	s := strings.ReplaceAll(string(uid), "-", "")
	return s[:min(8, len(s))]
}

// cut shortens a name to room bytes; the last 17 are then "-" and 16 hex digits
// of FNV-1a-64 of the full name.
func cut(name string, room int) string {
	if len(name) <= room {
		return name
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(name)) // a hash never fails
	return strings.TrimRight(name[:max(room-17, 0)], "-.") + fmt.Sprintf("-%016x", h.Sum64())
}
