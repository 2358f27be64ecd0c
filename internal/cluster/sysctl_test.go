package cluster

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSettingsAreRestoredByTheLastCluster(t *testing.T) {
	host := settings{proc: t.TempDir(), dir: filepath.Join(t.TempDir(), "run")}
	put := func(name, value string) {
		t.Helper()
		path := filepath.Join(host.proc, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(value+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	check := func(when string, want map[string]string) {
		t.Helper()
		got := map[string]string{}
		for name := range want {
			got[name], _ = host.get(name)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", when, diff)
		}
	}
	original := map[string]string{
		"net/ipv4/ip_forward": "0", "fs/inotify/max_user_instances": "128", "fs/inotify/max_user_watches": "999999", "kernel/panic": "0",
	}
	for name, value := range original {
		put(name, value)
	}
	first, second := t.TempDir(), t.TempDir()
	if err := host.use(first); err != nil {
		t.Fatal(err)
	}
	put("kernel/panic", "10") // kubelet does that
	inUse := map[string]string{
		"net/ipv4/ip_forward": "1", "fs/inotify/max_user_instances": "8192", "kernel/panic": "10",
		"fs/inotify/max_user_watches": "999999", // already more than is needed
	}
	check("with one cluster", inUse)
	if err := host.use(second); err != nil {
		t.Fatal(err)
	}
	if err := host.release(first); err != nil {
		t.Fatal(err)
	}
	check("after the first of two has gone", inUse)
	if err := host.release(second); err != nil {
		t.Fatal(err)
	}
	check("after both have gone", original)
	if _, err := os.Stat(host.dir); err == nil {
		t.Error("the record is left")
	}
	if err := host.release(second); err != nil {
		t.Errorf("releasing twice: %v", err)
	}
}
