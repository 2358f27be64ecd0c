// Command orlop-csi is the CSI driver of the embedded cluster. It runs as
// "controller" beside the sidecars that turn claims into calls, and as "node" on
// each node, where it also registers itself with the kubelet.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"orlop.dev/orlop/internal/csi"
	"orlop.dev/orlop/internal/version"
)

type options struct {
	root, socket, node   string
	registry, hostSocket string
	overcommit           float64
	log                  *slog.Logger
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "orlop-csi:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	o := &options{log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	root := &cobra.Command{
		Use: "orlop-csi", Short: "CSI driver " + csi.DriverName,
		Version: version.Version(), SilenceErrors: true, SilenceUsage: true,
	}
	root.PersistentFlags().StringVar(&o.root, "root", "/var/lib/orlop-storage", "folder that all nodes of the machine share")
	root.PersistentFlags().StringVar(&o.socket, "socket", "/csi/csi.sock", "socket to serve on")

	controller := &cobra.Command{Use: "controller", Short: "make, grow, copy and delete volumes", RunE: func(c *cobra.Command, _ []string) error {
		return runController(c.Context(), o)
	}}
	controller.Flags().Float64Var(&o.overcommit, "overcommit", 1, "how many times the store's size may be promised to volumes")

	node := &cobra.Command{Use: "node", Short: "attach and mount the volumes of one node", RunE: func(c *cobra.Command, _ []string) error {
		return runNode(c.Context(), o)
	}}
	node.Flags().StringVar(&o.node, "node", os.Getenv("NODE_NAME"), "name of the node (default $NODE_NAME)")
	node.Flags().StringVar(&o.registry, "registration-dir", "", "the kubelet's plugins_registry folder; empty does not register")
	node.Flags().StringVar(&o.hostSocket, "host-socket", "", "path of the socket as the kubelet sees it")
	root.AddCommand(controller, node)
	return root
}

func runController(ctx context.Context, o *options) error {
	store, err := csi.OpenStore(o.root)
	if err != nil {
		return fmt.Errorf("open store: %w", err)
	}
	c, err := csi.NewController(store, o.overcommit)
	if err != nil {
		return fmt.Errorf("start controller: %w", err)
	}
	return csi.Serve(ctx, o.socket, csi.Services{Controller: c}, o.log)
}

func runNode(ctx context.Context, o *options) error {
	if o.registry != "" && o.hostSocket == "" {
		return errors.New("--registration-dir needs --host-socket")
	}
	store, err := csi.OpenStore(o.root)
	if err != nil {
		return fmt.Errorf("open store: %w", err)
	}
	n, err := csi.NewNode(store, o.node)
	if err != nil {
		return fmt.Errorf("start node: %w", err)
	}
	jobs, ctx := errgroup.WithContext(ctx)
	jobs.Go(func() error { return csi.Serve(ctx, o.socket, csi.Services{Node: n}, o.log) })
	if o.registry != "" {
		jobs.Go(func() error { return csi.Register(ctx, o.registry, o.hostSocket, o.log) })
	}
	return jobs.Wait()
}
