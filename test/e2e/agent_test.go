//go:build e2e

package e2e

import (
	"strings"
	"testing"
	"time"
)

// story14 is the guest agent's: facts, freezing, and life without it. It borrows the
// debian guest of story 06, whose start takes the longest.
func story14(t *testing.T, ns string, ssh func(string) (string, error)) {
	const ready = `.status.conditions[?(@.type=="AgentReady")].status`
	const frozen = `.status.conditions[?(@.type=="FilesystemFrozen")].status`
	order := func(what string) (string, error) {
		return feed(t, "", "k", "replace", "--raw",
			"/apis/subresources.virtualization.deckhouse.io/v1alpha2/namespaces/"+ns+"/virtualmachines/linux/"+what, "-f", "-")
	}
	guest := func(command string) string {
		t.Helper()
		output, err := ssh(command)
		if err != nil {
			t.Fatalf("%s: %v\n%s", command, err, output)
		}
		return output
	}

	reaches(t, long, ns, "vm/linux", ready, "True")
	if info := field(t, ns, "vm/linux", ".status.guestOSInfo"); !strings.Contains(info, `"id":"debian"`) || !strings.Contains(info, `"kernelRelease":"`) {
		t.Errorf("guestOSInfo is %s", info)
	}
	address := field(t, ns, "vm/linux", ".status.ipAddress")
	instance := "instances.internal.virtualization.deckhouse.io/" + field(t, ns, "vm/linux", ".status.instance.name")
	eventually(t, long, "the agent tells name and address", func() bool {
		said := field(t, ns, instance, ".status.guest")
		return strings.Contains(said, `"hostname":"linux"`) && strings.Contains(said, `"`+address+"/")
	})

	// It notes in memory how long each write to the disk took, in seconds, if that was long.
	guest(`nohup setsid sh -c 'while :; do s=$(date +%s); echo x >>w; e=$(date +%s); [ $((e-s)) -lt 2 ] || echo blocked $((e-s)) >>/dev/shm/blocked; sleep 0.2; done' >/dev/null 2>&1 </dev/null & echo started`)
	if output, err := order("freeze"); err != nil {
		t.Fatalf("freeze: %v\n%s", err, output)
	}
	time.Sleep(3 * time.Second) // for the writer to be held up
	reaches(t, soon, ns, "vm/linux", frozen, "True")
	if output, err := order("freeze"); err == nil || !strings.Contains(output, "frozen already") {
		t.Errorf("a second freeze: %v\n%s", err, output)
	}
	for range 2 {
		if output, err := order("unfreeze"); err != nil {
			t.Errorf("unfreeze: %v\n%s", err, output)
		}
	}
	reaches(t, soon, ns, "vm/linux", frozen, "")
	count := func() int {
		output, err := ssh("cat /dev/shm/blocked")
		if err != nil {
			return -1 // a login may be held up, too
		}
		return strings.Count(output, "blocked")
	}
	eventually(t, soon, "the guest tells of a write that was held up", func() bool { return count() > 0 })

	before := count()
	if output, err := order("freeze?unfreezeTimeout=4s"); err != nil {
		t.Fatalf("freeze: %v\n%s", err, output)
	}
	eventually(t, soon, "a freeze that nobody ends is over", func() bool { return count() > before })
	reaches(t, soon, ns, "vm/linux", frozen, "")

	guest("sudo systemctl stop qemu-guest-agent")
	reaches(t, long, ns, "vm/linux", ready, "False")
	if output, err := order("freeze"); err == nil || !strings.Contains(output, "install and start qemu-guest-agent") {
		t.Errorf("freeze without an agent: %v\n%s", err, output)
	}
	if phase := field(t, ns, "vm/linux", ".status.phase"); phase != "Running" {
		t.Errorf("phase is %q without an agent", phase)
	}
	guest("sudo systemctl start qemu-guest-agent")
	reaches(t, long, ns, "vm/linux", ready, "True")
}
