package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"orlop.dev/orlop/internal/handler/network"
	"orlop.dev/orlop/test/bench/site"
)

// namespace holds the benchmark's objects, machine is the machine's name.
const (
	namespace = "orlop-bench-net"
	machine   = "bench-net"
)

// platform is a machine that runs through Orlop.
type platform struct {
	*guest
	site  *site.Site
	model model
	node  *network.Namespace
}

func startPlatform(ctx context.Context, root, cluster string) (*platform, error) {
	where, err := site.Open(ctx, root, cluster)
	if err != nil {
		return nil, err
	}
	p := &platform{site: where}
	if err := where.Apply(ctx, where.Image(namespace, "tiny")+site.Machine(namespace, machine, "")); err != nil {
		return p, err
	}
	if err := where.Await(ctx, namespace, ".status.phase", "Running", "vm/"+machine); err != nil {
		return p, err
	}
	said, err := where.Get(ctx, namespace, "vm/"+machine, "{.status.nodeName} {.status.ipAddress}")
	if err != nil {
		return p, err
	}
	var name, address string
	if _, err := fmt.Sscan(said, &name, &address); err != nil {
		return p, fmt.Errorf("read %q: %w", said, err)
	}
	box, err := where.Box(name)
	if err != nil {
		return p, err
	}
	if err := p.enter(box.PID); err != nil {
		return p, err
	}
	pid, err := p.findQEMU()
	if err != nil {
		return p, err
	}
	if p.guest, err = openGuest(ctx, fmt.Sprintf("/proc/%d/root/run/orlop/serial", pid)); err != nil {
		return p, err
	}
	p.address, err = netip.ParseAddr(address)
	return p, err
}

// enter opens the network namespace of the machine's node.
func (p *platform) enter(pid int) error {
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return fmt.Errorf("open the node's network: %w", err)
	}
	p.node, err = network.NewNamespace(f)
	return err
}

// dial connects from the node.
func (p *platform) dial(ctx context.Context, address string) (net.Conn, error) {
	return dialIn(ctx, p.node, address)
}

func dialIn(ctx context.Context, ns *network.Namespace, address string) (conn net.Conn, err error) {
	err = ns.Do(func() error {
		conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", address)
		return err
	})
	return conn, err
}

// findQEMU finds the machine's process and learns how it runs the guest.
func (p *platform) findQEMU() (int, error) {
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return 0, err
	}
	for _, path := range lines {
		content, err := os.ReadFile(path)
		if err != nil || !bytes.Contains(content, []byte("\x00guest="+machine+",")) {
			continue
		}
		var pid int
		if _, err := fmt.Sscanf(path, "/proc/%d/cmdline", &pid); err != nil {
			return 0, err
		}
		arguments := strings.Split(string(content), "\x00")
		for i, a := range arguments[:len(arguments)-1] {
			next := arguments[i+1]
			switch {
			case a == "-accel":
				p.model.accelerator, _, _ = strings.Cut(next, ",device=")
			case a == "-cpu":
				p.model.cpu = next
			case a == "-device" && strings.HasPrefix(next, "virtio-net-pci"):
				_, rest, _ := strings.Cut(next, "host_mtu=")
				p.model.mtu, _, _ = strings.Cut(rest, ",")
			}
		}
		return pid, nil
	}
	return 0, errors.New("the machine's QEMU is not on this computer")
}

// remove deletes what was made.
func (p *platform) remove() {
	if p.guest != nil {
		_ = p.serial.Close()
	}
	if p.node != nil {
		_ = p.node.Close()
	}
	if err := p.site.Remove(namespace); err != nil {
		fmt.Fprintln(os.Stderr, "bench-net: clean up:", err)
	}
	p.site.Close()
}
