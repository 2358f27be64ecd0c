package guestagent

import (
	"context"
	"fmt"
)

// Frozen asks whether the agent holds the file systems frozen. It knows only of what
// it froze itself.
func (c *Client) Frozen(ctx context.Context) (bool, error) {
	var status string
	if err := c.execute(ctx, "guest-fsfreeze-status", &status); err != nil {
		return false, err
	}
	switch status {
	case "frozen":
		return true, nil
	case "thawed":
		return false, nil
	default:
		return false, fmt.Errorf("guest-fsfreeze-status: %w: status %q", ErrAnswer, clean(status))
	}
}

// Freeze writes out and freezes the guest's file systems and returns how many. It
// runs the guest's hooks and waits for its disks, for as long as the context allows.
// After a failure the file systems may be frozen or become so: Thaw them.
func (c *Client) Freeze(ctx context.Context) (int64, error) {
	var count int64
	return count, c.run(ctx, "guest-fsfreeze-freeze", &count)
}

// Thaw lets the guest write again and returns how many file systems that concerned.
// The context's time is the limit, as with Freeze.
func (c *Client) Thaw(ctx context.Context) (int64, error) {
	var count int64
	return count, c.run(ctx, "guest-fsfreeze-thaw", &count)
}
