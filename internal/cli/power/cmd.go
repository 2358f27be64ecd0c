// Package power is `d8 v start`, `stop`, `restart`, `evict` and `migrate`: each makes
// a VirtualMachineOperation and says how it goes.
//
// The commands decide nothing: whether an operation may run is the controller's
// answer, shown as it stands in the operation's conditions.
package power

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/cli/access"
)

// verb is one of the commands.
type verb struct {
	name     string
	short    string
	question string
	kind     v1alpha2.OperationType
	force    string
	// more is an example of its own.
	more string
}

// verbs are the commands of this package. The API refuses force for a start, so there
// the flag is taken, as all these commands have it, and not passed on.
var verbs = []verb{
	{name: "start", short: "Start virtual machines", question: "Start", kind: v1alpha2.OperationStart, force: "no effect: a start has nothing to force"},
	{name: "stop", short: "Stop virtual machines", question: "Stop", kind: v1alpha2.OperationStop, force: "power off at once instead of asking the guest to shut down"},
	{name: "restart", short: "Restart virtual machines", question: "Restart", kind: v1alpha2.OperationRestart, force: "power off at once instead of asking the guest to shut down"},
	{name: "evict", short: "Move running virtual machines to other nodes", question: "Evict", kind: v1alpha2.OperationEvict, force: migrationForce},
	{name: "migrate", short: "Move running virtual machines to other nodes, or to a node of your choice", question: "Migrate",
		kind: v1alpha2.OperationMigrate, force: migrationForce, more: `

  # To one node and no other
  d8 v migrate linux --target-node-name worker-2 --wait`},
}

// migrationForce is what force means to the commands that move machines. Not to give
// the flag is not the same as to deny it.
const migrationForce = "true: slow the guest down if it changes memory faster than it can be copied; false: never do; without the flag the machine's live migration policy decides"

// New returns the power commands.
func New(flags *access.Flags, streams genericiooptions.IOStreams) []*cobra.Command {
	commands := make([]*cobra.Command, 0, len(verbs))
	for _, v := range verbs {
		commands = append(commands, newVerb(v, flags, streams))
	}
	return commands
}

func newVerb(v verb, flags *access.Flags, streams genericiooptions.IOStreams) *cobra.Command {
	o := &options{streams: streams, verb: v}
	command := &cobra.Command{
		Use:   v.name + " VM[.NAMESPACE]...",
		Short: v.short,
		Long: fmt.Sprintf(`%s, by making a VirtualMachineOperation for each.

The command returns when the operation has begun; with --wait, when it has ended.
More than one virtual machine implies --create-only.

Exit codes: 0 when every operation has begun (or ended, or was declined), 1 when one
could not be made, failed, was superseded or took longer than --timeout, 130 after a
signal. An operation goes on when the command stops waiting for it.`, v.short),
		Example: fmt.Sprintf(`  # One virtual machine, and wait for the end
  d8 v %[1]s linux --wait

  # Several, one of them in another namespace
  d8 v %[1]s linux windows.lab

  # All of the namespace "prod" with a label, without a question
  d8 v %[1]s -n prod -l tier=web --yes`, v.name) + v.more,
		ValidArgsFunction: flags.CompleteNames,
		RunE: func(command *cobra.Command, args []string) error {
			if command.Flags().Changed("force") && v.kind != v1alpha2.OperationStart {
				o.force = &o.forceValue
			}
			o.choosesNode = command.Flags().Changed("target-node-name")
			if err := o.complete(command.Context(), flags, args); err != nil {
				return err
			}
			return o.run(command.Context())
		},
	}
	command.Flags().BoolVarP(&o.forceValue, "force", "f", false, v.force)
	command.Flags().BoolVarP(&o.wait, "wait", "w", false, "wait until the operation has completed")
	command.Flags().BoolVarP(&o.createOnly, "create-only", "c", false, "return as soon as the operation exists")
	command.Flags().BoolVar(&o.all, "all", false, "all virtual machines of the namespace")
	command.Flags().StringVarP(&o.selector, "label-selector", "l", "", "virtual machines with these labels (k=v)")
	command.Flags().DurationVarP(&o.timeout, "timeout", "t", 5*time.Minute, "how long to wait")
	command.Flags().BoolVarP(&o.yes, "yes", "y", false, "do not ask (also: "+confirmVariable+"=yes)")
	if v.kind == v1alpha2.OperationMigrate {
		command.Flags().StringVar(&o.node, "target-node-name", "", "the node to move to")
		_ = command.RegisterFlagCompletionFunc("target-node-name", flags.CompleteNodes) // it fails for an unknown flag only
	}
	command.MarkFlagsMutuallyExclusive("all", "label-selector")
	command.MarkFlagsMutuallyExclusive("wait", "create-only")
	return command
}
