package importer

import (
	"crypto/md5"  //nolint:gosec // users bring sums of this kind; it protects nothing
	"crypto/sha1" //nolint:gosec // the same
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"hash"
	"io"
	"strings"
)

// sum is one checksum that was asked for.
type sum struct {
	name string
	want string
	hash hash.Hash
	got  *string
}

// sums computes, in one pass, the checksums that are given.
type sums struct {
	all    []sum
	result Checksums
}

func newSums(want Checksums) (*sums, error) {
	if want.Streebog256 != "" || want.Streebog512 != "" {
		return nil, fail(ReasonUnsupported, nil, "Checksums of kind streebog are not supported yet: give sha256 or sha512 instead")
	}
	s := &sums{}
	for _, one := range []sum{
		{name: "md5", want: want.MD5, hash: md5.New(), got: &s.result.MD5},     //nolint:gosec // as above
		{name: "sha1", want: want.SHA1, hash: sha1.New(), got: &s.result.SHA1}, //nolint:gosec // as above
		{name: "sha256", want: want.SHA256, hash: sha256.New(), got: &s.result.SHA256},
		{name: "sha512", want: want.SHA512, hash: sha512.New(), got: &s.result.SHA512},
	} {
		if one.want != "" {
			s.all = append(s.all, one)
		}
	}
	return s, nil
}

// Write implements io.Writer.
func (s *sums) Write(p []byte) (int, error) {
	for _, one := range s.all {
		_, _ = one.hash.Write(p) // never fails
	}
	return len(p), nil
}

// verify compares; all must match.
func (s *sums) verify() error {
	for _, one := range s.all {
		*one.got = hex.EncodeToString(one.hash.Sum(nil))
		if !strings.EqualFold(*one.got, one.want) {
			return fail(ReasonChecksumMismatch, nil, "The %s checksum is %s, expected %s", one.name, *one.got, strings.ToLower(one.want))
		}
	}
	return nil
}

var _ io.Writer = (*sums)(nil)
