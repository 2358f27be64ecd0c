package plan

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"orlop.dev/orlop/internal/testkit"
)

func TestAddressAnnotations(t *testing.T) {
	want := map[string]string{
		"internal.virtualization.deckhouse.io/ip-address": "10.66.10.4",
		"cni.cilium.io/ipAddress":                         "10.66.10.4",
		"cni.projectcalico.org/ipAddrs":                   `["10.66.10.4"]`,
		"ovn.kubernetes.io/ip_address":                    "10.66.10.4",
	}
	if diff := cmp.Diff(want, addressAnnotations("10.66.10.4")); diff != "" {
		t.Error(diff)
	}
	if got := addressAnnotations(""); len(got) > 0 {
		t.Errorf("a pod without an address is annotated with %v", got)
	}
}

// Whatever can choose a pod's address, a user may neither give to a machine nor to a pod.
func TestAddressAnnotationsAreKeptFromUsers(t *testing.T) {
	root, err := testkit.Root()
	if err != nil {
		t.Fatal(err)
	}
	policies, err := os.ReadFile(filepath.Join(root, "charts", "virtualization", "templates", "policies.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range AddressAnnotationKeys() {
		if !Reserved(key) {
			t.Errorf("%s is copied from a machine to its pod", key)
		}
		if !strings.Contains(string(policies), `"`+key+`"`) {
			t.Errorf("no policy protects %s", key)
		}
	}
	for _, key := range []string{"cni.projectcalico.org/ipAddrsNoIpam", "cni.projectcalico.org/floatingIPs", "ovn.kubernetes.io/ip_pool",
		"ovn.kubernetes.io/logical_switch", "ovn.kubernetes.io/mac_address", "ipam.antrea.io/pod-ips", "ipam.spidernet.io/ippool",
		"ipam.cilium.io/ip-pool", "k8s.v1.cni.cncf.io/networks", "network.deckhouse.io/networks-spec"} {
		if !Reserved(key) {
			t.Errorf("%s is copied from a machine to its pod", key)
		}
	}
}
