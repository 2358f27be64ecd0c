//go:build integration

package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/cli/virtualization"
	"orlop.dev/orlop/internal/stream"
	"orlop.dev/orlop/internal/testkit"
)

// running is a `d8 v` command at work.
type running struct {
	out, err screen
	stop     context.CancelFunc
	ended    chan error
}

// command starts `d8 v` with the kubeconfig of a user.
func command(t *testing.T, kubeconfig string, in io.Reader, args ...string) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{stop: cancel, ended: make(chan error, 1)}
	c := virtualization.New(genericiooptions.IOStreams{In: in, Out: &r.out, ErrOut: &r.err})
	c.SilenceErrors, c.SilenceUsage = true, true
	c.SetOut(&r.out)
	c.SetErr(&r.err)
	c.SetArgs(append(args, "--kubeconfig", kubeconfig))
	go func() { r.ended <- c.ExecuteContext(ctx) }()
	t.Cleanup(cancel)
	return r
}

func (r *running) wait(t *testing.T) error {
	t.Helper()
	select {
	case err := <-r.ended:
		return err
	case <-time.After(patience):
		t.Fatalf("the command goes on and on\nstdout: %q\nstderr: %q", r.out.String(), r.err.String())
		return nil
	}
}

func TestAccessCommands(t *testing.T) {
	s := newSite(t)
	s.machine(t, "echo", v1alpha2.MachineRunning, echo)
	user := s.kubeconfig(t, s.user(t, "editor", editorRules...))

	t.Run("console", func(t *testing.T) { s.consoles(t, user) })
	t.Run("port-forward", func(t *testing.T) { s.forwards(t, user) })
	t.Run("power", func(t *testing.T) { s.operations(t, user) })
	t.Run("completion", func(t *testing.T) { s.completion(t, user) })
}

// terminal is a pseudo-terminal: a test types into keyboard, a command reads device.
func terminal(t *testing.T) (keyboard, device *os.File) {
	t.Helper()
	keyboard, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fd := int(keyboard.Fd())
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	device, err = os.OpenFile("/dev/pts/"+strconv.Itoa(number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = keyboard.Close(); _ = device.Close() })
	return keyboard, device
}

// session is a console command on a terminal, which must be as before afterwards.
type session struct {
	*running
	keyboard *os.File
	device   *os.File
	before   *term.State
}

