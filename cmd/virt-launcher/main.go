// Virt-launcher is PID 1 of a virtual machine's pod; see internal/launcher. It takes
// no arguments there: the flags are for tests.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"orlop.dev/orlop/internal/launcher"
	"orlop.dev/orlop/internal/version"
	"orlop.dev/orlop/internal/wire"
)

// memoryLimit keeps the heap small, in bytes: this process is paid for once for each
// virtual machine and has next to nothing to remember.
const memoryLimit = 12 << 20

func main() {
	debug.SetMemoryLimit(memoryLimit)
	debug.SetGCPercent(40)
	runtime.GOMAXPROCS(1)
	code, err := run()
	if err != nil {
		slog.Error("launcher", "err", err)
	}
	os.Exit(code)
}

func run() (int, error) {
	c := launcher.Config{Now: time.Now, Log: slog.New(slog.NewJSONHandler(os.Stderr, nil))}
	var handler uint
	flag.StringVar(&c.QEMU, "qemu", "/usr/bin/qemu-system-x86_64", "the program to run")
	flag.StringVar(&c.RunDir, "run-dir", "/run/orlop", "the directory of the sockets")
	flag.StringVar(&c.FirstBootDir, "first-boot-dir", "/run/firstboot", "the directory with first-boot data")
	flag.StringVar(&c.TerminationLog, "termination-log", "/dev/termination-log", "the file for the exit")
	flag.UintVar(&handler, "handler-uid", 0, "the user that may give orders")
	printVersion := flag.Bool("version", false, "print the version")
	flag.Parse()
	if *printVersion {
		fmt.Println(version.Version())
		return 0, nil
	}
	c.Allow = func(p wire.Peer) error {
		if uint(p.UID) != handler {
			return fmt.Errorf("user %d may not give orders", p.UID)
		}
		return nil
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGCHLD)
	c.Signals = signals
	return launcher.Run(context.Background(), c)
}
