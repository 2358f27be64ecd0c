package launcher

import (
	"context"
	"errors"
	"os"
	"slices"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/qemu"
	"orlop.dev/orlop/internal/qmp"
	"orlop.dev/orlop/internal/wire"
)

// decodePlug turns a request about a device into an event.
func decodePlug(t Token, r *wire.Request) (Event, error) {
	if r.Type == wire.TypeDetach {
		var d wire.Detach
		err := r.Decode(&d)
		return DetachRequested{Token: t, ID: d.ID}, err
	}
	var a wire.Attach
	if err := r.Decode(&a); err != nil {
		return nil, err
	}
	return AttachRequested{Token: t, Disk: a.Disk, FDs: a.FDs}, nil
}

// translatePlug reads a QMP event about a device.
func translatePlug(e qmp.Event) []Event {
	var d qmp.DeviceEvent
	if e.Decode(&d) != nil || d.ID == "" {
		return nil // a part of a device
	}
	if e.Name == qmp.EventDeviceDeleted {
		return []Event{DeviceDeleted{ID: d.ID}}
	}
	return []Event{UnplugRefused{ID: d.ID}}
}

// doPlug carries out an action on devices, beside the loop.
func (l *loop) doPlug(a Action) {
	client := l.monitor()
	switch a := a.(type) {
	case Attach:
		var files []*os.File
		if r := l.requests[a.Token]; r != nil {
			files, r.Files = r.Files, nil // the goroutine's to close
		}
		l.beside(func(ctx context.Context) Event {
			defer wire.CloseFiles(files)
			return attach(ctx, client, a, files)
		})
	case Unplug:
		l.beside(func(ctx context.Context) Event {
			if client == nil {
				return Unplugged{Token: a.Token, ID: a.ID, Err: wire.ErrNotRunning}
			}
			err := client.DeleteDevice(ctx, a.ID)
			return Unplugged{Token: a.Token, ID: a.ID, Err: err, Gone: qmp.IsNotFound(err)}
		})
	case Release:
		l.beside(func(ctx context.Context) Event { return Released{ID: a.ID, Err: release(ctx, client, a.ID, a.Node)} })
	case QueryDevices:
		l.beside(func(ctx context.Context) Event {
			devices, err := listDevices(ctx, client)
			return DevicesRead{Devices: devices, Err: err}
		})
	}
}

// beside runs monitor commands in a goroutine of their own and feeds the loop with
// what came of them.
func (l *loop) beside(do func(context.Context) Event) {
	l.group.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
		defer cancel()
		l.send(do(ctx))
	})
}

// attach brings a disk into the machine, or leaves nothing of it behind.
func attach(ctx context.Context, client *qmp.Client, a Attach, received []*os.File) Attached {
	node := qemu.NodeName(a.Disk)
	err := plugIn(ctx, client, a, received)
	if err == nil {
		return Attached{ID: a.Disk.ID, Node: node}
	}
	if client == nil {
		return Attached{ID: a.Disk.ID, Node: node, Err: err, Clean: true}
	}
	clean := release(ctx, client, a.Disk.ID, node) == nil
	return Attached{ID: a.Disk.ID, Node: node, Err: err, Clean: clean}
}

func plugIn(ctx context.Context, client *qmp.Client, a Attach, received []*os.File) error {
	if client == nil {
		return wire.ErrNotRunning
	}
	b, files, err := backing(a.Disk, a.FDs, received)
	if err != nil {
		return err
	}
	if _, err := qemu.HotPlug(a.Disk, b, 0); err != nil {
		return err // before QEMU has been given anything
	}
	set, err := client.AddFD(ctx, files[0], a.Disk.ID)
	if err != nil {
		return err
	}
	for _, f := range files[1:] {
		if err := client.AddFDTo(ctx, f, set, a.Disk.ID); err != nil {
			return err
		}
	}
	plug, err := qemu.HotPlug(a.Disk, b, set)
	if err != nil {
		return err
	}
	for _, n := range plug.Nodes {
		if err := client.AddBlockNode(ctx, n); err != nil {
			return err
		}
	}
	return client.AddDevice(ctx, plug.Device)
}

// release removes whatever QEMU has of a disk, and is good for any state in between:
// after an attach that broke off as well as after the guest has let go.
func release(ctx context.Context, client *qmp.Client, id, upper string) error {
	if client == nil {
		return wire.ErrNotRunning
	}
	devices, err := listDevices(ctx, client)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(devices, func(d Device) bool { return d.ID == id }) {
		return errors.Join(errors.New("it is still in the machine"), client.DeleteDevice(ctx, id))
	}
	nodes, err := client.QueryBlockNodes(ctx)
	if err != nil {
		return err
	}
	for _, n := range qemu.NodeNames(upper) {
		inUse := slices.ContainsFunc(devices, func(d Device) bool { return d.Node == upper })
		if !inUse && slices.Contains(nodes, n) {
			if err := client.DeleteBlockNode(ctx, n); err != nil {
				return err
			}
		}
	}
	sets, err := client.QueryFDSets(ctx)
	if err != nil {
		return err
	}
	for _, s := range sets {
		if slices.ContainsFunc(s.FDs, func(f qmp.SetFD) bool { return f.Opaque == id }) {
			if err := client.RemoveFDSet(ctx, s.ID); err != nil {
				return err
			}
		}
	}
	return nil
}

// listDevices is QEMU's word on which disks the guest has.
func listDevices(ctx context.Context, client *qmp.Client) ([]Device, error) {
	if client == nil {
		return nil, wire.ErrNotRunning
	}
	blocks, err := client.QueryBlock(ctx)
	if err != nil {
		return nil, err
	}
	var all []Device
	for _, b := range blocks {
		if b.DeviceID() == "" || b.Inserted == nil {
			continue
		}
		all = append(all, Device{ID: b.DeviceID(), Node: b.Inserted.NodeName, Size: b.Inserted.Image.VirtualSize})
	}
	return all, nil
}

// grow shows the guest's firmware and kernel the size a disk is to have, before they
// run. What does not work now is ordered again by the handler, of a guest that runs.
func (l *loop) grow(ctx context.Context, client *qmp.Client, m v1alpha1.Machine, devices []Device) {
	for i, d := range devices {
		at := slices.IndexFunc(m.Disks, func(w v1alpha1.Disk) bool { return w.ID == d.ID })
		if at < 0 || qemu.ReadOnly(m.Disks[at]) || m.Disks[at].Size <= d.Size {
			continue
		}
		size := wholeSectors(m.Disks[at].Size)
		if err := client.BlockResize(ctx, d.Node, size); err != nil {
			l.config.Log.Info("cannot resize disk before the start", "disk", d.ID, "bytes", size, "err", err)
			continue
		}
		devices[i].Size = size
	}
}

// wholeSectors rounds a size up to what a disk can have, in bytes.
func wholeSectors(size int64) int64 { return (size + 511) / 512 * 512 }
