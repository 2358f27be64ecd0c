// Command disk measures what Orlop takes from a guest's disk: fio in the tiny guest,
// on a qcow2 file and on a block device, under the platform's launcher and its QEMU
// command line, and under QEMU alone as one would type it. Both guests are there all
// the time, with copies of the same files, and work in turns: what else the machine has
// to do changes from minute to minute, so only neighbours can be compared.
//
// The launcher runs without a cluster around it: in a pod, too, QEMU reads and writes
// descriptors of the volume, and nothing stands in between. It needs root (a loop
// device) and what `make bench-disk` builds. The last line is throughput_ratio= and
// iops_ratio=: Orlop's figure by QEMU's, the geometric mean over file and device, read
// and write, each the median of the rounds.
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
	guests := map[string]*guest{}
	for _, side := range sides {
		began := time.Now()
		g, err := boot(ctx, o, f, side)
		if err != nil {
			return fmt.Errorf("boot %s: %w", side, err)
		}
		defer g.stop()
		guests[side] = g
		fmt.Printf("%s is up after %s\n", side, time.Since(began).Round(time.Second))
	}
	all := map[string]results{}
	for _, side := range sides {
		all[side] = results{}
	}
	for round := range o.rounds {
		for _, disk := range disks {
			for i := range sides {
				side := sides[(i+round)%len(sides)] // each is first as often
				if err := guests[side].measure(o, disk, all[side]); err != nil {
					return fmt.Errorf("round %d, %s: %w", round+1, side, err)
				}
			}
		}
		fmt.Printf("round %d of %d is done\n", round+1, o.rounds)
	}
	report(all[sides[0]], all[sides[1]])
	return nil
}

// sides are what is compared.
var sides = []string{"raw", "orlop"}

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

// results are the figures of "<disk> <job>", one for each round.
type results map[string][]float64

func report(raw, orlop results) {
	var throughput, iops []float64
	for _, disk := range disks {
		for _, k := range kinds {
			key := disk + " " + k.job
			ratios := make([]float64, len(raw[key]))
			for i := range ratios {
				ratios[i] = orlop[key][i] / raw[key][i]
			}
			ratio := median(ratios)
			fmt.Printf("%-6s %-9s raw %8.0f, orlop %8.0f %s, ratio %.2f\n", disk, k.job, median(raw[key]), median(orlop[key]), k.unit, ratio)
			if k.throughput {
				throughput = append(throughput, ratio)
			} else {
				iops = append(iops, ratio)
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
