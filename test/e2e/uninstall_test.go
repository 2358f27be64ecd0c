//go:build e2e

package e2e

import (
	"strings"
	"testing"
)

// TestStory09Uninstall removes the platform: not while somebody still uses it, and
// then without a trace. Installing it again works.
func TestStory09Uninstall(t *testing.T) {
	ns := namespace(t)
	apply(t, ns, blank("keep", "shared", "64Mi"))
	if output, err := try(t, "uninstall"); err == nil || !strings.Contains(output, "1 VirtualDisk") {
		t.Fatalf("uninstall while a disk exists: %v\n%s", err, output)
	}
	d8(t, "k", "-n", ns, "delete", "vd/keep", "--timeout=60s")
	t.Log(d8(t, "uninstall"))
	for _, kind := range []string{"crds", "clusterroles,clusterrolebindings", "apiservices", "validatingwebhookconfigurations,mutatingwebhookconfigurations",
		"validatingadmissionpolicies,validatingadmissionpolicybindings", "namespaces"} {
		for line := range strings.Lines(d8(t, "k", "get", kind, "-o", "name")) {
			if strings.Contains(line, "virtualization") {
				t.Errorf("left behind: %s", line)
			}
		}
	}
	t.Log(d8(t, "install"))
	apply(t, ns, blank("again", "shared", "64Mi"))
	reaches(t, long, ns, "vd/again", ".status.phase", "Ready")
}
