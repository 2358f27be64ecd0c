package policy

// MaxCores is the largest number of vCPUs of one VM.
const MaxCores = 248

// Topology lays cores out over sockets: one socket up to 16 cores, two up to 32,
// four up to 64, eight beyond. ok is false when the number does not divide evenly
// or is out of range.
func Topology(cores int32) (sockets, coresPerSocket int32, ok bool) {
	switch {
	case cores < 1 || cores > MaxCores:
		return 0, 0, false
	case cores <= 16:
		sockets = 1
	case cores <= 32:
		sockets = 2
	case cores <= 64:
		sockets = 4
	default:
		sockets = 8
	}
	return sockets, cores / sockets, cores%sockets == 0
}
