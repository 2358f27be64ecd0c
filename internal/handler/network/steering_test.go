package network

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

// A node that a guest has come to, or has left, must not wait for other tables.
func TestSteering(t *testing.T) {
	node := newNamespace(t)
	do(t, node,
		"ip link add uplink type veth peer name outside", "ip link set outside up", "ip link set uplink up",
		"ip addr add 192.0.2.11/24 dev uplink",
		"ip link add veth1 type veth peer name pod1", "ip link set veth1 up", "ip link set pod1 up",
		"ip route add 10.66.10.5/32 dev veth1",
		// What vm-route-forge has: the guest is on another node.
		"ip rule add to 10.66.10.0/24 pref 1490 lookup 1490", "ip route add 10.66.10.5/32 via 192.0.2.13 table 1490",
		// What an earlier handler has left behind.
		"ip rule add pref 1489 lookup 1489", "ip route add 10.66.10.9/32 via 192.0.2.13 table 1489")
	guest := netip.MustParseAddr("10.66.10.5")
	var s Steering
	in := func(act func() error) {
		t.Helper()
		if err := node.Do(act); err != nil {
			t.Fatal(err)
		}
	}
	var link int
	in(func() error {
		l, err := linkIndex("veth1")
		link = l
		return err
	})
	leads := func(want string) {
		t.Helper()
		if got := do(t, node, "ip -4 route get 10.66.10.5"); !strings.Contains(got, want) {
			t.Errorf("want %q, got %s", want, got)
		}
	}
	set := func(owner string, where Where) {
		t.Helper()
		in(func() error { return s.Set(guest, owner, where) })
	}
	in(s.Prune)
	if left := do(t, node, "ip route show table 1489"); strings.TrimSpace(left) != "" {
		t.Errorf("what an earlier handler knew is still there: %s", left)
	}
	away := Where{Via: netip.MustParseAddr("192.0.2.12")}
	leads("via 192.0.2.13")
	set("old", Where{Link: link})
	leads("dev veth1")
	set("old", away)
	leads("via 192.0.2.12")
	set("old", away)
	set("new", Where{Link: link}) // it has come back before the old pod was gone
	leads("dev veth1")
	set("old", Nowhere)
	leads("dev veth1")
	set("new", Nowhere)
	set("new", Nowhere)
	leads("via 192.0.2.13")
}

func linkIndex(name string) (int, error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return 0, err
	}
	return l.Attrs().Index, nil
}
