// Command handler measures what the node agent costs while nothing happens: its
// resident memory and its processor time, with some machines running on its node and
// nobody touching them.
//
// It needs a platform on this machine (`make up`). The last line is rss_mib=
// cpu_percent=: the highest resident memory seen, and the processor time as a share of
// one core, averaged over the time of watching. The aims for 10 machines are 40 and 0.5.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"orlop.dev/orlop/test/bench/site"
)

// namespace holds the benchmark's objects.
const namespace = "orlop-bench-handler"

// ticks is how many units of /proc's processor times make a second; it is the same on
// every Linux that Go runs on.
const ticks = 100

func main() {
	root := flag.String("root", ".", "the repository")
	cluster := flag.String("cluster", "orlop", "the embedded cluster, which must be the current context's")
	count := flag.Int("machines", 10, "how many machines run on the node")
	settle := flag.Duration("settle", time.Minute, "how long to wait after the last start")
	watch := flag.Duration("watch", 5*time.Minute, "how long to watch")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, *root, *cluster, *count, *settle, *watch)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-handler:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, root, cluster string, count int, settle, watch time.Duration) error {
	where, err := site.Open(ctx, root, cluster)
	if err != nil {
		return err
	}
	defer where.Close()
	defer func() {
		if err := where.Remove(namespace); err != nil {
			fmt.Fprintln(os.Stderr, "bench-handler: clean up:", err)
		}
	}()
	node := where.Boxes[len(where.Boxes)-1].Name
	if err := start(ctx, where, node, count); err != nil {
		return fmt.Errorf("start machines: %w", err)
	}
	pid, err := handlerOf(where, node)
	if err != nil {
		return err
	}
	fmt.Printf("%d machines run on %s; waiting %s, watching process %d for %s\n", count, node, settle, pid, watch)
	if err := sleep(ctx, settle); err != nil {
		return err
	}
	return observe(ctx, pid, watch)
}

// start runs the machines on one node.
func start(ctx context.Context, where *site.Site, node string, count int) error {
	yaml := where.Image(namespace, "tiny")
	var names []string
	for i := range count {
		name := fmt.Sprintf("rest-%d", i)
		names = append(names, "vm/"+name)
		yaml += site.Machine(namespace, name, "  nodeSelector: {kubernetes.io/hostname: "+node+"}\n")
	}
	if err := where.Apply(ctx, yaml); err != nil {
		return err
	}
	return where.Await(ctx, namespace, ".status.phase", "Running", names...)
}

// handlerOf finds the node's agent: the process of that name in the box's PID namespace
// or one below it.
func handlerOf(where *site.Site, node string) (int, error) {
	box, err := where.Box(node)
	if err != nil {
		return 0, err
	}
	want, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", box.PID))
	if err != nil {
		return 0, fmt.Errorf("look at box %s: %w", node, err)
	}
	all, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return 0, err
	}
	for _, path := range all {
		if name, err := os.ReadFile(path); err != nil || strings.TrimSpace(string(name)) != "virt-handler" {
			continue
		}
		// It has the node's network.
		if ns, err := os.Readlink(filepath.Join(filepath.Dir(path), "ns/net")); err == nil && ns == want {
			return strconv.Atoi(filepath.Base(filepath.Dir(path)))
		}
	}
	return 0, errors.New("no virt-handler runs on node " + node)
}

// observe watches a process and prints what it took.
func observe(ctx context.Context, pid int, watch time.Duration) error {
	before, err := processorTime(pid)
	if err != nil {
		return err
	}
	began, most := time.Now(), 0.0
	for time.Since(began) < watch {
		if err := sleep(ctx, 5*time.Second); err != nil {
			return err
		}
		resident, err := residentMiB(pid)
		if err != nil {
			return err
		}
		most = max(most, resident)
	}
	after, err := processorTime(pid)
	if err != nil {
		return err
	}
	fmt.Printf("rss_mib=%.1f cpu_percent=%.2f\n", most, 100*(after-before).Seconds()/time.Since(began).Seconds())
	return nil
}

// processorTime is what a process has used so far, in user and in kernel mode.
func processorTime(pid int) (time.Duration, error) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(content[bytes.LastIndexByte(content, ')')+1:]))
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * time.Second / ticks, errors.Join(err1, err2)
}

func residentMiB(pid int) (float64, error) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(content) {
		if rest, ok := bytes.CutPrefix(line, []byte("VmRSS:")); ok {
			kib, err := strconv.ParseFloat(strings.Fields(string(rest))[0], 64)
			return kib / 1024, err
		}
	}
	return 0, errors.New("the process has no VmRSS")
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
