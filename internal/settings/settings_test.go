package settings

import (
	"flag"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	deckhousev1alpha1 "orlop.dev/orlop/api/deckhouse/v1alpha1"
)

const usual = `{"virtualMachineCIDRs":["10.66.10.0/24","10.66.20.0/24"],"dvcr":{"storage":{"type":"PersistentVolumeClaim","persistentVolumeClaim":{"size":"50G","storageClassName":"shared"}}},"virtualDisks":{"defaultStorageClassName":"local","allowedStorageClassSelector":{"matchNames":["local","shared"]}}}`

func config(settings string) *deckhousev1alpha1.ModuleConfig {
	enabled := true
	return &deckhousev1alpha1.ModuleConfig{
		ObjectMeta: metav1.ObjectMeta{Name: Name},
		Spec:       deckhousev1alpha1.ModuleConfigSpec{Enabled: &enabled, Version: Version, Settings: &runtime.RawExtension{Raw: []byte(settings)}},
	}
}

func TestParse(t *testing.T) {
	mc := config(usual)
	mc.Annotations = map[string]string{"virtualization.deckhouse.io/allow-emulation": "true"}
	got, err := Parse(mc)
	if err != nil {
		t.Fatal(err)
	}
	if !got.Enabled || !got.AllowEmulation || got.LogLevel != "info" || got.DVCR.GCSchedule != "0 2 * * *" || got.DVCR.Size.String() != "50G" {
		t.Errorf("Parse() = %+v", got)
	}
	want := []netip.Prefix{netip.MustParsePrefix("10.66.10.0/24"), netip.MustParsePrefix("10.66.20.0/24")}
	if diff := cmp.Diff(want, got.VirtualMachineCIDRs, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if !got.VirtualDisks.Allows("shared") || got.VirtualDisks.Allows("other") || !got.VirtualImages.Allows("other") {
		t.Errorf("allowed classes are wrong: %+v", got.VirtualDisks)
	}
	if _, ok := got.CIDROf(netip.MustParseAddr("10.66.30.1")); ok {
		t.Error("an address outside every range was found in one")
	}
}

func TestParseRefuses(t *testing.T) {
	dvcr := `"dvcr":{"storage":{"persistentVolumeClaim":{"size":"50G"}}}`
	tests := map[string]struct{ settings, want string }{
		"an unknown field, since it is most likely misspelt": {`{"virtualMachineCidr":[],` + dvcr + `}`, "virtualMachineCidr"},
		"no registry":                          {`{}`, "dvcr: is required"},
		"a registry without a size":            {`{"dvcr":{"storage":{"persistentVolumeClaim":{}}}}`, "dvcr.storage.persistentVolumeClaim.size"},
		"a registry elsewhere":                 {`{"dvcr":{"storage":{"type":"ObjectStorage","persistentVolumeClaim":{"size":"1G"}}}}`, "dvcr.storage.type"},
		"something that is no range":           {`{"virtualMachineCIDRs":["10.66.10.0"],` + dvcr + `}`, "virtualMachineCIDRs[0]"},
		"a range that is not aligned":          {`{"virtualMachineCIDRs":["10.66.10.7/24"],` + dvcr + `}`, "use 10.66.10.0/24"},
		"an IPv6 range":                        {`{"virtualMachineCIDRs":["fd00::/64"],` + dvcr + `}`, "not an IPv4 range"},
		"a range without room":                 {`{"virtualMachineCIDRs":["10.66.10.0/31"],` + dvcr + `}`, "no room"},
		"ranges that overlap":                  {`{"virtualMachineCIDRs":["10.66.0.0/16","10.66.10.0/24"],` + dvcr + `}`, "overlaps with virtualMachineCIDRs[0]"},
		"a default class that is not allowed":  {`{"virtualDisks":{"defaultStorageClassName":"a","allowedStorageClassSelector":{"matchNames":["b"]}},` + dvcr + `}`, "not among the allowed"},
		"an empty list of allowed classes":     {`{"virtualImages":{"allowedStorageClassSelector":{"matchNames":[]}},` + dvcr + `}`, "at least one name"},
		"an unknown log level":                 {`{"logLevel":"loud",` + dvcr + `}`, "logLevel"},
		"audit, which does not exist yet":      {`{"audit":{"enabled":true},` + dvcr + `}`, "not supported"},
		"a network for migration":              {`{"liveMigration":{"network":{"type":"SystemNetwork","systemNetwork":{"name":"x"}}},` + dvcr + `}`, "not supported"},
		"a feature gate that does nothing yet": {`{"featureGates":["GPU"],` + dvcr + `}`, "not available"},
		"a feature gate that does not exist":   {`{"featureGates":["Wings"],` + dvcr + `}`, "not a feature gate"},
		"a schedule that is none":              {`{"dvcr":{"storage":{"persistentVolumeClaim":{"size":"50G"}},"gc":{"schedule":"daily"}}}`, "dvcr.gc.schedule"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := Parse(config(test.settings))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("Parse() error = %v, want one with %q", err, test.want)
			}
		})
	}
	other := config(usual)
	other.Spec.Version = 2
	if _, err := Parse(other); err == nil {
		t.Error("an unknown version of the settings was accepted")
	}
}

