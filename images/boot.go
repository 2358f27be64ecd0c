package main

import (
	"bytes"
	"context"
	"debug/elf"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// bootLoader is the source of the loader that kernels of type kernel are started by.
// GRUB copies a kernel byte by byte, and the kernel then unpacks itself: together that
// is most of what an emulated processor does until Linux speaks.
//
//go:embed boot.S
var bootLoader string

// Places that the loader's source has as well, in its memory and on the disk.
const (
	loaderAt      = 0x7c00
	parametersAt  = 0x8600
	commandLineAt = 0x9600
	loaderEnd     = loaderAt + 17*sectorSize
	// zeroRun is the least run of zeros that is made by the loader instead of being read, in bytes.
	zeroRun = 64 << 10
)

// kernel is an unpacked kernel with its first file system, as the loader takes them.
type kernel struct {
	parameters  []byte // what is written at parametersAt
	commandLine string
	content     []byte // what lies on the disk from partitionStart on
}

// segment is a piece of memory.
type segment struct {
	address uint64
	content []byte
}

// newKernel unpacks a kernel in its usual form (bzImage).
func newKernel(packed, initrd []byte, commandLine string) (*kernel, error) {
	image, err := unpackKernel(packed)
	if err != nil {
		return nil, err
	}
	file, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return nil, err
	}
	entry, err := pvhEntry(file)
	if err != nil {
		return nil, err
	}
	var segments []segment
	var end uint64
	for _, p := range file.Progs {
		if p.Type != elf.PT_LOAD {
			continue
		}
		content, err := io.ReadAll(p.Open())
		if err != nil {
			return nil, err
		}
		segments = append(segments, segment{p.Paddr, content})
		end = max(end, p.Paddr+p.Memsz)
	}
	const mebibyte = 1 << 20
	initrdAt := (end + mebibyte - 1) / mebibyte * mebibyte
	segments = append(segments, segment{initrdAt, initrd})
	k := &kernel{commandLine: commandLine}
	extents := k.place(segments)
	for _, n := range []uint32{entry, uint32(initrdAt), uint32(len(initrd)), uint32(len(extents) / 3)} {
		k.parameters = binary.LittleEndian.AppendUint32(k.parameters, n)
	}
	for _, n := range extents {
		k.parameters = binary.LittleEndian.AppendUint32(k.parameters, n)
	}
	if len(k.parameters) > commandLineAt-parametersAt || len(commandLine)+1 > loaderEnd-commandLineAt {
		return nil, errors.New("more extents, or a longer command line, than the loader has room for")
	}
	return k, nil
}

// place lays segments out on the disk and returns the loader's extents: first sector
// (0 for zeros), number of sectors, address.
func (k *kernel) place(segments []segment) []uint32 {
	var extents []uint32
	zeros := make([]byte, zeroRun)
	for _, s := range segments {
		content := append(bytes.Clone(s.content), make([]byte, -len(s.content)&(sectorSize-1))...)
		begun, wasZero := false, false
		for at := 0; at < len(content); at += zeroRun {
			part := content[at:min(at+zeroRun, len(content))]
			zero := bytes.Equal(part, zeros[:len(part)])
			if !begun || zero != wasZero {
				first := uint32(0)
				if !zero {
					first = partitionStart + uint32(len(k.content)/sectorSize)
				}
				extents = append(extents, first, 0, uint32(s.address)+uint32(at))
			}
			extents[len(extents)-2] += uint32(len(part) / sectorSize)
			if !zero {
				k.content = append(k.content, part...)
			}
			begun, wasZero = true, zero
		}
	}
	return extents
}

// unpackKernel takes the ELF file out of a bzImage; Linux's Documentation/arch/x86/boot.rst
// has the offsets.
func unpackKernel(packed []byte) ([]byte, error) {
	if len(packed) < 0x250 || string(packed[0x202:0x206]) != "HdrS" {
		return nil, errors.New("it is no bzImage")
	}
	word := func(at int) int { return int(binary.LittleEndian.Uint32(packed[at:])) }
	start := (int(packed[0x1f1])+1)*sectorSize + word(0x248)
	end := start + word(0x24c)
	if end > len(packed) || end < start+10 {
		return nil, errors.New("its payload lies beyond its end")
	}
	payload := packed[start : end-4] // the last word is the unpacked size
	switch {
	case bytes.HasPrefix(payload, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		reader, err := zstd.NewReader(bytes.NewReader(payload))
		if err != nil {
			return nil, err
		}
		defer reader.Close()
		return io.ReadAll(reader)
	case bytes.HasPrefix(payload, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		reader, err := xz.NewReader(bytes.NewReader(payload))
		if err != nil {
			return nil, err
		}
		return io.ReadAll(reader)
	}
	return nil, fmt.Errorf("its payload begins with %x", payload[:4])
}

// pvhEntry finds the physical address of the PVH entry in the kernel's notes.
func pvhEntry(file *elf.File) (uint32, error) {
	const physicalEntry = 18 // XEN_ELFNOTE_PHYS32_ENTRY
	for _, p := range file.Progs {
		if p.Type != elf.PT_NOTE {
			continue
		}
		notes, err := io.ReadAll(p.Open())
		if err != nil {
			return 0, err
		}
		for len(notes) >= 12 {
			name, size, kind := binary.LittleEndian.Uint32(notes), binary.LittleEndian.Uint32(notes[4:]), binary.LittleEndian.Uint32(notes[8:])
			text := 12 + int(name+3)&^3
			next := text + int(size+3)&^3
			if next > len(notes) {
				break
			}
			if kind == physicalEntry && size >= 4 && string(notes[12:12+name]) == "Xen\x00" {
				return binary.LittleEndian.Uint32(notes[text:]), nil
			}
			notes = notes[next:]
		}
	}
	return 0, errors.New("it has no PVH entry")
}

// assemble makes the loader with the machine's own binutils, which come with its C compiler.
func assemble(ctx context.Context, name string) ([]byte, error) {
	source, object, binary := name+".S", name+".o", name+".bin"
	defer os.Remove(source)
	defer os.Remove(object)
	defer os.Remove(binary)
	if err := os.WriteFile(source, []byte(bootLoader), 0o644); err != nil {
		return nil, err
	}
	if err := runLogged(exec.CommandContext(ctx, "as", "--32", "-o", object, source)); err != nil {
		return nil, err
	}
	if err := runLogged(exec.CommandContext(ctx, "ld", "-m", "elf_i386", "-Ttext", fmt.Sprintf("%#x", loaderAt),
		"--oformat", "binary", "-o", binary, object)); err != nil {
		return nil, err
	}
	loader, err := os.ReadFile(binary)
	if err == nil && len(loader) != parametersAt-loaderAt {
		err = fmt.Errorf("the loader has %d bytes", len(loader))
	}
	return loader, err
}

// writeKernel puts the loader where a BIOS finds it, and the kernel behind it.
func (d disk) writeKernel(ctx context.Context, _, raw string) error {
	loader, err := assemble(ctx, raw)
	if err != nil {
		return fmt.Errorf("assemble the boot loader: %w", err)
	}
	boot := make([]byte, loaderEnd-loaderAt)
	copy(boot, loader)
	copy(boot[parametersAt-loaderAt:], d.kernel.parameters)
	copy(boot[commandLineAt-loaderAt:], d.kernel.commandLine)
	d.writePartition(boot[:sectorSize])
	file, err := os.OpenFile(raw, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := file.WriteAt(boot, 0); err != nil {
		return err
	}
	if _, err := file.WriteAt(d.kernel.content, partitionStart*sectorSize); err != nil {
		return err
	}
	return file.Close()
}
