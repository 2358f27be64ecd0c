package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// The host's side of a cluster's network: one bridge, one veth pair for each box,
// routes to what is in the boxes, one nft table. Names carry the cluster's name, so
// that down finds them without any record; interface names have at most 15 bytes.
func bridgeName(cluster string) string      { return "orl-" + cluster }
func vethName(cluster string, n int) string { return "o" + strconv.Itoa(n) + "-" + cluster }
func tableName(cluster string) string       { return "orlop-" + cluster }
func boxInterface() string                  { return "eth0" }
func vethPattern(cluster, link string) bool { return vethNumber(cluster, link) >= 0 }

// vethNumber returns the box number of a host-side veth, -1 if it is none of ours.
func vethNumber(cluster, link string) int {
	number, ok := strings.CutSuffix(link, "-"+cluster)
	if !ok || !strings.HasPrefix(number, "o") {
		return -1
	}
	n, err := strconv.Atoi(number[1:])
	if err != nil || n < 0 {
		return -1
	}
	return n
}

// usedRanges lists what the host reaches without its default route.
func usedRanges() ([]netip.Prefix, error) {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var used []netip.Prefix
	for _, route := range routes {
		if route.Dst == nil {
			continue
		}
		address, ok := netip.AddrFromSlice(route.Dst.IP.To4())
		bits, _ := route.Dst.Mask.Size()
		if ok && bits > 0 {
			used = append(used, netip.PrefixFrom(address, bits).Masked())
		}
	}
	return used, nil
}

// uplinkMTU is the MTU of the host's default route: a box with a larger one would
// send packets that vanish on the way out.
func uplinkMTU() int {
	routes, err := netlink.RouteGet(net.IPv4(192, 0, 2, 255))
	if defaults, listErr := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{}, netlink.RT_FILTER_DST); listErr == nil && len(defaults) > 0 {
		routes, err = defaults, nil
	}
	if err != nil || len(routes) == 0 {
		return 1500
	}
	link, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil || link.Attrs().MTU < 1280 || link.Attrs().MTU > 1500 {
		return 1500
	}
	return link.Attrs().MTU
}

// ensureBridge makes the cluster's bridge with the host's address on it.
func ensureBridge(cluster string, plan Addresses, mtu int) (netlink.Link, error) {
	name := bridgeName(cluster)
	link, err := netlink.LinkByName(name)
	if err != nil {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.HardwareAddr = name, mtu, hardwareAddress(plan.gateway())
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return nil, fmt.Errorf("create bridge %s: %w", name, err)
		}
		if link, err = netlink.LinkByName(name); err != nil {
			return nil, fmt.Errorf("find bridge %s: %w", name, err)
		}
	}
	// The host sends packets for VM addresses back over the link they came from.
	if err := hostSettings.set("net/ipv4/conf/"+name+"/send_redirects", "0"); err != nil {
		return nil, err
	}
	if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(plan.gateway(), plan.Nodes.Bits()))}); err != nil {
		return nil, fmt.Errorf("give bridge %s its address: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("set bridge %s up: %w", name, err)
	}
	return link, nil
}

// route is one wanted route; without a gateway it refuses.
type route struct {
	to  netip.Prefix
	via netip.Addr
}

// hostRoutes are the routes to the cluster's insides from the host and the control
// box: pods on their nodes; services and VM addresses through node 1, which knows
// where they are.
func hostRoutes(plan Addresses, nodes int) []route {
	routes := podRoutes(plan, nodes, 0)
	return append(routes, route{plan.Services, plan.node(1)}, route{plan.VMs, plan.node(1)})
}

// nodeRoutes are those of node n. A VM address that the routing table of
// vm-route-forge does not know goes nowhere; without the last route it would travel in a circle.
func nodeRoutes(plan Addresses, nodes, n int) []route {
	return append(podRoutes(plan, nodes, n), route{to: plan.VMs})
}

// podRoutes lead to the pods of all nodes but one.
func podRoutes(plan Addresses, nodes, but int) []route {
	var routes []route
	for n := 1; n <= nodes; n++ {
		if n != but {
			routes = append(routes, route{plan.podsOf(n), plan.node(n)})
		}
	}
	return routes
}

