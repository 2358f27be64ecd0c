// Command virtualization-api serves the aggregated API
// subresources.virtualization.deckhouse.io.
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/server"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	core "orlop.dev/orlop/api/core/v1alpha2"
	instance "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/apiserver"
	"orlop.dev/orlop/internal/version"
)

func main() {
	if err := command().ExecuteContext(server.SetupSignalContext()); err != nil {
		fmt.Fprintln(os.Stderr, "virtualization-api:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	options := apiserver.NewOptions()
	command := &cobra.Command{
		Use:           "virtualization-api",
		Short:         "Serve consoles and forwarded ports of virtual machines through the Kubernetes API",
		Version:       version.Version(),
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(command *cobra.Command, _ []string) error {
			if err := options.Validate(); err != nil {
				return err
			}
			cluster, err := newClient()
			if err != nil {
				return err
			}
			return options.Run(command.Context(), cluster)
		},
	}
	flags := command.Flags()
	verbosity := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(verbosity)
	flags.AddGoFlag(verbosity.Lookup("v"))
	options.Serving.AddFlags(flags)
	options.Authentication.AddFlags(flags)
	options.Authorization.AddFlags(flags)
	flags.IntVar(&options.Handlers.Port, "handler-port", options.Handlers.Port, "port of the handlers' stream server")
	flags.StringVar(&options.Handlers.ClientCertificateDir, "handler-client-cert-dir", "", "directory with tls.crt and tls.key to show to handlers")
	flags.StringVar(&options.Handlers.AuthorityFile, "handler-ca-file", "", "PEM bundle to check handlers' certificates against")
	return command
}

func newClient() (client.Client, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, core.AddToScheme, instance.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("bug: build scheme: %w", err)
		}
	}
	config, err := ctrl.GetConfig()
	if err != nil {
		return nil, fmt.Errorf("find the cluster: %w", err)
	}
	return client.New(config, client.Options{Scheme: scheme})
}
