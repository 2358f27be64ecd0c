// Package virtualization embeds the Helm chart that installs our components, so that
// one program can install them without fetching anything.
//
// The chart holds what runs and what it may do. CRDs, the ModuleConfig and the class
// `generic` are not in it: Helm never upgrades the first and would fight over the
// other two with the people they belong to.
package virtualization

import "embed"

// Files is the chart: Chart.yaml, values.yaml, templates and generated RBAC rules.
//
//go:embed Chart.yaml values.yaml .helmignore all:templates rbac
var Files embed.FS