func TestParseAccepts(t *testing.T) {
	tests := map[string]string{
		"settings that only matter for uploads":         `{"ingressClass":"nginx","https":{"mode":"CertManager"},"gatewayAPIGateway":{"name":"a","namespace":"b"},"dvcr":{"storage":{"persistentVolumeClaim":{"size":"50G"}}}}`,
		"an empty migration network":                    `{"liveMigration":{"network":{}},"dvcr":{"storage":{"persistentVolumeClaim":{"size":"50G"}}}}`,
		"no ranges: machines have no Main network then": `{"dvcr":{"storage":{"persistentVolumeClaim":{"size":"50G"}}}}`,
	}
	for name, settings := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := Parse(config(settings)); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestValidate(t *testing.T) {
	platform := Platform{NodeCIDRs: []string{"172.16.0.0/24"}, PodCIDR: "10.111.0.0/16", ServiceCIDR: "10.222.0.0/16"}
	with := func(cidr, size, class string) *deckhousev1alpha1.ModuleConfig {
		return config(`{"virtualMachineCIDRs":["` + cidr + `"],"dvcr":{"storage":{"persistentVolumeClaim":{"size":"` + size + `","storageClassName":"` + class + `"}}}}`)
	}
	former := with("10.66.10.0/24", "50G", "shared")
	tests := map[string]struct {
		config *deckhousev1alpha1.ModuleConfig
		around Surroundings
		want   string
	}{
		"the same again":                           {former, Surroundings{DVCRClaim: true, Leases: []netip.Addr{netip.MustParseAddr("10.66.10.9")}}, ""},
		"a range of pods":                          {with("10.111.4.0/24", "50G", "shared"), Surroundings{}, "range of pods"},
		"a range of services":                      {with("10.222.0.0/24", "50G", "shared"), Surroundings{}, "range of services"},
		"a range of nodes":                         {with("172.16.0.0/16", "50G", "shared"), Surroundings{}, "range of nodes"},
		"a node's address":                         {former, Surroundings{NodeAddresses: []netip.Addr{netip.MustParseAddr("10.66.10.1")}}, "address of a node"},
		"a range with leases cannot be taken away": {with("10.77.0.0/24", "50G", "shared"), Surroundings{Leases: []netip.Addr{netip.MustParseAddr("10.66.10.9")}}, "broadcast address: 10.66.10.9"},
		"a range without its leased end":           {with("10.66.10.0/29", "50G", "shared"), Surroundings{Leases: []netip.Addr{netip.MustParseAddr("10.66.10.7")}}, "broadcast address: 10.66.10.7"},
		"many leased addresses":                    {with("10.77.0.0/24", "50G", "shared"), Surroundings{Leases: addresses("10.66.10.9", 8)}, "10.66.10.9, 10.66.10.10, 10.66.10.11, 10.66.10.12, 10.66.10.13 and 3 more"},
		"the pods of a node":                       {former, Surroundings{PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.66.10.128/25")}}, "range of pods of a node (10.66.10.128/25)"},
		"a single address":                         {with("10.66.10.7/32", "50G", "shared"), Surroundings{Leases: []netip.Addr{netip.MustParseAddr("10.66.10.7")}}, ""},
		"a larger registry":                        {with("10.66.10.0/24", "60G", "shared"), Surroundings{DVCRClaim: true}, ""},
		"a smaller registry":                       {with("10.66.10.0/24", "40G", "shared"), Surroundings{}, "cannot shrink"},
		"another class for an existing registry":   {with("10.66.10.0/24", "50G", "local"), Surroundings{DVCRClaim: true}, "cannot change"},
		"another class before there is a volume":   {with("10.66.10.0/24", "50G", "local"), Surroundings{}, ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			test.around.Platform = platform
			err := Validate(former, test.config, test.around)
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("Validate() = %v, want %q", err, test.want)
			}
		})
	}
	if err := Validate(config(`{"nonsense":1}`), former, Surroundings{Platform: platform}); err != nil {
		t.Errorf("an unreadable former configuration forbids its repair: %v", err)
	}
}

func TestPlatformFlags(t *testing.T) {
	var platform Platform
	set := flag.NewFlagSet("", flag.ContinueOnError)
	platform.Flags(set)
	if err := set.Parse([]string{"--launcher-image=a", "--cluster-dns=10.0.0.10, 10.0.0.11", "--node-cidrs=172.16.0.0/24"}); err != nil {
		t.Fatal(err)
	}
	want := Platform{Namespace: "d8-virtualization", LauncherImage: "a", DVCRHost: "dvcr.d8-virtualization.svc:5000", NodeCIDRs: []string{"172.16.0.0/24"}, ClusterDomain: "cluster.local", ClusterDNS: []string{"10.0.0.10", "10.0.0.11"}}
	if diff := cmp.Diff(want, platform); diff != "" {
		t.Error(diff)
	}
}

// addresses are n addresses in a row, the last first.
func addresses(first string, n int) []netip.Addr {
	list := make([]netip.Addr, n)
	a := netip.MustParseAddr(first)
	for i := range list {
		list[n-1-i] = a
		a = a.Next()
	}
	return list
}

func TestDeferred(t *testing.T) {
	const former = `{"dvcr":{"storage":{"type":"PersistentVolumeClaim","persistentVolumeClaim":{"size":"50G"}}}}`
	cases := map[string]struct {
		settings string
		want     string
	}{
		"nothing was changed":             {former, ""},
		"the same size in other words":    {`{"dvcr":{"storage":{"type":"PersistentVolumeClaim","persistentVolumeClaim":{"size":"50000M"}}}}`, ""},
		"what acts at once is not named":  {strings.Replace(former, "{", `{"virtualMachineCIDRs":["10.66.10.0/24"],`, 1), ""},
		"what the chart writes has to be": {strings.Replace(former, "{", `{"logLevel":"debug","logFormat":"json","highAvailability":true,`, 1), "logLevel logFormat highAvailability"},
		"so has the size of the registry": {strings.Replace(former, "50G", "60G", 1), "dvcr.storage"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := strings.Join(Deferred(config(former), config(c.settings)), " "); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}
