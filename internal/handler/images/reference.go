package images

import (
	"fmt"
	"regexp"
)

// Reference is an image in a registry, by the digest of its manifest.
type Reference struct {
	Host, Repository string
	// Digest in hexadecimal digits, of SHA-256.
	Digest string
}

var reference = regexp.MustCompile(`^([a-zA-Z0-9.-]+(?::[0-9]+)?)/([a-z0-9]+(?:[._/-]+[a-z0-9]+)*)@sha256:([0-9a-f]{64})$`)

// ParseReference reads host/repository@sha256:….
func ParseReference(s string) (Reference, error) {
	m := reference.FindStringSubmatch(s)
	if m == nil {
		return Reference{}, fmt.Errorf("image reference %q does not name a digest", s)
	}
	return Reference{Host: m[1], Repository: m[2], Digest: m[3]}, nil
}

// file is the name of the image in the cache.
func (r Reference) file() string { return "sha256-" + r.Digest }
