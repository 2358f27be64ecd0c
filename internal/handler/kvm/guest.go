package kvm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The part of the KVM interface this needs; the numbers are the kernel's ABI.
const (
	ioctlAPIVersion      = 0xAE00
	ioctlCreateVM        = 0xAE01
	ioctlVCPUMmapSize    = 0xAE04
	ioctlCreateVCPU      = 0xAE41
	ioctlSetMemoryRegion = 0x4020AE46
	ioctlSetTSSAddr      = 0xAE47
	ioctlRun             = 0xAE80
	ioctlGetRegs         = 0x8090AE81
	ioctlSetRegs         = 0x4090AE82
	ioctlGetSregs        = 0x8138AE83
	ioctlSetSregs        = 0x4138AE84

	apiVersion = 12

	exitIO  = 2
	exitHLT = 5
)

type memoryRegion struct {
	slot, flags      uint32
	guest, size      uint64
	userspaceAddress uint64
}

type regs struct {
	rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp uint64
	r8, r9, r10, r11, r12, r13, r14, r15   uint64
	rip, rflags                            uint64
}

type segment struct {
	base                                              uint64
	limit                                             uint32
	selector                                          uint16
	kind, present, dpl, db, s, l, g, avl, unusable, _ uint8
}

type table struct {
	base  uint64
	limit uint16
	_     [3]uint16
}

type sregs struct {
	cs, ds, es, fs, gs, ss, tr, ldt segment
	gdt, idt                        table
	cr0, cr2, cr3, cr4, cr8, efer   uint64
	apicBase                        uint64
	interrupts                      [4]uint64
}

// Where things are in the guest's memory.
const (
	memorySize = 64 << 10
	pml4At     = 0x1000
	pdptAt     = 0x2000
	pdAt       = 0x3000
	codeAt     = 0x4000
	stackAt    = 0x8000
)

// port is where the guest writes when it has computed.
const port = 0xF1

// The program sums up a 64-bit number twenty million times. A processor that is not
// in 64-bit mode reads other instructions here; one that does not run at all never
// gets to the end; and a kernel that interprets the guest's instructions one by one
// (some do, for guests that do not know them, until they meet one they cannot
// interpret) needs minutes for what takes a processor a few hundredths of a second.
//
//	movabs rbx, addend ; xor eax, eax ; mov ecx, rounds
//	1: add rax, rbx ; dec ecx ; jnz 1b
//	out port, al ; hlt
var program = []byte{
	0x48, 0xBB, 0x89, 0x67, 0x45, 0x23, 0x01, 0, 0, 0,
	0x31, 0xC0,
	0xB9, 0x00, 0x2D, 0x31, 0x01,
	0x48, 0x01, 0xD8,
	0xFF, 0xC9,
	0x75, 0xF9,
	0xE6, port,
	0xF4,
}

// result is what the program leaves in rax; it does not fit 32 bits.
const result = 0x0123456789 * 20_000_000

// Run runs the program as a guest of this process and returns nil if it computed
// the right number. On a broken KVM it may never return, in the kernel: call it in
// a process that can be spared.
func Run() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	dev, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer dev.Close()
	version, err := ioctl(dev.Fd(), ioctlAPIVersion, 0)
	if err != nil {
		return fmt.Errorf("ask for the API version: %w", err)
	}
	if version != apiVersion {
		return fmt.Errorf("API version is %d, not %d", version, apiVersion)
	}
	vm, err := ioctl(dev.Fd(), ioctlCreateVM, 0)
	if err != nil {
		return fmt.Errorf("create machine: %w", err)
	}
	defer unix.Close(int(vm))
	// Some Intel processors need a hole in the guest's address space; others ignore it.
	_, _ = ioctl(vm, ioctlSetTSSAddr, 0xFFFBD000)
	memory, err := mapMemory(vm)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(memory) }()
	return runVCPU(dev.Fd(), vm)
}

