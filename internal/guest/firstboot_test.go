package guest_test

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/kdomanski/iso9660"
	"golang.org/x/sys/unix"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/guest"
)

var (
	noCloud = v1alpha1.FirstBoot{Type: "NoCloud"}
	sysprep = v1alpha1.FirstBoot{Type: "Sysprep"}
)

func disc(t *testing.T, f v1alpha1.FirstBoot, data map[string][]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := guest.WriteDisc(&b, f, data); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestSameDataSameBytes(t *testing.T) {
	data := map[string][]byte{"user-data": []byte("#cloud-config\n"), "meta-data": []byte("instance-id: a\n"), "network-config": []byte("version: 2\n")}
	first := disc(t, noCloud, data)
	for range 20 {
		if !bytes.Equal(first, disc(t, noCloud, data)) {
			t.Fatal("two discs of the same data differ")
		}
	}
	if len(first)%2048 != 0 {
		t.Errorf("size %d is not a multiple of a sector", len(first))
	}
}

func TestWriteDiscRefuses(t *testing.T) {
	cases := map[string]struct {
		kind string
		data map[string][]byte
		want string
	}{
		"cloud-init data without user-data": {"NoCloud", map[string][]byte{"meta-data": nil}, "no user-data"},
		"an answer disc without answers":    {"Sysprep", map[string][]byte{"user-data": nil}, "no unattend.xml"},
		"a type from the future":            {"Ignition", nil, "not supported"},
		"more than a Secret can hold":       {"NoCloud", map[string][]byte{"user-data": make([]byte, 3<<20)}, "at most"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			err := guest.WriteDisc(&bytes.Buffer{}, v1alpha1.FirstBoot{Type: tc.kind}, tc.data)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want error with %q", err, tc.want)
			}
		})
	}
}

// A reader that is not ours finds the names that Rock Ridge gives the files.
func TestReaderFindsNames(t *testing.T) {
	image, err := iso9660.OpenImage(bytes.NewReader(disc(t, noCloud, map[string][]byte{"user-data": []byte("u"), "meta-data": []byte("m")})))
	if err != nil {
		t.Fatal(err)
	}
	root, err := image.RootDir()
	if err != nil {
		t.Fatal(err)
	}
	children, err := root.GetChildren()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, c := range children {
		content, err := io.ReadAll(c.Reader())
		if err != nil {
			t.Fatal(err)
		}
		got[c.Name()] = string(content)
	}
	if diff := cmp.Diff(map[string]string{"user-data": "u", "meta-data": "m"}, got); diff != "" {
		t.Error(diff)
	}
}

// The kernel is the reader that counts: cloud-init looks for these very names on a
// volume with this very label.
func TestKernelReadsDisc(t *testing.T) {
	big := bytes.Repeat([]byte("x"), 5000)
	cases := map[string]struct {
		kind v1alpha1.FirstBoot
		data map[string][]byte
		want map[string]string
	}{
		"NoCloud": {
			noCloud,
			map[string][]byte{"user-data": big, "meta-data": []byte("instance-id: a\n"), "unknown": []byte("x")},
			map[string]string{"user-data": string(big), "meta-data": "instance-id: a\n"},
		},
		"NoCloud without meta-data gets an empty one": {
			noCloud,
			map[string][]byte{"user-data": []byte("u")},
			map[string]string{"user-data": "u", "meta-data": ""},
		},
		"Sysprep": {
			sysprep,
			map[string][]byte{"unattend.xml": []byte("<a/>")},
			map[string]string{"unattend.xml": "<a/>", "autounattend.xml": "<a/>"},
		},
	}
	for name, tc := range cases {
		for _, options := range []string{"", "norock", "nojoliet"} {
			t.Run(name+" "+options, func(t *testing.T) {
				if got := mounted(t, disc(t, tc.kind, tc.data), options); cmp.Diff(tc.want, got) != "" {
					t.Error(cmp.Diff(tc.want, got))
				}
			})
		}
	}
}

// mounted is the content of an image by the names the kernel shows.
func mounted(t *testing.T, image []byte, options string) map[string]string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	file := filepath.Join(t.TempDir(), "disc.iso")
	if err := os.WriteFile(file, image, 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	out, err := exec.CommandContext(t.Context(), "mount", "-o", strings.Trim("loop,ro,"+options, ","), "-t", "iso9660", file, dir).CombinedOutput()
	if err != nil {
		t.Skipf("no loop devices or no ISO 9660 here: %s", out)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, e := range entries {
		content, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		got[e.Name()] = string(content)
	}
	return got
}

func TestVolumeLabels(t *testing.T) {
	for want, d := range map[string][]byte{
		"cidata":     disc(t, noCloud, map[string][]byte{"user-data": nil}),
		"unattendCD": disc(t, sysprep, map[string][]byte{"autounattend.xml": nil}),
	} {
		if got := strings.TrimRight(string(d[16*2048+40:16*2048+72]), " "); got != want {
			t.Errorf("got label %q, want %q", got, want)
		}
	}
}
