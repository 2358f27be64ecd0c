// Command disk measures what Orlop takes from a guest's disk: fio in the tiny guest,
// on one qcow2 file and on one block device, under the platform's launcher and its
// QEMU command line, and under QEMU alone as one would type it. Both use the very same
// files, in turns, in one run.
//
// The launcher runs without a cluster around it: in a pod, too, QEMU reads and writes
// descriptors of the volume, and nothing stands in between. It needs root (a loop
// device) and what `make bench-disk` builds. The last line is throughput_ratio= and
// iops_ratio=: Orlop's figure by QEMU's, the geometric mean over file and device, read
// and write, each the median of all rounds.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// options are the flags.
type options struct {
	root, dir   string
	accelerator string
	rounds      int
	seconds     int
}

func main() {
	var o options
	flag.StringVar(&o.root, "root", ".", "the repository")
	flag.StringVar(&o.dir, "dir", "", "folder of the files, on a file system with direct I/O (default: the system's for temporary files)")
	flag.StringVar(&o.accelerator, "accel", "tcg", "tcg or kvm")
	flag.IntVar(&o.rounds, "rounds", 3, "how often each side is measured")
	flag.IntVar(&o.seconds, "seconds", 4, "how long each kind of access is measured")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-disk:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	if o.rounds < 1 || o.seconds < 1 || o.accelerator != "tcg" && o.accelerator != "kvm" {
		return errors.New("-rounds and -seconds must be 1 or more, -accel tcg or kvm")
	}
	dir, err := os.MkdirTemp(o.dir, "orlop-bench-disk-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	f, err := prepare(ctx, o, dir)
	if err != nil {
		return err
	}
	defer f.remove()
	all := map[string]results{}
	for round := range o.rounds {
		for _, side := range []string{"raw", "orlop"} {
			began := time.Now()
			got, err := measure(ctx, o, f, side)
			if err != nil {
				return fmt.Errorf("round %d, %s: %w", round+1, side, err)
			}
			if all[side] == nil {
				all[side] = results{}
			}
			for key, figure := range got {
				all[side][key] = append(all[side][key], figure)
			}
			fmt.Printf("round %d: %s in %s\n", round+1, side, time.Since(began).Round(time.Second))
		}
	}
	report(all["raw"], all["orlop"])
	return nil
}

// kinds are the jobs of jobs.fio with what counts of each.
var kinds = []struct {
	job, unit  string
	throughput bool
	write      bool
}{
	{"write", "KiB/s", true, true},
	{"read", "KiB/s", true, false},
	{"randwrite", "operations/s", false, true},
	{"randread", "operations/s", false, false},
}

// results are all figures of "<disk> <job>".
type results map[string][]float64

func report(raw, orlop results) {
	var throughput, iops []float64
	for _, disk := range disks {
		for _, k := range kinds {
			key := disk + " " + k.job
			r, o := median(raw[key]), median(orlop[key])
			fmt.Printf("%-6s %-9s raw %8.0f, orlop %8.0f %s, ratio %.2f\n", disk, k.job, r, o, k.unit, o/r)
			if k.throughput {
				throughput = append(throughput, o/r)
			} else {
				iops = append(iops, o/r)
			}
		}
	}
	fmt.Printf("throughput_ratio=%.2f iops_ratio=%.2f\n", geometric(throughput), geometric(iops))
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

func geometric(values []float64) float64 {
	sum := 0.0
	for _, v := range values {
		sum += math.Log(v)
	}
	return math.Exp(sum / float64(len(values)))
}

// program is the path of something built.
func (o options) program(name ...string) string {
	path, err := filepath.Abs(filepath.Join(append([]string{o.root, "bin"}, name...)...))
	if err != nil {
		return filepath.Join(name...)
	}
	return path
}
