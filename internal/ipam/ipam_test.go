package ipam

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	cniversion "github.com/containernetworking/cni/pkg/version"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// TestMain lets the test binary be the plugin itself: real CNI plugins find it
// under its own name.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "vm-ipam" {
		skel.PluginMainFuncs(Functions(), cniversion.PluginSupports("1.0.0", "1.1.0"), "vm-ipam")
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestAnnotated(t *testing.T) {
	cases := map[string]struct {
		annotations map[string]string
		want        string
		wantErr     string
	}{
		"an ordinary pod asks for nothing":                       {},
		"a machine's pod names its lease":                        {annotations: map[string]string{AddressAnnotation: "10.66.10.5"}, want: "10.66.10.5"},
		"text is refused":                                        {annotations: map[string]string{AddressAnnotation: "five"}, wantErr: "not a unicast IPv4 address"},
		"an empty value is refused rather than taken for none":   {annotations: map[string]string{AddressAnnotation: ""}, wantErr: "not a unicast IPv4 address"},
		"loopback would cut the pod from itself":                 {annotations: map[string]string{AddressAnnotation: "127.0.0.2"}, wantErr: "not a unicast IPv4 address"},
		"an address of the pod range would collide with a pod's": {annotations: map[string]string{AddressAnnotation: "10.244.1.7"}, wantErr: "ordinary pods"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			conf, err := parse(stdin(t, t.TempDir(), "ADD", c.annotations))
			if err != nil {
				t.Fatal(err)
			}
			got, err := conf.annotated()
			if c.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), c.wantErr) {
					t.Fatalf("error %v, want one with %q", err, c.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want, _ := netip.ParseAddr(c.want)
			if got != want {
				t.Errorf("address %v, want %v", got, want)
			}
		})
	}
}

func TestGatewayIsTheDelegates(t *testing.T) {
	cases := map[string]struct{ ipam, want string }{
		"first address of the subnet":        {`{"delegate":{"type":"x","ranges":[[{"subnet":"10.244.3.0/24"}]]}}`, "10.244.3.1"},
		"old form with a bare subnet":        {`{"delegate":{"type":"x","subnet":"10.244.3.0/24"}}`, "10.244.3.1"},
		"IPv6 ranges are passed over":        {`{"delegate":{"type":"x","ranges":[[{"subnet":"fd00::/64"}],[{"subnet":"10.1.0.0/16"}]]}}`, "10.1.0.1"},
		"the range's own gateway":            {`{"delegate":{"type":"x","ranges":[[{"subnet":"10.1.0.0/16","gateway":"10.1.0.9"}]]}}`, "10.1.0.9"},
		"an explicit gateway wins over both": {`{"gateway":"10.9.9.9","delegate":{"type":"x","subnet":"10.1.0.0/16"}}`, "10.9.9.9"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			conf, err := parse([]byte(`{"name":"n","cniVersion":"1.0.0","ipam":` + c.ipam + `}`))
			if err != nil {
				t.Fatal(err)
			}
			if got := conf.IPAM.Gateway.String(); got != c.want {
				t.Errorf("gateway %s, want %s", got, c.want)
			}
		})
	}
}

