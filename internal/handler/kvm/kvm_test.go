package kvm

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"
	"unsafe"
)

// TestMain lets the test binary be the probe's child.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == Command {
		if err := Run(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestProbeAnswersInTime holds on every machine: with KVM, without it, and with
// one that never comes back.
func TestProbeAnswersInTime(t *testing.T) {
	start := time.Now()
	works, reason := Probe(context.Background())
	t.Logf("works=%v reason=%q after %s", works, reason, time.Since(start))
	if works == (reason != "") {
		t.Errorf("works=%v with reason %q", works, reason)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("took %s", took)
	}
}

// The kernel reads these structures by size.
func TestStructuresHaveTheKernelsSizes(t *testing.T) {
	for name, c := range map[string]struct{ got, want uintptr }{
		"regs":         {unsafe.Sizeof(regs{}), 0x90},
		"sregs":        {unsafe.Sizeof(sregs{}), 0x138},
		"memoryRegion": {unsafe.Sizeof(memoryRegion{}), 0x20},
	} {
		if c.got != c.want {
			t.Errorf("%s has %#x bytes, want %#x", name, c.got, c.want)
		}
	}
}
