package networkpolicy

import (
	"cmp"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// addressAnnotation names the address that a virtual machine's pod is going to
// have; see package ipam. With it the policy is there before the guest is.
const addressAnnotation = "internal.virtualization.deckhouse.io/ip-address"

// World is everything the plan depends on.
type World struct {
	// Node is the name of the node the plan is for.
	Node string
	// Pods are those of all nodes that are on the pod network, see PodOf.
	Pods []Pod
	// Namespaces has the labels of each namespace.
	Namespaces map[string]labels.Set
	Policies   []*networkingv1.NetworkPolicy
}

// Pod is a pod on the pod network.
type Pod struct {
	Namespace, Name string
	Node            string
	Address         netip.Addr // IPv4
	Labels          labels.Set
	Ports           []Port
}

// Port is a container port that has a name.
type Port struct {
	Name     string
	Protocol corev1.Protocol
	Number   uint16
}

// PodOf reads a pod. Those that policies say nothing about are not ok: without an
// address yet, on the host's network, or over, so that the address may be another's.
func PodOf(p *corev1.Pod) (pod Pod, ok bool) {
	if p.Spec.HostNetwork || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return Pod{}, false
	}
	address, ok := addressOf(p)
	if !ok {
		return Pod{}, false
	}
	pod = Pod{Namespace: p.Namespace, Name: p.Name, Node: p.Spec.NodeName, Address: address, Labels: p.Labels}
	for _, c := range p.Spec.Containers {
		pod.Ports = append(pod.Ports, namedPorts(c)...)
	}
	for _, c := range p.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			pod.Ports = append(pod.Ports, namedPorts(c)...)
		}
	}
	return pod, true
}

func addressOf(p *corev1.Pod) (netip.Addr, bool) {
	for _, ip := range p.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil && a.Is4() {
			return a, true
		}
	}
	a, err := netip.ParseAddr(p.Annotations[addressAnnotation])
	return a, err == nil && a.Is4()
}

func namedPorts(c corev1.Container) []Port {
	var ports []Port
	for _, p := range c.Ports {
		if p.Name != "" && p.ContainerPort > 0 && p.ContainerPort <= 65535 {
			ports = append(ports, Port{Name: p.Name, Protocol: cmp.Or(p.Protocol, corev1.ProtocolTCP), Number: uint16(p.ContainerPort)})
		}
	}
	return ports
}

// Equal says whether two pods are the same to every policy.
func (p Pod) Equal(o Pod) bool {
	return p.Namespace == o.Namespace && p.Name == o.Name && p.Node == o.Node && p.Address == o.Address &&
		labels.Equals(p.Labels, o.Labels) && slices.Equal(p.Ports, o.Ports)
}

// Strip keeps of an object only what Plan reads, since every node holds the pods of
// all nodes in memory.
func Strip(obj any) (any, error) {
	switch o := obj.(type) {
	case *corev1.Pod:
		p := &corev1.Pod{TypeMeta: o.TypeMeta, ObjectMeta: bare(o.ObjectMeta)}
		p.Labels = o.Labels
		if a, ok := o.Annotations[addressAnnotation]; ok {
			p.Annotations = map[string]string{addressAnnotation: a}
		}
		p.Spec = corev1.PodSpec{NodeName: o.Spec.NodeName, HostNetwork: o.Spec.HostNetwork,
			Containers: bareContainers(o.Spec.Containers), InitContainers: bareContainers(o.Spec.InitContainers)}
		p.Status = corev1.PodStatus{Phase: o.Status.Phase, PodIPs: o.Status.PodIPs}
		return p, nil
	case *corev1.Namespace:
		n := &corev1.Namespace{TypeMeta: o.TypeMeta, ObjectMeta: bare(o.ObjectMeta)}
		n.Labels = o.Labels
		return n, nil
	case *networkingv1.NetworkPolicy:
		return &networkingv1.NetworkPolicy{TypeMeta: o.TypeMeta, ObjectMeta: bare(o.ObjectMeta), Spec: o.Spec}, nil
	default:
		return obj, nil
	}
}

func bare(m metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: m.Name, Namespace: m.Namespace, UID: m.UID, ResourceVersion: m.ResourceVersion, Generation: m.Generation}
}

// bareContainers keeps the containers that have named ports.
func bareContainers(containers []corev1.Container) []corev1.Container {
	var kept []corev1.Container
	for _, c := range containers {
		if slices.ContainsFunc(c.Ports, func(p corev1.ContainerPort) bool { return p.Name != "" }) {
			kept = append(kept, corev1.Container{Ports: c.Ports, RestartPolicy: c.RestartPolicy})
		}
	}
	return kept
}
