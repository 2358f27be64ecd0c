package plan

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
)

func TestQCOW2FileSize(t *testing.T) {
	// Want: `qemu-img measure -O qcow2 --size <n>`, "fully allocated size".
	cases := map[string]struct{ virtual, atLeast int64 }{
		"one sector still has header, two tables and counts": {512, 65536 * 5},
		"1 GiB":  {gibi, 1074135040},
		"10 GiB": {10 * gibi, 10739318784},
		"1 TiB":  {1 << 40, 1099679662080},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got := QCOW2FileSize(c.virtual)
			if got < c.atLeast {
				t.Errorf("QCOW2FileSize(%d) = %d, want at least %d", c.virtual, got, c.atLeast)
			}
			if got > c.atLeast+c.atLeast/1000+10*mebi {
				t.Errorf("QCOW2FileSize(%d) = %d, far above %d", c.virtual, got, c.atLeast)
			}
		})
	}
}

func TestClaimSize(t *testing.T) {
	if got := ClaimSize(0); got != smallestClaim {
		t.Errorf("ClaimSize(0) = %d, want %d", got, smallestClaim)
	}
	var before int64
	for virtual := mebi; virtual < 4<<40; virtual += virtual/3 + 1 {
		got := ClaimSize(virtual)
		if got < before {
			t.Fatalf("ClaimSize(%d) = %d is less than that of a smaller disk, %d", virtual, got, before)
		}
		if got%mebi != 0 {
			t.Fatalf("ClaimSize(%d) = %d is no multiple of 1 MiB", virtual, got)
		}
		if virtual > 20*gibi && got > virtual+virtual/9 {
			t.Fatalf("ClaimSize(%d) = %d wastes more than a ninth", virtual, got)
		}
		before = got
	}
}

// TestFullDiskFitsExt4 asks mke2fs itself: the free blocks that are not reserved
// for root must hold the whole file.
func TestFullDiskFitsExt4(t *testing.T) {
	for _, tool := range []string{"mke2fs", "dumpe2fs"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s", tool)
		}
	}
	for _, virtual := range []int64{mebi, gibi, 3 * gibi, 10 * gibi, 15 * gibi, 40 * gibi, 120 * gibi, 500 * gibi} {
		t.Run(fmt.Sprint(virtual/mebi, " MiB"), func(t *testing.T) {
			device := filepath.Join(t.TempDir(), "device")
			sparse(t, device, ClaimSize(virtual))
			if out, err := exec.Command("mke2fs", "-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", device).CombinedOutput(); err != nil {
				t.Fatalf("mke2fs: %v: %s", err, out)
			}
			out, err := exec.Command("dumpe2fs", "-h", device).Output()
			if err != nil {
				t.Fatalf("dumpe2fs: %v", err)
			}
			field := func(name string) int64 {
				m := regexp.MustCompile(`(?m)^` + name + `:\s+(\d+)`).FindSubmatch(out)
				if m == nil {
					t.Fatalf("dumpe2fs prints no %q:\n%s", name, out)
				}
				n, _ := strconv.ParseInt(string(m[1]), 10, 64)
				return n
			}
			// The kernel keeps 2% but at most 4096 blocks back from everybody.
			usable := (field("Free blocks") - field("Reserved block count") - 4096) * field("Block size")
			if need := QCOW2FileSize(virtual); usable < need {
				t.Errorf("%d usable bytes on a claim of %d, want %d", usable, ClaimSize(virtual), need)
			}
		})
	}
}

func sparse(t *testing.T, path string, size int64) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
}
