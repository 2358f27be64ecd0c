//go:build e2e

package e2e

import (
	"strings"
	"testing"
	"time"
)

// TestStory02PowerOffInTheGuest follows the table of run policies: who comes back
// after the guest has powered itself off.
func TestStory02PowerOffInTheGuest(t *testing.T) {
	ns := namespace(t)
	policies := map[string]bool{ // comes back?
		"AlwaysOn":                      true,
		"AlwaysOnUnlessStoppedManually": false,
		"Manual":                        false,
	}
	manifest := image("tiny", "tiny.qcow2")
	for policy := range policies {
		name := strings.ToLower(policy)
		manifest += disk(name, "shared", "512Mi", "tiny") + machine(name, "256Mi", []string{name}, "runPolicy: "+policy)
	}
	apply(t, ns, manifest)
	reaches(t, long, ns, "vm/manual", ".status.phase", "Stopped")
	d8(t, "v", "-n", ns, "start", "manual", "--yes")

	for policy, back := range policies {
		t.Run(policy, func(t *testing.T) {
			name := strings.ToLower(policy)
			reaches(t, long, ns, "vm/"+name, ".status.phase", "Running")
			first := field(t, ns, "vm/"+name, ".status.instance.name")
			console := open(t, ns, name)
			console.prompt(soon)
			console.send("poweroff")
			if !back {
				reaches(t, soon, ns, "vm/"+name, ".status.phase", "Stopped")
				time.Sleep(3 * time.Second) // long enough for a wrong start to show
				if phase := field(t, ns, "vm/"+name, ".status.phase"); phase != "Stopped" {
					t.Errorf("phase is %q, want it to stay Stopped", phase)
				}
				return
			}
			eventually(t, long, "a new instance runs", func() bool {
				return field(t, ns, "vm/"+name, ".status.instance.name") != first && field(t, ns, "vm/"+name, ".status.phase") == "Running"
			})
		})
	}
	t.Run("AlwaysOff stops a running machine and refuses operations", func(t *testing.T) {
		d8(t, "k", "-n", ns, "patch", "vm/alwayson", "--type=merge", "-p", `{"spec":{"runPolicy":"AlwaysOff"}}`)
		reaches(t, long, ns, "vm/alwayson", ".status.phase", "Stopped")
		if output, err := try(t, "v", "-n", ns, "start", "alwayson", "--wait", "--yes", "--timeout=30s"); err == nil {
			t.Errorf("start under AlwaysOff succeeded: %s", output)
		}
	})
}
