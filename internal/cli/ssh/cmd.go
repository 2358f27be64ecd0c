// Package ssh is `d8 v ssh`: the user's own OpenSSH client, with this program's
// port-forward as its ProxyCommand. Keys, configuration and agent are OpenSSH's.
package ssh

import (
	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	"orlop.dev/orlop/internal/cli/access"
)

// New returns the ssh command.
func New(flags *access.Flags, streams genericiooptions.IOStreams) *cobra.Command {
	o := &options{streams: streams}
	command := &cobra.Command{
		Use:   "ssh [USER@]VM[.NAMESPACE] [-- COMMAND...]",
		Short: "Open an SSH session to a virtual machine",
		Long: `Open an SSH session to a virtual machine with the local OpenSSH client.

The connection goes through the cluster's API, so the guest's address need not be
reachable from here. The exit code is ssh's: that of the command in the guest, or 255
if ssh itself failed; 130 after a signal.`,
		Example: `  # As the user "cloud"
  d8 v ssh cloud@linux

  # Another key, another port, a command
  d8 v ssh -i ~/.ssh/lab -p 2222 cloud@linux.prod -- uname -a`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: flags.CompleteName,
		RunE: func(command *cobra.Command, args []string) error {
			if err := o.complete(flags, args); err != nil {
				return err
			}
			return o.run(command.Context())
		},
	}
	command.Flags().IntVarP(&o.port, "port", "p", 22, "port of the SSH server in the guest")
	command.Flags().StringVarP(&o.user, "username", "l", "", "user to log in as (default: the local user)")
	command.Flags().StringVarP(&o.identity, "identity-file", "i", "", "private key file")
	command.Flags().StringVar(&o.knownHosts, "known-hosts", "", "known hosts file (default: OpenSSH's)")
	command.Flags().StringVarP(&o.command, "command", "c", "", "command to run in the guest")
	command.Flags().StringArrayVar(&o.extra, "ssh-args", nil, "more arguments for ssh, split at spaces (may be repeated)")
	command.Flags().Bool("local-ssh", true, "")
	command.Flags().StringArrayVar(&o.extra, "local-ssh-opts", nil, "")
	_ = command.Flags().MarkDeprecated("local-ssh", "the local ssh is always used")
	_ = command.Flags().MarkDeprecated("local-ssh-opts", "use --ssh-args")
	return command
}
