package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
)

// diskRecipe changes whenever this file makes other disks from the same inputs.
const diskRecipe = 2

// disk is a bootable image to be made: an MBR, a boot loader behind it (GRUB, or ours
// with the kernel it loads), one ext4 partition.
// All of it is written into a file; no loop device or mount is needed, so nothing
// can be left behind.
type disk struct {
	image       string // qcow2 file to write
	root        string // directory that becomes the file system
	mebibytes   int    // size of the disk
	grubModules []string
	grubConfig  string  // built into GRUB; empty: it reads /boot/grub/grub.cfg
	kernel      *kernel // loaded by our own loader instead of GRUB
}

// partition is where the partition begins, in sectors: at a whole mebibyte behind
// everything that is loaded from outside it.
func (d disk) partition() int {
	if d.kernel == nil {
		return partitionStart
	}
	const mebibyte = 1 << 20 / sectorSize
	return partitionStart + (len(d.kernel.content)/sectorSize+mebibyte-1)/mebibyte*mebibyte
}

const (
	sectorSize     = 512
	partitionStart = 2048 // sectors; GRUB's core must fit below
	typeLinux      = 0x83
	active         = 0x80
)

func writeDisk(ctx context.Context, cache Cache, d disk) error {
	raw := d.image + ".raw"
	defer os.Remove(raw)
	toolsDir := filepath.Join(filepath.Dir(d.image), "tools")
	layer, err := diskTools.layer(ctx, cache)
	if err != nil {
		return err
	}
	if err := layer.unpack(toolsDir); err != nil {
		return fmt.Errorf("unpack tools: %w", err)
	}
	if err := os.WriteFile(raw, nil, 0o644); err != nil {
		return err
	}
	if err := os.Truncate(raw, int64(d.mebibytes)<<20); err != nil {
		return err
	}
	// Features that GRUB or an older machine's tools do not know are left out.
	makeFS := inRoot(ctx, toolsDir, "/usr/sbin/mke2fs", "-q", "-t", "ext4", "-L", "root", "-b", "4096", "-O", "^metadata_csum_seed,^orphan_file",
		"-E", "offset="+strconv.Itoa(d.partition()*sectorSize)+",lazy_itable_init=1", "-m", "1",
		"-d", d.root, raw, strconv.Itoa(d.mebibytes-d.partition()*sectorSize>>20)+"m")
	if err := runLogged(makeFS); err != nil {
		return err
	}
	boot := d.writeBootCode
	if d.kernel != nil {
		boot = d.writeKernel
	}
	if err := boot(ctx, toolsDir, raw); err != nil {
		return err
	}
	return runLogged(inRoot(ctx, toolsDir, "/usr/bin/qemu-img", "convert", "-c", "-O", "qcow2", raw, d.image))
}

// diskTools make disks; they come from the same Debian as everything else, so the
// machine's own versions do not matter.
var diskTools = Pick{
	Root:  base,
	Paths: []string{"/usr/bin/grub-mkimage", "/usr/lib/grub/i386-pc/*", "/usr/sbin/mke2fs", "/usr/bin/qemu-img"},
}

// inRoot runs a program of an unpacked root with the root's libraries, but with the
// machine's paths.
func inRoot(ctx context.Context, root, program string, arguments ...string) *exec.Cmd {
	loader := filepath.Join(root, "usr/lib64/ld-linux-x86-64.so.2")
	arguments = append([]string{"--library-path", filepath.Join(root, "usr/lib/x86_64-linux-gnu"), filepath.Join(root, program)}, arguments...)
	return exec.CommandContext(ctx, loader, arguments...)
}

// writeBootCode puts GRUB where a BIOS finds it. Its first sector looks for the core
// in the second one by default, and the core for its rest behind itself, so both only
// have to be copied there.
func (d disk) writeBootCode(ctx context.Context, toolsDir, raw string) error {
	modules := filepath.Join(toolsDir, "usr/lib/grub/i386-pc")
	core := raw + ".core"
	defer os.Remove(core)
	arguments := []string{"-O", "i386-pc", "-d", modules, "-p", "(,msdos1)/boot/grub", "-o", core}
	if d.grubConfig != "" {
		config := raw + ".cfg"
		defer os.Remove(config)
		if err := os.WriteFile(config, []byte(d.grubConfig), 0o644); err != nil {
			return err
		}
		arguments = append(arguments, "-c", config)
	}
	if err := runLogged(inRoot(ctx, toolsDir, "/usr/bin/grub-mkimage", append(arguments, d.grubModules...)...)); err != nil {
		return err
	}
	first, err := os.ReadFile(filepath.Join(modules, "boot.img"))
	if err != nil {
		return err
	}
	rest, err := os.ReadFile(core)
	if err != nil {
		return err
	}
	if len(first) != sectorSize || len(rest) > (partitionStart-1)*sectorSize {
		return fmt.Errorf("place GRUB: %d and %d bytes do not fit", len(first), len(rest))
	}
	d.writePartition(first)
	file, err := os.OpenFile(raw, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := file.WriteAt(append(first, rest...), 0); err != nil {
		return err
	}
	return file.Close()
}

// writePartition fills the partition table of a boot sector: one active partition.
func (d disk) writePartition(sector []byte) {
	const table = 446
	entry := sector[table : table+16]
	clear(sector[440:510])
	entry[0], entry[4] = active, typeLinux
	// Cylinders and heads are unused; these values say "see the sector numbers".
	copy(entry[1:4], []byte{0xfe, 0xff, 0xff})
	copy(entry[5:8], []byte{0xfe, 0xff, 0xff})
	binary.LittleEndian.PutUint32(entry[8:], uint32(d.partition()))
	binary.LittleEndian.PutUint32(entry[12:], uint32(d.mebibytes<<20/sectorSize-d.partition()))
	// A disk without an identifier of its own gets one from the first tool that looks.
	binary.LittleEndian.PutUint32(sector[440:], 0x6f726c70)
	sector[510], sector[511] = 0x55, 0xaa
}
