package networkpolicy

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// The places of the sentences below; all pods but far are on the node in question.
var places = map[string]string{
	"web": "10.1.1.1", "client": "10.1.1.2", "red": "10.1.1.3", "far": "10.1.2.1", "machine": "10.66.0.5",
	"host-pod": "192.168.0.1", "stranger": "172.16.5.5", "neighbour": "172.16.200.1",
}

func spokenCluster(t *testing.T, policies string) cluster {
	port := func(name string, n int32, protocol corev1.Protocol) corev1.ContainerPort {
		return corev1.ContainerPort{Name: name, ContainerPort: n, Protocol: protocol}
	}
	far := podWith("x", "far", places["far"], "app=far", port("http", 9090, corev1.ProtocolTCP))
	far.Spec.NodeName = "n2"
	host := podWith("x", "host-pod", places["host-pod"], "app=web")
	host.Spec.HostNetwork = true
	over := podWith("x", "over", places["stranger"], "app=client")
	over.Status.Phase = corev1.PodSucceeded
	return cluster{node: "n1", namespaces: namespacesXY(), policies: parsePolicies(t, policies), pods: []corev1.Pod{
		podWith("x", "web", places["web"], "app=web", port("http", 8080, corev1.ProtocolTCP), port("dns", 5353, corev1.ProtocolUDP)),
		podWith("x", "client", places["client"], "app=client"),
		podWith("y", "red", places["red"], "app=client"),
		podWith("x", "virt-launcher-linux-1", places["machine"], "app=linux,vm.kubevirt.internal.virtualization.deckhouse.io/name=linux"),
		far, host, over,
	}}
}

