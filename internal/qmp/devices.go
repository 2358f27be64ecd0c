package qmp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// classDeviceNotFound is QEMU's error class for a device that is not, or no longer, there.
const classDeviceNotFound = "DeviceNotFound"

// Names of the events that tell what became of a device.
const (
	EventDeviceDeleted    = "DEVICE_DELETED"
	EventUnplugGuestError = "DEVICE_UNPLUG_GUEST_ERROR"
)

// DeviceEvent is the data of both. Events of inner devices have no ID.
type DeviceEvent struct {
	ID   string `json:"device"`
	Path string `json:"path"`
}

// IsNotFound says whether QEMU refused because there is no such device.
func IsNotFound(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Class == classDeviceNotFound
}

// AddBlockNode opens a block node.
func (c *Client) AddBlockNode(ctx context.Context, node map[string]any) error {
	return c.Execute(ctx, "blockdev-add", node, nil)
}

// DeleteBlockNode closes a block node that nobody uses. The descriptor it was opened
// from stays open until RemoveFDSet.
func (c *Client) DeleteBlockNode(ctx context.Context, node string) error {
	return c.Execute(ctx, "blockdev-del", map[string]string{"node-name": node}, nil)
}

// QueryBlockNodes lists the names of all block nodes, those no device uses included.
func (c *Client) QueryBlockNodes(ctx context.Context) ([]string, error) {
	var nodes []struct {
		Name string `json:"node-name"`
	}
	if err := c.Execute(ctx, "query-named-block-nodes", map[string]bool{"flat": true}, &nodes); err != nil {
		return nil, err
	}
	names := make([]string, len(nodes))
	for i, n := range nodes {
		names[i] = n.Name
	}
	return names, nil
}

// AddDevice plugs a device in.
func (c *Client) AddDevice(ctx context.Context, properties map[string]any) error {
	return c.Execute(ctx, "device_add", properties, nil)
}

// DeleteDevice asks for a device to be unplugged. It is gone only when DEVICE_DELETED
// comes, or when QueryBlock no longer has it.
func (c *Client) DeleteDevice(ctx context.Context, id string) error {
	return c.Execute(ctx, "device_del", map[string]string{"id": id}, nil)
}

// DeviceID is the id that a device was given, "" for one without.
func (b Block) DeviceID() string {
	const peripheral = "/machine/peripheral/"
	if rest, ok := strings.CutPrefix(b.QDev, peripheral); ok {
		id, _, _ := strings.Cut(rest, "/") // what carries the medium may be a part of the device
		return id
	}
	if strings.HasPrefix(b.QDev, "/") {
		return ""
	}
	return b.QDev
}

// AddFD gives QEMU a copy of a descriptor, in a new set, and returns the set. The
// connection must be a unix socket; the file stays the caller's.
func (c *Client) AddFD(ctx context.Context, f *os.File, opaque string) (int, error) {
	return c.addFD(ctx, f, map[string]any{"opaque": opaque})
}

// AddFDTo adds a copy of a descriptor to a set: the same file, opened in another mode.
func (c *Client) AddFDTo(ctx context.Context, f *os.File, set int, opaque string) error {
	_, err := c.addFD(ctx, f, map[string]any{"fdset-id": set, "opaque": opaque})
	return err
}

func (c *Client) addFD(ctx context.Context, f *os.File, arguments map[string]any) (int, error) {
	var added struct {
		Set int `json:"fdset-id"`
	}
	err := c.exchange(ctx, "add-fd", arguments, f, &added)
	return added.Set, err
}

// RemoveFDSet closes the descriptors of a set. Those a block node still uses live on
// in it, so the nodes must be deleted first.
func (c *Client) RemoveFDSet(ctx context.Context, set int) error {
	return c.Execute(ctx, "remove-fd", map[string]int{"fdset-id": set}, nil)
}

// writeWithFile sends a line with a descriptor beside its first byte.
func writeWithFile(conn net.Conn, line []byte, f *os.File, deadline time.Time) error {
	_ = conn.SetWriteDeadline(deadline)
	if f == nil {
		_, err := conn.Write(line)
		return err
	}
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return errors.New("descriptors need a unix socket")
	}
	n, _, err := u.WriteMsgUnix(line, unix.UnixRights(int(f.Fd())), nil)
	if err != nil {
		return fmt.Errorf("send descriptor: %w", err)
	}
	_, err = u.Write(line[n:])
	return err
}
