package diskimage

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const mib = 1 << 20

// tool runs the real qemu-img to make an image.
func tool(t *testing.T, args ...string) {
	t.Helper()
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("needs qemu-img")
	}
	if out, err := exec.CommandContext(t.Context(), "qemu-img", args...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img %v: %v\n%s", args, err, out)
	}
}

func write(t *testing.T, path string, content []byte) string {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// noise is content that does not compress, with a boot signature.
func noise(size int) []byte {
	b := make([]byte, size)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b[:size/2])
	b[510], b[511] = 0x55, 0xaa
	return b
}

func TestProbe(t *testing.T) {
	iso := make([]byte, mib)
	copy(iso[isoMagicOffset:], "CD001")
	for why, c := range map[string]struct {
		make      func(t *testing.T, dir string) string
		want      Info
		wantFault Fault
		wantWord  string
	}{
		"a qcow2 image": {
			make: func(t *testing.T, dir string) string {
				tool(t, "create", "-q", "-f", "qcow2", dir+"/i", "10M")
				return dir + "/i"
			},
			want: Info{Format: QCOW2, VirtualSize: 10 * mib},
		},
		"a monolithic VMDK image": {
			make: func(t *testing.T, dir string) string {
				tool(t, "create", "-q", "-f", "vmdk", dir+"/i", "10M")
				return dir + "/i"
			},
			want: Info{Format: VMDK, VirtualSize: 10 * mib},
		},
		"a stream-optimised VMDK image, as exported by ESXi": {
			make: func(t *testing.T, dir string) string {
				write(t, dir+"/raw", noise(mib))
				tool(t, "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", dir+"/raw", dir+"/i")
				return dir + "/i"
			},
			want: Info{Format: VMDK, VirtualSize: mib},
		},
		"a VDI image": {
			make: func(t *testing.T, dir string) string {
				tool(t, "create", "-q", "-f", "vdi", dir+"/i", "10M")
				return dir + "/i"
			},
			want: Info{Format: VDI, VirtualSize: 10 * mib},
		},
		"an ISO image":                 {make: content(iso), want: Info{Format: ISO, VirtualSize: mib}},
		"a raw image":                  {make: content(noise(mib)), want: Info{Format: Raw, VirtualSize: mib}},
		"a raw image of an odd length": {make: content(noise(mib + 100)), want: Info{Format: Raw, VirtualSize: mib + 512}},
		"a raw image of zeros":         {make: content(make([]byte, mib)), want: Info{Format: Raw, VirtualSize: mib}},
		"a qcow2 with a backing file must not be opened by anybody": {
			make: func(t *testing.T, dir string) string {
				tool(t, "create", "-q", "-f", "qcow2", "-u", "-F", "raw", "-b", "/etc/passwd", dir+"/i", "10M")
				return dir + "/i"
			},
			wantFault: BackingFile, wantWord: "backing file",
		},
		"a qcow2 with external data would read a file of ours": {
			make: func(t *testing.T, dir string) string {
				tool(t, "create", "-q", "-f", "qcow2", "-o", "data_file="+dir+"/x", dir+"/i", "10M")
				return dir + "/i"
			},
			wantFault: ExternalData, wantWord: "another file",
		},
		"a VMDK whose extents are elsewhere": {
			make: func(t *testing.T, dir string) string {
				tool(t, "create", "-q", "-f", "vmdk", dir+"/i", "10M")
				b, err := os.ReadFile(dir + "/i")
				if err != nil {
					t.Fatal(err)
				}
				binary.LittleEndian.PutUint64(b[vmdkCapacity:], 0)
				return write(t, dir+"/i", b)
			},
			wantFault: ExternalData,
		},
		"a VMDK that is a difference": {
			make: func(t *testing.T, dir string) string {
				tool(t, "create", "-q", "-f", "vmdk", dir+"/i", "10M")
				b, err := os.ReadFile(dir + "/i")
				if err != nil {
					t.Fatal(err)
				}
				return write(t, dir+"/i", bytes.Replace(b, []byte("parentCID=ffffffff"), []byte("parentCID=12345678"), 1))
			},
			wantFault: BackingFile,
		},
		"a qcow2 that ends early would be read as zeros": {make: cutOff("qcow2"), wantFault: NotAnImage, wantWord: "incomplete"},
		"a VDI that ends early":                          {make: cutOff("vdi"), wantFault: NotAnImage, wantWord: "incomplete"},
		"a VMDK that ends early":                         {make: cutOff("vmdk"), wantFault: NotAnImage},
		"a qcow2 that claims an absurd size": {
			make: func(t *testing.T, dir string) string {
				tool(t, "create", "-q", "-f", "qcow2", dir+"/i", "900T")
				return dir + "/i"
			},
			wantFault: TooLarge, wantWord: "limit",
		},
		"a qcow2 cut in its header": {make: content([]byte("QFI\xfb\x00\x00\x00\x03")), wantFault: NotAnImage, wantWord: "cut off"},
		"a qcow2 of garbage": {
			make:      content(append([]byte("QFI\xfb\x00\x00\x00\x03"+strings.Repeat("\x00", 12)+"\x00\x00\x00\xff"), make([]byte, 4096)...)),
			wantFault: NotAnImage,
		},
		"an HTML page, as a mirror sends when a file has moved": {
			make: content([]byte("\n<!DOCTYPE html>\n<html><body>Moved</body></html>")), wantFault: NotAnImage, wantWord: "HTML page",
		},
		"text":       {make: content([]byte(strings.Repeat("ключ: значение\n", 1000))), wantFault: NotAnImage, wantWord: "text"},
		"an archive": {make: content(append([]byte("PK\x03\x04"), make([]byte, 4096)...)), wantFault: NotAnImage, wantWord: "ZIP"},
		"nothing":    {make: content(nil), wantFault: NotAnImage, wantWord: "empty"},
	} {
		t.Run(why, func(t *testing.T) {
			got, err := Probe(t.Context(), c.make(t, t.TempDir()), 1<<40)
			var refused *Error
			if errors.As(err, &refused) && c.wantFault != "" {
				if refused.Fault != c.wantFault || !strings.Contains(refused.Message, c.wantWord) {
					t.Errorf("refused with %s: %q; want %s and the word %q", refused.Fault, refused.Message, c.wantFault, c.wantWord)
				}
				return
			}
			if err != nil || got != c.want {
				t.Errorf("got %+v, %v; want %+v, fault %q", got, err, c.want, c.wantFault)
			}
		})
	}
}

