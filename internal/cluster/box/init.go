package box

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// GoFD is the file descriptor on which the host sends one byte when the box's
// network and control groups are ready. If it closes without, the box must not live:
// the command that was starting it is gone.
const GoFD = 3

// Init is the main function of a box: it must be PID 1 of new namespaces. It returns
// after an orderly stop.
func Init(ctx context.Context, specFile string) error {
	if os.Getpid() != 1 {
		return errors.New("a box's init must be the first process of its namespaces")
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	spec, err := readSpec(specFile)
	if err != nil {
		return err
	}
	// The signals are caught before the first child can exist; a PID 1 that ignores
	// SIGTERM would make an orderly stop impossible.
	signals := make(chan os.Signal, 64)
	signal.Notify(signals, unix.SIGCHLD, unix.SIGTERM, unix.SIGINT)
	signal.Ignore(unix.SIGHUP, unix.SIGPIPE)
	if err := awaitGo(); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(spec.Name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := enterRoot(spec); err != nil {
		return fmt.Errorf("build root: %w", err)
	}
	if err := writeSysctls(spec.Sysctls); err != nil {
		return err
	}
	raiseLimits(log)

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &supervisor{
		log: log, dir: ownDir, byPID: map[int]*process{}, refresh: refresh,
		ready: make(chan *process), requests: make(chan controlCall), signals: signals,
	}
	if err := serve(ctx, filepath.Join(ownDir, controlName), s.requests); err != nil {
		return err
	}
	log.Info("box is up", "box", spec.Name)
	s.loop(ctx, spec.Components, s.sweep)
	log.Info("box is down", "box", spec.Name)
	return nil
}

// awaitGo waits for the host's word.
func awaitGo() error {
	gate := os.NewFile(GoFD, "go")
	if gate == nil {
		return errors.New("the box was not started by its cluster")
	}
	defer gate.Close()
	if _, err := io.ReadFull(gate, make([]byte, 1)); err != nil {
		return errors.New("the command that started the box is gone")
	}
	return nil
}

func writeSysctls(values map[string]string) error {
	for name, value := range values {
		if err := os.WriteFile("/proc/sys/"+strings.TrimPrefix(name, "/"), []byte(value), 0); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}

// raiseLimits gives the components as many open files as the host allows.
func raiseLimits(log *slog.Logger) {
	const wanted = 1 << 20
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		log.Error("limit not read", "error", err)
		return
	}
	// Raising the hard limit needs CAP_SYS_RESOURCE, which a container may lack.
	if unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: wanted, Max: max(limit.Max, wanted)}) == nil {
		return
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: limit.Max, Max: limit.Max}); err != nil {
		log.Error("limit not raised", "error", err)
	}
}
