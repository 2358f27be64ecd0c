package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// process is a QEMU in a launcher's pod, by its process id as the host sees it.
type process int

// qemuProcesses returns every QEMU on this machine.
func qemuProcesses() (map[process]bool, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	found := map[process]bool{}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		name, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "comm"))
		if err == nil && strings.HasPrefix(string(name), "qemu-system") {
			found[process(pid)] = true
		}
	}
	return found, nil
}

// waitForQEMU returns the first QEMU that was not there before; it looks every
// 10 ms, far below what is measured.
func waitForQEMU(ctx context.Context, known map[process]bool) (process, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for {
		now, err := qemuProcesses()
		if err != nil {
			return 0, err
		}
		for one := range now {
			if !known[one] && one.hasSerial() {
				return one, nil
			}
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("wait for QEMU: %w", ctx.Err())
		case <-ticker.C:
		}
	}
}

func (p process) path(name ...string) string {
	return filepath.Join(append([]string{"/proc", strconv.Itoa(int(p))}, name...)...)
}

func (p process) serial() string { return p.path("root", "run", "orlop", "serial") }

func (p process) hasSerial() bool {
	_, err := os.Stat(p.serial())
	return err == nil
}

// waitForUserspace reads the guest's serial port.
func (p process) waitForUserspace(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", p.serial())
	if err != nil {
		return fmt.Errorf("open the serial port: %w", err)
	}
	defer func() { _ = conn.Close() }()
	deadline, _ := ctx.Deadline()
	if err := conn.SetReadDeadline(deadline); err != nil {
		return err
	}
	return waitForUserspace(conn)
}

// beyondQEMU is the proportional set size, in bytes, of the launcher, the pause
// process and the runtime's shim: everything a pod costs that raw QEMU does not.
func (p process) beyondQEMU() (int64, error) {
	launcher, err := p.parent()
	if err != nil {
		return 0, err
	}
	shim, err := launcher.parent()
	if err != nil {
		return 0, err
	}
	siblings, err := shim.children()
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, one := range append(siblings, shim) {
		pss, err := one.pss()
		if err != nil {
			return 0, err
		}
		sum += pss
	}
	return sum, nil
}

func (p process) parent() (process, error) {
	value, err := p.field("status", "PPid:")
	return process(value), err
}

func (p process) pss() (int64, error) {
	kib, err := p.field("smaps_rollup", "Pss:")
	return kib << 10, err
}

// field reads the number behind a key of a file of /proc.
func (p process) field(file, key string) (int64, error) {
	content, err := os.ReadFile(p.path(file))
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(content) {
		if rest, ok := bytes.CutPrefix(line, []byte(key)); ok {
			return strconv.ParseInt(strings.Fields(string(rest))[0], 10, 64)
		}
	}
	return 0, fmt.Errorf("%s has no %s", p.path(file), key)
}

// children returns the processes whose parent this is.
func (p process) children() ([]process, error) {
	tasks, err := filepath.Glob(p.path("task", "*", "children"))
	if err != nil {
		return nil, err
	}
	var found []process
	for _, task := range tasks {
		content, err := os.ReadFile(task)
		if err != nil {
			continue
		}
		for word := range strings.FieldsSeq(string(content)) {
			if pid, err := strconv.Atoi(word); err == nil {
				found = append(found, process(pid))
			}
		}
	}
	if len(found) == 0 {
		return nil, errors.New("the shim has no children")
	}
	return found, nil
}
