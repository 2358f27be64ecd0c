package settings

import (
	"fmt"
	"net/netip"
	"strings"

	deckhousev1alpha1 "orlop.dev/orlop/api/deckhouse/v1alpha1"
)

// Surroundings is what a new configuration must fit into.
type Surroundings struct {
	// Platform has the ranges of nodes, pods and services.
	Platform Platform
	// NodeAddresses are the internal addresses of all nodes.
	NodeAddresses []netip.Addr
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

func (p *problems) overlaps(cidrs []netip.Prefix, around Surroundings) {
	taken := map[string]string{}
	for _, cidr := range around.Platform.NodeCIDRs {
		taken[cidr] = "nodes"
	}
	taken[around.Platform.PodCIDR] = "pods"
	taken[around.Platform.ServiceCIDR] = "services"
	for i, prefix := range cidrs {
		at := fmt.Sprintf("virtualMachineCIDRs[%d]", i)
		for text, whose := range taken {
			if other, err := netip.ParsePrefix(text); err == nil && prefix.Overlaps(other) {
				p.add(at, "%s overlaps with the range of %s (%s)", prefix, whose, other)
			}
		}
		for _, address := range around.NodeAddresses {
			if prefix.Contains(address) {
				p.add(at, "%s contains the address of a node (%s)", prefix, address)
				break
			}
		}
	}
}

func (p *problems) leases(settings *Settings, leases []netip.Addr) {
	for _, address := range leases {
		if _, ok := settings.CIDROf(address); !ok {
			p.add("virtualMachineCIDRs", "address %s is leased and must stay in one of the ranges", address)
			return
		}
	}
}

func (p *problems) registry(before, after DVCR, claim bool) {
	if after.Size.Cmp(before.Size) < 0 {
		p.add("dvcr.storage.persistentVolumeClaim.size", "cannot shrink from %s to %s", &before.Size, &after.Size)
	}
	if claim && before.StorageClassName != after.StorageClassName {
		p.add("dvcr.storage.persistentVolumeClaim.storageClassName", "cannot change while the registry's volume exists")
	}
}
