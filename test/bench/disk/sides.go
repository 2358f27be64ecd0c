package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/api/resource"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/qemu"
	"orlop.dev/orlop/internal/wire"
)

const (
	memoryMiB = 512
	// bootTime is for the guest on a busy machine.
	bootTime = 10 * time.Minute
	// workTime is for fio to begin and end.
	workTime = 5 * time.Minute
)

// boot starts the guest of one side, up to where it can work.
func boot(ctx context.Context, o options, f *files, side string) (*guest, error) {
	run, err := os.MkdirTemp("", "ob") // short, for the paths of sockets
	if err != nil {
		return nil, err
	}
	begin := raw
	if side == "orlop" {
		begin = orlop
	}
	end, err := begin(ctx, o, f, run)
	if err != nil {
		_ = os.RemoveAll(run)
		return nil, err
	}
	g := &guest{end: func() { end(); _ = os.RemoveAll(run) }}
	if err := g.prepare(ctx, filepath.Join(run, qemu.SerialSocket)); err != nil {
		g.stop()
		return nil, err
	}
	return g, nil
}

// raw is QEMU as one would type it, with the same guest, size and kinds of devices.
func raw(ctx context.Context, o options, f *files, run string) (stop func(), err error) {
	d := f.of["raw"]
	arguments := []string{
		"-nodefaults", "-display", "none", "-machine", "q35", "-cpu", "Nehalem", "-smp", "1", "-m", fmt.Sprint(memoryMiB),
		"-accel", accelerator(o), "-serial", "unix:" + filepath.Join(run, qemu.SerialSocket) + ",server=on,wait=off", "-device", "virtio-scsi-pci",
	}
	for i, d := range []struct{ path, format, serial, more string }{
		{d.root, "qcow2", "root", ""}, {d.data, "qcow2", disks[0], ""}, {d.device, "raw", disks[1], ""}, {f.tools, "raw", toolsDisk, ",readonly=on"},
	} {
		arguments = append(arguments,
			"-drive", fmt.Sprintf("file=%s,format=%s,if=none,id=d%d,cache=none%s", d.path, d.format, i, d.more),
			"-device", fmt.Sprintf("scsi-hd,drive=d%d,lun=%d,serial=%s", i, i, d.serial))
	}
	return spawn(exec.CommandContext(ctx, o.program("qemu", "qemu-system-x86_64"), arguments...))
}

func accelerator(o options) string {
	if o.accelerator == "kvm" {
		return "kvm"
	}
	return "tcg,tb-size=32,thread=multi"
}

// spawn starts a program; stop ends it.
func spawn(c *exec.Cmd) (stop func(), err error) {
	var said strings.Builder
	c.Stderr, c.Stdout = &said, &said
	if err := c.Start(); err != nil {
		return nil, err
	}
	return func() {
		_ = c.Process.Kill()
		if err := c.Wait(); err != nil && said.Len() > 0 {
			slog.Debug("ended", "program", c.Path, "err", err, "said", said.String())
		}
	}, nil
}

// orlop is the launcher with a machine as the controller describes it and descriptors
// as the handler opens them.
func orlop(ctx context.Context, o options, f *files, run string) (stop func(), err error) {
	// Not with the context: QEMU would outlive its launcher.
	kill, err := spawn(exec.Command(o.program("virt-launcher"), "-qemu", o.program("qemu", "qemu-system-x86_64"), "-run-dir", run,
		"-first-boot-dir", run, "-termination-log", os.DevNull, "-handler-uid", fmt.Sprint(os.Getuid())))
	if err != nil {
		return nil, err
	}
	client, err := connect(ctx, run)
	if err != nil {
		kill()
		return nil, err
	}
	stop = func() {
		last, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = client.Kill(last) // else QEMU would outlive its launcher
		_ = client.Bye(last)
		_ = client.Close()
		kill()
	}
	if err := start(ctx, o, f, client); err != nil {
		stop()
		return nil, err
	}
	return stop, nil
}

func connect(ctx context.Context, run string) (*wire.Client, error) {
	dir, err := os.Open(run)
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }()
	for {
		conn, err := wire.Dial(ctx, dir)
		if err == nil {
			return wire.NewClient(conn), nil
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(err, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// start gives the launcher its machine.
func start(ctx context.Context, o options, f *files, client *wire.Client) error {
	machine := v1alpha1.Machine{
		Type: qemu.DefaultMachineType, Accelerator: v1alpha1.Accelerator(strings.ToUpper(o.accelerator)),
		UUID: "3a4b1c55-9a53-4ee8-9d7b-8d1f40bb2b47", Hostname: "bench",
		CPU:    v1alpha1.CPU{Model: "Nehalem", Sockets: 1, CoresPerSocket: 1},
		Memory: v1alpha1.Memory{Size: *resource.NewQuantity(memoryMiB<<20, resource.BinarySI)},
	}
	message := wire.Start{InstanceUID: "bench"}
	own := f.of["orlop"]
	var opened []*os.File
	defer func() { wire.CloseFiles(opened) }()
	for i, d := range []struct {
		path, mode, serial string
		readOnly           bool
	}{{own.root, "Filesystem", "root", false}, {own.data, "Filesystem", disks[0], false}, {own.device, "Block", disks[1], false}, {f.tools, "Block", toolsDisk, true}} {
		flags := os.O_RDWR
		if d.readOnly {
			flags = os.O_RDONLY
		}
		file, err := os.OpenFile(d.path, flags|unix.O_DIRECT, 0)
		if err != nil {
			return err
		}
		opened = append(opened, file)
		id := "vd-" + d.serial
		machine.Disks = append(machine.Disks, v1alpha1.Disk{ID: id, Bus: "scsi", Slot: int32(i), Serial: d.serial, ReadOnly: d.readOnly,
			Source: v1alpha1.VolumeSource{PersistentVolumeClaim: &v1alpha1.PersistentVolumeClaimSource{ClaimName: d.serial, Mode: d.mode}}})
		message.Disks = append(message.Disks, wire.StartDisk{ID: id, FDs: []int{i}})
	}
	machine.Disks[0].BootIndex = 1
	if o.accelerator == "kvm" {
		kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
		if err != nil {
			return err
		}
		opened = append(opened, kvm)
		index := len(opened) - 1
		message.KVM = &index
	}
	message.Machine = machine
	return client.Start(ctx, message, opened)
}
