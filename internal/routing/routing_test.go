package routing

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"orlop.dev/orlop/api/instance/v1alpha1"
)

var (
	vm5     = netip.MustParseAddr("10.66.10.5")
	nodeA   = netip.MustParseAddr("192.168.100.11")
	nodeB   = netip.MustParseAddr("192.168.100.12")
	vmRange = netip.MustParsePrefix("10.66.10.0/24")
	byValue = []cmp.Option{
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	}
)

func TestDesired(t *testing.T) {
	nodes := map[string]netip.Addr{"a": nodeA, "b": nodeB}
	early, late := time.Unix(1, 0), time.Unix(2, 0)
	cases := map[string]struct {
		places []place
		want   map[netip.Addr]netip.Addr
	}{
		"a machine on another node has a route":            {[]place{{vm5, "b", v1alpha1.InstanceRunning, early, false}}, map[netip.Addr]netip.Addr{vm5: nodeB}},
		"a machine here is left to the CNI's route":        {[]place{{vm5, "a", v1alpha1.InstanceRunning, early, false}}, nil},
		"a starting machine can already be reached":        {[]place{{vm5, "b", v1alpha1.InstanceStarting, early, false}}, map[netip.Addr]netip.Addr{vm5: nodeB}},
		"a stopped one has none":                           {[]place{{vm5, "b", v1alpha1.InstanceStopped, early, false}}, nil},
		"one that has not begun has none":                  {[]place{{vm5, "b", v1alpha1.InstancePending, early, false}}, nil},
		"a node that is unknown gets none":                 {[]place{{vm5, "c", v1alpha1.InstanceRunning, early, false}}, nil},
		"an address outside the ranges is none of ours":    {[]place{{netip.MustParseAddr("10.67.0.1"), "b", v1alpha1.InstanceRunning, early, false}}, nil},
		"while a migration prepares, the source has it":    {[]place{{vm5, "a", v1alpha1.InstanceStarting, late, false}, {vm5, "b", v1alpha1.InstanceRunning, early, false}}, map[netip.Addr]netip.Addr{vm5: nodeB}},
		"the end of the predecessor does not take it away": {[]place{{vm5, "b", v1alpha1.InstanceRunning, late, false}, {vm5, "a", v1alpha1.InstanceStopped, early, false}}, map[netip.Addr]netip.Addr{vm5: nodeB}},
		"a guest that has left is where it goes on":        {[]place{{vm5, "a", v1alpha1.InstancePaused, early, true}, {vm5, "b", v1alpha1.InstanceStarting, late, false}}, map[netip.Addr]netip.Addr{vm5: nodeB}},
		"even if it has to stand still there":              {[]place{{vm5, "a", v1alpha1.InstancePaused, early, true}, {vm5, "b", v1alpha1.InstancePaused, late, false}}, map[netip.Addr]netip.Addr{vm5: nodeB}},
		"between two equals the elder has it":              {[]place{{vm5, "a", v1alpha1.InstanceStarting, late, false}, {vm5, "b", v1alpha1.InstanceStarting, early, false}}, map[netip.Addr]netip.Addr{vm5: nodeB}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if c.want == nil {
				c.want = map[netip.Addr]netip.Addr{}
			}
			got := desired("a", nodes, c.places, []netip.Prefix{vmRange, netip.MustParsePrefix("10.66.10.9/24")})
			want := State{Routes: c.want, Ranges: []netip.Prefix{vmRange}}
			if diff := cmp.Diff(want, got, byValue...); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestTableInTheKernel works in a network namespace of its own thread.
func TestTableInTheKernel(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root for a network namespace")
	}
	// The thread is not unlocked: it ends with the test, and the namespace with it.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	sh(t, "ip link set lo up; ip link add uplink type veth peer name other; ip addr add 192.168.100.1/24 dev uplink; ip link set uplink up; ip link set other up")
	// What an earlier life, or somebody else, has left behind.
	sh(t, "ip route add 10.66.10.99/32 via 192.168.100.12 table 1490; ip route add 10.1.0.0/16 dev uplink table 1490; ip rule add to 10.99.0.0/16 pref 1490 lookup 1490")

	six := netip.MustParseAddr("10.66.10.6")
	steps := []struct {
		why    string
		before string
		want   State
		forget bool
	}{
		{why: "prune at the start", want: State{Routes: map[netip.Addr]netip.Addr{vm5: nodeA, six: nodeA}, Ranges: []netip.Prefix{vmRange}}},
		{why: "nothing to do", want: State{Routes: map[netip.Addr]netip.Addr{vm5: nodeA, six: nodeA}, Ranges: []netip.Prefix{vmRange}}},
		{why: "a machine moves, another ends", want: State{Routes: map[netip.Addr]netip.Addr{vm5: nodeB}, Ranges: []netip.Prefix{vmRange}}},
		{why: "somebody deletes a route and the rule", before: "ip route flush table 1490; ip rule del pref 1490", forget: true,
			want: State{Routes: map[netip.Addr]netip.Addr{vm5: nodeB}, Ranges: []netip.Prefix{vmRange}}},
		{why: "other ranges", want: State{Routes: map[netip.Addr]netip.Addr{}, Ranges: []netip.Prefix{netip.MustParsePrefix("10.67.0.0/16")}}},
	}
	var table Table
	for _, s := range steps {
		sh(t, s.before)
		if s.forget {
			table.Forget()
		}
		if err := table.Apply(s.want); err != nil {
			t.Fatalf("%s: %v", s.why, err)
		}
		var got Table
		if err := got.read(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(s.want, State{Routes: got.routes, Ranges: got.ranges}, byValue...); diff != "" {
			t.Errorf("%s: %s", s.why, diff)
		}
	}
	if rules := sh(t, "ip rule"); !strings.Contains(rules, "1490:\tfrom all to 10.67.0.0/16 lookup 1490") {
		t.Errorf("rules are:\n%s", rules)
	}
	// One that the kernel refuses must not keep out the others.
	err := table.Apply(State{Routes: map[netip.Addr]netip.Addr{vm5: netip.MustParseAddr("203.0.113.1"), six: nodeA}})
	if err == nil {
		t.Error("a next hop on no link was accepted")
	}
	if routes := sh(t, "ip route show table 1490"); !strings.Contains(routes, "10.66.10.6 via 192.168.100.11") {
		t.Errorf("routes are:\n%s", routes)
	}
}

func sh(t *testing.T, script string) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", script).CombinedOutput()
	if err != nil {
		t.Fatal(fmt.Errorf("%s: %w\n%s", script, err, out))
	}
	return string(out)
}
