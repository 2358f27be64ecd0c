// Command dvcr is the registry of the module: it keeps the images of virtual
// machines on a volume and serves them to pods that hold a token and to the handlers of nodes.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"orlop.dev/orlop/internal/pki"
	"orlop.dev/orlop/internal/registry"
	"orlop.dev/orlop/internal/registry/token"
	"orlop.dev/orlop/internal/version"
)

type options struct {
	dir, listen, health string
	tlsDir, jwks        string
	handlerCA           string
	logLevel, logFormat string
	maxBlob, reserve    int64
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "dvcr:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	o := &options{}
	c := &cobra.Command{
		Use: "dvcr", Short: "registry of virtual machine images",
		Version: version.Version(), SilenceErrors: true, SilenceUsage: true, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return run(c.Context(), o) },
	}
	f := c.Flags()
	f.StringVar(&o.dir, "dir", "/var/lib/registry", "folder that keeps the images")
	f.StringVar(&o.listen, "listen", ":5000", "address of the registry (TLS)")
	f.StringVar(&o.health, "health", ":8081", "address of /healthz and /readyz")
	f.StringVar(&o.tlsDir, "tls-dir", "/etc/dvcr/tls", "folder with tls.crt and tls.key; followed when they change")
	f.StringVar(&o.jwks, "jwks", "/etc/dvcr/jwks/jwks.json", "public keys that tokens are checked with; followed when they change")
	f.StringVar(&o.handlerCA, "handler-ca", "/etc/dvcr/handler/handler-ca.crt", "authority of the node agents, which may pull with their certificate; followed when it changes")
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&o.logFormat, "log-format", "text", "text or json")
	f.Int64Var(&o.maxBlob, "max-blob-size", registry.DefaultMaxBlob, "largest blob taken, in bytes")
	f.Int64Var(&o.reserve, "reserve", registry.DefaultReserve, "what uploads leave free on the volume, in bytes")
	return c
}

func logger(level, format string) (*slog.Logger, error) {
	o := &slog.HandlerOptions{}
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("read --log-level: %w", err)
	}
	o.Level = l
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(os.Stderr, o)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(os.Stderr, o)), nil
	}
	return nil, fmt.Errorf("--log-format: %q is not text or json", format)
}

func run(ctx context.Context, o *options) error {
	log, err := logger(o.logLevel, o.logFormat)
	if err != nil {
		return err
	}
	slog.SetDefault(log)
	h, err := registry.New(ctx, registry.Config{
		Dir: o.dir, Keys: token.NewKeys(o.jwks), MaxBlob: o.maxBlob, Reserve: o.reserve, Log: log,
	})
	if err != nil {
		return err
	}
	identity := &pki.Files{CertFile: filepath.Join(o.tlsDir, "tls.crt"), KeyFile: filepath.Join(o.tlsDir, "tls.key")}
	handlers := &pki.Files{RootsFile: o.handlerCA}
	log.Info("serving", "address", o.listen, "dir", o.dir, "version", version.Version())
	jobs, ctx := errgroup.WithContext(ctx)
	jobs.Go(func() error { return registry.Serve(ctx, o.listen, identity, handlers, h) })
	jobs.Go(func() error { return registry.ServeHealth(ctx, o.health, o.dir) })
	return jobs.Wait()
}