func content(b []byte) func(*testing.T, string) string {
	return func(t *testing.T, dir string) string { return write(t, dir+"/i", b) }
}

func TestConvertKeepsEveryByte(t *testing.T) {
	dir := t.TempDir()
	want := noise(20 * mib)
	source := write(t, dir+"/source", want)
	var last float64
	err := Convert(t.Context(), Conversion{Source: source, Format: Raw, Target: dir + "/target", MaxSize: 1 << 30, Progress: func(p float64) {
		if p < last {
			t.Errorf("progress fell from %v to %v", last, p)
		}
		last = p
	}})
	if err != nil {
		t.Fatal(err)
	}
	if last != 100 {
		t.Errorf("progress ended at %v", last)
	}
	if err := Grow(t.Context(), dir+"/target", 64*mib); err != nil {
		t.Fatal(err)
	}
	tool(t, "convert", "-O", "raw", dir+"/target", dir+"/back")
	got, err := os.ReadFile(dir + "/back")
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 64*mib || !bytes.Equal(got[:len(want)], want) || bytes.ContainsFunc(got[len(want):], func(r rune) bool { return r != 0 }) {
		t.Error("the content changed on the way")
	}
}

func cutOff(format string) func(*testing.T, string) string {
	return func(t *testing.T, dir string) string {
		write(t, dir+"/raw", noise(16*mib))
		tool(t, "convert", "-f", "raw", "-O", format, dir+"/raw", dir+"/i")
		if err := os.Truncate(dir+"/i", 2*mib); err != nil {
			t.Fatal(err)
		}
		return dir + "/i"
	}
}

func TestConvertStopsAtItsLimit(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "target")
	source := write(t, dir+"/source", noise(16*mib))
	err := Convert(t.Context(), Conversion{Source: source, Format: Raw, Target: target, MaxSize: mib})
	var refused *Error
	if !errors.As(err, &refused) || refused.Fault != TooLarge {
		t.Errorf("got %v, want %s", err, TooLarge)
	}
	if _, err := os.Stat(target); err == nil {
		t.Error("the half-written target is still there")
	}
}

func TestGrowNeverShrinks(t *testing.T) {
	path := t.TempDir() + "/d"
	if err := CreateBlank(t.Context(), path, 10*mib); err != nil {
		t.Skip(err)
	}
	if err := Grow(t.Context(), path, 10*mib); err != nil {
		t.Errorf("same size: %v", err)
	}
	var refused *Error
	if err := Grow(t.Context(), path, 5*mib); !errors.As(err, &refused) || refused.Fault != TooSmall {
		t.Errorf("smaller: got %v", err)
	}
}

func TestTheEndOfTheContextEndsTheTool(t *testing.T) {
	dir := t.TempDir()
	source := write(t, dir+"/source", noise(mib))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := Convert(ctx, Conversion{Source: source, Format: Raw, Target: dir + "/target", MaxSize: 1 << 30})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
