package cluster

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestNames(t *testing.T) {
	for _, name := range []string{"a", "orlop", "abcdefghij", "a-1"} {
		if _, err := Open(Options{Name: name, Root: t.TempDir()}); err != nil {
			t.Errorf("%q: %v", name, err)
		}
		if link := vethName(name, 210); len(link) > 15 {
			t.Errorf("link %s has %d bytes, the kernel takes 15", link, len(link))
		}
		if link := bridgeName(name); len(link) > 15 {
			t.Errorf("bridge %s has %d bytes, the kernel takes 15", link, len(link))
		}
	}
	for _, name := range []string{"", "A", "1a", "a-", "-a", "abcdefghijk", "a.b", "a/b", ".."} {
		if _, err := Open(Options{Name: name, Root: t.TempDir()}); err == nil {
			t.Errorf("%q is taken for a name", name)
		}
	}
}

func TestVethNumber(t *testing.T) {
	cases := map[string]struct {
		link string
		want int
	}{
		"the control box's":                         {"o0-dev", 0},
		"a node's":                                  {"o12-dev", 12},
		"another cluster's with the same end":       {"o1-a-dev", -1},
		"another cluster's with the same beginning": {"o1-dev2", -1},
		"somebody else's":                           {"eth0", -1},
		"somebody else's that ends like ours":       {"br-dev", -1},
		"no number":                                 {"o-dev", -1},
	}
	for name, test := range cases {
		t.Run(name, func(t *testing.T) {
			if got := vethNumber("dev", test.link); got != test.want {
				t.Errorf("vethNumber(%q) = %d, want %d", test.link, got, test.want)
			}
		})
	}
}

func TestWithoutLoopback(t *testing.T) {
	cases := map[string]struct {
		text   string
		want   string
		wantOK bool
	}{
		"an ordinary file is kept": {"# comment\nnameserver 192.0.2.53\nsearch example.org\n", "nameserver 192.0.2.53\nsearch example.org\n", true},
		"a stub is dropped":        {"nameserver 127.0.0.53\noptions edns0\n", "options edns0\n", false},
		"the server beside a stub stays": {
			"nameserver ::1\nnameserver 2001:db8::53\n", "nameserver 2001:db8::53\n", true,
		},
	}
	for name, test := range cases {
		t.Run(name, func(t *testing.T) {
			got, ok := withoutLoopback(test.text)
			if got != test.want || ok != test.wantOK {
				t.Errorf("got %q, %t; want %q, %t", got, ok, test.want, test.wantOK)
			}
		})
	}
}

func TestParseDroppingChains(t *testing.T) {
	text, err := os.ReadFile("testdata/ruleset.json")
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseDroppingChains(text)
	if err != nil {
		t.Fatal(err)
	}
	want := []nftChain{
		{Family: "ip", Table: "filter", Name: "FORWARD", Hook: "forward", Policy: "drop", rules: []nftRule{
			{Family: "ip", Table: "filter", Chain: "FORWARD", Handle: 9, Comment: "orlop-dev"},
			{Family: "ip", Table: "filter", Chain: "FORWARD", Handle: 4},
		}},
		{Family: "inet", Table: "mine", Name: "in", Hook: "input", Policy: "drop"},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(nftChain{})); diff != "" {
		t.Error(diff)
	}
}

func TestProcessRefIsOfOneProcess(t *testing.T) {
	command := exec.CommandContext(t.Context(), "sleep", "60")
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	ref, err := refer(command.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if !ref.alive() {
		t.Error("a running process is taken for dead")
	}
	other := ref
	other.Start += "0"
	if other.alive() {
		t.Error("another process with the same number is taken for ours")
	}
	ref.kill()
	deadline := time.Now().Add(5 * time.Second)
	for ref.alive() {
		if time.Now().After(deadline) {
			t.Fatal("a dead process that nobody reaped yet is taken for alive")
		}
	}
	_ = command.Wait()
}

func TestStateSurvives(t *testing.T) {
	dir := t.TempDir()
	if s, err := readState(dir); s != nil || err != nil {
		t.Fatalf("an empty directory has state %v, %v", s, err)
	}
	want := &state{
		Name: "dev", Nodes: 2, Addresses: planSlot(3), NodeCPUs: 2, Version: "v1",
		Boxes: map[string]processRef{"dev-1": {PID: 5, Start: "100", Boot: "b"}}, Kubeconfigs: []string{"/x"},
	}
	if err := want.write(dir); err != nil {
		t.Fatal(err)
	}
	got, err := readState(dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"dev-control", "dev-1", "dev-2"}, got.boxNames()); diff != "" {
		t.Error(diff)
	}
}

func TestCertificates(t *testing.T) {
	dir, now := t.TempDir(), time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	ca, err := openAuthority(dir, "ca", now)
	if err != nil {
		t.Fatal(err)
	}
	again, err := openAuthority(dir, "ca", now.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if !again.certificate.Equal(ca.certificate) {
		t.Error("the authority changes when it is opened again")
	}
	leaf := subject{name: "system:node:a", groups: []string{"system:nodes"}, client: true, addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}
	base := filepath.Join(dir, "leaf")
	read := func() string {
		text, err := os.ReadFile(base + ".crt")
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	issue := func(s subject, at time.Time) string {
		if err := ca.issue(base, s, at); err != nil {
			t.Fatal(err)
		}
		return read()
	}
	first := issue(leaf, now)
	if issue(leaf, now.Add(300*24*time.Hour)) != first {
		t.Error("a certificate with enough life is issued again")
	}
	if issue(leaf, now.Add(310*24*time.Hour)) == first {
		t.Error("a certificate near its end is kept")
	}
	second := read()
	leaf.addresses = []netip.Addr{netip.MustParseAddr("192.0.2.2")}
	if issue(leaf, now.Add(310*24*time.Hour)) == second {
		t.Error("a certificate for another address is kept")
	}
	third := read()
	if err := os.WriteFile(base+".key", []byte("cut"), 0o600); err != nil {
		t.Fatal(err)
	}
	if issue(leaf, now.Add(310*24*time.Hour)) == third {
		t.Error("a certificate without its key is kept")
	}
}
