package wire

import (
	"context"
	"os"

	"orlop.dev/orlop/api/instance/v1alpha1"
)

// The messages that change a running machine's disks.
const (
	TypeAttach Type = "attach"
	TypeDetach Type = "detach"
)

// CodeBusy refuses a change of a device that is just being changed. Older handlers read
// it as CodeInternal, which they try again, too.
const CodeBusy Code = "Busy"

// ErrBusy is for errors.Is.
var ErrBusy = &Error{Code: CodeBusy, Message: "the device is being changed"}

// Attach puts a disk into the running machine. A disk that is in it already is a
// success.
type Attach struct {
	// Disk as in the machine's description; its bus is "scsi".
	Disk v1alpha1.Disk `json:"disk"`
	// FDs are the indices of its descriptors, as in StartDisk.
	FDs []int `json:"fds"`
}

// Detach asks for a disk to be taken out. The answer says that it was asked for; the
// disk is gone when the state no longer has it. One that is not there is a success.
type Detach struct {
	// ID of the disk in the machine.
	ID string `json:"id"`
}

// takesFiles says whether descriptors belong to a request.
func takesFiles(t Type) bool { return t == TypeStart || t == TypeAttach }

// Attach puts a disk into the running machine and returns once the guest can see it.
// The descriptors stay the caller's, who should close them in any case.
func (c *Client) Attach(ctx context.Context, a Attach, fds []*os.File) error {
	return c.call(ctx, TypeAttach, a, fds, nil)
}

// Detach asks for a disk to be taken out of the running machine.
func (c *Client) Detach(ctx context.Context, id string) error {
	return c.call(ctx, TypeDetach, Detach{ID: id}, nil, nil)
}
