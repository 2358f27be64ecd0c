package networkpolicy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"
)

// TestPlanAgreesWithTheWords compares the produced table with the reference for
// everything that can be sent in many small random clusters.
func TestPlanAgreesWithTheWords(t *testing.T) {
	for seed := range uint64(25) {
		agree(t, seed)
	}
}

func FuzzPlan(f *testing.F) {
	f.Fuzz(func(t *testing.T, seed uint64) { agree(t, seed) })
}

func agree(t *testing.T, seed uint64) {
	t.Helper()
	c := randomCluster(rand.New(rand.NewPCG(seed, 1)))
	table, err := Plan(c.world())
	if err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
	for _, from := range addresses {
		for _, to := range addresses {
			for _, n := range attempts(from, to) {
				want := c.allowed(n)
				for _, p := range c.packets(n) {
					if got := lets(t, table, p); got != want {
						text, _ := yaml.Marshal(c.policies)
						t.Fatalf("seed %d: %+v as packet %+v: table says %t, policies say %t\n%s\npods %+v", seed, n, p, got, want, text, c.world().Pods)
					}
				}
			}
		}
	}
}

func attempts(from, to netip.Addr) []connection {
	out := []connection{{from: from, to: to}}
	for _, protocol := range protocols {
		for _, port := range []int32{80, 81, 90, 443} {
			out = append(out, connection{from: from, to: to, protocol: protocol, port: port, answer: 40000})
		}
	}
	return out
}

// addresses are those of a random cluster's pods, of nodes, and of strangers.
var addresses = func() []netip.Addr {
	var out []netip.Addr
	for _, a := range []string{"10.1.1.1", "10.1.1.2", "10.1.2.1", "10.1.2.2", "10.66.0.5", "192.168.0.1", "172.16.5.5", "172.16.200.1"} {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}()

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

func some[T any](r *rand.Rand, most int, make func() T) []T {
	var out []T
	for range r.IntN(most + 1) {
		out = append(out, make())
	}
	return out
}

func randomLabels(r *rand.Rand) labels.Set {
	set := labels.Set{}
	for _, key := range []string{"app", "tier"} {
		if r.IntN(3) > 0 {
			set[key] = pick(r, "a", "b")
		}
	}
	return set
}

func randomCluster(r *rand.Rand) cluster {
	c := cluster{node: "n1", namespaces: map[string]labels.Set{}}
	for _, name := range []string{"x", "y"} {
		c.namespaces[name] = labels.Merge(randomLabels(r), labels.Set{"kubernetes.io/metadata.name": name})
	}
	for i, a := range addresses[:5] {
		node := pick(r, "n1", "n2")
		pod := randomPod(r, fmt.Sprintf("p%d", i), node, a)
		c.pods = append(c.pods, pod)
		switch r.IntN(6) {
		case 0: // a machine that moves: the same pod on the other node
			twin := pod
			twin.Name += "-twin"
			twin.Spec.NodeName = map[string]string{"n1": "n2", "n2": "n1"}[node]
			c.pods = append(c.pods, twin)
		case 1: // one that is over had the address before
			old := randomPod(r, pod.Name+"-old", node, a)
			old.Status.Phase = pick(r, corev1.PodSucceeded, corev1.PodFailed)
			c.pods = append(c.pods, old)
		}
	}
	hosts := randomPod(r, "host", "n1", addresses[5])
	hosts.Spec.HostNetwork = true
	c.pods = append(c.pods, hosts)
	for i := range r.IntN(5) {
		c.policies = append(c.policies, randomPolicy(r, fmt.Sprintf("q%d", i)))
	}
	return c
}

func randomPod(r *rand.Rand, name, node string, a netip.Addr) corev1.Pod {
	pod := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: pick(r, "x", "y"), Name: name, Labels: randomLabels(r)}}
	pod.Spec.NodeName = node
	pod.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: a.String()}}}
	pod.Spec.Containers = []corev1.Container{{Ports: some(r, 2, func() corev1.ContainerPort {
		return corev1.ContainerPort{Name: pick(r, "web", "dns", ""), Protocol: pick(r, protocols...), ContainerPort: pick[int32](r, 80, 81, 443)}
	})}}
	return pod
}

func randomSelector(r *rand.Rand) metav1.LabelSelector {
	s := metav1.LabelSelector{}
	if r.IntN(2) == 0 {
		s.MatchLabels = map[string]string{pick(r, "app", "tier"): pick(r, "a", "b")}
	}
	if r.IntN(3) == 0 {
		e := metav1.LabelSelectorRequirement{Key: pick(r, "app", "tier"), Operator: pick(r, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist,
			metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn)}
		if e.Operator == metav1.LabelSelectorOpIn || e.Operator == metav1.LabelSelectorOpNotIn {
			e.Values = []string{pick(r, "a", "b")}
		}
		s.MatchExpressions = append(s.MatchExpressions, e)
	}
	return s
}

func randomPolicy(r *rand.Rand, name string) *networkingv1.NetworkPolicy {
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: pick(r, "x", "y"), Name: name}}
	p.Spec.PodSelector = randomSelector(r)
	p.Spec.PolicyTypes = pick(r, nil, []networkingv1.PolicyType{"Ingress"}, []networkingv1.PolicyType{"Egress"}, []networkingv1.PolicyType{"Ingress", "Egress"})
	p.Spec.Ingress = some(r, 2, func() networkingv1.NetworkPolicyIngressRule {
		return networkingv1.NetworkPolicyIngressRule{From: randomPeers(r), Ports: randomPorts(r)}
	})
	p.Spec.Egress = some(r, 2, func() networkingv1.NetworkPolicyEgressRule {
		return networkingv1.NetworkPolicyEgressRule{To: randomPeers(r), Ports: randomPorts(r)}
	})
	return p
}

func randomPeers(r *rand.Rand) []networkingv1.NetworkPolicyPeer {
	return some(r, 2, func() networkingv1.NetworkPolicyPeer {
		if r.IntN(3) == 0 {
			return networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{
				CIDR:   pick(r, "0.0.0.0/0", "10.0.0.0/8", "172.16.0.0/16", "10.1.1.0/24", "2001:db8::/32"),
				Except: some(r, 3, func() string { return pick(r, "10.1.1.0/24", "10.1.1.1/32", "10.1.0.0/16", "172.16.128.0/17") }),
			}}
		}
		pods, namespaces := randomSelector(r), randomSelector(r)
		return pick(r, networkingv1.NetworkPolicyPeer{PodSelector: &pods}, networkingv1.NetworkPolicyPeer{NamespaceSelector: &namespaces},
			networkingv1.NetworkPolicyPeer{PodSelector: &pods, NamespaceSelector: &namespaces})
	})
}

func randomPorts(r *rand.Rand) []networkingv1.NetworkPolicyPort {
	return some(r, 3, func() networkingv1.NetworkPolicyPort {
		p := networkingv1.NetworkPolicyPort{}
		if r.IntN(2) == 0 {
			p.Protocol = new(pick(r, protocols...))
		}
		switch r.IntN(4) {
		case 0:
			p.Port = new(intstr.FromString(pick(r, "web", "dns")))
		case 1:
			p.Port = new(intstr.FromInt32(pick[int32](r, 80, 81, 443)))
		case 2:
			p.Port, p.EndPort = new(intstr.FromInt32(pick[int32](r, 79, 81))), new(pick[int32](r, 85, 100, 65535))
		}
		return p
	})
}
