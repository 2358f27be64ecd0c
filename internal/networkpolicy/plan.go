package networkpolicy

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// podLinks matches the node's ends of pods' links; kube-proxy is told the same.
	podLinks = `"veth*"`
	// turnedMark is the bit of a connection's mark that says: it was seen first in
	// the middle, and by its ports, the first packet was an answer.
	turnedMark = "0x00100000"
	// ephemeral is the first port that systems take for the asking side by themselves.
	ephemeral = "32768"
)

// direction is one of the two things a policy may restrict, seen from its pods.
type direction string

const (
	ingress direction = "ingress"
	egress  direction = "egress"
)

// way is how a packet goes in relation to its connection: along, or in answer.
type way string

const (
	with way = "with"
	back way = "back"
)

// Plan decides everything.
func Plan(w World) (Table, error) {
	p := &planner{world: w, pods: index(w.Pods), table: frame(), chains: map[string]bool{}}
	policies := slices.Clone(w.Policies)
	slices.SortFunc(policies, func(a, b *networkingv1.NetworkPolicy) int { return strings.Compare(key(a), key(b)) })
	applied, err := p.applied(policies)
	if err != nil {
		return Table{}, err
	}
	var self []string
	for i := range w.Pods {
		pod := &w.Pods[i]
		for _, d := range []direction{ingress, egress} {
			if len(applied[d][pod]) == 0 {
				continue
			}
			if err := p.isolate(pod, d, applied[d][pod]); err != nil {
				return Table{}, err
			}
			self = append(self, pod.Address.String()+" . "+pod.Address.String())
		}
	}
	slices.Sort(self)
	p.table.Sets["self"] = Set{Type: p.table.Sets["self"].Type, Elements: slices.Compact(self)}
	p.checkSources()
	for _, d := range []direction{ingress, egress} {
		if len(p.table.Maps[verdicts(d, with)].Verdicts) == 0 {
			p.table.Chains[string(d)] = Chain{Base: true, Priority: p.table.Chains[string(d)].Priority}
		}
	}
	return p.table, nil
}

// frame is what the table has without any policy. A packet must pass both base
// chains: accept ends only the one it is said in.
func frame() Table {
	t := Table{Sets: map[string]Set{"self": {Type: "ipv4_addr . ipv4_addr"}}, Maps: map[string]Map{}, Chains: map[string]Chain{
		// A machine that moved here has connections that this node does not know. The
		// first packet it sees may be an answer; the connection would count as opened
		// by the side that was asked, and be judged as such for good.
		"sources": {Base: true, Priority: "filter-3"},
		"midstream": {Base: true, Priority: "filter-2", Rules: []string{
			"ct state new tcp flags & syn == 0 tcp sport < " + ephemeral + " tcp dport >= " + ephemeral +
				" ct mark set ct mark | " + turnedMark,
		}},
	}}
	sides := map[direction]map[way]string{
		ingress: {with: "oifname " + podLinks + " ip daddr", back: "iifname " + podLinks + " ip saddr"},
		egress:  {with: "iifname " + podLinks + " ip saddr", back: "oifname " + podLinks + " ip daddr"},
	}
	for d, ways := range sides {
		for w, side := range ways {
			t.Maps[verdicts(d, w)] = Map{Verdicts: map[string]string{}}
			t.Chains[string(d)+"-"+string(w)] = Chain{Rules: []string{side + " vmap @" + verdicts(d, w)}}
		}
	}
	for d, priority := range map[direction]string{egress: "filter-1", ingress: "filter"} {
		t.Chains[string(d)] = Chain{Base: true, Priority: priority, Rules: []string{
			// A pod cannot be kept from itself, also by way of a Service.
			"ip saddr . ip daddr @self accept",
			// Errors about packets that were allowed, such as "too large".
			"ct state related meta l4proto icmp accept",
			"ct direction reply ct mark & " + turnedMark + " == 0 goto " + string(d) + "-back",
			"ct direction original ct mark & " + turnedMark + " != 0 goto " + string(d) + "-back",
			"goto " + string(d) + "-with",
		}}
	}
	return t
}

// checkSources lets no pod, nor a guest in one, escape from its policies by sending
// under another address: the node must have a route to the sender over the link the
// packet came from. Before a machine that arrives has its route, its pod is known.
func (p *planner) checkSources() {
	if len(p.world.Policies) == 0 {
		return
	}
	var local []string
	for i := range p.world.Pods {
		if p.world.Pods[i].Node == p.world.Node {
			local = append(local, p.world.Pods[i].Address.String())
		}
	}
	slices.Sort(local)
	p.table.Sets["local"] = Set{Type: "ipv4_addr", Comment: "pods of this node", Elements: slices.Compact(local)}
	chain := p.table.Chains["sources"]
	chain.Rules = []string{"iifname " + podLinks + " ip saddr != @local fib saddr . iif oif missing drop"}
	p.table.Chains["sources"] = chain
}

