// Package portforward is `d8 v port-forward`: local ports, or standard input and
// output, joined to ports of the guest.
//
// Bytes are exact and half-closes survive (see internal/stream). Each accepted
// connection is one stream of its own; one that breaks never ends the others.
package portforward

import (
	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	"orlop.dev/orlop/internal/cli/access"
)

// New returns the port-forward command.
func New(flags *access.Flags, streams genericiooptions.IOStreams) *cobra.Command {
	o := &options{streams: streams}
	command := &cobra.Command{
		Use:   "port-forward VM[.NAMESPACE] [PROTOCOL/]LOCAL[:TARGET]...",
		Short: "Forward local ports to a virtual machine",
		Long: `Forward local ports to ports of a virtual machine, until interrupted.

PROTOCOL is tcp (the default) or udp. Without TARGET the guest's port has the same
number as the local one; LOCAL 0 means any free port, which is printed.

Exit codes: 0 after Ctrl+C or SIGTERM (with --stdio: after the guest has closed the
connection, and 130 after a signal), 1 after an error.`,
		Example: `  # Local port 8080 to port 80 of the guest
  d8 v port-forward linux 8080:80

  # Several at once, one of them UDP
  d8 v port-forward linux.prod 8080:80 udp/5353:53

  # Standard input and output instead of a local port, for ssh's ProxyCommand
  d8 v port-forward --stdio=true linux.prod 22`,
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: flags.CompleteName,
		RunE: func(command *cobra.Command, args []string) error {
			if err := o.complete(flags, args); err != nil {
				return err
			}
			return o.run(command.Context())
		},
	}
	command.Flags().BoolVar(&o.stdio, "stdio", false, "join standard input and output to the guest's port (exactly one port)")
	command.Flags().StringVar(&o.address, "address", "127.0.0.1", "local address to listen on")
	return command
}