// mapMemory gives the guest its memory, with identity page tables and the program.
func mapMemory(vm uintptr) ([]byte, error) {
	memory, err := unix.Mmap(-1, 0, memorySize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("map memory: %w", err)
	}
	const presentWritable, large = 0x3, 0x80
	binary.LittleEndian.PutUint64(memory[pml4At:], pdptAt|presentWritable)
	binary.LittleEndian.PutUint64(memory[pdptAt:], pdAt|presentWritable)
	binary.LittleEndian.PutUint64(memory[pdAt:], presentWritable|large)
	copy(memory[codeAt:], program)
	region := memoryRegion{size: memorySize, userspaceAddress: uint64(uintptr(unsafe.Pointer(&memory[0])))}
	if _, err := ioctl(vm, ioctlSetMemoryRegion, uintptr(unsafe.Pointer(&region))); err != nil {
		return nil, errors.Join(fmt.Errorf("give memory to machine: %w", err), unix.Munmap(memory))
	}
	return memory, nil
}

func runVCPU(dev, vm uintptr) error {
	vcpu, err := ioctl(vm, ioctlCreateVCPU, 0)
	if err != nil {
		return fmt.Errorf("create processor: %w", err)
	}
	defer unix.Close(int(vcpu))
	size, err := ioctl(dev, ioctlVCPUMmapSize, 0)
	if err != nil {
		return fmt.Errorf("ask for the run area's size: %w", err)
	}
	run, err := unix.Mmap(int(vcpu), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map run area: %w", err)
	}
	defer func() { _ = unix.Munmap(run) }()
	if err := enterLongMode(vcpu); err != nil {
		return err
	}
	if err := runUntil(vcpu, run, exitIO); err != nil {
		return err
	}
	var r regs
	if _, err := ioctl(vcpu, ioctlGetRegs, uintptr(unsafe.Pointer(&r))); err != nil {
		return fmt.Errorf("read registers: %w", err)
	}
	if r.rax != result {
		return fmt.Errorf("guest computed %#x instead of %#x", r.rax, uint64(result))
	}
	return runUntil(vcpu, run, exitHLT)
}

// enterLongMode sets the processor up as a boot loader leaves it for a 64-bit
// kernel: paging on, a flat 64-bit code segment.
func enterLongMode(vcpu uintptr) error {
	var s sregs
	if _, err := ioctl(vcpu, ioctlGetSregs, uintptr(unsafe.Pointer(&s))); err != nil {
		return fmt.Errorf("read system registers: %w", err)
	}
	const pe, et, ne, wp, pg = 1, 1 << 4, 1 << 5, 1 << 16, 1 << 31
	s.cr0, s.cr3, s.cr4, s.efer = pe|et|ne|wp|pg, pml4At, 1<<5, 1<<8|1<<10
	s.cs = segment{limit: 0xFFFFFFFF, selector: 1 << 3, kind: 11, present: 1, s: 1, l: 1, g: 1}
	data := segment{limit: 0xFFFFFFFF, selector: 2 << 3, kind: 3, present: 1, db: 1, s: 1, g: 1}
	s.ds, s.es, s.fs, s.gs, s.ss = data, data, data, data, data
	if _, err := ioctl(vcpu, ioctlSetSregs, uintptr(unsafe.Pointer(&s))); err != nil {
		return fmt.Errorf("set system registers: %w", err)
	}
	r := regs{rip: codeAt, rsp: stackAt, rflags: 2}
	if _, err := ioctl(vcpu, ioctlSetRegs, uintptr(unsafe.Pointer(&r))); err != nil {
		return fmt.Errorf("set registers: %w", err)
	}
	return nil
}

// runUntil lets the guest run to its next exit, which must be the wanted one.
func runUntil(vcpu uintptr, run []byte, want uint32) error {
	for {
		_, err := ioctl(vcpu, ioctlRun, 0)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
			continue // a signal, such as the Go scheduler's
		}
		if err != nil {
			return fmt.Errorf("run guest: %w", err)
		}
		if reason := binary.LittleEndian.Uint32(run[8:]); reason != want {
			return fmt.Errorf("guest stopped with reason %d instead of %d", reason, want)
		}
		return nil
	}
}

func ioctl(fd, request, arg uintptr) (uintptr, error) {
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, request, arg)
	if errno != 0 {
		return 0, errno
	}
	return r, nil
}