func consoleSession(t *testing.T, kubeconfig string, args ...string) *session {
	t.Helper()
	keyboard, device := terminal(t)
	before, err := term.GetState(int(device.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	return &session{command(t, kubeconfig, device, append([]string{"console"}, args...)...), keyboard, device, before}
}

func (s *session) types(t *testing.T, keys string) {
	t.Helper()
	if _, err := s.keyboard.WriteString(keys); err != nil {
		t.Fatal(err)
	}
}

// ends waits for the command and looks at the terminal it leaves behind.
func (s *session) ends(t *testing.T) error {
	t.Helper()
	err := s.wait(t)
	after, stateErr := term.GetState(int(s.device.Fd()))
	if stateErr != nil {
		t.Fatal(stateErr)
	}
	if diff := cmp.Diff(fmt.Sprint(*s.before), fmt.Sprint(*after)); diff != "" {
		t.Errorf("the terminal is not as it was: %s", diff)
	}
	// Let the goroutine go that reads the terminal: a real command ends with its process.
	_, _ = s.keyboard.WriteString("\n\n")
	return err
}

func (s *site) consoles(t *testing.T, user string) {
	t.Run("types, shows, and leaves by ctrl+]", func(t *testing.T) {
		c := consoleSession(t, user, "echo."+s.namespace)
		c.err.shows(t, "Connected to the console of echo; press Ctrl+] to leave")
		c.types(t, "uname -a\r\x03") // Ctrl+C is the guest's
		c.out.shows(t, "\runame -a\r\x03")
		c.types(t, "\x1d")
		if err := c.ends(t); err != nil {
			t.Error(err)
		}
		c.err.shows(t, "Left the console of echo")
		if got := c.out.String(); strings.Contains(got, "console") {
			t.Errorf("standard output is the guest's alone: %q", got)
		}
	})
	t.Run("waits until the machine runs", func(t *testing.T) {
		vm := s.machine(t, "late", v1alpha2.MachineStarting, echo)
		c := consoleSession(t, user, "late")
		c.err.shows(t, "Waiting for virtual machine late (Starting)")
		s.phase(t, vm, v1alpha2.MachineRunning)
		c.err.shows(t, "Connected to the console of late")
		c.types(t, "\x1d")
		if err := c.ends(t); err != nil {
			t.Error(err)
		}
	})
	t.Run("ctrl+] leaves while waiting too", func(t *testing.T) {
		s.machine(t, "never", v1alpha2.MachinePending, echo)
		c := consoleSession(t, user, "never")
		c.err.shows(t, "Waiting for virtual machine never (Pending)")
		c.types(t, "\x1d")
		if err := c.ends(t); err != nil {
			t.Error(err)
		}
	})
	t.Run("gives up after the time-out", func(t *testing.T) {
		s.machine(t, "down", v1alpha2.MachineStopped, echo)
		err := consoleSession(t, user, "down", "--timeout", "1s").ends(t)
		if err == nil || !strings.Contains(err.Error(), "gave no console within 1s") || !strings.Contains(err.Error(), "its phase is Stopped") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a machine that does not exist is not waited for", func(t *testing.T) {
		if err := consoleSession(t, user, "nobody").ends(t); err == nil || !strings.Contains(err.Error(), `"nobody" not found`) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("comes back when the guest's side ends", func(t *testing.T) {
		s.machine(t, "restarts", v1alpha2.MachineRunning, func(w http.ResponseWriter, r *http.Request) {
			if conn, err := stream.Accept(w, r); err == nil {
				_, _ = conn.Write([]byte("booting\r\n"))
				_, _ = conn.Read(make([]byte, 1))
				_ = conn.Close()
			}
		})
		c := consoleSession(t, user, "restarts")
		testkit.Eventually(t, patience, "a second connection", func() error {
			if n := strings.Count(c.out.String(), "booting"); n < 2 {
				return fmt.Errorf("%d", n)
			}
			return nil
		})
		c.types(t, "\x1d")
		if err := c.ends(t); err != nil {
			t.Error(err)
		}
	})
	t.Run("ends when somebody takes it over, even in the middle of a word", func(t *testing.T) {
		opened := make(chan struct{}, 8)
		s.machine(t, "wanted", v1alpha2.MachineRunning, func(w http.ResponseWriter, r *http.Request) {
			conn, err := stream.Accept(w, r)
			if err != nil {
				return
			}
			opened <- struct{}{}
			go func() { _, _ = io.Copy(io.Discard, conn) }()
			time.Sleep(200 * time.Millisecond) // for as long somebody types
			_ = conn.TakeOver("another client has opened the console")
		})
		c := consoleSession(t, user, "wanted")
		typing, stopTyping := context.WithCancel(t.Context())
		typed := make(chan struct{})
		go func() {
			defer close(typed)
			for typing.Err() == nil {
				if _, err := c.keyboard.WriteString("x"); err != nil {
					return
				}
			}
		}()
		err := c.wait(t)
		stopTyping()
		<-typed
		if err := errors.Join(err, c.restored()); err != nil {
			t.Error(err)
		}
		c.err.shows(t, "Another client took over the console of wanted")
		if len(opened) != 1 {
			t.Errorf("it was opened %d times: taken back", len(opened))
		}
	})
	t.Run("a guest that does not read cannot keep anybody in", func(t *testing.T) {
		over := make(chan struct{})
		defer close(over)
		s.machine(t, "deaf", v1alpha2.MachineRunning, func(w http.ResponseWriter, r *http.Request) {
			if conn, err := stream.Accept(w, r); err == nil {
				<-over
				_ = conn.Close()
			}
		})
		c := consoleSession(t, user, "deaf")
		c.err.shows(t, "Connected")
		go func() {
			for range 4 << 10 {
				if _, err := c.keyboard.WriteString(strings.Repeat("paste ", 170)); err != nil {
					return
				}
			}
			for { // alone in a read at last
				time.Sleep(50 * time.Millisecond) // a person's pace
				if _, err := c.keyboard.WriteString("\x1d"); err != nil {
					return
				}
			}
		}()
		if err := errors.Join(c.wait(t), c.restored()); err != nil {
			t.Error(err)
		}
		_ = c.keyboard.Close()
	})
	t.Run("sigterm restores the terminal", func(t *testing.T) {
		c := consoleSession(t, user, "echo")
		c.err.shows(t, "Connected")
		c.stop()
		if err := c.ends(t); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a script's input and output are exact", func(t *testing.T) {
		in, feed := io.Pipe()
		c := command(t, user, in, "console", "echo")
		if _, err := feed.Write([]byte("one\x1dtwo")); err != nil {
			t.Fatal(err)
		}
		c.out.shows(t, "\rone\x1dtwo")
		c.stop()
		_ = feed.Close()
		if err := c.wait(t); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		if diff := cmp.Diff("Connected to the console of echo; press Ctrl+] to leave\n", c.err.String()); diff != "" {
			t.Errorf("standard error in a log: %s", diff)
		}
	})
}

// restored tells how the terminal differs from what it was.
func (s *session) restored() error {
	after, err := term.GetState(int(s.device.Fd()))
	if err == nil && *after != *s.before {
		err = errors.New("the terminal is not as it was")
	}
	return err
}

func (s *site) forwards(t *testing.T, user string) {
	forwarded := regexp.MustCompile(`Forwarding (tcp|udp) (\S+) -> echo:(\d+)`)
	address := func(t *testing.T, c *running) string {
		t.Helper()
		c.err.shows(t, "-> echo:")
		return forwarded.FindStringSubmatch(c.err.String())[2]
	}
	t.Run("tcp, several at once, with a half-close", func(t *testing.T) {
		c := command(t, user, strings.NewReader(""), "port-forward", "echo", "0:80")
		to := address(t, c)
		ended := make(chan error, 3)
		for i := range 3 {
			go func() { ended <- echoed(to, bytes.Repeat([]byte{byte(i), 0xff}, 1<<18)) }()
		}
		for range 3 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
		c.stop()
		if err := c.wait(t); err != nil {
			t.Errorf("Ctrl+C is the usual end: %v", err)
		}
	})
	t.Run("udp keeps datagrams and peers apart", func(t *testing.T) {
		c := command(t, user, strings.NewReader(""), "port-forward", "echo", "udp/0:53")
		to := address(t, c)
		for _, text := range []string{"first", "second"} {
			conn, err := (&net.Dialer{}).DialContext(t.Context(), "udp", to)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(patience))
			for i := range 3 {
				message := fmt.Sprintf("%s %d", text, i)
				if _, err := conn.Write([]byte(message)); err != nil {
					t.Fatal(err)
				}
				got := make([]byte, 2048)
				n, err := conn.Read(got)
				if err != nil || string(got[:n]) != message {
					t.Fatalf("got %q, %v, want %q", got[:n], err, message)
				}
			}
		}
		c.stop()
		if err := c.wait(t); err != nil {
			t.Error(err)
		}
	})
	t.Run("a refused connection ends alone", func(t *testing.T) {
		vm := s.machine(t, "later", v1alpha2.MachineStopped, echo)
		c := command(t, user, strings.NewReader(""), "port-forward", "later", "0:80")
		c.err.shows(t, "-> later:80")
		to := regexp.MustCompile(`tcp (\S+) ->`).FindStringSubmatch(c.err.String())[1]
		if err := echoed(to, []byte("x")); err == nil {
			t.Error("a stopped machine answered")
		}
		c.err.shows(t, "its phase is Stopped")
		s.phase(t, vm, v1alpha2.MachineRunning)
		if err := echoed(to, []byte("x")); err != nil {
			t.Error(err)
		}
		c.stop()
		_ = c.wait(t)
	})
	t.Run("standard input and output", func(t *testing.T) {
		payload := strings.Repeat("SSH-2.0-\x00", 1<<16)
		c := command(t, user, strings.NewReader(payload), "port-forward", "--stdio=true", "echo."+s.namespace, "22")
		if err := c.wait(t); err != nil {
			t.Fatal(err)
		}
		if c.out.String() != payload || c.err.String() != "" {
			t.Errorf("%d bytes came back of %d; stderr %q", len(c.out.String()), len(payload), c.err.String())
		}
	})
	t.Run("standard input that never ends does not keep it", func(t *testing.T) {
		in, feed := io.Pipe()
		defer feed.Close()
		c := command(t, user, in, "port-forward", "--stdio", "echo", "22")
		_, _ = feed.Write([]byte("hello"))
		c.out.shows(t, "hello")
		c.stop()
		if err := c.wait(t); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a local port that is taken", func(t *testing.T) {
		listener := listen(t, net.IPv4(127, 0, 0, 1))
		defer listener.Close()
		_, taken, _ := net.SplitHostPort(listener.Addr().String())
		c := command(t, user, strings.NewReader(""), "port-forward", "echo", "0:81", taken+":80")
		if err := c.wait(t); err == nil || !strings.Contains(err.Error(), "listen on local port "+taken) {
			t.Errorf("got %v", err)
		}
	})
}

// echoed sends, half-closes and expects the same back.
func echoed(address string, payload []byte) error {
	conn, err := (&net.Dialer{Timeout: patience}).DialContext(context.Background(), "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	go func() {
		_, _ = conn.Write(payload)
		_ = conn.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(conn)
	if err == nil && !bytes.Equal(got, payload) {
		err = fmt.Errorf("%d bytes came back that are not the %d sent", len(got), len(payload))
	}
	return err
}

func (s *site) operations(t *testing.T, user string) {
	for _, name := range []string{"linux", "windows"} {
		vm := s.machine(t, name, v1alpha2.MachineRunning, nil)
		vm.Labels = map[string]string{"tier": "web"}
		if err := s.admin.Update(t.Context(), vm); err != nil {
			t.Fatal(err)
		}
		vm.Status.NodeName = s.node.name
		if err := s.admin.Status().Update(t.Context(), vm); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("what is made", func(t *testing.T) { s.made(t, user) })
	t.Run("what is waited for", func(t *testing.T) { s.waited(t, user) })
	t.Run("a question can be interrupted", func(t *testing.T) {
		in, feed := io.Pipe()
		defer feed.Close()
		c := command(t, user, in, "stop", "linux")
		c.out.shows(t, "Stop virtual machine linux in namespace "+s.namespace+"? [y/N] ")
		c.stop()
		if err := c.wait(t); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		if n := len(s.takeOperations(t)); n != 0 {
			t.Errorf("%d operations were made", n)
		}
	})
	t.Run("one that fails does not hold up the others", func(t *testing.T) {
		err := command(t, user, nil, "stop", "-y", "linux.elsewhere", "windows").wait(t)
		if err == nil || !strings.Contains(err.Error(), "stop linux:") {
			t.Errorf("got %v", err)
		}
		if made := s.takeOperations(t); len(made) != 1 || made[0].Spec.VirtualMachineName != "windows" {
			t.Errorf("made %v", made)
		}
	})
}

func (s *site) made(t *testing.T, user string) {
	yes, no := true, false
	one := func(kind v1alpha2.OperationType, force *bool) []v1alpha2.VirtualMachineOperationSpec {
		return []v1alpha2.VirtualMachineOperationSpec{{Type: kind, VirtualMachineName: "linux", Force: force}}
	}
	both := []v1alpha2.VirtualMachineOperationSpec{
		{Type: v1alpha2.OperationStop, VirtualMachineName: "linux"}, {Type: v1alpha2.OperationStop, VirtualMachineName: "windows"},
	}
	node := s.worker(t)
	tests := map[string]struct {
		args    []string
		in      string
		want    []v1alpha2.VirtualMachineOperationSpec
		wantErr string
	}{
		"start never has force":                  {args: []string{"start", "-c", "-y", "-f", "linux"}, want: one(v1alpha2.OperationStart, nil)},
		"stop says nothing of force unless told": {args: []string{"stop", "-c", "-y", "linux"}, want: one(v1alpha2.OperationStop, nil)},
		"stop with force":                        {args: []string{"stop", "-c", "-y", "-f", "linux"}, want: one(v1alpha2.OperationStop, &yes)},
		"evict leaves force to the policy":       {args: []string{"evict", "-c", "-y", "linux"}, want: one(v1alpha2.OperationEvict, nil)},
		"evict without slowing down":             {args: []string{"evict", "-c", "-y", "--force=false", "linux"}, want: one(v1alpha2.OperationEvict, &no)},
		"migrate by force":                       {args: []string{"migrate", "-c", "-y", "--force", "linux"}, want: one(v1alpha2.OperationMigrate, &yes)},
		"migrate to a node": {args: []string{"migrate", "-c", "-y", "--target-node-name", node, "linux"}, want: []v1alpha2.VirtualMachineOperationSpec{{
			Type: v1alpha2.OperationMigrate, VirtualMachineName: "linux",
			Migrate: &v1alpha2.VirtualMachineOperationMigrate{NodeSelector: map[string]string{corev1.LabelHostname: node}}}}},
		"migrate to a node without a name":        {args: []string{"migrate", "-y", "--target-node-name=", "linux"}, wantErr: "name of the node is empty"},
		"migrate to a node that does not exist":   {args: []string{"migrate", "-y", "--target-node-name", "nowhere", "linux"}, wantErr: "node nowhere does not exist"},
		"migrate to where it is":                  {args: []string{"migrate", "-y", "--target-node-name", s.node.name, "linux"}, wantErr: "runs on node " + s.node.name + " already"},
		"restart with an explicit no":             {args: []string{"restart", "-c", "-y", "--force=false", "linux"}, want: one(v1alpha2.OperationRestart, &no)},
		"an answer of yes":                        {args: []string{"stop", "-c", "linux"}, in: "Y\n", want: one(v1alpha2.OperationStop, nil)},
		"an answer without a line end":            {args: []string{"stop", "-c", "linux"}, in: "yes", want: one(v1alpha2.OperationStop, nil)},
		"return alone is a no":                    {args: []string{"stop", "-c", "linux"}, in: "\n"},
		"no answer is a no":                       {args: []string{"stop", "-c", "linux"}},
		"a no skips its machine only":             {args: []string{"stop", "windows", "linux"}, in: "n\ny\n", want: one(v1alpha2.OperationStop, nil)},
		"a namespace in the name":                 {args: []string{"stop", "-y", "-c", "-n", "elsewhere", "linux." + s.namespace}, want: one(v1alpha2.OperationStop, nil)},
		"several, and then nothing is waited for": {args: []string{"stop", "-y", "linux", "windows"}, want: both},
		"by label":                            {args: []string{"stop", "-y", "-l", "tier=web"}, want: both},
		"a label that nobody has":             {args: []string{"stop", "-y", "-l", "tier=db"}, wantErr: "no virtual machine found"},
		"names and labels exclude each other": {args: []string{"stop", "-y", "-l", "tier=web", "linux"}, wantErr: "not both"},
		"all and labels exclude each other":   {args: []string{"stop", "-y", "-l", "tier=web", "--all"}, wantErr: "none of the others can be"},
		"neither a name nor a choice":         {args: []string{"stop", "-y"}, wantErr: "name a virtual machine"},
		"a name that is none":                 {args: []string{"stop", "-y", "linux."}, wantErr: "is not NAME or NAME.NAMESPACE"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c := command(t, user, strings.NewReader(test.in), test.args...)
			err := c.wait(t)
			if test.wantErr == "" && err != nil || test.wantErr != "" && (err == nil || !strings.Contains(err.Error(), test.wantErr)) {
				t.Errorf("got error %v, want %q", err, test.wantErr)
			}
			var got []v1alpha2.VirtualMachineOperationSpec
			for _, operation := range s.takeOperations(t) {
				got = append(got, operation.Spec)
				if want := operation.Spec.VirtualMachineName + "-"; operation.GenerateName != want {
					t.Errorf("generateName is %q, want %q", operation.GenerateName, want)
				}
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	t.Run("the environment can say yes", func(t *testing.T) {
		t.Setenv("D8_VIRTUALIZATION_LIFECYCLE_CONFIRM", "yes")
		if err := command(t, user, strings.NewReader(""), "stop", "-c", "linux").wait(t); err != nil {
			t.Error(err)
		}
		if n := len(s.takeOperations(t)); n != 1 {
			t.Errorf("%d operations were made", n)
		}
	})
}

// worker makes a node beside the machines' own, and lets the editor look at nodes.
func (s *site) worker(t *testing.T) string {
	t.Helper()
	name := "worker-" + s.namespace
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}}}
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name},
		Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"nodes"}, Verbs: []string{"get", "list"}}}}
	binding := &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: name},
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: s.namespace, Name: "editor"}}}
	for _, o := range []client.Object{node, role, binding} {
		s.create(t, o)
		t.Cleanup(func() { _ = s.admin.Delete(context.Background(), o) })
	}
	return name
}