// sentences are the words of the API's documentation, what follows from them as
// "from>to:port/protocol" with "!" before what is forbidden, and the policies.
var sentences = map[string]struct{ policies, means string }{
	"a pod that no policy selects is not isolated": {
		`spec: {podSelector: {matchLabels: {app: nobody}}, policyTypes: [Ingress, Egress]}`,
		"client>web:80 stranger>web:80 web>stranger:80"},
	"a pod that a policy selects allows what the policies allow, and nothing else": {
		`spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}`,
		"client>web:80 !machine>web:80 !stranger>web:80 !red>web:80"},
	"an empty pod selector selects all pods of the policy's namespace, and of no other": {
		`spec: {podSelector: {}}`,
		"!client>web:80 !stranger>machine:80 stranger>red:80"},
	"a policy without types is about ingress": {
		`spec: {podSelector: {matchLabels: {app: web}}}`,
		"!client>web:80 web>client:80 web>stranger:80"},
	"a policy without types, with an egress section, is about both": {
		`spec: {podSelector: {matchLabels: {app: web}}, egress: [{to: [{podSelector: {matchLabels: {app: client}}}]}]}`,
		"!client>web:80 web>client:80 !web>stranger:80"},
	"a policy of type egress leaves ingress alone, whatever its ingress section says": {
		`spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], ingress: [{from: [{podSelector: {matchLabels: {app: nobody}}}]}]}`,
		"client>web:80 !web>client:80"},
	"a policy of type ingress leaves egress alone, whatever its egress section says": {
		`spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress], egress: [{}]}`,
		"!client>web:80 web>client:80"},
	"default deny of both: not even each other": {
		`spec: {podSelector: {}, policyTypes: [Ingress, Egress]}`,
		"!client>web:80 !web>stranger:80 !stranger>web:80 !client>red:80"},
	"an empty rule allows everything": {
		`spec: {podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{}], egress: [{}]}`,
		"client>web:80 stranger>web:80/UDP web>stranger:80 red>web:-"},
	"policies add up: the order does not matter, and none forbids what another allows": {
		denyAll + "\n---\n" + webOnly + "\n---\nspec: {podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{}]}",
		"client>web:8080 !client>web:80 client>stranger:80 !stranger>web:8080"},
	"both ends must allow a connection": {
		`spec: {podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: web}}}]}]}
---
spec: {podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 81}]}]}`,
		"client>web:81 !client>web:80 !client>machine:81"},
	"answers to an allowed connection are allowed, though the answering side may not ask": {
		`spec: {podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{from: [{ipBlock: {cidr: 172.16.5.5/32}}]}]}`,
		"stranger>web:80 !web>stranger:80"},
	"a pod cannot block access to itself": {
		denyAll, "web>web:80 machine>machine:80"},
	"a namespace selector selects all pods of the namespaces with these labels": {
		`spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: red}}}]}]}`,
		"red>web:80 !client>web:80 !stranger>web:80"},
	"an empty namespace selector selects all namespaces, but no strangers": {
		`spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {}}]}]}`,
		"red>web:80 client>web:80 !stranger>web:80 !host-pod>web:80"},
	"a namespace is selected by its name": {
		`spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: "y"}}}]}]}`,
		"red>web:80 !client>web:80"},
	"both selectors in one peer must both match": {
		`spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: red}}, podSelector: {matchLabels: {app: nobody}}}]}]}`,
		"!red>web:80"},
	"two selectors in two peers: one of them must match": {
		`spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: red}}}, {podSelector: {matchLabels: {app: linux}}}]}]}`,
		"red>web:80 machine>web:80 !client>web:80"},
	"a pod selector alone means the policy's own namespace": {
		`spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}`,
		"client>web:80 !red>web:80"},
	"expressions select too": {
		`spec: {podSelector: {matchExpressions: [{key: app, operator: In, values: [web, nobody]}]}, ingress: [{from: [{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [client]}]}}]}]}`,
		"!client>web:80 machine>web:80 client>machine:80"},
	"a peer on another node is a peer": {
		`spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {matchLabels: {app: far}}}]}], egress: [{to: [{podSelector: {matchLabels: {app: far}}}]}]}`,
		"far>web:80 web>far:80 !client>web:80 !web>client:80"},
	"each node answers for its own pods: what enters a pod elsewhere is judged there": {
		`spec: {podSelector: {matchLabels: {app: far}}}`,
		"client>far:80"},
	"a range of addresses without its exceptions": {
		`spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 172.16.0.0/16, except: [172.16.128.0/17, 172.16.200.0/24]}}]}]}`,
		"web>stranger:80 !web>neighbour:80 !web>client:80"},
	"an exception of one peer may be allowed by another": {
		`spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 172.16.0.0/16, except: [172.16.128.0/17]}}, {ipBlock: {cidr: 172.16.200.1/32}}]}]}`,
		"web>stranger:80 web>neighbour:80 !web>client:80"},
	"a range of the other family matches nothing": {
		`spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: "::/0"}}]}]}`,
		"!web>stranger:80"},
	"pods may be meant by their range": {
		`spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{ipBlock: {cidr: 10.66.0.0/24}}]}]}`,
		"machine>web:80 !client>web:80"},
	"a rule's ports restrict its peers, a port is of TCP unless it says otherwise": {
		`spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}]}`,
		"client>web:80 !client>web:81 !client>web:80/UDP !red>web:80 !client>web:-"},
	"each protocol has its ports": {
		`spec: {podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 80, protocol: UDP}, {port: 81, protocol: SCTP}]}]}`,
		"client>web:80/UDP client>web:81/SCTP !client>web:80 !client>web:81/UDP"},
	"a protocol without a port means all its ports": {
		`spec: {podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{protocol: SCTP}]}]}`,
		"client>web:80/SCTP client>web:65535/SCTP !client>web:80"},
	"no ports at all means all traffic": {
		`spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {}}]}]}`,
		"client>web:80 client>web:1/SCTP client>web:-"},
	"a range of ports has both its ends": {
		`spec: {podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 80, endPort: 90}, {port: 85, endPort: 100}]}]}`,
		"client>web:80 client>web:90 client>web:100 !client>web:79 !client>web:101"},
	"a named port is each pod's own": {
		`spec: {podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{}], egress: [{ports: [{port: http}]}]}`,
		"client>web:8080 !client>web:9090 client>far:9090 !client>far:8080 !client>stranger:8080 !client>machine:8080"},
	"a named port is of its protocol": {
		`spec: {podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: dns, protocol: UDP}, {port: dns}]}]}`,
		"client>web:5353/UDP !client>web:5353"},
	"several rules: one is enough": {
		`spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 80}]}, {from: [{podSelector: {matchLabels: {app: linux}}}], ports: [{port: 81}]}]}`,
		"client>web:80 machine>web:81 !client>web:81 !machine>web:80"},
	"pods on the host's network are neither restricted nor selected": {
		`spec: {podSelector: {}, policyTypes: [Ingress, Egress], egress: [{to: [{podSelector: {matchLabels: {app: web}}}]}]}`,
		"host-pod>stranger:80 stranger>host-pod:80 !client>host-pod:80"},
	"a pod that is over is no peer: its address may be another's": {
		`spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}`,
		"!stranger>web:80 client>web:80"},
	"a machine is selected by its labels, and is a peer by them": {
		`spec: {podSelector: {matchLabels: {vm.kubevirt.internal.virtualization.deckhouse.io/name: linux}}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}
---
spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: linux}}}]}]}`,
		"client>machine:22 !web>machine:22 !machine>web:80 !client>web:80"},
}

