// Command vm-ipam is the CNI address plugin for pods of virtual machines; see
// package ipam. The container runtime runs it, with its input on standard input.
package main

import (
	"github.com/containernetworking/cni/pkg/skel"
	cniversion "github.com/containernetworking/cni/pkg/version"

	"orlop.dev/orlop/internal/ipam"
	"orlop.dev/orlop/internal/version"
)

func main() {
	supported := cniversion.PluginSupports("1.0.0", "1.1.0")
	skel.PluginMainFuncs(ipam.Functions(), supported, "CNI plugin vm-ipam "+version.Version())
}
