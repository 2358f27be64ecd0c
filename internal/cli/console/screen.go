package console

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/term"
)

// screen is where the command speaks for itself: standard error, so that standard
// output is the guest's alone. On a terminal it keeps one line that it rewrites;
// elsewhere (a log) each news is a line, without control characters.
type screen struct {
	out      io.Writer
	terminal bool
	shown    string
}

func newScreen(out io.Writer) *screen {
	file, ok := out.(*os.File)
	return &screen{out: out, terminal: ok && term.IsTerminal(int(file.Fd()))}
}

// say writes a line that stays. In raw mode only a carriage return leads back to
// the first column.
func (s *screen) say(format string, args ...any) {
	s.shown = ""
	if s.terminal {
		fmt.Fprintf(s.out, "\r\033[K"+format+"\r\n", args...)
		return
	}
	fmt.Fprintf(s.out, format+"\n", args...)
}

// status writes a line that the next one replaces.
func (s *screen) status(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	if line == s.shown {
		return
	}
	if s.terminal {
		fmt.Fprint(s.out, "\r\033[K"+line)
	} else {
		fmt.Fprintln(s.out, line)
	}
	s.shown = line
}

// clear removes what status wrote.
func (s *screen) clear() {
	if s.terminal && s.shown != "" {
		fmt.Fprint(s.out, "\r\033[K")
	}
	s.shown = ""
}

// bell tells that a key was not taken.
func (s *screen) bell() {
	if s.terminal {
		fmt.Fprint(s.out, "\a")
	}
}
