//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

var (
	keep  = flag.Bool("keep", false, "leave the cluster standing")
	reuse = flag.Bool("reuse", false, "use a cluster that stands already")
	name  = flag.String("cluster", "e2e", "name of the cluster")
)

// root is the repository.
var root = filepath.Join("..", "..")

// kubeconfig is private, so that the user's own stays as it is.
var kubeconfig string

// guests is the base URL under which pods reach the guest images.
var guests string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "e2e: needs root, because it makes network namespaces and mounts")
		return 1
	}
	directory, err := os.MkdirTemp("", "orlop-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	defer func() { _ = os.RemoveAll(directory) }()
	kubeconfig = filepath.Join(directory, "kubeconfig")
	if *reuse {
		kubeconfig = filepath.Join(os.TempDir(), "orlop-e2e-"+*name+".kubeconfig")
	}
	if err := bringUp(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		if !*keep {
			_ = stream("cluster", "down", "--name", *name)
		}
		return 1
	}
	stop, err := serveGuests()
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	code := m.Run()
	stop()
	if *keep || *reuse {
		return code
	}
	if err := stream("cluster", "down", "--name", *name); err != nil {
		fmt.Fprintln(os.Stderr, "e2e: down:", err)
		return 1
	}
	return code
}

func bringUp() error {
	if err := stream("cluster", "up", "--name", *name, "--nodes", "2", "--kubeconfig", kubeconfig); err != nil {
		return fmt.Errorf("bring the cluster up: %w", err)
	}
	if err := stream("install", "--kubeconfig", kubeconfig); err != nil {
		return fmt.Errorf("install: %w", err)
	}
	return nil
}

// stream runs d8 with its output shown.
func stream(args ...string) error {
	command := d8Command(context.Background(), args...)
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	return command.Run()
}

func d8Command(ctx context.Context, args ...string) *exec.Cmd {
	command := exec.CommandContext(ctx, filepath.Join(root, "bin", "d8"), args...)
	command.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig)
	return command
}

// host is the address of this machine in the cluster's network.
var host string

// serveGuests serves bin/guests over HTTP on the cluster's bridge.
func serveGuests() (func(), error) {
	output, err := d8Command(context.Background(), "cluster", "status", "--name", *name, "-o", "json").Output()
	if err != nil {
		return nil, fmt.Errorf("ask for the cluster's status: %w", err)
	}
	var status struct{ HostAddress string }
	if err := json.Unmarshal(output, &status); err != nil {
		return nil, fmt.Errorf("read the cluster's status: %w", err)
	}
	host = status.HostAddress
	listener, err := listen(host)
	if err != nil {
		return nil, err
	}
	guests = "http://" + listener.Addr().String()
	server := &http.Server{Handler: http.FileServer(http.Dir(filepath.Join(root, "bin", "guests"))), ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = server.Serve(listener) }()
	return func() { _ = server.Close() }, nil
}

// d8 runs the command and fails the test if it fails.
func d8(t *testing.T, args ...string) string {
	t.Helper()
	output, err := try(t, args...)
	if err != nil {
		t.Fatalf("d8 %s: %v\n%s", strings.Join(args, " "), err, output)
	}
	return output
}

// try runs the command and returns what it printed.
func try(t *testing.T, args ...string) (string, error) {
	t.Helper()
	return feed(t, "", args...)
}

// feed runs the command with standard input.
func feed(t *testing.T, input string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	command := d8Command(ctx, args...)
	command.Stdin = strings.NewReader(input)
	output, err := command.CombinedOutput()
	return strings.TrimSpace(string(output)), err
}

// apply applies YAML, with ${GUESTS} and ${NAMESPACE} replaced.
func apply(t *testing.T, namespace, yaml string) {
	t.Helper()
	yaml = strings.NewReplacer("${GUESTS}", guests, "${NAMESPACE}", namespace).Replace(yaml)
	if output, err := feed(t, yaml, "k", "-n", namespace, "apply", "-f", "-"); err != nil {
		t.Fatalf("apply: %v\n%s", err, output)
	}
}

// namespace makes a namespace and removes it, with all in it, after the test.
func namespace(t *testing.T) string {
	t.Helper()
	name := regexp.MustCompile(`[^a-z0-9]+`).ReplaceAllString(strings.ToLower(t.Name()), "-")
	if len(name) > 40 {
		name = name[:40]
	}
	name = strings.Trim(name, "-")
	d8(t, "k", "create", "namespace", name)
	t.Cleanup(func() {
		if t.Failed() {
			dump(t, name)
		}
		if !*keep || !t.Failed() {
			deleteNamespace(t, name)
		}
	})
	return name
}

