package networkpolicy

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	netutils "k8s.io/utils/net"
)

// protocols are those that the API knows, in the order of rules.
var protocols = []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}

// span is a range of ports, both ends included.
type span struct{ first, last uint16 }

// ports writes matches for a rule's ports, few of them; the empty match is of all
// packets, also those of protocols without ports.
func (p *planner) ports(ports []networkingv1.NetworkPolicyPort, v view) []string {
	if len(ports) == 0 {
		return []string{""}
	}
	var matches []string
	for _, protocol := range protocols {
		var spans []span
		var names []string
		all := false
		for _, port := range ports {
			if protocolOf(port) != protocol {
				continue
			}
			switch {
			case port.Port == nil:
				all = true
			case port.Port.Type == intstr.String:
				names = append(names, port.Port.StrVal)
			default:
				spans = append(spans, spanOf(port))
			}
		}
		matches = append(matches, p.portsOf(protocol, all, spans, names, v)...)
	}
	return matches
}

func (p *planner) portsOf(protocol corev1.Protocol, all bool, spans []span, names []string, v view) []string {
	l4 := strings.ToLower(string(protocol))
	if all {
		return []string{"meta l4proto " + l4}
	}
	var matches []string
	if parts := merged(spans); len(parts) == 1 {
		matches = append(matches, l4+" "+v.port+" "+parts[0])
	} else if len(parts) > 1 {
		matches = append(matches, l4+" "+v.port+" { "+strings.Join(parts, ", ")+" }")
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		matches = append(matches, v.server+" . "+l4+" "+v.port+" @"+p.portSet(protocol, name))
	}
	return matches
}

// portSet makes the set of all pods' ports of one name: its number is each pod's own
// affair.
func (p *planner) portSet(protocol corev1.Protocol, name string) string {
	text := "port " + name + "/" + string(protocol)
	set := "ports-" + hash(text)
	if _, made := p.table.Sets[set]; made {
		return set
	}
	var elements []string
	for i := range p.world.Pods {
		pod := &p.world.Pods[i]
		for _, port := range pod.Ports {
			if port.Name == name && port.Protocol == protocol {
				elements = append(elements, pod.Address.String()+" . "+strconv.Itoa(int(port.Number)))
			}
		}
	}
	slices.Sort(elements)
	p.table.Sets[set] = Set{Type: "ipv4_addr . inet_service", Comment: text, Elements: slices.Compact(elements)}
	return set
}

func protocolOf(port networkingv1.NetworkPolicyPort) corev1.Protocol {
	if port.Protocol == nil {
		return corev1.ProtocolTCP
	}
	return *port.Protocol
}

func spanOf(port networkingv1.NetworkPolicyPort) span {
	s := span{first: uint16(port.Port.IntVal), last: uint16(port.Port.IntVal)}
	if port.EndPort != nil {
		s.last = uint16(*port.EndPort)
	}
	return s
}

// merged writes ranges of ports, joining those that meet, because nft takes no
// overlapping ones.
func merged(spans []span) []string {
	slices.SortFunc(spans, func(a, b span) int { return int(a.first) - int(b.first) })
	var joined []span
	for _, s := range spans {
		if s.last < s.first {
			continue
		}
		if n := len(joined); n > 0 && int(s.first) <= int(joined[n-1].last)+1 {
			joined[n-1].last = max(joined[n-1].last, s.last)
			continue
		}
		joined = append(joined, s)
	}
	parts := make([]string, len(joined))
	for i, s := range joined {
		parts[i] = strconv.Itoa(int(s.first))
		if s.last != s.first {
			parts[i] += "-" + strconv.Itoa(int(s.last))
		}
	}
	return parts
}

// prefix reads a range as the API server accepts it: leading zeros and bits of the
// host may be in it.
func prefix(text string) (netip.Prefix, error) {
	_, network, err := netutils.ParseCIDRSloppy(text)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("read range: %w", err)
	}
	bits, _ := network.Mask.Size()
	address, ok := netip.AddrFromSlice(network.IP)
	if !ok {
		return netip.Prefix{}, fmt.Errorf("read range %q: no address", text)
	}
	return netip.PrefixFrom(address, bits), nil
}
