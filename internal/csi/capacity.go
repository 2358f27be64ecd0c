package csi

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// lowWater is how much real space must be left for anything new to be made, in bytes.
const lowWater = 256 << 20

// space is what the store has and what was promised of it, in bytes.
type space struct {
	total, free, promised int64
}

func (s *Store) space() (space, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		return space{}, fmt.Errorf("measure store: %w", err)
	}
	sp := space{total: int64(st.Blocks) * st.Bsize, free: int64(st.Bavail) * st.Bsize}
	vs, err := s.volumes()
	if err != nil {
		return space{}, err
	}
	for _, v := range vs {
		sp.promised += v.Capacity
	}
	ns, err := s.snapshots()
	if err != nil {
		return space{}, err
	}
	for _, n := range ns {
		sp.promised += n.Size
	}
	return sp, nil
}

// available is how much may still be promised when overcommit times the total may be.
func (sp space) available(overcommit float64) int64 {
	if sp.free < lowWater {
		return 0
	}
	return max(0, int64(float64(sp.total)*overcommit)-sp.promised)
}
