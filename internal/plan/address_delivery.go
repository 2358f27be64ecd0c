package plan

import (
	"slices"

	"orlop.dev/orlop/api/core/v1alpha2"
)

// AddressDelivery is how a pod network is told which address a pod must get: by an
// annotation in words of its own. Networks ignore one another's annotations, so that
// a launcher pod carries those of all, and the handler refuses to start a machine
// whose pod got another address all the same.
type AddressDelivery struct {
	// Network names who reads the annotation.
	Network string
	// Annotation is its key.
	Annotation string
	// Value writes an address in the network's words.
	Value func(address string) string
}

// AddressDeliveries are the networks that can give a machine's pod its address.
// docs/operations/networks.md says what each can and cannot do; the policy
// virtualization-pod-address-policy of the chart names the same annotations.
func AddressDeliveries() []AddressDelivery {
	plain := func(address string) string { return address }
	return []AddressDelivery{
		{"vm-ipam", v1alpha2.AnnotationPodAddress, plain},
		{"Cilium of Deckhouse", v1alpha2.AnnotationCiliumAddress, plain},
		{"Calico", v1alpha2.AnnotationCalicoAddresses, func(address string) string { return `["` + address + `"]` }},
		{"Kube-OVN", v1alpha2.AnnotationKubeOVNAddress, plain},
	}
}

// addressAnnotations are those of a pod with an address; none without one.
func addressAnnotations(address string) map[string]string {
	all := map[string]string{}
	if address == "" {
		return all
	}
	for _, d := range AddressDeliveries() {
		all[d.Annotation] = d.Value(address)
	}
	return all
}

// AddressAnnotationKeys are the keys of all deliveries, sorted.
func AddressAnnotationKeys() []string {
	var keys []string
	for _, d := range AddressDeliveries() {
		keys = append(keys, d.Annotation)
	}
	slices.Sort(keys)
	return keys
}
