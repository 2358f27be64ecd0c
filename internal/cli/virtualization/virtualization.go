// Package virtualization is `d8 v` (also `d8 virtualization`): the tree of
// commands that reach into virtual machines. Each verb is a package of its own;
// this one only hangs them on one branch with common flags.
package virtualization

import (
	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	"orlop.dev/orlop/internal/cli/access"
	"orlop.dev/orlop/internal/cli/console"
	"orlop.dev/orlop/internal/cli/portforward"
	"orlop.dev/orlop/internal/cli/power"
	"orlop.dev/orlop/internal/cli/ssh"
)

// New returns the branch.
func New(streams genericiooptions.IOStreams) *cobra.Command {
	command := &cobra.Command{
		Use:     "v",
		Aliases: []string{"virtualization"},
		Short:   "Reach and control virtual machines",
		Long: `Reach and control virtual machines.

A virtual machine is named VM or VM.NAMESPACE; the namespace in the name wins over -n.

Exit codes: 0 done, 1 failed (the reason is on standard error), 130 ended by Ctrl+C or
SIGTERM. "ssh" passes on the exit code of ssh, "port-forward" ends with 0 after Ctrl+C.`,
		Example: `  # Start a virtual machine and open its console
  d8 v start linux --wait
  d8 v console linux

  # Copy a file through a forwarded port
  d8 v port-forward linux 2222:22 &
  scp -P 2222 notes.txt cloud@127.0.0.1:`,
	}
	flags := access.NewFlags(command)
	command.AddCommand(
		console.New(flags, streams),
		portforward.New(flags, streams),
		ssh.New(flags, streams),
	)
	command.AddCommand(power.New(flags, streams)...)
	return command
}
