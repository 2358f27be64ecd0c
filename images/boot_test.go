package main

import (
	"bytes"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestPlace: what the loader reads, sector by sector, is the memory that was asked for.
func TestPlace(t *testing.T) {
	t.Parallel()
	filled := func(n int, b byte) []byte { return bytes.Repeat([]byte{b}, n) }
	segments := []segment{
		{0x100000, append(append(filled(zeroRun, 1), make([]byte, 3*zeroRun)...), filled(1000, 2)...)},
		{0x900000, make([]byte, zeroRun)},
		{0xa00000, filled(2*zeroRun, 3)},
	}
	var k kernel
	extents := k.place(segments)
	want := []uint32{
		partitionStart, 128, 0x100000,
		0, 384, 0x110000,
		partitionStart + 128, 2, 0x140000,
		0, 128, 0x900000,
		partitionStart + 130, 256, 0xa00000,
	}
	if diff := cmp.Diff(want, extents); diff != "" {
		t.Fatal(diff)
	}
	memory := bytes.Repeat([]byte{0xff}, 0xb00000)
	for e := extents; len(e) > 0; e = e[3:] {
		size := int(e[1]) * sectorSize
		part := make([]byte, size)
		if e[0] != 0 {
			copy(part, k.content[(int(e[0])-partitionStart)*sectorSize:])
		}
		copy(memory[e[2]:], part)
	}
	for _, s := range segments {
		if !bytes.Equal(memory[s.address:][:len(s.content)], s.content) {
			t.Errorf("memory at %#x is not what was asked for", s.address)
		}
	}
}

// TestLoader: the parameters come right behind the loader, and its first sector leaves
// room for the partition table.
func TestLoader(t *testing.T) {
	t.Parallel()
	loader, err := assemble(t.Context(), filepath.Join(t.TempDir(), "boot"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(loader[440:510], make([]byte, 70)) || loader[510] != 0x55 || loader[511] != 0xaa {
		t.Errorf("the first sector ends with %x", loader[440:512])
	}
}

func TestUnpackKernelRefuses(t *testing.T) {
	t.Parallel()
	header := func(change func([]byte)) []byte {
		image := make([]byte, 4096)
		copy(image[0x202:], "HdrS")
		image[0x24c] = 100
		change(image)
		return image
	}
	tests := map[string][]byte{
		"nothing":                     nil,
		"no header":                   make([]byte, 4096),
		"a payload beyond the end":    header(func(b []byte) { b[0x24e] = 1 }),
		"an algorithm nobody knows":   header(func([]byte) {}),
		"a frame that is cut at once": header(func(b []byte) { copy(b[512:], []byte{0x28, 0xb5, 0x2f, 0xfd}) }),
	}
	for name, image := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := unpackKernel(image); err == nil {
				t.Error("it was taken")
			}
		})
	}
}
