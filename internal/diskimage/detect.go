// Package diskimage looks at, converts and makes disk image files, all of which
// may come from somebody hostile.
//
// The format is decided here from the bytes, and qemu-img is told; it never
// guesses. Headers that lead to other files or hosts are refused before qemu-img
// sees them, for merely asking it for information would open what they name.
// qemu-img runs in a process of its own with limits on memory, processor time and
// what it writes.
//
// It is not for images in use by a VM: those belong to QEMU alone.
package diskimage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// Format of an image file.
type Format string

// The formats that are known.
const (
	QCOW2 Format = "qcow2"
	Raw   Format = "raw"
	VMDK  Format = "vmdk"
	VDI   Format = "vdi"
	ISO   Format = "iso"
)

// Fault is why an image is refused, in one stable word.
type Fault string

// The faults.
const (
	// NotAnImage: no disk image, one of an unknown format, or a damaged one.
	NotAnImage Fault = "NotAnImage"
	// BackingFile: the image is a difference to another one.
	BackingFile Fault = "BackingFile"
	// ExternalData: the image keeps its data in another file.
	ExternalData Fault = "ExternalData"
	// TooLarge: more bytes than allowed.
	TooLarge Fault = "TooLarge"
	// TooSmall: a disk would lose data.
	TooSmall Fault = "TooSmall"
	// NoSpace: the file system is full.
	NoSpace Fault = "NoSpace"
)

// Error is a refusal.
type Error struct {
	Fault   Fault
	Message string
}

// Error implements error.
func (e *Error) Error() string { return e.Message }

func refuse(f Fault, format string, args ...any) error {
	return &Error{Fault: f, Message: fmt.Sprintf(format, args...)}
}

const (
	sector = 512
	// headSize covers every header that is looked at, ISO 9660's included.
	headSize = 34 << 10

	isoMagicOffset = 32769
	vdiMagicOffset = 0x40
	tarMagicOffset = 257
)

// foreign are files that people give by mistake, by how they begin.
var foreign = []struct{ magic, what string }{
	{"%PDF", "a PDF document"},
	{"\x7fELF", "a program"},
	{"MZ", "a Windows program"},
	{"PK\x03\x04", "a ZIP archive"},
	{"7z\xbc\xaf", "a 7-Zip archive"},
	{"Rar!", "a RAR archive"},
	{"BZh", "a bzip2 file, which is not supported: use gz, xz or zst"},
	{"\x1f\x8b", "a compressed file inside a compressed file"},
	{"\xfd7zXZ\x00", "a compressed file inside a compressed file"},
	{"\x28\xb5\x2f\xfd", "a compressed file inside a compressed file"},
	{"vhdxfile", "a VHDX image, which is not supported"},
	{"conectix", "a VHD image, which is not supported"},
	{"QED\x00", "a QED image, which is not supported"},
	{"# Disk DescriptorFile", "a VMDK descriptor without its data"},
	{"\x89PNG", "a picture"},
	{"LUKS\xba\xbe", "an encrypted LUKS container, which is not supported"},
}

// Detect decides the format of an image from its bytes and refuses what leads
// elsewhere.
func Detect(r io.ReaderAt, size int64) (Format, error) {
	head := make([]byte, min(size, headSize))
	if _, err := r.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read image: %w", err)
	}
	switch {
	case len(head) == 0:
		return "", refuse(NotAnImage, "The file is empty")
	case has(head, 0, "QFI\xfb"):
		return QCOW2, checkQCOW2(head)
	case has(head, 0, "KDMV"):
		return VMDK, checkVMDK(r, head)
	case has(head, vdiMagicOffset, "\x7f\x10\xda\xbe"):
		return VDI, checkVDI(head, size)
	case has(head, isoMagicOffset, "CD001"):
		return ISO, nil
	}
	return Raw, checkRaw(head, size)
}

func has(head []byte, offset int, magic string) bool {
	return len(head) >= offset+len(magic) && string(head[offset:offset+len(magic)]) == magic
}

// checkRaw refuses what is certainly no disk. Anything else may be one: a disk
// need not begin with anything in particular.
func checkRaw(head []byte, size int64) error {
	for _, f := range foreign {
		if has(head, 0, f.magic) {
			return refuse(NotAnImage, "The file is %s, not a disk image", f.what)
		}
	}
	switch {
	case has(head, tarMagicOffset, "ustar"):
		return refuse(NotAnImage, "The file is a tar archive, not a disk image")
	case looksLikeHTML(head):
		return refuse(NotAnImage, "The server sent an HTML page, not a disk image")
	case looksLikeText(head):
		return refuse(NotAnImage, "The file is text, not a disk image")
	case size < sector:
		return refuse(NotAnImage, "The file has %d bytes, too few for a disk image", size)
	}
	return nil
}

func looksLikeHTML(head []byte) bool {
	start := strings.ToLower(string(bytes.TrimLeft(head[:min(len(head), 512)], "\xef\xbb\xbf \t\r\n")))
	for _, tag := range []string{"<!doctype html", "<html", "<head", "<body"} {
		if strings.HasPrefix(start, tag) {
			return true
		}
	}
	return false
}

