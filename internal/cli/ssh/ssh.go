package ssh

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"k8s.io/cli-runtime/pkg/genericiooptions"

	"orlop.dev/orlop/internal/cli/access"
)

// leaveTime is how long ssh may take to end after a signal.
const leaveTime = 5 * time.Second

type options struct {
	streams    genericiooptions.IOStreams
	port       int
	user       string
	identity   string
	knownHosts string
	command    string
	extra      []string

	target  access.Target
	remote  []string
	passed  []string
	program string
}

func (o *options) complete(flags *access.Flags, args []string) error {
	cluster, err := flags.Connect()
	if err != nil {
		return err
	}
	destination := args[0]
	if user, host, found := strings.Cut(destination, "@"); found {
		if user == "" {
			return fmt.Errorf("%q: the user before @ is missing", destination)
		}
		o.user, destination = user, host
	}
	if o.target, err = access.ParseTarget(destination, cluster.Namespace); err != nil {
		return err
	}
	if o.port < 1 || o.port > 65535 {
		return fmt.Errorf("--port: %d is not from 1 to 65535", o.port)
	}
	if o.user == "" {
		o.user = localUser()
	}
	o.remote, o.passed = args[1:], flags.Passed()
	if o.program, err = os.Executable(); err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	return nil
}

func localUser() string {
	for _, name := range []string{"USER", "USERNAME", "LOGNAME"} {
		if value := os.Getenv(name); value != "" {
			return value
		}
	}
	return "root"
}

// arguments builds ssh's command line.
func (o *options) arguments() []string {
	proxy := append([]string{quote(o.program), "v", "port-forward"}, quoteAll(o.passed)...)
	proxy = append(proxy, "--stdio=true", o.target.String(), strconv.Itoa(o.port))

	args := []string{"-o", "ProxyCommand=" + strings.Join(proxy, " ")}
	if o.knownHosts != "" {
		args = append(args, "-o", "UserKnownHostsFile="+o.knownHosts)
	}
	if o.identity != "" {
		args = append(args, "-i", o.identity)
	}
	for _, more := range o.extra {
		args = append(args, strings.Fields(more)...)
	}
	args = append(args, "-p", strconv.Itoa(o.port), "-l", o.user, "--", o.target.String())
	if o.command != "" {
		args = append(args, o.command)
	}
	return append(args, o.remote...)
}

func quoteAll(words []string) []string {
	quoted := make([]string, 0, len(words))
	for _, word := range words {
		quoted = append(quoted, quote(word))
	}
	return quoted
}

// quote makes a word safe for the shell that runs ProxyCommand; percent signs are
// doubled because ssh expands its tokens first (ssh_config(5), TOKENS).
func quote(word string) string {
	word = strings.ReplaceAll(word, "%", "%%")
	if strings.Trim(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=./:%") == "" {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

func (o *options) run(ctx context.Context) error {
	program, err := exec.LookPath("ssh")
	if err != nil {
		return errors.New("the OpenSSH client is not installed here (package openssh-client); `d8 v port-forward` works without it")
	}
	command := exec.CommandContext(ctx, program, o.arguments()...)
	command.Stdin, command.Stdout, command.Stderr = o.streams.In, o.streams.Out, o.streams.ErrOut
	// Both get Ctrl+C from the terminal; ssh needs a moment to restore it.
	command.Cancel = func() error { return command.Process.Signal(syscall.SIGTERM) }
	command.WaitDelay = leaveTime
	err = command.Run()
	var ended *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &ended) && ended.Exited():
		return &access.ExitError{Code: ended.ExitCode()}
	case err != nil:
		return fmt.Errorf("ssh: %w", err)
	default:
		return nil
	}
}
