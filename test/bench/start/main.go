// Command start measures what Orlop adds to the start of a guest: raw QEMU to
// userspace, an applied VirtualMachine to userspace, their ratio, and the memory
// in the pod beyond QEMU itself. All in one run, on one machine, alternating.
//
// It needs a platform on this machine (`make up`), because it reads the guest's
// serial port and the processes' memory from the node's side. The last line is
// raw_s= apply_s= ratio= pss_mib= (medians, seconds and MiB).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"time"
)

// userspace is what the tiny guest's first process prints.
const userspace = "orlop-tiny: userspace up"

func main() {
	runs := flag.Int("runs", 5, "how often each side is started")
	root := flag.String("root", ".", "the repository")
	cluster := flag.String("cluster", "orlop", "the embedded cluster, which must be the current context's")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, *root, *cluster, *runs)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-start:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, root, cluster string, runs int) error {
	if runs < 1 {
		return errors.New("-runs must be 1 or more")
	}
	raw := raw{qemu: filepath.Join(root, "bin", "qemu", "qemu-system-x86_64"), guest: filepath.Join(root, "bin", "guests", "tiny.qcow2")}
	platform, err := prepare(ctx, root, cluster)
	if err != nil {
		return err
	}
	defer platform.remove()

	var raws, applies []time.Duration
	var memory []int64
	for i := range runs {
		took, err := raw.start(ctx)
		if err != nil {
			return fmt.Errorf("start raw QEMU: %w", err)
		}
		raws = append(raws, took)
		applied, pss, err := platform.start(ctx)
		if err != nil {
			return fmt.Errorf("start a virtual machine: %w", err)
		}
		applies, memory = append(applies, applied), append(memory, pss)
		fmt.Printf("run %d: raw %.2f s, apply %.2f s, %.1f MiB beyond QEMU\n", i+1, took.Seconds(), applied.Seconds(), mebibytes(pss))
	}
	rawMedian, applyMedian := median(raws), median(applies)
	fmt.Printf("raw_s=%.2f apply_s=%.2f ratio=%.2f pss_mib=%.1f\n", rawMedian.Seconds(), applyMedian.Seconds(),
		applyMedian.Seconds()/rawMedian.Seconds(), mebibytes(median(memory)))
	return nil
}

func mebibytes(bytes int64) float64 { return float64(bytes) / (1 << 20) }

func median[T int64 | time.Duration](values []T) T {
	sorted := slices.Clone(values)
	slices.Sort(sorted)
	return sorted[len(sorted)/2]
}