// takeOperations returns and removes what was made.
func (s *site) takeOperations(t *testing.T) []v1alpha2.VirtualMachineOperation {
	t.Helper()
	var list v1alpha2.VirtualMachineOperationList
	if err := s.admin.List(t.Context(), &list, client.InNamespace(s.namespace)); err != nil {
		t.Fatal(err)
	}
	if err := s.admin.DeleteAllOf(t.Context(), &v1alpha2.VirtualMachineOperation{}, client.InNamespace(s.namespace)); err != nil {
		t.Fatal(err)
	}
	return list.Items
}

func (s *site) waited(t *testing.T, user string) {
	failed := metav1.Condition{Type: "Completed", Status: metav1.ConditionFalse, Reason: "NotApplicable", Message: "Run policy AlwaysOff forbids a start", LastTransitionTime: metav1.Now()}
	tests := map[string]struct {
		args   []string
		phases []v1alpha2.OperationPhase
		// remove the operation instead of ending it.
		remove  bool
		wantOut string
		wantErr string
	}{
		"without flags, for the beginning":   {phases: []v1alpha2.OperationPhase{v1alpha2.OperationPending, v1alpha2.OperationInProgress}, wantOut: "is in progress"},
		"with --wait, for the end":           {args: []string{"--wait"}, phases: []v1alpha2.OperationPhase{v1alpha2.OperationInProgress, v1alpha2.OperationCompleted}, wantOut: "completed"},
		"a failure is an error and told":     {phases: []v1alpha2.OperationPhase{v1alpha2.OperationFailed}, wantErr: "Failed: Run policy AlwaysOff forbids a start"},
		"so is being superseded":             {args: []string{"--wait"}, phases: []v1alpha2.OperationPhase{v1alpha2.OperationInProgress, v1alpha2.OperationSuperseded}, wantErr: "Superseded"},
		"so is being deleted":                {args: []string{"--wait"}, phases: []v1alpha2.OperationPhase{v1alpha2.OperationInProgress}, remove: true, wantErr: "was deleted"},
		"patience ends and the work goes on": {args: []string{"--wait", "--timeout", "1s"}, phases: []v1alpha2.OperationPhase{v1alpha2.OperationInProgress}, wantErr: "is not done after 1s; it goes on"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c := command(t, user, nil, append([]string{"start", "-y", "linux"}, test.args...)...)
			c.out.shows(t, "created")
			var list v1alpha2.VirtualMachineOperationList
			if err := s.admin.List(t.Context(), &list, client.InNamespace(s.namespace)); err != nil || len(list.Items) != 1 {
				t.Fatalf("%d operations, %v", len(list.Items), err)
			}
			operation := &list.Items[0]
			for _, phase := range test.phases {
				operation.Status.Phase = phase
				if phase == v1alpha2.OperationFailed {
					operation.Status.Conditions = []metav1.Condition{failed}
				}
				if err := s.admin.Status().Update(t.Context(), operation); err != nil {
					t.Fatal(err)
				}
			}
			if test.remove {
				if err := s.admin.Delete(t.Context(), operation); err != nil {
					t.Fatal(err)
				}
			}
			err := c.wait(t)
			if test.wantErr == "" && err != nil || test.wantErr != "" && (err == nil || !strings.Contains(err.Error(), test.wantErr)) {
				t.Errorf("got error %v, want %q", err, test.wantErr)
			}
			if name == "patience ends and the work goes on" && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v is no deadline error", err)
			}
			if !strings.Contains(c.out.String(), test.wantOut) {
				t.Errorf("output is %q", c.out.String())
			}
			s.takeOperations(t)
		})
	}
}

func (s *site) completion(t *testing.T, user string) {
	for _, name := range []string{"web-1", "web-2"} {
		s.machine(t, name, v1alpha2.MachineStopped, nil)
	}
	tests := map[string]struct {
		args []string
		want string
	}{
		"a prefix":                             {[]string{"console", "web-"}, "web-1\nweb-2\n"},
		"a user before the name":               {[]string{"ssh", "cloud@web-"}, "cloud@web-1\ncloud@web-2\n"},
		"the second argument is not a machine": {[]string{"port-forward", "web-1", "web-"}, ""},
		"machines already named are left out":  {[]string{"stop", "web-1", "web-"}, "web-2\n"},
		"another namespace":                    {[]string{"console", "-n", "default", "web-"}, ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Setenv("KUBECONFIG", user)
			var out screen
			c := virtualization.New(genericiooptions.IOStreams{In: strings.NewReader(""), Out: &out, ErrOut: io.Discard})
			c.SetOut(&out)
			c.SetErr(io.Discard)
			c.SetArgs(append([]string{"__complete"}, test.args...))
			if err := c.ExecuteContext(t.Context()); err != nil {
				t.Fatal(err)
			}
			got, _, _ := strings.Cut(out.String(), ":")
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}