func verdicts(d direction, w way) string { return string(d) + "-" + string(w) + "-pods" }

type planner struct {
	world  World
	pods   map[labelled][]*Pod
	table  Table
	chains map[string]bool // policy chains that were made
}

// labelled are the pods of a namespace that have a label, or all of them.
type labelled struct{ namespace, key, value string }

// index finds the few pods that a usual selector means without asking all of them.
func index(pods []Pod) map[labelled][]*Pod {
	out := map[labelled][]*Pod{}
	for i := range pods {
		pod := &pods[i]
		all := labelled{namespace: pod.Namespace}
		out[all] = append(out[all], pod)
		for key, value := range pod.Labels {
			one := labelled{pod.Namespace, key, value}
			out[one] = append(out[one], pod)
		}
	}
	return out
}

// selected lists the pods of a namespace that a selector selects; nil selects all.
func (p *planner) selected(namespace string, s *metav1.LabelSelector) ([]*Pod, error) {
	candidates := p.pods[labelled{namespace: namespace}]
	if s == nil {
		return candidates, nil
	}
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return nil, fmt.Errorf("read pod selector: %w", err)
	}
	for key, value := range s.MatchLabels {
		if few := p.pods[labelled{namespace, key, value}]; len(few) < len(candidates) {
			candidates = few
		}
	}
	var out []*Pod
	for _, pod := range candidates {
		if selector.Matches(pod.Labels) {
			out = append(out, pod)
		}
	}
	return out, nil
}

// applied finds the policies of each pod of this node.
func (p *planner) applied(policies []*networkingv1.NetworkPolicy) (map[direction]map[*Pod][]*networkingv1.NetworkPolicy, error) {
	applied := map[direction]map[*Pod][]*networkingv1.NetworkPolicy{ingress: {}, egress: {}}
	for _, policy := range policies {
		pods, err := p.selected(policy.Namespace, &policy.Spec.PodSelector)
		if err != nil {
			return nil, fmt.Errorf("policy %s: %w", key(policy), err)
		}
		for _, pod := range pods {
			if pod.Node != p.world.Node {
				continue
			}
			for _, d := range directions(policy) {
				applied[d][pod] = append(applied[d][pod], policy)
			}
		}
	}
	return applied, nil
}

