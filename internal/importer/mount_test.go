package importer

import (
	"testing"

	"golang.org/x/sys/unix"
)

func mountTmpfs(t *testing.T, target, size string) {
	t.Helper()
	if err := unix.Mount("tmpfs", target, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("mount tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(target, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
}
