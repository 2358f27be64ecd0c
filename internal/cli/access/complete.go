package access

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"orlop.dev/orlop/api/core/v1alpha2"
)

// completionTimeout bounds what a press of the tabulator key may take.
const completionTimeout = 3 * time.Second

// CompleteName is shell completion for commands whose first argument is a virtual
// machine, alone or behind "USER@". What follows it is not completed.
func (f *Flags) CompleteName(command *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	user, name, found := strings.Cut(prefix, "@")
	if !found {
		return f.CompleteNames(command, args, prefix)
	}
	names, directive := f.CompleteNames(command, args, name)
	for i := range names {
		names[i] = user + "@" + names[i]
	}
	return names, directive
}

// CompleteNames is shell completion for commands that take any number of virtual
// machines; those already named are left out.
func (f *Flags) CompleteNames(command *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return f.complete(command, v1alpha2.GroupVersion.WithKind(v1alpha2.VirtualMachineKind+"List"), args, prefix)
}

// CompleteNodes is shell completion for the name of a node.
func (f *Flags) CompleteNodes(command *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return f.complete(command, corev1.SchemeGroupVersion.WithKind("NodeList"), nil, prefix)
}

// complete lists the names of a kind; for kinds without a namespace the server
// ignores ours.
func (f *Flags) complete(command *cobra.Command, kind schema.GroupVersionKind, named []string, prefix string) ([]string, cobra.ShellCompDirective) {
	cluster, err := f.Connect()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	parent := command.Context()
	if parent == nil {
		parent = context.Background()
	}
	ctx, cancel := context.WithTimeout(parent, completionTimeout)
	defer cancel()
	list := &metav1.PartialObjectMetadataList{}
	list.SetGroupVersionKind(kind)
	if err := cluster.Client.List(ctx, list, client.InNamespace(cluster.Namespace), client.Limit(500)); err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []string
	for i := range list.Items {
		if name := list.Items[i].Name; strings.HasPrefix(name, prefix) && !slices.Contains(named, name) {
			names = append(names, name)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
