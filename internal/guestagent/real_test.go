package guestagent

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestRealAgent talks to the program itself, if the machine has it. Freezing is
// blocked there: it would freeze this machine. Story 14 freezes a guest.
func TestRealAgent(t *testing.T) {
	program, err := exec.LookPath("qemu-ga")
	if err != nil {
		t.Skip("needs the program qemu-ga (package qemu-guest-agent)")
	}
	dir, err := os.MkdirTemp("", "ga") // short: socket paths are limited
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "s")
	agent := exec.CommandContext(t.Context(), program, "--method=unix-listen", "--path="+socket, "--statedir="+dir,
		"-b", "guest-fsfreeze-freeze,guest-fsfreeze-freeze-list,guest-shutdown,guest-suspend-ram,guest-suspend-disk,guest-suspend-hybrid")
	agent.Stderr = os.Stderr
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = agent.Process.Kill(), agent.Wait() }()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var conn net.Conn
	for {
		if conn, err = (&net.Dialer{}).DialContext(ctx, "unix", socket); err == nil {
			break
		}
		select {
		case <-ctx.Done():
			t.Fatal(err)
		case <-time.After(20 * time.Millisecond):
		}
	}
	client := New(conn)
	defer client.Close()
	g, err := client.Facts(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if g.AgentVersion == "" || g.OS.ID == "" || g.OS.Machine == "" || g.Hostname != host || len(g.Interfaces) == 0 || g.Timezone == "" {
		t.Errorf("facts %+v", g)
	}
	if _, err := client.Freeze(ctx); !refused(err) {
		t.Errorf("freeze that is blocked: %v", err)
	}
	if frozen, err := client.Frozen(ctx); err != nil || frozen {
		t.Errorf("frozen %t, %v", frozen, err)
	}
	t.Logf("%+v", *g)
}