// setRoutes makes the wanted routes exist.
func setRoutes(handle *netlink.Handle, link netlink.Link, routes []route) error {
	for _, r := range routes {
		wanted := &netlink.Route{Dst: ipNet(r.to)}
		if r.via.IsValid() {
			wanted.Gw, wanted.LinkIndex = r.via.AsSlice(), link.Attrs().Index
		} else {
			wanted.Type, wanted.Priority = unix.RTN_UNREACHABLE, 1<<20
		}
		if err := handle.RouteReplace(wanted); err != nil {
			return fmt.Errorf("set route to %s: %w", r.to, err)
		}
	}
	return nil
}

// boxLink describes the network of one box.
type boxLink struct {
	cluster string
	number  int // 0 is the control box
	pid     int
	mtu     int
	plan    Addresses
	nodes   int
}

func (b boxLink) address() netip.Addr {
	if b.number == 0 {
		return b.plan.control()
	}
	return b.plan.node(b.number)
}

func (b boxLink) routes() []route {
	if b.number == 0 {
		return hostRoutes(b.plan, b.nodes)
	}
	return nodeRoutes(b.plan, b.nodes, b.number)
}

// connect gives a box its link, address and routes, or brings them up to date.
func (b boxLink) connect(bridge netlink.Link) error {
	namespace, err := netns.GetFromPid(b.pid)
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer namespace.Close()
	handle, err := netlink.NewHandleAt(namespace)
	if err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	defer handle.Close()

	link, err := handle.LinkByName(boxInterface())
	if err != nil {
		if err := b.plug(bridge); err != nil {
			return err
		}
		if link, err = handle.LinkByName(boxInterface()); err != nil {
			return fmt.Errorf("find link in box: %w", err)
		}
	}
	loopback, err := handle.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	for _, l := range []netlink.Link{loopback, link} {
		if err := handle.LinkSetUp(l); err != nil {
			return fmt.Errorf("set %s up: %w", l.Attrs().Name, err)
		}
	}
	if err := handle.AddrReplace(link, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(b.address(), b.plan.Nodes.Bits()))}); err != nil {
		return fmt.Errorf("set address: %w", err)
	}
	all := append(b.routes(), route{netip.PrefixFrom(netip.IPv4Unspecified(), 0), b.plan.gateway()})
	return setRoutes(handle, link, all)
}

