package settings

import (
	"flag"
	"strings"
)

// Namespace is where the module's components run unless a flag says otherwise.
const Namespace = "d8-virtualization"

// Platform is what the chart tells a component by flags: facts about the
// installation and the cluster that do not change while the component runs.
type Platform struct {
	// Namespace of the module's components.
	Namespace string
	// LauncherImage runs machines; ImporterImage brings data in.
	LauncherImage string
	ImporterImage string
	// DVCRHost is host:port of the registry inside the cluster.
	DVCRHost string
	// NodeCIDRs, PodCIDR and ServiceCIDR are the ranges that machine addresses must not overlap with.
	NodeCIDRs   []string
	PodCIDR     string
	ServiceCIDR string
	// ClusterDomain and ClusterDNS are given to guests.
	ClusterDomain string
	ClusterDNS    []string
}

// Flags binds a Platform to command-line flags.
func (p *Platform) Flags(set *flag.FlagSet) {
	set.StringVar(&p.Namespace, "namespace", Namespace, "namespace of the module's components")
	set.StringVar(&p.LauncherImage, "launcher-image", "", "image of virt-launcher")
	set.StringVar(&p.ImporterImage, "importer-image", "", "image of dvcr-importer")
	set.StringVar(&p.DVCRHost, "dvcr-host", "dvcr."+Namespace+".svc:5000", "host and port of the registry inside the cluster")
	set.Var((*list)(&p.NodeCIDRs), "node-cidrs", "comma-separated ranges of node addresses")
	set.StringVar(&p.PodCIDR, "pod-cidr", "", "range of pod addresses")
	set.StringVar(&p.ServiceCIDR, "service-cidr", "", "range of service addresses")
	set.StringVar(&p.ClusterDomain, "cluster-domain", "cluster.local", "DNS domain of the cluster")
	set.Var((*list)(&p.ClusterDNS), "cluster-dns", "comma-separated addresses of the cluster's DNS servers")
}

// list is a comma-separated flag value.
type list []string

// String implements flag.Value.
func (l *list) String() string { return strings.Join(*l, ",") }

// Set implements flag.Value.
func (l *list) Set(value string) error {
	*l = nil
	for item := range strings.SplitSeq(value, ",") {
		if item = strings.TrimSpace(item); item != "" {
			*l = append(*l, item)
		}
	}
	return nil
}
