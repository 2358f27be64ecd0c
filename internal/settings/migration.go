package settings

import (
	"fmt"
	"strconv"

	"k8s.io/apimachinery/pkg/api/resource"

	corev1alpha2 "orlop.dev/orlop/api/core/v1alpha2"
)

// Unlimited is what a limit is when it has been lifted.
const Unlimited = 1000000

// annotationPrefix precedes the names of the settings that are annotations.
const annotationPrefix = "virtualization.deckhouse.io/"

// SystemMigrationPolicy overrides the live migration policy of every machine: one of
// theirs, or Manual (only users move machines, and gently) or Never.
type SystemMigrationPolicy string

// The policies that only the system knows.
const (
	MigrationManual SystemMigrationPolicy = "Manual"
	MigrationNever  SystemMigrationPolicy = "Never"
)

// Migration says how machines move. It is read from annotations of the ModuleConfig.
type Migration struct {
	// BandwidthBytes is the most one migration sends, in bytes per second; 0 is no limit.
	BandwidthBytes int64
	// CompletionTimeoutPerGiB is how many seconds a transfer may take for each GiB of memory; 0 is for ever.
	CompletionTimeoutPerGiB int64
	// ProgressTimeout is how many seconds it may go without progress; 0 is for ever.
	ProgressTimeout int64
	// OutboundPerNode is how many machines prepare to leave a node at once, SyncPerNode
	// how many are transferred from it, InboundPerNode how many are received.
	OutboundPerNode, SyncPerNode, InboundPerNode int
	// PerCluster is how many migrations run at once; 0 leaves it to the number of nodes.
	PerCluster int
	// Policy overrides the machines' own, if it is not empty.
	Policy SystemMigrationPolicy
}

// DefaultMigration is what holds without any annotation.
func DefaultMigration() Migration {
	return Migration{BandwidthBytes: 640 << 20, CompletionTimeoutPerGiB: 800, ProgressTimeout: 150,
		OutboundPerNode: 1, SyncPerNode: 1, InboundPerNode: 1}
}

// ClusterLimit is how many migrations may run at once in a cluster in which machines
// can run on that many nodes.
func (m Migration) ClusterLimit(nodes int) int {
	if m.PerCluster > 0 {
		return m.PerCluster
	}
	return max(2, nodes)
}

// migration reads the annotations; what cannot be read is a problem, and its default holds.
func (p *problems) migration(annotations map[string]string) Migration {
	m := DefaultMigration()
	a := annotationReader{annotations: annotations, problems: p}
	a.bytes("bandwidth-per-migration", &m.BandwidthBytes)
	a.number("completion-timeout-per-gib", &m.CompletionTimeoutPerGiB)
	a.number("progress-timeout", &m.ProgressTimeout)
	a.count("parallel-outbound-migrations-per-node", &m.OutboundPerNode)
	a.count("parallel-sync-migrations-per-node", &m.SyncPerNode)
	a.count("parallel-inbound-migrations-per-node", &m.InboundPerNode)
	a.lifted("outbound-migration-limit", &m.OutboundPerNode)
	a.lifted("parallel-per-node-migration-limit", &m.SyncPerNode)
	a.lifted("inbound-migration-limit", &m.InboundPerNode)
	a.lifted("parallel-per-cluster-migration-limit", &m.PerCluster)
	if v := a.value("disable-tls"); v != "" && v != "false" {
		a.wrong("disable-tls", "%q: migrations are always encrypted in this release, remove it or set it to false", v)
	}
	switch v := annotations[corev1alpha2.AnnotationSystemMigrationPolicy]; v {
	case "", string(MigrationManual), string(MigrationNever), string(corev1alpha2.AlwaysSafe), string(corev1alpha2.PreferSafe),
		string(corev1alpha2.AlwaysForced), string(corev1alpha2.PreferForced):
		m.Policy = SystemMigrationPolicy(v)
	default:
		a.wrong("system-migration-policy", "%q is none of Manual, Never, AlwaysSafe, PreferSafe, AlwaysForced, PreferForced", v)
	}
	return m
}

// annotationReader reads settings that are annotations.
type annotationReader struct {
	annotations map[string]string
	problems    *problems
}

func (a annotationReader) value(name string) string { return a.annotations[annotationPrefix+name] }

func (a annotationReader) wrong(name, format string, args ...any) {
	*a.problems = append(*a.problems, fmt.Errorf("metadata.annotations[%s%s]: %s", annotationPrefix, name, fmt.Sprintf(format, args...)))
}

func (a annotationReader) bytes(name string, to *int64) {
	text := a.value(name)
	if text == "" {
		return
	}
	q, err := resource.ParseQuantity(text)
	if err != nil || q.Sign() < 0 {
		a.wrong(name, "%q is not a number of bytes such as 640Mi", text)
		return
	}
	*to = q.Value()
}

func (a annotationReader) number(name string, to *int64) {
	text := a.value(name)
	if text == "" {
		return
	}
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil || n < 0 {
		a.wrong(name, "%q is not a number of seconds", text)
		return
	}
	*to = n
}

func (a annotationReader) count(name string, to *int) {
	text := a.value(name)
	if text == "" {
		return
	}
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil || n < 1 {
		a.wrong(name, "%q is not a number of 1 or more", text)
		return
	}
	*to = int(n)
}

func (a annotationReader) lifted(name string, to *int) {
	switch text := a.value(name); text {
	case "":
	case "disabled":
		*to = Unlimited
	default:
		a.wrong(name, "%q: only \"disabled\" is known", text)
	}
}
