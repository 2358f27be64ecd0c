// Package kvm finds out whether this machine really runs 64-bit guests under KVM.
//
// A device that opens, a version it reports and even a machine it creates prove
// nothing: there are hosts where all of that works and the guest then never
// executes an instruction. So a guest is run, of some twenty bytes, in a child
// process that is killed if it does not come back.
//
// This is a fact about the node, asked once per life of the handler. It does not
// say which processor models or features guests may have.
package kvm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// Command is the hidden sub-command under which the handler runs itself as the
// probe's child; it must call Run, print the error if there is one to standard
// error, and exit with 1.
const Command = "kvm-probe"

// patience is how long the guest may take. It needs microseconds.
const patience = 2 * time.Second

// Probe reports whether a 64-bit guest ran, and if not why not, in words for a log.
func Probe(ctx context.Context) (works bool, reason string) {
	if _, err := os.Stat("/dev/kvm"); err != nil {
		return false, "there is no /dev/kvm"
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "/proc/self/exe", Command)
	cmd.Stderr = &stderr
	// A child that spins inside the kernel may outlive its own death sentence; we
	// shall not wait for it.
	cmd.WaitDelay = time.Second
	done := make(chan error, 1)
	go func() { done <- cmd.Run() }()
	select {
	case err := <-done:
		return verdict(ctx, err, strings.TrimSpace(stderr.String()))
	case <-time.After(patience + 2*time.Second):
		return false, "a 64-bit guest never ran, and its process cannot be killed"
	}
}

func verdict(ctx context.Context, err error, said string) (bool, string) {
	switch {
	case err == nil:
		return true, ""
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return false, fmt.Sprintf("a 64-bit guest did not finish within %s", patience)
	case said != "":
		return false, "a 64-bit guest could not be run: " + said
	default:
		return false, "a 64-bit guest could not be run: " + err.Error()
	}
}
