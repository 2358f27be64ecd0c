// Package cli is the d8 command: the composition of its verbs, each in a package of
// its own below this one. Nothing is done here.
package cli

import (
	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	"orlop.dev/orlop/internal/cli/cluster"
	"orlop.dev/orlop/internal/cli/install"
	"orlop.dev/orlop/internal/cli/kubectl"
	"orlop.dev/orlop/internal/cli/virtualization"
	"orlop.dev/orlop/internal/version"
)

// NewRoot makes the command with all verbs.
func NewRoot(streams genericiooptions.IOStreams) *cobra.Command {
	root := &cobra.Command{
		Use:           "d8",
		Short:         "Virtual machines on Kubernetes",
		Version:       version.Version(),
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetIn(streams.In)
	root.SetOut(streams.Out)
	root.SetErr(streams.ErrOut)
	root.AddCommand(
		cluster.New(streams),
		install.New(streams),
		install.NewUninstall(streams),
		kubectl.New(streams),
		virtualization.New(streams),
	)
	return root
}
