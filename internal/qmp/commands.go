package qmp

import (
	"context"
	"fmt"
)

// Version is QEMU's version.
type Version struct {
	QEMU struct {
		Major int `json:"major"`
		Minor int `json:"minor"`
		Micro int `json:"micro"`
	} `json:"qemu"`
	Package string `json:"package"`
}

// String is "major.minor.micro".
func (v Version) String() string {
	return fmt.Sprintf("%d.%d.%d", v.QEMU.Major, v.QEMU.Minor, v.QEMU.Micro)
}

// RunState is whether and why the guest's CPUs run or stand still.
type RunState string

// The run states that matter here; there are more.
const (
	StateRunning       RunState = "running"
	StatePaused        RunState = "paused"
	StatePrelaunch     RunState = "prelaunch"
	StateIOError       RunState = "io-error"
	StateInternalError RunState = "internal-error"
	StateShutdown      RunState = "shutdown"
	StateSuspended     RunState = "suspended"
	StateGuestPanicked RunState = "guest-panicked"
	// StateInMigrate waits for, or takes in, a guest.
	StateInMigrate RunState = "inmigrate"
	// StateFinishMigrate stands still for the last of a migration's data.
	StateFinishMigrate RunState = "finish-migrate"
	// StatePostMigrate has handed its guest over.
	StatePostMigrate RunState = "postmigrate"
)

// Status is the answer to query-status.
type Status struct {
	Running bool     `json:"running"`
	Status  RunState `json:"status"`
}

// QueryStatus asks whether the guest runs.
func (c *Client) QueryStatus(ctx context.Context) (Status, error) {
	var s Status
	return s, c.Execute(ctx, "query-status", nil, &s)
}

// Continue lets the guest's CPUs run.
func (c *Client) Continue(ctx context.Context) error { return c.Execute(ctx, "cont", nil, nil) }

// Stop halts the guest's CPUs.
func (c *Client) Stop(ctx context.Context) error { return c.Execute(ctx, "stop", nil, nil) }

// PowerDown presses the ACPI power button.
func (c *Client) PowerDown(ctx context.Context) error {
	return c.Execute(ctx, "system_powerdown", nil, nil)
}

// Wakeup ends a suspend to RAM.
func (c *Client) Wakeup(ctx context.Context) error { return c.Execute(ctx, "system_wakeup", nil, nil) }

// Quit ends the process after flushing its disks.
func (c *Client) Quit(ctx context.Context) error { return c.Execute(ctx, "quit", nil, nil) }

// Action is what QEMU does by itself; empty fields stay as they are.
type Action struct {
	// Reboot is "reset" or "shutdown".
	Reboot string `json:"reboot,omitempty"`
	// Shutdown is "poweroff" or "pause".
	Shutdown string `json:"shutdown,omitempty"`
	// Panic is "pause", "shutdown", "exit-failure" or "none".
	Panic string `json:"panic,omitempty"`
}

// SetAction changes what QEMU does by itself. Migration does not carry it over.
func (c *Client) SetAction(ctx context.Context, a Action) error {
	return c.Execute(ctx, "set-action", a, nil)
}

// Block is one device of query-block.
type Block struct {
	// QDev is the path or id of the device.
	QDev     string       `json:"qdev"`
	IOStatus string       `json:"io-status"`
	Inserted *BlockMedium `json:"inserted"`
}

// BlockMedium is what is in a block device.
type BlockMedium struct {
	NodeName string `json:"node-name"`
	ReadOnly bool   `json:"ro"`
	Image    struct {
		VirtualSize int64  `json:"virtual-size"`
		Format      string `json:"format"`
	} `json:"image"`
}

// QueryBlock lists the guest's block devices.
func (c *Client) QueryBlock(ctx context.Context) ([]Block, error) {
	var b []Block
	return b, c.Execute(ctx, "query-block", nil, &b)
}

// BlockResize sets the virtual size of a block node, in bytes.
func (c *Client) BlockResize(ctx context.Context, node string, bytes int64) error {
	return c.Execute(ctx, "block_resize", map[string]any{"node-name": node, "size": bytes}, nil)
}

// CPU is one vCPU of query-cpus-fast.
type CPU struct {
	Index    int    `json:"cpu-index"`
	ThreadID int    `json:"thread-id"`
	Path     string `json:"qom-path"`
}

// QueryCPUs lists the vCPUs with their host threads.
func (c *Client) QueryCPUs(ctx context.Context) ([]CPU, error) {
	var cpus []CPU
	return cpus, c.Execute(ctx, "query-cpus-fast", nil, &cpus)
}

// FDSet is a set of descriptors given to QEMU.
type FDSet struct {
	ID  int     `json:"fdset-id"`
	FDs []SetFD `json:"fds"`
}

// SetFD is one descriptor of a set.
type SetFD struct {
	FD int `json:"fd"`
	// Opaque is what was said of it when it was added.
	Opaque string `json:"opaque"`
}

// QueryFDSets lists the descriptors QEMU holds in sets.
func (c *Client) QueryFDSets(ctx context.Context) ([]FDSet, error) {
	var s []FDSet
	return s, c.Execute(ctx, "query-fdsets", nil, &s)
}

// CharDevice is one back end of query-chardev.
type CharDevice struct {
	Label string `json:"label"`
	// FrontendOpen is true while somebody has the guest's end open.
	FrontendOpen bool `json:"frontend-open"`
}

// QueryCharDevices lists the back ends of serial ports and channels.
func (c *Client) QueryCharDevices(ctx context.Context) ([]CharDevice, error) {
	var d []CharDevice
	return d, c.Execute(ctx, "query-chardev", nil, &d)
}

// Names of the events that the launcher and the handler act upon.
const (
	EventShutdown      = "SHUTDOWN"
	EventReset         = "RESET"
	EventPowerDown     = "POWERDOWN"
	EventStop          = "STOP"
	EventResume        = "RESUME"
	EventSuspend       = "SUSPEND"
	EventWakeup        = "WAKEUP"
	EventBlockIOError  = "BLOCK_IO_ERROR"
	EventGuestPanicked = "GUEST_PANICKED"
	// EventPortChange tells that the guest opened or closed a virtio-serial port.
	EventPortChange = "VSERPORT_CHANGE"
)

// ShutdownEvent is the data of SHUTDOWN and RESET.
type ShutdownEvent struct {
	// Guest is true if the guest asked for it.
	Guest bool `json:"guest"`
	// Reason such as "guest-shutdown", "guest-reset", "host-qmp-quit".
	Reason string `json:"reason"`
}

// BlockIOErrorEvent is the data of BLOCK_IO_ERROR.
type BlockIOErrorEvent struct {
	// QOMPath names the device.
	QOMPath  string `json:"qom-path"`
	Device   string `json:"device"`
	NodeName string `json:"node-name"`
	// Operation is "read" or "write".
	Operation string `json:"operation"`
	// Action is "stop" if the guest was stopped for it.
	Action string `json:"action"`
	// NoSpace is true if the host ran out of space.
	NoSpace bool `json:"nospace"`
	// Reason is the error in words.
	Reason string `json:"reason"`
}
