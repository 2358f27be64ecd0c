package podfs

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// The directory belongs to the pod, which may put anything there under the name.
func TestListenInHostileDirectory(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to give sockets away")
	}
	const user = 107
	for name, prepare := range map[string]func(path, outside string) error{
		"nothing":                          func(string, string) error { return nil },
		"a file":                           func(path, _ string) error { return os.WriteFile(path, nil, 0o600) },
		"a link to a file of the node":     func(path, outside string) error { return os.Symlink(outside, path) },
		"a link to nowhere":                func(path, outside string) error { return os.Symlink(outside+"-missing", path) },
		"a second name of somebody's file": func(path, outside string) error { return os.Link(outside, path) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			outside := filepath.Join(t.TempDir(), "precious")
			if err := os.WriteFile(outside, []byte("precious"), 0o600); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, "migrate")
			if err := prepare(path, outside); err != nil {
				t.Fatal(err)
			}
			open, err := os.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			l, err := ListenIn(open, "migrate", user)
			if err != nil {
				t.Fatal(err)
			}
			var st unix.Stat_t
			if err := unix.Lstat(path, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFSOCK || st.Uid != user {
				t.Errorf("got %+v, %v", st, err)
			}
			c, err := net.Dial("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			_ = c.Close()
			if err := l.Close(); err != nil {
				t.Error(err)
			}
			if _, err := os.Lstat(path); !os.IsNotExist(err) {
				t.Errorf("the socket is still there: %v", err)
			}
			if err := unix.Stat(outside, &st); err != nil || st.Uid != 0 {
				t.Errorf("the file outside has changed: %+v, %v", st, err)
			}
		})
	}
	t.Run("a directory is an error", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "migrate"), 0o755); err != nil {
			t.Fatal(err)
		}
		open, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer open.Close()
		if l, err := ListenIn(open, "migrate", user); err == nil {
			_ = l.Close()
			t.Error("no error")
		}
	})
}
