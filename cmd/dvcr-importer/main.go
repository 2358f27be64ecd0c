// Command dvcr-importer runs once in a short-lived pod: it brings an image into the
// registry, or fills the volume of a disk. What it has to do is in a mounted
// Secret; how it ended is in the termination message.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"orlop.dev/orlop/internal/importer"
	"orlop.dev/orlop/internal/version"
)

// memoryGoal is what the garbage collector aims at, in bytes; decompressors with
// large windows are the reason for most of it.
const memoryGoal = 160 << 20

type options struct {
	config, scratch, target, outcome, listen string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "dvcr-importer:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	o := &options{}
	c := &cobra.Command{
		Use: "dvcr-importer", Short: "bring an image into the registry, or fill a volume",
		Version: version.Version(), SilenceErrors: true, SilenceUsage: true, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return run(c.Context(), o) },
	}
	f := c.Flags()
	f.StringVar(&o.config, "config", filepath.Join(importer.ConfigDir, importer.ConfigKey), "file that says what to do")
	f.StringVar(&o.scratch, "scratch", importer.ScratchDir, "folder for temporary files")
	f.StringVar(&o.target, "target", importer.TargetDir, "volume to fill")
	f.StringVar(&o.outcome, "outcome", importer.TerminationLog, "file for the outcome")
	f.StringVar(&o.listen, "listen", ":"+strconv.Itoa(importer.ProgressPort), "address of the progress")
	return c
}

func run(ctx context.Context, o *options) error {
	debug.SetMemoryLimit(memoryGoal)
	result, err := work(ctx, o)
	if writeErr := importer.WriteOutcome(o.outcome, result, err); writeErr != nil {
		return errors.Join(err, writeErr)
	}
	return err
}

func work(ctx context.Context, o *options) (*importer.Result, error) {
	config, err := importer.ReadConfig(o.config)
	if err != nil {
		return nil, err
	}
	meter := importer.NewMeter(time.Now)
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", o.listen)
	if err != nil {
		return nil, fmt.Errorf("listen for progress: %w", err)
	}
	server := &http.Server{Handler: meter.Handler(), ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = server.Serve(l) }() // ends with the process
	defer server.Close()
	r := &importer.Run{Config: config, Scratch: o.scratch, Target: o.target, Meter: meter, Now: time.Now}
	return r.Do(ctx)
}