// directions are those that a policy restricts.
func directions(policy *networkingv1.NetworkPolicy) []direction {
	if len(policy.Spec.PolicyTypes) == 0 {
		if len(policy.Spec.Egress) > 0 {
			return []direction{ingress, egress}
		}
		return []direction{ingress}
	}
	var out []direction
	for _, t := range policy.Spec.PolicyTypes {
		switch t {
		case networkingv1.PolicyTypeIngress:
			out = append(out, ingress)
		case networkingv1.PolicyTypeEgress:
			out = append(out, egress)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// isolate leads a pod's packets through its policies. Pods with the same policies
// share a chain.
func (p *planner) isolate(pod *Pod, d direction, policies []*networkingv1.NetworkPolicy) error {
	keys := make([]string, len(policies))
	for i, policy := range policies {
		keys[i] = key(policy)
		if err := p.policyChains(policy, d); err != nil {
			return err
		}
	}
	for _, w := range []way{with, back} {
		name := "pods-" + string(d) + "-" + string(w) + "-" + hash(keys...)
		if _, made := p.table.Chains[name]; !made {
			var rules []string
			for _, policy := range policies {
				rules = append(rules, "jump "+chainOf(policy, d, w))
			}
			p.table.Chains[name] = Chain{Rules: append(rules, "drop")}
		}
		p.table.Maps[verdicts(d, w)].Verdicts[pod.Address.String()] = "goto " + name
	}
	return nil
}

// view says where a packet of one way has what a rule of one direction asks for.
type view struct {
	peer   string // the other side's address
	server string // the address of the side that was asked
	port   string // its port
}

func viewOf(d direction, w way) view {
	v := view{server: "ip daddr", port: "dport", peer: "ip daddr"}
	if w == back {
		v = view{server: "ip saddr", port: "sport", peer: "ip saddr"}
	}
	if d == ingress && w == with {
		v.peer = "ip saddr"
	} else if d == ingress {
		v.peer = "ip daddr"
	}
	return v
}

// policyChains makes the chains that accept what a policy allows.
func (p *planner) policyChains(policy *networkingv1.NetworkPolicy, d direction) error {
	if p.chains[chainOf(policy, d, with)] {
		return nil
	}
	p.chains[chainOf(policy, d, with)] = true
	rules := make([]rule, 0, len(policy.Spec.Ingress)+len(policy.Spec.Egress))
	if d == ingress {
		for _, r := range policy.Spec.Ingress {
			rules = append(rules, rule{r.From, r.Ports})
		}
	} else {
		for _, r := range policy.Spec.Egress {
			rules = append(rules, rule{r.To, r.Ports})
		}
	}
	for _, w := range []way{with, back} {
		var lines []string
		for _, r := range rules {
			written, err := p.write(r, viewOf(d, w), policy.Namespace)
			if err != nil {
				return fmt.Errorf("write policy %s: %w", key(policy), err)
			}
			lines = append(lines, written...)
		}
		p.table.Chains[chainOf(policy, d, w)] = Chain{Comment: key(policy), Rules: lines}
	}
	return nil
}

// rule is an ingress or egress rule: any of the peers, on any of the ports; none
// named means all.
type rule struct {
	peers []networkingv1.NetworkPolicyPeer
	ports []networkingv1.NetworkPolicyPort
}

func (p *planner) write(r rule, v view, namespace string) ([]string, error) {
	peers, err := p.peers(r.peers, v, namespace)
	if err != nil {
		return nil, err
	}
	ports := p.ports(r.ports, v)
	var lines []string
	for _, peer := range peers {
		for _, port := range ports {
			lines = append(lines, strings.Join(strings.Fields(peer+" "+port+" accept"), " "))
		}
	}
	return lines, nil
}

// peers writes one match for each peer; the empty match is of all.
func (p *planner) peers(peers []networkingv1.NetworkPolicyPeer, v view, namespace string) ([]string, error) {
	if len(peers) == 0 {
		return []string{""}, nil
	}
	var matches []string
	for _, peer := range peers {
		if peer.IPBlock != nil {
			match, ok, err := block(peer.IPBlock, v)
			if err != nil {
				return nil, err
			}
			if ok {
				matches = append(matches, match)
			}
			continue
		}
		set, err := p.podSet(peer, namespace)
		if err != nil {
			return nil, err
		}
		matches = append(matches, v.peer+" @"+set)
	}
	return matches, nil
}

// podSet makes the set of the addresses of all pods that a peer selects.
func (p *planner) podSet(peer networkingv1.NetworkPolicyPeer, namespace string) (string, error) {
	scope := "namespace " + namespace
	if peer.NamespaceSelector != nil {
		scope = "namespaces {" + metav1.FormatLabelSelector(peer.NamespaceSelector) + "}"
	}
	pods := "all pods"
	if peer.PodSelector != nil {
		pods = "pods {" + metav1.FormatLabelSelector(peer.PodSelector) + "}"
	}
	text := pods + " in " + scope
	name := "peers-" + hash(text)
	if _, made := p.table.Sets[name]; made {
		return name, nil
	}
	namespaces, err := p.namespaces(peer.NamespaceSelector, namespace)
	if err != nil {
		return "", err
	}
	var addresses []string
	for _, n := range namespaces {
		pods, err := p.selected(n, peer.PodSelector)
		if err != nil {
			return "", err
		}
		for _, pod := range pods {
			addresses = append(addresses, pod.Address.String())
		}
	}
	slices.Sort(addresses)
	p.table.Sets[name] = Set{Type: "ipv4_addr", Comment: text, Elements: slices.Compact(addresses)}
	return name, nil
}

// namespaces lists those that a selector selects; nil means the policy's own.
func (p *planner) namespaces(s *metav1.LabelSelector, own string) ([]string, error) {
	if s == nil {
		return []string{own}, nil
	}
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return nil, fmt.Errorf("read namespace selector: %w", err)
	}
	var names []string
	for name, set := range p.world.Namespaces {
		if selector.Matches(set) {
			names = append(names, name)
		}
	}
	return names, nil
}

// block writes a range of addresses without its exceptions. One of another family
// matches nothing here and is not ok.
func block(b *networkingv1.IPBlock, v view) (match string, ok bool, err error) {
	cidr, err := prefix(b.CIDR)
	if err != nil || !cidr.Addr().Is4() {
		return "", false, err
	}
	var except []netip.Prefix
	for _, text := range b.Except {
		e, err := prefix(text)
		if err != nil {
			return "", false, err
		}
		if e.Addr().Is4() {
			except = append(except, e)
		}
	}
	match = v.peer + " " + cidr.String()
	if parts := disjoint(except); len(parts) > 0 {
		match += " " + v.peer + " != { " + strings.Join(parts, ", ") + " }"
	}
	return match, true, nil
}

// disjoint drops ranges that others contain, because nft takes no overlapping ones.
func disjoint(ranges []netip.Prefix) []string {
	slices.SortFunc(ranges, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	var last netip.Prefix
	var out []string
	for _, r := range ranges {
		if last.IsValid() && last.Overlaps(r) {
			continue
		}
		last = r
		out = append(out, r.String())
	}
	return out
}

func key(policy *networkingv1.NetworkPolicy) string { return policy.Namespace + "/" + policy.Name }

func chainOf(policy *networkingv1.NetworkPolicy, d direction, w way) string {
	return "policy-" + string(d) + "-" + string(w) + "-" + hash(key(policy))
}

// hash makes a short name of what may be too long, or not a word, for nft.
func hash(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\n")))
	return hex.EncodeToString(sum[:10])
}
