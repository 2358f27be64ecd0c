package settings

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/equality"

	deckhousev1alpha1 "orlop.dev/orlop/api/deckhouse/v1alpha1"
	"orlop.dev/orlop/internal/policy"
)

// Surroundings is what a new configuration must fit into.
type Surroundings struct {
	// Platform has the ranges of nodes, pods and services.
	Platform Platform
	// NodeAddresses are the internal addresses of all nodes.
	NodeAddresses []netip.Addr
	// PodCIDRs are the ranges that the nodes give to ordinary pods.
	PodCIDRs []netip.Prefix
	// Leases are the machine addresses that are taken.
	Leases []netip.Addr
	// DVCRClaim is true once the registry's volume exists, which pins its class.
	DVCRClaim bool
}

// Validate checks a new configuration against the former one (nil on creation) and
// the cluster. It is what the webhook answers; the error is for the user.
func Validate(former, config *deckhousev1alpha1.ModuleConfig, around Surroundings) error {
	settings, err := Parse(config)
	if err != nil {
		return err
	}
	var p problems
	p.overlaps(settings.VirtualMachineCIDRs, around)
	p.leases(settings, around.Leases)
	if former != nil {
		// A former configuration that cannot be read must not forbid its repair.
		if before, err := Parse(former); err == nil {
			p.registry(before.DVCR, settings.DVCR, around.DVCRClaim)
		}
	}
	if len(p) == 0 {
		return nil
	}
	texts := make([]string, len(p))
	for i, problem := range p {
		texts[i] = problem.Error()
	}
	return fmt.Errorf("%s", strings.Join(texts, "; "))
}

// Deferred names the settings whose change does nothing before the next `d8 install`,
// since workloads are only written by that.
func Deferred(former, config *deckhousev1alpha1.ModuleConfig) []string {
	before, err := Parse(former)
	if err != nil {
		return nil
	}
	after, err := Parse(config)
	if err != nil {
		return nil
	}
	var paths []string
	for _, change := range []struct {
		path    string
		changed bool
	}{
		{"logLevel", before.LogLevel != after.LogLevel},
		{"logFormat", before.LogFormat != after.LogFormat},
		{"highAvailability", !equality.Semantic.DeepEqual(before.HighAvailability, after.HighAvailability)},
		{"dvcr.storage", before.DVCR.Size.Cmp(after.DVCR.Size) != 0 || before.DVCR.StorageClassName != after.DVCR.StorageClassName},
	} {
		if change.changed {
			paths = append(paths, change.path)
		}
	}
	return paths
}

func (p *problems) overlaps(cidrs []netip.Prefix, around Surroundings) {
	for i, prefix := range cidrs {
		at := fmt.Sprintf("virtualMachineCIDRs[%d]", i)
		if whose, other, ok := around.overlap(prefix); ok {
			p.add(at, "%s overlaps with the range of %s (%s)", prefix, whose, other)
		}
		for _, address := range around.NodeAddresses {
			if prefix.Contains(address) {
				p.add(at, "%s contains the address of a node (%s)", prefix, address)
				break
			}
		}
	}
}

// overlap is the first other network that a range overlaps with.
func (a Surroundings) overlap(prefix netip.Prefix) (whose string, other netip.Prefix, ok bool) {
	networks := []struct {
		whose string
		cidrs []string
	}{
		{"nodes", a.Platform.NodeCIDRs}, {"pods", []string{a.Platform.PodCIDR}}, {"services", []string{a.Platform.ServiceCIDR}},
	}
	for _, n := range networks {
		for _, text := range n.cidrs {
			if other, err := netip.ParsePrefix(text); err == nil && prefix.Overlaps(other) {
				return n.whose, other, true
			}
		}
	}
	for _, other := range a.PodCIDRs {
		if prefix.Overlaps(other) {
			return "pods of a node", other, true
		}
	}
	return "", netip.Prefix{}, false
}

// namedLeases is how many addresses a refusal names; a range may have thousands.
const namedLeases = 5

// leases refuses ranges that leave out a leased address, or make it one that no
// machine may have: the last address of a smaller range is its broadcast address.
func (p *problems) leases(settings *Settings, leases []netip.Addr) {
	var out []string
	for _, address := range slices.SortedFunc(slices.Values(leases), netip.Addr.Compare) {
		if !policy.UsableAddress(address, settings.VirtualMachineCIDRs) {
			out = append(out, address.String())
		}
	}
	if len(out) == 0 {
		return
	}
	names := strings.Join(out[:min(len(out), namedLeases)], ", ")
	if more := len(out) - namedLeases; more > 0 {
		names += fmt.Sprintf(" and %d more", more)
	}
	p.add("virtualMachineCIDRs", "leased addresses must stay in one of the ranges, and not as its network, router or broadcast address: %s", names)
}

func (p *problems) registry(before, after DVCR, claim bool) {
	if after.Size.Cmp(before.Size) < 0 {
		p.add("dvcr.storage.persistentVolumeClaim.size", "cannot shrink from %s to %s", &before.Size, &after.Size)
	}
	if claim && before.StorageClassName != after.StorageClassName {
		p.add("dvcr.storage.persistentVolumeClaim.storageClassName", "cannot change while the registry's volume exists")
	}
}