func TestStoreKeepsTheFirstAddressOfAnAttachment(t *testing.T) {
	conf := &config{}
	conf.Name, conf.IPAM.DataDir = "pods", t.TempDir()
	a, b := attachment{"c1", "eth0"}, attachment{"c2", "eth0"}
	five, six := netip.MustParseAddr("10.66.10.5"), netip.MustParseAddr("10.66.10.6")
	err := withStore(conf, func(s *store) error {
		for _, addr := range []netip.Addr{five, six} {
			if got, err := s.claim(a, addr); err != nil || got != five {
				t.Errorf("claim(%v) = %v, %v; want %v", addr, got, err, five)
			}
		}
		if _, err := s.claim(b, six); err != nil {
			t.Error(err)
		}
		if err := s.prune(map[attachment]bool{a: true}); err != nil {
			t.Error(err)
		}
		if _, known, _ := s.lookup(b); known {
			t.Error("prune kept an attachment that is gone")
		}
		if err := os.WriteFile(filepath.Join(s.dir, b.file()), []byte(`{"addr`), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, known, err := s.lookup(b); known || err != nil {
			t.Errorf("a torn record reads as known=%v err=%v; want neither", known, err)
		}
		for want, times := true, 0; times < 2; want, times = false, times+1 {
			if known, err := s.release(a); err != nil || known != want {
				t.Errorf("release no. %d = %v, %v; want %v", times+1, known, err, want)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestWithRealPlugins runs ptp and host-local from the embedded build around this
// plugin, in real network namespaces: "node" and one per pod.
func TestWithRealPlugins(t *testing.T) {
	bin := pluginDir(t)
	data := t.TempDir()
	node, vm, plain := namespace(t, "node"), namespace(t, "vm"), namespace(t, "plain")
	annotated := map[string]string{AddressAnnotation: "10.66.10.5"}

	run := func(command, container, ns string, annotations map[string]string) []byte {
		t.Helper()
		in := stdin(t, data, command, annotations)
		cmd := exec.Command("nsenter", "--net=/run/netns/"+node, filepath.Join(bin, "ptp"))
		cmd.Env = []string{"CNI_COMMAND=" + command, "CNI_CONTAINERID=" + container, "CNI_NETNS=/run/netns/" + ns,
			"CNI_IFNAME=eth0", "CNI_PATH=" + bin, "PATH=" + os.Getenv("PATH")}
		cmd.Stdin = bytes.NewReader(in)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s of %s: %v\n%s", command, container, err, out)
		}
		return out
	}

	run("STATUS", "", "", nil)
	vmResult := run("ADD", "c1", vm, annotated)
	run("ADD", "c2", plain, nil)
	var got types100.Result
	if err := json.Unmarshal(vmResult, &got); err != nil {
		t.Fatalf("decode %s: %v", vmResult, err)
	}
	if diff := cmp.Diff("10.66.10.5/31", got.IPs[0].Address.String()); diff != "" {
		t.Errorf("address of the machine's pod (-want +got):\n%s", diff)
	}
	reach(t, vm, "10.244.1.1")
	reach(t, vm, "10.244.1.2")
	reach(t, plain, "10.66.10.5")
	reach(t, node, "10.66.10.5")
	if routes := output(t, "nsenter", "--net=/run/netns/"+node, "ip", "route", "show", "10.66.10.5"); !strings.HasPrefix(routes, "10.66.10.5 dev veth") {
		t.Errorf("node has no route to the pod: %q", routes)
	}
	// Twice, and once for a container nobody has heard of: DEL must never fail.
	run("DEL", "c1", vm, annotated)
	run("DEL", "c1", vm, annotated)
	run("DEL", "c2", plain, nil)
	run("DEL", "c9", plain, annotated)
	if left, _ := filepath.Glob(filepath.Join(data, "vm-ipam", "pods", "*.json")); len(left) != 0 {
		t.Errorf("records left behind: %v", left)
	}
	if left, _ := filepath.Glob(filepath.Join(data, "host-local", "pods", "10.*")); len(left) != 0 {
		t.Errorf("delegate's addresses left behind: %v", left)
	}
}

func stdin(t *testing.T, data, command string, annotations map[string]string) []byte {
	t.Helper()
	whole := map[string]any{
		"name": "pods", "cniVersion": "1.1.0", "type": "ptp",
		"ipam": map[string]any{
			"type": "vm-ipam", "dataDir": filepath.Join(data, "vm-ipam"),
			"delegate": map[string]any{
				"type": "host-local", "dataDir": filepath.Join(data, "host-local"),
				"ranges": [][]map[string]string{{{"subnet": "10.244.1.0/24"}}},
				"routes": []map[string]string{{"dst": "0.0.0.0/0"}},
			},
		},
	}
	if command != "STATUS" {
		whole["runtimeConfig"] = map[string]any{"io.kubernetes.cri.pod-annotations": annotations}
	}
	out, err := json.Marshal(whole)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// pluginDir links the embedded plugins and this test binary under the
// names CNI looks for.
func pluginDir(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	cni, err := filepath.Abs("../../bin/embedded/cni")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(cni, "ptp")); err != nil {
		t.Skipf("needs the embedded CNI plugins (make build): %v", err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, target := range map[string]string{
		"ptp": filepath.Join(cni, "ptp"), "host-local": filepath.Join(cni, "host-local"), "vm-ipam": self} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// namespace makes a named network namespace with loopback up.
func namespace(t *testing.T, role string) string {
	t.Helper()
	name := fmt.Sprintf("ipam-%d-%s", os.Getpid(), role)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	ns, err := netns.NewNamed(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close(); _ = netns.DeleteNamed(name) })
	defer func() { _ = netns.Set(home) }()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	return name
}

// reach proves that addr answers from within ns: a port nobody listens on is
// refused by the other end, which an unreachable address cannot do.
func reach(t *testing.T, ns, addr string) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	there, err := netns.GetFromName(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	if err := netns.Set(there); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = netns.Set(home) }()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	err = unix.Connect(fd, &unix.SockaddrInet4{Port: 9, Addr: netip.MustParseAddr(addr).As4()})
	if !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("%s from %s: %v, want a refusal by its kernel", addr, ns, err)
	}
}

func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Errorf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}
