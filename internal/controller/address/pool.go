package address

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
	"sync"
)

// Pool knows which addresses of the configured ranges are leased: one bit per
// address, so that finding the lowest free one among 50 000 leases is a scan of a
// few kilobytes. It is only a guess about the near future (it follows the cache of
// leases); the claim itself is the creation of the lease object.
type Pool struct {
	mu     sync.Mutex
	ranges []addressRange
	// taken are the leased addresses, kept to refill ranges when they change.
	taken map[netip.Addr]bool
	// promised are candidates already handed out but not leased yet.
	promised map[netip.Addr]string
}

type addressRange struct {
	prefix netip.Prefix
	base   uint32
	size   uint32
	used   []uint64
}

// NewPool returns a pool without ranges.
func NewPool() *Pool {
	return &Pool{taken: map[netip.Addr]bool{}, promised: map[netip.Addr]string{}}
}

// SetRanges replaces the ranges, in order of preference.
func (p *Pool) SetRanges(prefixes []netip.Prefix) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if samePrefixes(p.ranges, prefixes) {
		return
	}
	p.ranges = nil
	for _, prefix := range prefixes {
		prefix = prefix.Masked()
		if !prefix.Addr().Is4() {
			continue
		}
		size := uint32(1) << (32 - prefix.Bits())
		p.ranges = append(p.ranges, addressRange{prefix: prefix, base: number(prefix.Addr()), size: size,
			used: make([]uint64, (size+63)/64)})
	}
	for address := range p.taken {
		p.mark(address, true)
	}
	for address := range p.promised {
		p.mark(address, true)
	}
}

// Take marks an address as leased.
func (p *Pool) Take(address netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.promised, address)
	p.taken[address] = true
	p.mark(address, true)
}

// Free marks an address as not leased.
func (p *Pool) Free(address netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.taken, address)
	if _, promised := p.promised[address]; !promised {
		p.mark(address, false)
	}
}

// Promise returns the lowest free address and keeps it for who asks; asking again
// returns the same one until it is taken or broken. ok is false when all are taken.
func (p *Pool) Promise(who string) (address netip.Addr, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for a, holder := range p.promised {
		if holder == who {
			return a, true
		}
	}
	for i := range p.ranges {
		if a, ok := p.ranges[i].lowestFree(); ok {
			p.promised[a] = who
			p.mark(a, true)
			return a, true
		}
	}
	return netip.Addr{}, false
}

// Break forgets the promise made to who.
func (p *Pool) Break(who string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for a, holder := range p.promised {
		if holder == who {
			delete(p.promised, a)
			p.mark(a, p.taken[a])
		}
	}
}

func (p *Pool) mark(address netip.Addr, used bool) {
	for i := range p.ranges {
		r := &p.ranges[i]
		if !r.prefix.Contains(address) {
			continue
		}
		n := number(address) - r.base
		if used {
			r.used[n/64] |= 1 << (n % 64)
		} else {
			r.used[n/64] &^= 1 << (n % 64)
		}
	}
}

// lowestFree skips the network's own address, the guests' router after it and the
// broadcast address (policy.UsableAddress says the same of one address).
func (r *addressRange) lowestFree() (netip.Addr, bool) {
	first, last := uint32(2), r.size-2
	switch r.size {
	case 1:
		first, last = 0, 0
	case 2:
		return netip.Addr{}, false
	}
	for n := first; n <= last; {
		word := r.used[n/64] | (1<<(n%64) - 1)
		if word == ^uint64(0) {
			n = (n/64 + 1) * 64
			continue
		}
		n = n/64*64 + uint32(bits.TrailingZeros64(^word))
		if n > last {
			break
		}
		return fromNumber(r.base + n), true
	}
	return netip.Addr{}, false
}

func samePrefixes(ranges []addressRange, prefixes []netip.Prefix) bool {
	if len(ranges) != len(prefixes) {
		return false
	}
	for i := range ranges {
		if ranges[i].prefix != prefixes[i].Masked() {
			return false
		}
	}
	return true
}

func number(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func fromNumber(n uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b)
}