// looksLikeText tells whether the beginning is UTF-8 without control characters.
func looksLikeText(head []byte) bool {
	head = head[:min(len(head), 4096)]
	for len(head) > 0 {
		c, n := utf8.DecodeRune(head)
		switch {
		case c == utf8.RuneError && n == 1:
			// A character may be cut at the end of what we look at.
			return len(head) < utf8.UTFMax
		case c < ' ' && !strings.ContainsRune("\t\r\n\f\x1b", c):
			return false
		}
		head = head[n:]
	}
	return true
}

// Fields of a qcow2 header: offsets in bytes, and bits of incompatible features.
const (
	qcow2MinHeader     = 72
	qcow2V3Header      = 104
	qcow2BackingOffset = 8
	qcow2CryptMethod   = 32
	qcow2Incompatible  = 72
	qcow2BitCorrupt    = 1 << 1
	qcow2BitData       = 1 << 2
)

func checkQCOW2(head []byte) error {
	be := binary.BigEndian
	if len(head) < qcow2MinHeader {
		return refuse(NotAnImage, "The qcow2 image is cut off in its header")
	}
	version := be.Uint32(head[4:])
	if version != 2 && version != 3 {
		return refuse(NotAnImage, "The qcow2 image has version %d, which is not known", version)
	}
	if be.Uint64(head[qcow2BackingOffset:]) != 0 {
		return refuse(BackingFile, "The qcow2 image has a backing file: give a complete image (qemu-img convert makes one)")
	}
	if be.Uint32(head[qcow2CryptMethod:]) != 0 {
		return refuse(NotAnImage, "The qcow2 image is encrypted, which is not supported")
	}
	if version == 2 {
		return nil
	}
	if len(head) < qcow2V3Header {
		return refuse(NotAnImage, "The qcow2 image is cut off in its header")
	}
	features := be.Uint64(head[qcow2Incompatible:])
	switch {
	case features&qcow2BitData != 0:
		return refuse(ExternalData, "The qcow2 image keeps its data in another file: give a complete image (qemu-img convert makes one)")
	case features&qcow2BitCorrupt != 0:
		return refuse(NotAnImage, "The qcow2 image is marked as corrupt")
	}
	return nil
}

// Fields of a VDI header, little endian.
const (
	vdiMinHeader  = 0x188
	vdiDataOffset = 0x158
	vdiBlockSize  = 0x178
	vdiAllocated  = 0x184
)

// checkVDI refuses an image that was cut off, since qemu-img would not notice.
func checkVDI(head []byte, size int64) error {
	le := binary.LittleEndian
	if len(head) < vdiMinHeader {
		return refuse(NotAnImage, "The VDI image is cut off in its header")
	}
	// Products of 32-bit numbers: no overflow.
	end := uint64(le.Uint32(head[vdiDataOffset:])) + uint64(le.Uint32(head[vdiAllocated:]))*uint64(le.Uint32(head[vdiBlockSize:]))
	if uint64(size) < end {
		return refuse(NotAnImage, "The VDI image is incomplete: it has %d bytes and should have %d", size, end)
	}
	return nil
}

// Fields of a VMDK header, little endian; positions and sizes in sectors.
const (
	vmdkMinHeader    = 79
	vmdkCapacity     = 12
	vmdkDescPosition = 28
	vmdkDescSize     = 36
	vmdkDescLimit    = 1 << 20
)

// checkVMDK takes only images that are one file. One whose capacity stands only
// in its descriptor has extents elsewhere.
func checkVMDK(r io.ReaderAt, head []byte) error {
	le := binary.LittleEndian
	if len(head) < vmdkMinHeader {
		return refuse(NotAnImage, "The VMDK image is cut off in its header")
	}
	if le.Uint64(head[vmdkCapacity:]) == 0 {
		return refuse(ExternalData, "The VMDK image keeps its data in other files: give a monolithic or stream-optimised one")
	}
	position, size := le.Uint64(head[vmdkDescPosition:]), le.Uint64(head[vmdkDescSize:])
	if position == 0 || size == 0 || size > vmdkDescLimit/sector || position > 1<<40 {
		return refuse(NotAnImage, "The VMDK image has no valid descriptor")
	}
	raw := make([]byte, size*sector)
	n, err := r.ReadAt(raw, int64(position)*sector)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read VMDK descriptor: %w", err)
	}
	return checkDescriptor(string(bytes.TrimRight(raw[:n], "\x00")))
}

func checkDescriptor(text string) error {
	kind := ""
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		value = strings.Trim(strings.TrimSpace(value), `"`)
		switch strings.ToLower(strings.TrimSpace(key)) {
		case "createtype":
			kind = value
		case "parentcid":
			if !strings.EqualFold(value, "ffffffff") {
				return refuse(BackingFile, "The VMDK image is a difference to another one: give a complete image")
			}
		case "parentfilenamehint":
			return refuse(BackingFile, "The VMDK image is a difference to another one: give a complete image")
		}
	}
	if kind != "monolithicSparse" && kind != "streamOptimized" {
		return refuse(ExternalData, "The VMDK image is of type %q: give a monolithic or stream-optimised one", kind)
	}
	return nil
}
