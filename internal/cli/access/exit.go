package access

import "fmt"

// ExitError ends the program with a code of its own and without a word: whoever set
// the code (ssh, a command in the guest) has said what there was to say.
type ExitError struct {
	// Code is the exit code, from 1 to 255.
	Code int
}

func (e *ExitError) Error() string { return fmt.Sprintf("exit code %d", e.Code) }
