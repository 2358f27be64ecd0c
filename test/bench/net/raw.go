package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"orlop.dev/orlop/internal/handler/network"
)

// The raw guest's link: a bridge with the tap on it, in a network namespace of its own,
// where its addresses meet nobody else's.
const (
	rawNamespace = "orlop-bench"
	rawBridge    = "bridge0"
	rawTap       = "tap0"
	rawHost      = "192.0.2.1"
	rawGuest     = "192.0.2.2"
)

// model is how the platform's QEMU runs the guest; the raw one must do the same.
type model struct{ accelerator, cpu, mtu string }

// raw is QEMU as one would type it, with the same guest, size and kinds of devices.
type raw struct {
	*guest
	command   *exec.Cmd
	directory string
	network   *network.Namespace
}

func startRaw(ctx context.Context, bin string, m model) (*raw, error) {
	directory, err := os.MkdirTemp("", "obench")
	if err != nil {
		return nil, err
	}
	r := &raw{directory: directory}
	if err := r.link(ctx, m.mtu); err != nil {
		return r, err
	}
	socket := filepath.Join(directory, "serial")
	r.command = exec.CommandContext(ctx, "nsenter", "--net=/run/netns/"+rawNamespace, filepath.Join(bin, "qemu", "qemu-system-x86_64"), "-nodefaults", "-display", "none", "-machine", "q35",
		"-accel", m.accelerator, "-cpu", m.cpu, "-smp", "1", "-m", "256", "-chardev", "socket,id=s,path="+socket+",server=on,wait=off", "-serial", "chardev:s",
		"-device", "virtio-scsi-pci", "-drive", "file="+filepath.Join(bin, "guests", "tiny.qcow2")+",format=qcow2,if=none,id=d,snapshot=on", "-device", "scsi-hd,drive=d",
		"-netdev", "tap,id=n,ifname="+rawTap+",script=no,downscript=no,vhost=off", "-device", "virtio-net-pci,netdev=n,host_mtu="+m.mtu)
	r.command.Stderr = os.Stderr
	if err := r.command.Start(); err != nil {
		return r, err
	}
	if r.guest, err = openGuest(ctx, socket); err != nil {
		return r, err
	}
	r.address = netip.MustParseAddr(rawGuest)
	return r, r.do("ip addr add " + rawGuest + "/24 dev eth0")
}

// link makes the namespace with bridge and tap.
func (r *raw) link(ctx context.Context, mtu string) error {
	inside := "-n " + rawNamespace + " "
	for _, arguments := range []string{
		"netns add " + rawNamespace,
		inside + "link add " + rawBridge + " type bridge",
		inside + "addr add " + rawHost + "/24 dev " + rawBridge,
		inside + "link set " + rawBridge + " mtu " + mtu + " up",
		inside + "tuntap add dev " + rawTap + " mode tap vnet_hdr",
		inside + "link set " + rawTap + " mtu " + mtu + " master " + rawBridge + " up",
	} {
		if output, err := exec.CommandContext(ctx, "ip", strings.Fields(arguments)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", arguments, err, output)
		}
	}
	f, err := os.Open("/run/netns/" + rawNamespace)
	if err != nil {
		return fmt.Errorf("open namespace: %w", err)
	}
	r.network, err = network.NewNamespace(f)
	return err
}

// dial connects from the bridge.
func (r *raw) dial(ctx context.Context, address string) (net.Conn, error) {
	return dialIn(ctx, r.network, address)
}

func (r *raw) remove() {
	if r.guest != nil {
		_ = r.serial.Close()
	}
	if r.command != nil && r.command.Process != nil {
		_, _ = r.command.Process.Kill(), r.command.Wait()
	}
	if r.network != nil {
		_ = r.network.Close()
	}
	_ = exec.Command("ip", "netns", "del", rawNamespace).Run()
	_ = os.RemoveAll(r.directory)
}
