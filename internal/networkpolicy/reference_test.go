package networkpolicy

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// cluster is what a user has written, and what became of it.
type cluster struct {
	node       string
	pods       []corev1.Pod
	namespaces map[string]labels.Set
	policies   []*networkingv1.NetworkPolicy
}

func (c cluster) world() World {
	w := World{Node: c.node, Namespaces: c.namespaces, Policies: c.policies}
	for i := range c.pods {
		stripped, _ := Strip(&c.pods[i])
		if pod, ok := PodOf(stripped.(*corev1.Pod)); ok {
			w.Pods = append(w.Pods, pod)
		}
	}
	return w
}

// connection is an attempt of one address to reach another.
type connection struct {
	from, to netip.Addr
	protocol corev1.Protocol // "" for one that policies do not know
	port     int32           // asked for
	answer   int32           // the port of the asking side
}

// allowed says in the words of the API's documentation whether the cluster's node
// has to let a connection through. It knows nothing of how.
func (c cluster) allowed(n connection) bool {
	if n.from == n.to {
		return true // a pod cannot block access to itself
	}
	if pod := c.local(n.from); pod != nil && !c.permits(pod, n, n.to, networkingv1.PolicyTypeEgress) {
		return false
	}
	if pod := c.local(n.to); pod != nil && !c.permits(pod, n, n.from, networkingv1.PolicyTypeIngress) {
		return false
	}
	return true
}

// counts says whether policies are about a pod at all.
func counts(p *corev1.Pod) bool {
	return !p.Spec.HostNetwork && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed && len(p.Status.PodIPs) > 0
}

func has(p *corev1.Pod, a netip.Addr) bool { return counts(p) && p.Status.PodIPs[0].IP == a.String() }

func (c cluster) local(a netip.Addr) *corev1.Pod {
	for i := range c.pods {
		if has(&c.pods[i], a) && c.pods[i].Spec.NodeName == c.node {
			return &c.pods[i]
		}
	}
	return nil
}

// permits is true if no policy of this type selects the pod, or one of those that do
// has a rule that allows the connection.
func (c cluster) permits(pod *corev1.Pod, n connection, peer netip.Addr, kind networkingv1.PolicyType) bool {
	selected := false
	for _, policy := range c.policies {
		if policy.Namespace != pod.Namespace || !selects(&policy.Spec.PodSelector, pod.Labels) || !restricts(policy, kind) {
			continue
		}
		selected = true
		for _, r := range policy.Spec.Ingress {
			if kind == networkingv1.PolicyTypeIngress && c.fromPeers(r.From, peer, policy.Namespace) && c.onPorts(r.Ports, n) {
				return true
			}
		}
		for _, r := range policy.Spec.Egress {
			if kind == networkingv1.PolicyTypeEgress && c.fromPeers(r.To, peer, policy.Namespace) && c.onPorts(r.Ports, n) {
				return true
			}
		}
	}
	return !selected
}

func restricts(policy *networkingv1.NetworkPolicy, kind networkingv1.PolicyType) bool {
	if len(policy.Spec.PolicyTypes) == 0 {
		return kind == networkingv1.PolicyTypeIngress || len(policy.Spec.Egress) > 0
	}
	return slices.Contains(policy.Spec.PolicyTypes, kind)
}

func (c cluster) fromPeers(peers []networkingv1.NetworkPolicyPeer, a netip.Addr, own string) bool {
	if len(peers) == 0 {
		return true
	}
	for _, peer := range peers {
		if peer.IPBlock != nil {
			if inside(peer.IPBlock.CIDR, a) && !slices.ContainsFunc(peer.IPBlock.Except, func(e string) bool { return inside(e, a) }) {
				return true
			}
			continue
		}
		for i := range c.pods {
			pod := &c.pods[i]
			if !has(pod, a) || peer.PodSelector != nil && !selects(peer.PodSelector, pod.Labels) {
				continue
			}
			if peer.NamespaceSelector == nil && pod.Namespace == own ||
				peer.NamespaceSelector != nil && selects(peer.NamespaceSelector, c.namespaces[pod.Namespace]) {
				return true
			}
		}
	}
	return false
}

func (c cluster) onPorts(ports []networkingv1.NetworkPolicyPort, n connection) bool {
	if len(ports) == 0 {
		return true
	}
	for _, p := range ports {
		protocol := corev1.ProtocolTCP
		if p.Protocol != nil {
			protocol = *p.Protocol
		}
		switch {
		case protocol != n.protocol:
		case p.Port == nil:
			return true
		case p.Port.Type == intstr.String:
			if c.calls(n.to, p.Port.StrVal, protocol, n.port) {
				return true
			}
		case n.port == p.Port.IntVal, p.EndPort != nil && n.port >= p.Port.IntVal && n.port <= *p.EndPort:
			return true
		}
	}
	return false
}

// calls says whether a pod with this address has given this port this name.
func (c cluster) calls(a netip.Addr, name string, protocol corev1.Protocol, port int32) bool {
	for i := range c.pods {
		if !has(&c.pods[i], a) {
			continue
		}
		for _, container := range c.pods[i].Spec.Containers {
			for _, p := range container.Ports {
				if p.Name == name && p.Protocol == protocol && p.ContainerPort == port {
					return true
				}
			}
		}
	}
	return false
}

func selects(s *metav1.LabelSelector, set labels.Set) bool {
	selector, err := metav1.LabelSelectorAsSelector(s)
	return err == nil && selector.Matches(set)
}

func inside(cidr string, a netip.Addr) bool {
	p, err := netip.ParsePrefix(cidr)
	return err == nil && p.Contains(a)
}

// packets are those of a connection that the node forwards: the first, later ones of
// both ways, and both ways again as a node sees them that met an answer first.
func (c cluster) packets(n connection) []packet {
	link := func(a netip.Addr) string {
		if c.local(a) != nil {
			return "veth" + a.String()
		}
		return "eth0"
	}
	protocol := map[corev1.Protocol]string{corev1.ProtocolTCP: "tcp", corev1.ProtocolUDP: "udp", corev1.ProtocolSCTP: "sctp", "": "icmp"}[n.protocol]
	along := packet{in: link(n.from), out: link(n.to), source: n.from, target: n.to, protocol: protocol, sport: int(n.answer), dport: int(n.port)}
	answer := packet{in: along.out, out: along.in, source: n.to, target: n.from, protocol: protocol, sport: along.dport, dport: along.sport}
	var all []packet
	add := func(p packet, state, direction string, turned, syn bool) {
		p.state, p.direction, p.turned, p.syn = state, direction, turned, syn
		all = append(all, p)
	}
	add(along, "new", "original", false, true)
	add(along, "established", "original", false, false)
	add(answer, "established", "reply", false, false)
	add(along, "established", "reply", true, false)
	add(answer, "established", "original", true, false)
	return all
}
