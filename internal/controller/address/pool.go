package address

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
	"slices"
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
	// promised are candidates already handed out but not leased yet; promises is the
	// same by who was promised.
	promised map[netip.Addr]string
	promises map[string]netip.Addr
}

type addressRange struct {
	prefix netip.Prefix
	base   uint32
	size   uint32
	used   []uint64
	// full is a word before which no bit is free: the search begins there.
	full uint32
}

// NewPool returns a pool without ranges.
func NewPool() *Pool {
	return &Pool{taken: map[netip.Addr]bool{}, promised: map[netip.Addr]string{}, promises: map[string]netip.Addr{}}
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
		r := addressRange{prefix: prefix, base: number(prefix.Addr()), size: size, used: make([]uint64, (size+63)/64)}
		if first, _, _ := r.hosts(); first > 0 {
			r.used[0] = 1<<first - 1
		}
		p.ranges = append(p.ranges, r)
	}
	for address := range p.taken {
		p.mark(address, true)
	}
	for address := range p.promised {
		if !p.contains(address) {
			p.forget(address)
		}
		p.mark(address, true)
	}
}

// Take marks an address as leased.
func (p *Pool) Take(address netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.take(address)
}

func (p *Pool) take(address netip.Addr) {
	p.forget(address)
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

// Candidate is what the cluster says about an address that the pool thinks free.
type Candidate int

// The candidates. Leased ones are marked, so that nobody is offered them again;
// Reserved ones are only passed over this time.
const (
	Available Candidate = iota
	Leased
	Reserved
)

// Promise returns the lowest free address and keeps it for who asks; asking again
// returns the same one until it is taken or broken. Every address is shown to look
// first, because the pool learns of leases a little later than the cache it follows.
// ok is false when all are taken.
func (p *Pool) Promise(who string, look func(netip.Addr) Candidate) (address netip.Addr, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if a, ok := p.promises[who]; ok {
		return a, true
	}
	for i := range p.ranges {
		r := &p.ranges[i]
		first, last, any := r.hosts()
		for any {
			n, ok := r.lowestFree(first, last)
			if !ok {
				break
			}
			a := fromNumber(r.base + n)
			switch look(a) {
			case Leased:
				p.take(a)
			case Available:
				p.promised[a], p.promises[who] = who, a
				p.mark(a, true)
				return a, true
			case Reserved:
			}
			first = n + 1
		}
	}
	return netip.Addr{}, false
}

// Break forgets the promise made to who.
func (p *Pool) Break(who string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if a, ok := p.promises[who]; ok {
		p.forget(a)
		p.mark(a, p.taken[a])
	}
}

// forget drops the promise of an address, if there is one.
func (p *Pool) forget(address netip.Addr) {
	if who, ok := p.promised[address]; ok {
		delete(p.promised, address)
		delete(p.promises, who)
	}
}

func (p *Pool) contains(address netip.Addr) bool {
	return slices.ContainsFunc(p.ranges, func(r addressRange) bool { return r.prefix.Contains(address) })
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
			r.full = min(r.full, n/64)
		}
	}
}

// hosts are the first and the last number that may be given out: neither the
// network's own address, nor the guests' router after it, nor the broadcast address
// (policy.UsableAddress says the same of one address). any is false if none may.
func (r *addressRange) hosts() (first, last uint32, any bool) {
	if r.size == 1 {
		return 0, 0, true
	}
	return 2, r.size - 2, r.size > 3
}

// lowestFree finds the lowest unmarked number from first to last.
func (r *addressRange) lowestFree(first, last uint32) (uint32, bool) {
	for r.full < uint32(len(r.used)) && r.used[r.full] == ^uint64(0) {
		r.full++
	}
	for n := max(first, r.full*64); n <= last; {
		word := r.used[n/64] | (1<<(n%64) - 1)
		if word == ^uint64(0) {
			n = (n/64 + 1) * 64
			continue
		}
		n = n/64*64 + uint32(bits.TrailingZeros64(^word))
		return n, n <= last
	}
	return 0, false
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
