// Command d8 is the user's command: the embedded cluster, and access to virtual
// machines.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"k8s.io/cli-runtime/pkg/genericiooptions"

	"orlop.dev/orlop/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	streams := genericiooptions.IOStreams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr}
	err := cli.NewRoot(streams).ExecuteContext(ctx)
	interrupted := ctx.Err() != nil
	stop()
	os.Exit(cli.Exit(err, interrupted, os.Stderr))
}
