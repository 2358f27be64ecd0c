// Command images assembles the platform's container images without a container
// runtime: a few files picked from a Debian root, a static program of ours on top,
// written as an OCI layout. The same inputs give the same digest on every machine:
// archives are sorted, times and owners are fixed, compression is single-threaded.
//
//	images build  [NAME…]        OCI layouts under bin/images; what has not changed is skipped
//	images push   REGISTRY       copies them to a registry
//	images tools  DIR            unpacks the platform's QEMU with wrappers that run it in place
//	images guests DIR            the guests of demo and tests
//	images fio    DIR            unpacks what a benchmark runs inside a guest
//
// Debian packages come through the apt configuration of the machine it runs on. It
// must run as root, from the top of the tree.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"orlop.dev/orlop/internal/version"
)

// settings are the flags all subcommands share.
type settings struct {
	cache    string // directory of downloaded roots and finished layers
	out      string // directory of the OCI layouts
	registry string // first part of the image references
	version  string // tag of the image references
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "images: %s\n", err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	var s settings
	flags := flag.NewFlagSet("images", flag.ContinueOnError)
	flags.StringVar(&s.cache, "cache", "bin/cache", "`directory` of downloaded roots and finished layers")
	flags.StringVar(&s.out, "out", "bin/images", "`directory` of the OCI layouts")
	flags.StringVar(&s.registry, "registry", "orlop.internal", "first part of the image references")
	flags.StringVar(&s.version, "version", version.Version(), "tag of the image references")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	cache := Cache{Dir: s.cache}
	verb, rest := "build", flags.Args()
	if len(rest) > 0 {
		verb, rest = rest[0], rest[1:]
	}
	switch {
	case verb == "build":
		return buildAll(ctx, s, cache, rest)
	case verb == "push" && len(rest) == 1:
		return pushAll(ctx, s, rest[0])
	case verb == "tools" && len(rest) == 1:
		return unpackTools(ctx, cache, rest[0])
	case verb == "guests" && len(rest) == 1:
		return buildGuests(ctx, cache, rest[0])
	case verb == "fio" && len(rest) == 1:
		return unpackMeasuring(ctx, cache, rest[0])
	}
	return fmt.Errorf("unknown command %q: use build, push REGISTRY, tools DIR, guests DIR or fio DIR", verb)
}
