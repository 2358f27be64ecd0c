package cli

import (
	"context"
	"errors"
	"fmt"
	"io"

	"orlop.dev/orlop/internal/cli/access"
)

// Exit codes of d8. `d8 v ssh` has besides the codes of ssh, `d8 k` those of kubectl.
const (
	// exitFailed follows an error that was printed.
	exitFailed = 1
	// exitInterrupted follows Ctrl+C or SIGTERM, as shells have it.
	exitInterrupted = 130
)

// Exit prints what a command ended with, if there is something to say, and returns
// the exit code.
func Exit(err error, interrupted bool, stderr io.Writer) int {
	var coded *access.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &coded):
		return coded.Code
	case interrupted && errors.Is(err, context.Canceled):
		return exitInterrupted
	}
	fmt.Fprintln(stderr, "Error:", err)
	if interrupted {
		return exitInterrupted
	}
	return exitFailed
}
