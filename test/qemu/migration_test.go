package qemu_test

import (
	"os"
	"testing"
	"time"

	"orlop.dev/orlop/api/instance/v1alpha1"
)

// small is a machine that is moved often: little memory, and no interface, whose tap
// two processes of one namespace cannot share.
func small(m *v1alpha1.Machine) { m.Memory.Size.Set(192 << 20) }

func TestMigration(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to give sockets to the pod's user")
	}
	disk := tinyDisk(t)
	from := newPod(t)
	c := from.mustStart(tinyRequest(t, disk, small))
	c.run("echo before > /disk/moved; sync; echo wrote")
	c.expect("wrote")

	begin := time.Now()
	m := newMove(t, from, tinyRequest(t, disk, small), nil)
	t.Logf("target waits after %s", time.Since(begin).Round(time.Millisecond))
	begin = time.Now()
	m.begin()
	m.await(v1alpha1.MigrationCompleted, v1alpha1.MigrationCompleted)
	t.Logf("moved after %s: %+v", time.Since(begin).Round(time.Millisecond), m.source.status())

	to := m.target.pod
	d := to.console()
	d.run("cat /disk/moved; echo after > /disk/moved; sync; echo still here")
	d.expect("before")
	d.expect("still here")
	eventually(t, "end of the source", func() error {
		m.source.mu.Lock()
		defer m.source.mu.Unlock()
		if x := m.source.launcher.Exit; x == nil || x.Cause != v1alpha1.ExitMigrated {
			return errNot("migrated", x)
		}
		return nil
	})
}