// plug puts a new veth pair between the bridge and the box.
func (b boxLink) plug(bridge netlink.Link) error {
	name := vethName(b.cluster, b.number)
	// The kernel removes the pair of a box that died, but not at once.
	if old, err := netlink.LinkByName(name); err == nil {
		if err := netlink.LinkDel(old); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("remove old link %s: %w", name, err)
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex = name, b.mtu, bridge.Attrs().Index
	veth := &netlink.Veth{
		LinkAttrs: attrs, PeerName: boxInterface(), PeerNamespace: netlink.NsPid(b.pid), PeerMTU: uint32(b.mtu),
		// The same after a restart, so that nobody's neighbour cache is wrong.
		PeerHardwareAddr: hardwareAddress(b.address()),
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("create link %s: %w", name, err)
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

// removeLinks removes the bridge and what is left of the veth pairs; routes go with them.
func removeLinks(cluster string) error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	var errs []error
	for _, link := range links {
		name := link.Attrs().Name
		if name != bridgeName(cluster) && !vethPattern(cluster, name) {
			continue
		}
		if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("remove link %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// ensureFirewall lets the cluster out: its own table translates what leaves it, and
// chains of others that drop forwarded or incoming packets by default get a rule
// that accepts the cluster's.
func ensureFirewall(ctx context.Context, cluster string, plan Addresses) error {
	var inside []string
	for _, p := range plan.inside() {
		inside = append(inside, p.String())
	}
	rules := fmt.Sprintf(`table ip %[1]s
delete table ip %[1]s
table ip %[1]s {
	set inside { type ipv4_addr; flags interval; elements = { %[2]s } }
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr @inside ip daddr != @inside masquerade
	}
}
`, tableName(cluster), strings.Join(inside, ", "))
	if _, err := nft(ctx, rules, "-f", "-"); err != nil {
		return err
	}
	chains, err := droppingChains(ctx)
	if err != nil {
		return err
	}
	for _, chain := range chains {
		if slices.ContainsFunc(chain.rules, func(r nftRule) bool { return r.Comment == tableName(cluster) }) {
			continue
		}
		directions := []string{"iifname"}
		if chain.Hook == "forward" {
			directions = append(directions, "oifname")
		}
		for _, direction := range directions {
			rule := fmt.Sprintf("insert rule %s %s %s %s %q counter accept comment %q\n",
				chain.Family, chain.Table, chain.Name, direction, bridgeName(cluster), tableName(cluster))
			if _, err := nft(ctx, rule, "-f", "-"); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeFirewall undoes ensureFirewall.
func removeFirewall(ctx context.Context, cluster string) error {
	if _, err := nft(ctx, fmt.Sprintf("table ip %[1]s\ndelete table ip %[1]s\n", tableName(cluster)), "-f", "-"); err != nil {
		return err
	}
	chains, err := droppingChains(ctx)
	if err != nil {
		return err
	}
	for _, chain := range chains {
		for _, rule := range chain.rules {
			if rule.Comment != tableName(cluster) {
				continue
			}
			command := fmt.Sprintf("delete rule %s %s %s handle %d\n", chain.Family, chain.Table, chain.Name, rule.Handle)
			if _, err := nft(ctx, command, "-f", "-"); err != nil {
				return err
			}
		}
	}
	return nil
}

// nftChain and nftRule are the parts of nft's JSON that matter here.
type nftChain struct {
	Family, Table, Name, Hook, Policy string

	rules []nftRule
}

type nftRule struct {
	Family, Table, Chain, Comment string
	Handle                        int
}

// droppingChains lists the base chains that drop forwarded or incoming IPv4 packets
// unless a rule accepts them, with their rules.
func droppingChains(ctx context.Context) ([]nftChain, error) {
	text, err := nft(ctx, "", "-j", "-a", "list", "ruleset")
	if err != nil {
		return nil, err
	}
	return parseDroppingChains(text)
}

func parseDroppingChains(text []byte) ([]nftChain, error) {
	var ruleset struct {
		Nftables []struct {
			Chain *nftChain
			Rule  *nftRule
		}
	}
	if err := json.Unmarshal(text, &ruleset); err != nil {
		return nil, fmt.Errorf("decode nft rules: %w", err)
	}
	var chains []nftChain
	for _, item := range ruleset.Nftables {
		if c := item.Chain; c != nil && c.Policy == "drop" && (c.Hook == "forward" || c.Hook == "input") && (c.Family == "ip" || c.Family == "inet") {
			chains = append(chains, *c)
		}
	}
	for _, item := range ruleset.Nftables {
		for i := range chains {
			if r := item.Rule; r != nil && r.Family == chains[i].Family && r.Table == chains[i].Table && r.Chain == chains[i].Name {
				chains[i].rules = append(chains[i].rules, *r)
			}
		}
	}
	return chains, nil
}

// nft runs the nft program.
func nft(ctx context.Context, input string, args ...string) ([]byte, error) {
	command := exec.CommandContext(ctx, "nft", args...)
	command.Stdin = strings.NewReader(input)
	out, err := command.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return nil, fmt.Errorf("run nft: %w: %s", err, strings.TrimSpace(string(exit.Stderr)))
	} else if err != nil {
		return nil, fmt.Errorf("run nft: %w", err)
	}
	return out, nil
}

// resolvers returns the resolv.conf of the boxes: the host's, without servers on
// its loopback interface, which a box cannot reach.
func resolvers() string {
	for _, file := range []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf", "/run/NetworkManager/resolv.conf"} {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		if conf, ok := withoutLoopback(string(text)); ok {
			return conf
		}
	}
	return ""
}

// withoutLoopback drops comments and loopback servers; ok says whether a server is left.
func withoutLoopback(text string) (conf string, ok bool) {
	var kept []string
	for line := range strings.SplitSeq(text, "\n") {
		fields := strings.Fields(line)
		if len(fields) < 2 || strings.HasPrefix(fields[0], "#") || strings.HasPrefix(fields[0], ";") {
			continue
		}
		if fields[0] == "nameserver" {
			address, err := netip.ParseAddr(fields[1])
			if err != nil || address.IsLoopback() {
				continue
			}
			ok = true
		}
		kept = append(kept, strings.Join(fields, " "))
	}
	return strings.Join(kept, "\n") + "\n", ok
}

// hardwareAddress derives a stable, locally administered MAC from an address.
func hardwareAddress(address netip.Addr) net.HardwareAddr {
	a := address.As4()
	return net.HardwareAddr{0x0a, 0x58, a[0], a[1], a[2], a[3]}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}
}
