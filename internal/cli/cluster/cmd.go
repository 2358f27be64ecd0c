// Package cluster is "d8 cluster": the embedded cluster on the command line.
//
// It only turns flags into calls of internal/cluster and what that returns into text;
// it decides nothing. The output of status -o json is an interface for scripts.
package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	"orlop.dev/orlop/internal/cluster"
	"orlop.dev/orlop/internal/cluster/box"
)

// selection is the flags that say which cluster.
type selection struct {
	genericiooptions.IOStreams

	name     string
	stateDir string
	binDir   string
	images   string
}

func (s *selection) open() (*cluster.Cluster, error) {
	return cluster.Open(cluster.Options{
		Name: s.name, Root: s.stateDir, Source: s.binDir, Images: s.images, Out: s.ErrOut, Now: time.Now,
	})
}

// New makes the command with all its verbs.
func New(streams genericiooptions.IOStreams) *cobra.Command {
	s := &selection{IOStreams: streams}
	command := &cobra.Command{
		Use:   "cluster",
		Short: "Run a Kubernetes cluster on this machine",
		Long: `Run a real Kubernetes cluster on this machine: a control plane and any number of
nodes, each in namespaces of its own. Everything of a cluster is in one directory
and goes away with "d8 cluster down". All commands need root.`,
	}
	flags := command.PersistentFlags()
	flags.StringVar(&s.name, "name", cluster.DefaultName, "name of the cluster, at most 10 characters")
	flags.StringVar(&s.stateDir, "state-dir", cluster.DefaultRoot, "directory in which clusters are kept")
	flags.StringVar(&s.binDir, "bin-dir", "", "directory of the platform's binaries (default: that of this program)")
	flags.StringVar(&s.images, "images-dir", "", "directory of image layouts (default: \"images\" in --bin-dir)")
	command.AddCommand(
		up(s), down(s), status(s), logs(s), kubeconfig(s), node(s), loadImages(s), boxInit(),
	)
	return command
}

func up(s *selection) *cobra.Command {
	var options cluster.UpOptions
	command := &cobra.Command{
		Use:   "up",
		Short: "Create the cluster, or repair and update it",
		Example: `  # One node
  d8 cluster up
  # A second cluster, of three nodes, with a kubeconfig of its own
  d8 cluster up --name test --nodes 3 --kubeconfig /tmp/test.kubeconfig`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			c, err := s.open()
			if err != nil {
				return err
			}
			return c.Up(command.Context(), options)
		},
	}
	flags := command.Flags()
	flags.IntVar(&options.Nodes, "nodes", 0, "number of nodes (default: as it is, or 1)")
	flags.IntVar(&options.NodeCPUs, "node-cpus", 0, "CPUs that each node offers (default: the machine's, divided between the nodes)")
	flags.StringVar(&options.Kubeconfig, "kubeconfig", "", "file that gets the cluster's context (default: KUBECONFIG, else ~/.kube/config)")
	return command
}

func down(s *selection) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Remove the cluster and everything in it",
		Args:  cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			c, err := s.open()
			if err != nil {
				return err
			}
			return c.Down(command.Context())
		},
	}
}

func status(s *selection) *cobra.Command {
	var output string
	command := &cobra.Command{
		Use:   "status",
		Short: "Show the cluster's boxes and what runs in them",
		Args:  cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			c, err := s.open()
			if err != nil {
				return err
			}
			status, err := c.Status(command.Context())
			if err != nil {
				return err
			}
			switch output {
			case "json":
				encoder := json.NewEncoder(s.Out)
				encoder.SetIndent("", "  ")
				return encoder.Encode(status)
			case "":
				return printStatus(s.Out, status, time.Now())
			default:
				return fmt.Errorf("output format %q: only json is known", output)
			}
		},
	}
	command.Flags().StringVarP(&output, "output", "o", "", "output format: json")
	return command
}

