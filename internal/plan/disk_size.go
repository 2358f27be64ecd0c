package plan

// Sizes in this file are bytes.
const (
	kibi = int64(1) << 10
	mebi = int64(1) << 20
	gibi = int64(1) << 30

	// clusterSize is that of the qcow2 files we make. Smaller clusters need more
	// metadata, so a change here must not go below what existing volumes were sized for.
	clusterSize = 64 * kibi

	// smallestClaim is the least a claim asks for: mkfs.xfs refuses less than 300 MiB.
	smallestClaim = 320 * mebi

	// sectorSize is the granularity of a virtual disk.
	sectorSize = 512
)

// RoundDiskSize rounds a virtual size up to whole sectors.
func RoundDiskSize(virtual int64) int64 { return ceil(virtual, sectorSize) * sectorSize }

// QCOW2FileSize is the size of a qcow2 file in which every cluster of a disk of
// the given virtual size is allocated: data, header, mapping tables, reference
// counts (16 bits each).
func QCOW2FileSize(virtual int64) int64 {
	data := ceil(virtual, clusterSize)
	mapping := ceil(data*8, clusterSize)      // L2: 8 bytes for each cluster
	directory := ceil(mapping*8, clusterSize) // L1: 8 bytes for each L2 table
	clusters := 1 + data + mapping + max(directory, 1)
	counts := ceil(clusters*2, clusterSize)
	// The blocks and the table count themselves too; their own share of a block is tiny.
	counts += ceil(counts*2, clusterSize)
	table := max(ceil(counts*8, clusterSize), 1)
	return (clusters + counts + table) * clusterSize
}

// ClaimSize is what a PVC of a disk must ask for, so that its qcow2 file still
// fits the volume's file system when the guest has written every block.
//
// It is made for the more wasteful of the two usual file systems: ext4 keeps 5%
// for root and 1/64 for inodes, and a journal that grows in steps. Rounded up to
// whole MiB.
func ClaimSize(virtual int64) int64 {
	file := QCOW2FileSize(RoundDiskSize(virtual))
	// Everything else: reserved clusters, bitmaps, group descriptors, extent trees,
	// the reference count table while it moves to grow.
	const rest = 64 * mebi
	// share is what is left of 1000 bytes of device after reserve and inodes.
	const share = 1000 - 50 - 16 - 1
	size := smallestClaim
	for {
		// The journal depends on the size that is being looked for; it only grows,
		// and there are seven steps, so this ends.
		need := (file + journal(size) + rest + share - 1) / share * 1000
		need = ceil(need, mebi) * mebi
		if need <= size {
			return size
		}
		size = need
	}
}

// journal is how much ext4 takes for its journal on a device of so many bytes.
func journal(device int64) int64 {
	switch {
	case device < gibi:
		return 16 * mebi
	case device < 2*gibi:
		return 32 * mebi
	case device < 16*gibi:
		return 64 * mebi
	case device < 32*gibi:
		return 128 * mebi
	case device < 64*gibi:
		return 256 * mebi
	case device < 128*gibi:
		return 512 * mebi
	default:
		return gibi
	}
}

func ceil(n, unit int64) int64 { return (n + unit - 1) / unit }
