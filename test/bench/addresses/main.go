// Command addresses measures how an address is found among many leased ones: the next
// free one, the rebuild that follows a start of the controller or a change of the
// ranges, and the memory that the pool takes. The claim itself is one write to the API
// server and is not measured here.
package main

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"time"

	"orlop.dev/orlop/internal/controller/address"
)

func main() {
	leases := flag.Int("leases", 50000, "leased addresses of a /16")
	rounds := flag.Int("rounds", 100000, "addresses to allocate and to give back")
	flag.Parse()
	if err := run(*leases, *rounds); err != nil {
		fmt.Fprintln(os.Stderr, "addresses:", err)
		os.Exit(1)
	}
}

func run(leases, rounds int) error {
	before := heap()
	start := time.Now()
	pool, err := filled(leases)
	if err != nil {
		return err
	}
	rebuild, memory := time.Since(start), heap()-before

	start = time.Now()
	for i := range rounds {
		a, ok := pool.Promise(strconv.Itoa(i), available)
		if !ok {
			return fmt.Errorf("nothing is free after %d rounds", i)
		}
		pool.Take(a)
		pool.Free(a)
	}
	took := time.Since(start)
	fmt.Printf("leases=%d allocate_us=%.2f rebuild_ms=%.1f memory_mib=%.1f\n", leases,
		float64(took.Microseconds())/float64(rounds), float64(rebuild.Microseconds())/1000, float64(memory)/(1<<20))
	runtime.KeepAlive(pool)
	return nil
}

// filled is a pool of a /16 whose lowest addresses are leased, which is the longest
// way to the next free one.
func filled(leases int) (*address.Pool, error) {
	prefix := netip.MustParsePrefix("10.64.0.0/16")
	pool := address.NewPool()
	pool.SetRanges([]netip.Prefix{prefix})
	a := prefix.Addr().Next().Next()
	for range leases {
		if !prefix.Contains(a) {
			return nil, fmt.Errorf("%s has no room for %d leases", prefix, leases)
		}
		pool.Take(a)
		a = a.Next()
	}
	return pool, nil
}

func available(netip.Addr) address.Candidate { return address.Available }

func heap() uint64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}
