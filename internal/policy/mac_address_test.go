package policy

import (
	"fmt"
	"strings"
	"testing"
)

func TestMACAddress(t *testing.T) {
	cases := map[string]struct{ text, want string }{
		"as the kernel writes it":      {"5e:e6:19:22:0f:d8", "5e:e6:19:22:0f:d8"},
		"as Windows writes it":         {"5E-E6-19-22-0F-D8", "5e:e6:19:22:0f:d8"},
		"a group address":              {"01:00:5e:00:00:01", ""},
		"everybody":                    {"ff:ff:ff:ff:ff:ff", ""},
		"nothing":                      {"00:00:00:00:00:00", ""},
		"eight bytes":                  {"02:00:5e:10:00:00:00:01", ""},
		"a name":                       {"router", ""},
		"no separators":                {"5ee619220fd8", "5e:e6:19:22:0f:d8"},
		"as Cisco writes it":           {"5ee6.1922.0fd8", "5e:e6:19:22:0f:d8"},
		"a vendor's address is usable": {"00:16:3e:01:02:03", "00:16:3e:01:02:03"},
	}
	for name, c := range cases {
		got, ok := MACAddress(c.text)
		if got != c.want || ok != (c.want != "") {
			t.Errorf("%s: got %q %v, want %q", name, got, ok, c.want)
		}
	}
}

func TestMACLeaseName(t *testing.T) {
	if got := MACLeaseName("5e:e6:19:22:0f:d8"); got != "mac-5e-e6-19-22-0f-d8" {
		t.Errorf("lease name %q", got)
	}
	if got, ok := LeasedMAC("mac-5e-e6-19-22-0f-d8"); !ok || got != "5e:e6:19:22:0f:d8" {
		t.Errorf("address %q %v", got, ok)
	}
	for _, bad := range []string{"", "5e-e6-19-22-0f-d8", "mac-5ee6.1922.0fd8", "mac-5e-e6-19-22-0f", "mac-01-00-5e-00-00-01"} {
		if _, ok := LeasedMAC(bad); ok {
			t.Errorf("%q is taken for a lease name", bad)
		}
	}
}

func TestGeneratedMAC(t *testing.T) {
	prefixes := map[string]bool{}
	for n := range 2000 {
		got := GeneratedMAC(fmt.Sprint("cluster-", n), [3]byte{0x0a, 0xff, 3})
		if !strings.HasSuffix(got, ":0a:ff:03") || !strings.ContainsRune("26ae", rune(got[1])) || strings.HasPrefix(got, "02:00:") {
			t.Fatalf("cluster %d: %s", n, got)
		}
		if clean, ok := MACAddress(got); !ok || clean != got {
			t.Fatalf("%s is no address", got)
		}
		prefixes[got[:8]] = true
	}
	if len(prefixes) < 1900 {
		t.Errorf("2000 clusters share %d prefixes", len(prefixes))
	}
}
