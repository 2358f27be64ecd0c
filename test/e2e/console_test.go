//go:build e2e

package e2e

import (
	"strings"
	"testing"
)

// takeOver has another user open a console that is held.
func takeOver(t *testing.T, ns string, held *terminal) {
	probe := "/apis/subresources.virtualization.deckhouse.io/v1alpha2/namespaces/" + ns + "/virtualmachines/linux/console?probe=true"
	var holder string
	eventually(t, soon, "a probe names the holder", func() bool {
		holder, _ = try(t, "k", "get", "--raw", probe)
		return strings.Contains(holder, `"client":"d8"`)
	})
	t.Logf("held by %s", holder)
	output, err := feed(t, "\x1d", "v", "-n", ns, "console", "linux", "--as", "second", "--as-group", "system:masters")
	if err != nil || !strings.Contains(output, "Warning: taking over the console of linux from ") {
		t.Errorf("the second user sees %q (%v)", output, err)
	}
	held.expect(soon, "Another client took over the console of linux")
	eventually(t, soon, "the take-over is an event of the machine", func() bool {
		return strings.Contains(field(t, ns, "events", `.items[?(@.reason=="ConsoleSessionPreempted")].message`), "second took over the console from ")
	})
	eventually(t, soon, "the console is free again", func() bool {
		holder, _ := try(t, "k", "get", "--raw", probe)
		return strings.Contains(holder, `"holder":""`)
	})
}
