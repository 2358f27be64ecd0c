// Package install is `d8 install` and `d8 uninstall`: flags and defaults for
// internal/install, which does the work.
//
// It knows one thing more than its flags: when the current context is an embedded
// cluster of this machine, the cluster's own plan says which addresses machines get,
// and machines may run without KVM.
package install

import (
	"context"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/utils/clock"

	"orlop.dev/orlop/internal/cluster"
	"orlop.dev/orlop/internal/install"
	"orlop.dev/orlop/internal/settings"
	"orlop.dev/orlop/internal/version"
)

// contextPrefix is how contexts of embedded clusters begin.
const contextPrefix = "orlop-"

// defaultVirtualMachineCIDR is the range that the documentation's examples use.
const defaultVirtualMachineCIDR = "10.66.10.0/24"

// options of d8 install.
type options struct {
	flags          *genericclioptions.ConfigFlags
	stateDir       string
	allowEmulation bool
	install        install.Options
}

// New makes `d8 install`.
func New(streams genericiooptions.IOStreams) *cobra.Command {
	o := &options{flags: genericclioptions.NewConfigFlags(true)}
	o.install.Out, o.install.Clock, o.install.Getter = streams.ErrOut, clock.RealClock{}, o.flags
	command := &cobra.Command{
		Use:   "install",
		Short: "Install the platform on a Kubernetes cluster, or bring an installation up to date",
		Long: `Install the platform on the cluster of the current context, or bring an
installation there up to date. It can be repeated at any time; a ModuleConfig that
exists is kept.`,
		Example: `  # On the embedded cluster
  d8 install

  # On another one, with images from your registry
  d8 install --registry registry.example.com/orlop --vm-cidr 10.66.10.0/24`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			o.complete(command.Context(), command.Flags().Changed("allow-emulation"))
			return install.Install(command.Context(), o.install)
		},
	}
	o.flags.AddFlags(command.PersistentFlags())
	f := command.Flags()
	f.StringVar(&o.install.Registry, "registry", "orlop.internal", "where the images are: REGISTRY/<name>:<version>")
	f.StringVar(&o.install.Version, "image-version", version.Version(), "version of the images")
	f.StringSliceVar(&o.install.PullSecrets, "image-pull-secret", nil, "names of Secrets in "+settings.Namespace+" to pull images with")
	f.IntVar(&o.install.Replicas, "replicas", 0, "replicas of controller and API (default: 1, or 3 with three control plane nodes)")
	f.StringSliceVar(&o.install.Module.VirtualMachineCIDRs, "vm-cidr", nil, "ranges of machine addresses for a new ModuleConfig (default: that of the embedded cluster, or "+defaultVirtualMachineCIDR+")")
	f.StringVar(&o.install.Module.DVCRSize, "dvcr-size", "50G", "size of the image registry for a new ModuleConfig")
	f.StringVar(&o.install.Module.DVCRStorageClass, "dvcr-storage-class", "", "StorageClass of the image registry for a new ModuleConfig (default: the cluster's)")
	f.BoolVar(&o.allowEmulation, "allow-emulation", false, "let machines run on nodes without KVM, for a new ModuleConfig (default: only on an embedded cluster)")
	f.StringVar(&o.install.Network.PodCIDR, "pod-cidr", "", "range of pod addresses (default: found out)")
	f.StringVar(&o.install.Network.ServiceCIDR, "service-cidr", "", "range of service addresses (default: found out)")
	f.StringSliceVar(&o.install.Network.ClusterDNS, "cluster-dns", nil, "addresses of the cluster's DNS servers (default: found out)")
	f.StringVar(&o.install.Network.ClusterDomain, "cluster-domain", "cluster.local", "DNS domain of the cluster")
	f.DurationVar(&o.install.Timeout, "timeout", 10*time.Minute, "how long everything may take")
	f.StringVar(&o.stateDir, "state-dir", cluster.DefaultRoot, "directory in which embedded clusters are kept")
	return command
}

// complete fills in what follows from the cluster.
func (o *options) complete(ctx context.Context, emulationChosen bool) {
	o.install.Module.AllowEmulation = o.allowEmulation
	embedded := o.embedded(ctx)
	if embedded != nil {
		if !emulationChosen {
			o.install.Module.AllowEmulation = true
		}
		if len(o.install.Module.VirtualMachineCIDRs) == 0 {
			o.install.Module.VirtualMachineCIDRs = []string{embedded.Addresses.VMs.String()}
		}
		network := &o.install.Network
		network.NodeCIDRs = []string{embedded.Addresses.Nodes.String()}
		if network.PodCIDR == "" {
			network.PodCIDR = embedded.Addresses.Pods.String()
		}
		if network.ServiceCIDR == "" {
			network.ServiceCIDR = embedded.Addresses.Services.String()
		}
		if len(network.ClusterDNS) == 0 {
			network.ClusterDNS = []string{embedded.Addresses.DNS.String()}
		}
	}
	if len(o.install.Module.VirtualMachineCIDRs) == 0 {
		o.install.Module.VirtualMachineCIDRs = []string{defaultVirtualMachineCIDR}
	}
}

// embedded returns the embedded cluster of this machine that the current context
// means, or nil.
func (o *options) embedded(ctx context.Context) *cluster.Status {
	raw, err := o.flags.ToRawKubeConfigLoader().RawConfig()
	if err != nil {
		return nil
	}
	current := raw.CurrentContext
	if o.flags.Context != nil && *o.flags.Context != "" {
		current = *o.flags.Context
	}
	name, found := strings.CutPrefix(current, contextPrefix)
	if !found {
		return nil
	}
	c, err := cluster.Open(cluster.Options{Name: name, Root: o.stateDir, Out: io.Discard, Now: time.Now})
	if err != nil || !c.Exists() {
		return nil
	}
	status, err := c.Status(ctx)
	if err != nil {
		return nil
	}
	config, err := o.flags.ToRESTConfig()
	if err != nil || config.Host != status.Server {
		return nil
	}
	return status
}

// NewUninstall makes `d8 uninstall`.
func NewUninstall(streams genericiooptions.IOStreams) *cobra.Command {
	flags := genericclioptions.NewConfigFlags(true)
	o := install.UninstallOptions{Getter: flags, Out: streams.ErrOut, Clock: clock.RealClock{}}
	command := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove the platform from a Kubernetes cluster",
		Long: `Remove the platform from the cluster of the current context. Machines, disks,
images and addresses are the users': while there are any, nothing is removed, unless
they are to be deleted too.`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			return install.Uninstall(command.Context(), o)
		},
	}
	flags.AddFlags(command.PersistentFlags())
	f := command.Flags()
	f.BoolVar(&o.DeleteUserObjects, "delete-user-objects", false, "delete machines, disks, images and addresses with all their data")
	f.DurationVar(&o.Timeout, "timeout", 10*time.Minute, "how long everything may take")
	return command
}
