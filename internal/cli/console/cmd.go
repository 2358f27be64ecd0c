// Package console is `d8 v console`: the guest's serial console in the user's
// terminal.
//
// The invariant: however the command ends, the terminal is restored. Ctrl+]
// leaves at any moment, also while it waits for the guest.
package console

import (
	"time"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	"orlop.dev/orlop/internal/cli/access"
)

// New returns the console command.
func New(flags *access.Flags, streams genericiooptions.IOStreams) *cobra.Command {
	o := &options{streams: streams}
	command := &cobra.Command{
		Use:   "console VM[.NAMESPACE]",
		Short: "Open the serial console of a virtual machine",
		Long: `Open the serial console of a virtual machine.

Press Ctrl+] to leave. While the virtual machine is not running yet, or restarts,
the command waits and connects again by itself. A console has one user: whoever
opens it takes it over, and the former one's command ends. If somebody else holds it,
the command asks first: y takes it over, n (or Enter) leaves it, w waits until it is
free. --force takes it without a question; so does a command whose input is no
terminal, with a warning.

Standard output has what the guest prints and nothing else; what the command itself
has to say goes to standard error. Exit codes: 0 after Ctrl+], a "no" or a take-over, 130
after a signal, 1 after an error.`,
		Example: `  # The console of the virtual machine "linux" in the current namespace
  d8 v console linux

  # … in the namespace "prod", waiting at most a minute for it to run
  d8 v console linux.prod --timeout 1m

  # Record what it prints
  d8 v console linux | tee linux.log`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: flags.CompleteName,
		RunE: func(command *cobra.Command, args []string) error {
			if err := o.complete(flags, args[0]); err != nil {
				return err
			}
			return o.run(command.Context())
		},
	}
	command.Flags().DurationVar(&o.timeout, "timeout", 5*time.Minute, "how long to wait for a virtual machine that is not running")
	command.Flags().BoolVar(&o.force, "force", false, "take the console over from whoever holds it, without a question")
	return command
}
