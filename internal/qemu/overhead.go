package qemu

import (
	"k8s.io/apimachinery/pkg/api/resource"

	"orlop.dev/orlop/api/instance/v1alpha1"
)

// The parts of the overhead, in bytes. docs/operations/memory.md publishes them and
// test/qemu holds them against real processes whose guests touch all their memory.
const (
	// launcherBytes is PID 1 of the pod.
	launcherBytes = 24 * mebibyte
	// processBytes is QEMU itself: heap, firmware, video memory, stacks of its I/O threads.
	processBytes = 80 * mebibyte
	// vcpuBytes is the thread, state and translation cache of one vCPU.
	vcpuBytes = 8 * mebibyte
	// diskBytes is the table cache of one qcow2 disk and its requests in flight.
	diskBytes = l2CacheBytes + 2*mebibyte
	// nicBytes is the queues of one interface.
	nicBytes = 2 * mebibyte
	// pageTableShare is the fraction of guest memory that its page tables take: 8 bytes
	// for each 4 KiB page, once in the process and once more in the hypervisor.
	pageTableShare = 256
	// tcgBytes is the buffer of translated code and what describes it.
	tcgBytes = (tcgBufferMiB + 24) * mebibyte
	// tcgVCPUBytes is the software TLB of one vCPU.
	tcgVCPUBytes = 8 * mebibyte
)

// Overhead is the memory that the pod's compute container needs beyond the guest's
// own: its limit is the sum of the two. While the accelerator has not been chosen
// TCG is assumed, which needs more.
func Overhead(m v1alpha1.Machine) resource.Quantity {
	vcpus := int64(max(VCPUs(m.CPU), m.CPU.MaxCPUs))
	total := int64(launcherBytes + processBytes)
	total += vcpus * vcpuBytes
	total += int64(len(m.Disks)) * diskBytes
	total += int64(len(m.Interfaces)) * nicBytes
	total += m.Memory.Size.Value() / pageTableShare
	if m.Accelerator != v1alpha1.AcceleratorKVM {
		total += tcgBytes + vcpus*tcgVCPUBytes
	}
	// Whole mebibytes read better in a pod.
	total = (total + mebibyte - 1) / mebibyte * mebibyte
	return *resource.NewQuantity(total, resource.BinarySI)
}
