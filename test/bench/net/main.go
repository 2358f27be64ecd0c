// Command net measures what Orlop's network costs a guest: TCP throughput in both
// directions and the round trip, between a node and a guest that runs through Orlop
// (pod network, routed tap), against the same guest under a raw QEMU whose tap sits on
// a bridge, in a network namespace of its own. Both guests run all the time and are measured in turns, so
// that whatever else the machine does meets both.
//
// It needs a platform on this machine (`make up`), because it types into the guest's
// serial port and connects from the node's side. The last line is
// throughput_ratio= latency_ratio=: the platform's median throughput divided by the raw
// one, of the direction where it is worse, and the raw median round trip divided by the
// platform's. Both are better when they are larger; the aim is 0.9.
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

func main() {
	rounds := flag.Int("rounds", 7, "how often each side is measured")
	root := flag.String("root", ".", "the repository")
	cluster := flag.String("cluster", "orlop", "the embedded cluster, which must be the current context's")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, *root, *cluster, *rounds)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-net:", err)
		os.Exit(1)
	}
}

// side is one of the two guests with all that was measured of it.
type side struct {
	name string
	*guest
	// dial connects to a port of the guest from where its node is.
	dial dialer
	// from and to are bytes per second out of and into the guest; trips are round trips.
	from, to []float64
	trips    []time.Duration
}

func run(ctx context.Context, root, cluster string, rounds int) error {
	if rounds < 1 {
		return errors.New("-rounds must be 1 or more")
	}
	fmt.Println("starting a machine through the platform")
	platform, err := startPlatform(ctx, root, cluster)
	if platform != nil {
		defer platform.remove()
	}
	if err != nil {
		return fmt.Errorf("start a machine: %w", err)
	}
	ours := &side{name: "platform", guest: platform.guest, dial: platform.dial}
	fmt.Println("starting raw QEMU")
	raw, err := startRaw(ctx, filepath.Join(root, "bin"), platform.model)
	if raw != nil {
		defer raw.remove()
	}
	if err != nil {
		return fmt.Errorf("start raw QEMU: %w", err)
	}
	bare := &side{name: "raw", guest: raw.guest, dial: raw.dial}
	for _, s := range []*side{ours, bare} {
		if err := s.prepare(); err != nil {
			return fmt.Errorf("prepare the guest of %s: %w", s.name, err)
		}
	}
	for i := range rounds {
		for _, s := range []*side{ours, bare} {
			if err := s.measure(ctx); err != nil {
				return fmt.Errorf("measure %s: %w", s.name, err)
			}
		}
		fmt.Printf("round %d: %s\n         %s\n", i+1, ours.last(), bare.last())
	}
	fmt.Printf("median:  %s\n         %s\n", ours.medians(), bare.medians())
	throughput := min(median(ours.from)/median(bare.from), median(ours.to)/median(bare.to))
	latency := median(bare.trips).Seconds() / median(ours.trips).Seconds()
	fmt.Printf("throughput_ratio=%.2f latency_ratio=%.2f\n", throughput, latency)
	return nil
}

func (s *side) measure(ctx context.Context) error {
	from, err := download(ctx, s.dial, s.address)
	if err != nil {
		return fmt.Errorf("throughput out of the guest: %w", err)
	}
	to, err := upload(ctx, s.dial, s.address)
	if err != nil {
		return fmt.Errorf("throughput into the guest: %w", err)
	}
	trip, err := roundTrip(ctx, s.dial, s.address)
	if err != nil {
		return fmt.Errorf("round trip: %w", err)
	}
	s.from, s.to, s.trips = append(s.from, from), append(s.to, to), append(s.trips, trip)
	return nil
}

func (s *side) last() string {
	i := len(s.from) - 1
	return line(s.name, s.from[i], s.to[i], s.trips[i])
}

func (s *side) medians() string {
	return line(s.name, median(s.from), median(s.to), median(s.trips))
}

func line(name string, from, to float64, trip time.Duration) string {
	return fmt.Sprintf("%-8s from guest %7.1f MB/s, to guest %7.1f MB/s, round trip %6.1f µs", name, from/1e6, to/1e6, float64(trip.Nanoseconds())/1e3)
}

func median[T float64 | time.Duration](values []T) T {
	sorted := slices.Clone(values)
	slices.Sort(sorted)
	return sorted[len(sorted)/2]
}