func TestSentences(t *testing.T) {
	for sentence, s := range sentences {
		t.Run(sentence, func(t *testing.T) {
			c := spokenCluster(t, s.policies)
			table, err := Plan(c.world())
			if err != nil {
				t.Fatal(err)
			}
			for _, word := range strings.Fields(s.means) {
				way, forbidden := strings.CutPrefix(word, "!")
				n := parseConnection(t, way)
				if c.allowed(n) == forbidden {
					t.Errorf("%s: the reference of these tests is wrong", word)
				}
				for _, p := range c.packets(n) {
					if lets(t, table, p) == forbidden {
						t.Errorf("%s: wrong for %+v", word, p)
					}
				}
			}
		})
	}
}

// TestNobodySendsForOthers: a policy would mean nothing to a guest that takes another
// address.
func TestNobodySendsForOthers(t *testing.T) {
	p := packet{in: "veth1", out: "eth0", source: netip.MustParseAddr("10.9.9.9"), target: netip.MustParseAddr(places["stranger"]),
		protocol: "udp", dport: 53, state: "new", direction: "original"}
	for policies, want := range map[string]map[bool]bool{"": {false: true, true: true}, denyAll: {false: true, true: false}} {
		table, err := Plan(spokenCluster(t, policies).world())
		if err != nil {
			t.Fatal(err)
		}
		for p.lost = range want {
			if got := lets(t, table, p); got != want[p.lost] {
				t.Errorf("policies %q, without a route back %t: passes %t", policies, p.lost, got)
			}
		}
	}
}

// parseConnection reads "from>to:port/protocol"; port "-" is a protocol without ports.
func parseConnection(t *testing.T, text string) connection {
	t.Helper()
	from, rest, _ := strings.Cut(text, ">")
	to, rest, _ := strings.Cut(rest, ":")
	port, protocol, found := strings.Cut(rest, "/")
	n := connection{from: netip.MustParseAddr(places[from]), to: netip.MustParseAddr(places[to]), protocol: corev1.ProtocolTCP, answer: 40000}
	if found {
		n.protocol = corev1.Protocol(protocol)
	}
	if port == "-" {
		n.protocol, n.answer = "", 0
		return n
	}
	if _, err := fmt.Sscan(port, &n.port); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestMachinesAddressIsKnownEarly: its policy must be there before its guest is.
func TestMachinesAddressIsKnownEarly(t *testing.T) {
	pod := podWith("x", "virt-launcher-linux-1", "", "app=linux")
	pod.Status = corev1.PodStatus{Phase: corev1.PodPending}
	if _, ok := PodOf(&pod); ok {
		t.Error("a pod without an address is planned for")
	}
	pod.Annotations = map[string]string{addressAnnotation: "10.66.0.5", "other": "large"}
	stripped, _ := Strip(&pod)
	got, ok := PodOf(stripped.(*corev1.Pod))
	if !ok || got.Address != netip.MustParseAddr("10.66.0.5") {
		t.Errorf("got %+v, %t", got, ok)
	}
	if a := stripped.(*corev1.Pod).Annotations; len(a) != 1 {
		t.Errorf("kept in memory: %v", a)
	}
}

// BenchmarkPlan is a pass over a large cluster: 1000 policies, 1000 pods, a tenth of
// them here.
func BenchmarkPlan(b *testing.B) {
	c := largeCluster(1000, 1000)
	w := c.world()
	var table Table
	for b.Loop() {
		var err error
		if table, err = Plan(w); err != nil {
			b.Fatal(err)
		}
	}
	elements := 0
	for _, s := range table.Sets {
		elements += len(s.Elements)
	}
	b.ReportMetric(float64(elements), "elements")
	b.ReportMetric(float64(len(table.Chains)), "chains")
}

// largeCluster has policies that each select a hundred pods and name two peers.
func largeCluster(policies, pods int) cluster {
	c := cluster{node: "n0", namespaces: namespacesXY()}
	for i := range pods {
		pod := podWith("x", fmt.Sprintf("p%d", i), fmt.Sprintf("10.1.%d.%d", i/250, i%250), fmt.Sprintf("group=g%d,name=p%d", i%10, i))
		pod.Spec.NodeName = fmt.Sprintf("n%d", i/100)
		c.pods = append(c.pods, pod)
	}
	for i := range policies {
		p := parsePolicy(fmt.Sprintf(`metadata: {name: p%d, namespace: x}
spec:
  podSelector: {matchLabels: {group: g%d}}
  policyTypes: [Ingress, Egress]
  ingress: [{from: [{podSelector: {matchLabels: {name: p%d}}}], ports: [{port: %d}]}]
  egress: [{to: [{namespaceSelector: {}, podSelector: {matchLabels: {group: g%d}}}]}]`, i, i%10, i, 1+i, (i+1)%10))
		c.policies = append(c.policies, p)
	}
	return c
}
