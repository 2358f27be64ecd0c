// Package config embeds the generated manifests, so that the installer brings exactly
// the CRDs it was built with. Nothing here is edited by hand: `make generate` writes it.
package config

import "embed"

// CRDs are the custom resource definitions, one file each, in crd/.
//
//go:embed crd/*.yaml
var CRDs embed.FS