// printStatus writes the table for people.
func printStatus(out io.Writer, status *cluster.Status, now time.Time) error {
	fmt.Fprintf(out, "cluster %s (%s), context %s, server %s\n", status.Name, status.Version, status.KubeconfigContext, status.Server)
	fmt.Fprintf(out, "nodes %s, pods %s, services %s, virtual machines %s, DNS %s\n\n",
		status.Addresses.Nodes, status.Addresses.Pods, status.Addresses.Services, status.Addresses.VMs, status.Addresses.DNS)
	table := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(table, "BOX\tADDRESS\tCOMPONENT\tSTATE\tSINCE\tRESTARTS\tLAST EXIT")
	for _, b := range status.Boxes {
		if !b.Running {
			fmt.Fprintf(table, "%s\t%s\t\toff\t\t\t\n", b.Name, b.Address)
			continue
		}
		for _, c := range b.Components {
			state, since := "restarting", ""
			switch {
			case c.PID != 0:
				state, since = "running", now.Sub(c.Started).Round(time.Second).String()
			case c.WaitsFor != "":
				state = "waiting for " + c.WaitsFor
			}
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%d\t%s\n", b.Name, b.Address, c.Name, state, since, c.Restarts, c.LastExit)
		}
	}
	return table.Flush()
}

func logs(s *selection) *cobra.Command {
	follow, tail := false, -1
	command := &cobra.Command{
		Use:   "logs [BOX [COMPONENT]]",
		Short: "Print what a component of a box wrote",
		Long: `Print what a component of a box wrote. Without a component, the boxes' components
that have a log are listed; "init" is the box's own.`,
		Args: cobra.MaximumNArgs(2),
		RunE: func(command *cobra.Command, args []string) error {
			c, err := s.open()
			if err != nil {
				return err
			}
			if len(args) == 2 {
				return c.Logs(command.Context(), s.Out, args[0], args[1], tail, follow)
			}
			boxes := c.BoxNames()
			if len(args) == 1 {
				if !slices.Contains(boxes, args[0]) {
					return fmt.Errorf("no box %q; there are %s", args[0], strings.Join(boxes, ", "))
				}
				boxes = args
			}
			for _, name := range boxes {
				components, err := c.LogNames(name)
				if err != nil {
					return err
				}
				fmt.Fprintf(s.Out, "%s: %s\n", name, strings.Join(components, " "))
			}
			return nil
		},
	}
	command.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what comes")
	command.Flags().IntVar(&tail, "tail", tail, "print only that many last lines")
	return command
}

func kubeconfig(s *selection) *cobra.Command {
	return &cobra.Command{
		Use:   "kubeconfig",
		Short: "Print a kubeconfig for the cluster",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			c, err := s.open()
			if err != nil {
				return err
			}
			text, err := c.Kubeconfig()
			if err != nil {
				return err
			}
			_, err = s.Out.Write(text)
			return err
		},
	}
}

func node(s *selection) *cobra.Command {
	command := &cobra.Command{
		Use:   "node",
		Short: "Add a node, or cut the power of one",
	}
	command.AddCommand(
		&cobra.Command{
			Use:   "kill BOX",
			Short: "Cut the power of a box; \"d8 cluster up\" switches it on again",
			Args:  cobra.ExactArgs(1),
			RunE: func(command *cobra.Command, args []string) error {
				c, err := s.open()
				if err != nil {
					return err
				}
				if err := c.KillBox(command.Context(), args[0]); err != nil {
					return err
				}
				fmt.Fprintf(s.ErrOut, "Box %s is off\n", args[0])
				return nil
			},
		},
		&cobra.Command{
			Use:   "add",
			Short: "Add one node",
			Args:  cobra.NoArgs,
			RunE: func(command *cobra.Command, _ []string) error {
				c, err := s.open()
				if err != nil {
					return err
				}
				if !c.Exists() {
					return errors.New("there is no such cluster; \"d8 cluster up\" makes it")
				}
				return c.Up(command.Context(), cluster.UpOptions{Nodes: len(c.BoxNames())})
			},
		},
	)
	return command
}

func loadImages(s *selection) *cobra.Command {
	return &cobra.Command{
		Use:   "load-images [NAME...]",
		Short: "Load images that changed into the running nodes",
		Long: `Load images into the running nodes, those only whose content is not there yet.
Without names, all layouts in --images-dir. Pods that run keep their image.`,
		RunE: func(command *cobra.Command, args []string) error {
			c, err := s.open()
			if err != nil {
				return err
			}
			if !c.Exists() {
				return errors.New("there is no such cluster; \"d8 cluster up\" makes it")
			}
			return c.LoadImages(command.Context(), args...)
		},
	}
}

// boxInit is what a box's first process runs. It is not for people.
func boxInit() *cobra.Command {
	return &cobra.Command{
		Use:    "box-init SPEC",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			return box.Init(context.Background(), args[0])
		},
	}
}
