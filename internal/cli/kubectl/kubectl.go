// Package kubectl is `d8 k` (also `d8 kubectl`): kubectl itself, as a library, so
// that one binary is enough. It adds and changes nothing.
package kubectl

import (
	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/kubectl/pkg/cmd"
)

// New returns kubectl's root command under the names k and kubectl.
func New(streams genericiooptions.IOStreams) *cobra.Command {
	command := cmd.NewKubectlCommand(cmd.KubectlOptions{
		ConfigFlags: genericclioptions.NewConfigFlags(true).WithDeprecatedPasswordFlag().WithDiscoveryBurst(300).WithDiscoveryQPS(50),
		IOStreams:   streams,
	})
	command.Use = "k"
	command.Aliases = []string{"kubectl"}
	command.Short = "kubectl: control any object of the cluster"
	return command
}