func deleteNamespace(t *testing.T, name string) {
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	// Machines first: a namespace's own controller deletes pods first and then
	// waits half of their grace period before it looks again.
	if output, err := d8Command(ctx, "k", "-n", name, "delete", "vm", "--all", "--timeout=120s").CombinedOutput(); err != nil {
		t.Errorf("delete the machines of %s: %v\n%s", name, err, output)
	}
	if output, err := d8Command(ctx, "k", "delete", "namespace", name, "--timeout=200s").CombinedOutput(); err != nil {
		t.Errorf("delete namespace %s: %v\n%s", name, err, output)
	}
}

// dump shows what explains a failure.
func dump(t *testing.T, namespace string) {
	for _, args := range [][]string{
		{"k", "-n", namespace, "get", "vm,vd,vi,vmop,vmip,instances.internal.virtualization.deckhouse.io,pods,pvc", "-o", "wide"},
		{"k", "-n", namespace, "get", "vm,vd,vi", "-o", "jsonpath={range .items[*]}{.kind}/{.metadata.name}{\"\\n\"}{range .status.conditions[*]}  {.type}={.status} {.reason}: {.message}{\"\\n\"}{end}{end}"},
		{"k", "-n", namespace, "get", "events", "--sort-by=.lastTimestamp"},
		{"k", "-n", "d8-virtualization", "get", "pods", "-o", "wide"},
	} {
		output, _ := d8Command(context.Background(), args...).CombinedOutput()
		t.Logf("d8 %s\n%s", strings.Join(args, " "), output)
	}
}

// field reads one JSON path of an object; an absent object or field is "".
func field(t *testing.T, namespace, object, path string) string {
	t.Helper()
	output, err := try(t, "k", "-n", namespace, "get", object, "-o", "jsonpath={"+path+"}")
	if err != nil {
		return ""
	}
	return output
}

// eventually waits until check is true; the clock is the story's patience, not a measurement.
func eventually(t *testing.T, patience time.Duration, what string, check func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !check() {
		if time.Now().After(deadline) {
			t.Fatalf("after %s it is not true that %s", patience, what)
		}
		time.Sleep(500 * time.Millisecond)
	}
}

// reaches waits until a field has a value and returns every other value seen on the way.
func reaches(t *testing.T, patience time.Duration, namespace, object, path, want string) []string {
	t.Helper()
	var seen []string
	eventually(t, patience, fmt.Sprintf("%s %s is %q (last: see below)", object, path, want), func() bool {
		got := field(t, namespace, object, path)
		if len(seen) == 0 || seen[len(seen)-1] != got {
			seen = append(seen, got)
			t.Logf("%s %s: %q", object, path, got)
		}
		return got == want
	})
	return seen
}

// condition returns "status reason: message" of a condition.
func condition(t *testing.T, namespace, object, kind string) string {
	t.Helper()
	filter := fmt.Sprintf(".status.conditions[?(@.type==%q)]", kind)
	return field(t, namespace, object, filter+".status") + " " + field(t, namespace, object, filter+".reason") + ": " + field(t, namespace, object, filter+".message")
}

// terminal is a `d8 v console` driven by the test.
type terminal struct {
	t      *testing.T
	input  interface{ Write([]byte) (int, error) }
	lock   sync.Mutex
	output bytes.Buffer
}

func (c *terminal) Write(p []byte) (int, error) {
	c.lock.Lock()
	defer c.lock.Unlock()
	return c.output.Write(p)
}

func (c *terminal) text() string {
	c.lock.Lock()
	defer c.lock.Unlock()
	return c.output.String()
}

// open starts a console and leaves it when the test ends.
func open(t *testing.T, namespace, vm string) *terminal {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	command := d8Command(ctx, "v", "-n", namespace, "console", vm)
	input, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	c := &terminal{t: t, input: input}
	command.Stdout, command.Stderr = c, c
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, _ = input.Write([]byte{29})
		_ = input.Close()
		cancel()
		_ = command.Wait()
		if t.Failed() {
			t.Logf("console of %s:\n%s", vm, c.text())
		}
	})
	return c
}

// send types a line.
func (c *terminal) send(line string) {
	c.t.Helper()
	if _, err := c.input.Write([]byte(line + "\r")); err != nil {
		c.t.Fatalf("type %q: %v", line, err)
	}
}

// prompt waits for the tiny guest's shell. What the guest printed before the console
// was open is gone, so it is asked again and again.
func (c *terminal) prompt(patience time.Duration) {
	c.t.Helper()
	eventually(c.t, patience, "the guest's shell answers", func() bool {
		c.send("")
		time.Sleep(200 * time.Millisecond)
		return strings.Contains(c.text(), "tiny:~# ")
	})
}

// expect waits for output that matches, from the last match on.
func (c *terminal) expect(patience time.Duration, pattern string) string {
	c.t.Helper()
	expression := regexp.MustCompile(pattern)
	var match string
	eventually(c.t, patience, "the console shows "+pattern, func() bool {
		c.lock.Lock()
		defer c.lock.Unlock()
		at := expression.FindIndex(c.output.Bytes())
		if at == nil {
			return false
		}
		match = string(c.output.Next(at[1])[at[0]:])
		return true
	})
	return match
}
