package handler

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/testkit"
	"orlop.dev/orlop/internal/wire"
)

const (
	fakeLauncher = "fake-launcher"
	ownNetwork   = "ORLOP_TEST_OWN_NETWORK"
)

// TestMain runs the tests in a network namespace of their own, which plays the
// node's, and lets the test binary be a launcher.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == fakeLauncher {
		if err := runFakeLauncher(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	ctrllog.SetLogger(logr.Discard())
	if os.Getuid() != 0 || os.Getenv(ownNetwork) != "" {
		testkit.Main(m)
		return
	}
	// The API server insists on a default route.
	const prepare = `ip link set lo up && ip link add uplink type veth peer name outside && ip link set outside up &&
		ip link set uplink up && ip addr add 192.0.2.2/24 dev uplink && ip route add default via 192.0.2.1 && exec "$0" "$@"`
	cmd := exec.Command("unshare", append([]string{"--net", "sh", "-c", prepare}, os.Args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), ownNetwork+"=1")
	if err := cmd.Run(); err != nil {
		os.Exit(1)
	}
}

// fake is a launcher that speaks the protocol truly and has no QEMU. The directory
// for its sockets is descriptor 3; lines on standard input change its guest.
type fake struct {
	mu     sync.Mutex
	state  wire.State
	server *wire.Server
	held   []*os.File
	bye    chan struct{}
}

func runFakeLauncher() error {
	dir := os.NewFile(3, "run")
	l, err := wire.Listen(dir)
	if err != nil {
		return err
	}
	f := &fake{bye: make(chan struct{})}
	f.server = wire.NewServer(l, func(p wire.Peer) error {
		if p.UID != 0 {
			return fmt.Errorf("peer has user %d", p.UID)
		}
		return nil
	})
	if err := f.serial(); err != nil {
		return err
	}
	go f.commands(os.Stdin)
	go func() {
		for r := range f.server.Requests() {
			f.answer(r)
		}
	}()
	fmt.Println("ready")
	<-f.bye
	time.Sleep(50 * time.Millisecond) // the answer to bye is on its way
	return nil
}

// serial echoes, one connection at a time, as QEMU's socket serves one.
func (f *fake) serial() error {
	l, err := net.Listen("unix", "/proc/self/fd/3/serial")
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(c, c)
			_ = c.Close()
		}
	}()
	return nil
}

func (f *fake) change(do func(*wire.State)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do(&f.state)
	_ = f.server.Publish(f.state)
}

func (f *fake) commands(in io.Reader) {
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		verb, arg, _ := strings.Cut(lines.Text(), " ")
		f.change(func(s *wire.State) {
			switch verb {
			case "pause":
				s.Phase, s.PauseReason = v1alpha1.InstancePaused, arg
			case "die":
				s.Phase, s.Exit = v1alpha1.InstanceStopped, exit(v1alpha1.ExitCrashed)
			}
		})
	}
}

func exit(cause v1alpha1.ExitCause) *v1alpha1.Exit {
	return &v1alpha1.Exit{Cause: cause, Time: metav1.NewTime(time.Now().Truncate(time.Second))}
}

func (f *fake) answer(r *wire.Request) {
	f.mu.Lock()
	state := f.state
	f.mu.Unlock()
	switch r.Type {
	case wire.TypeHello:
		r.Answer(wire.Hello{Version: wire.Version, State: &state}, nil)
	case wire.TypeStart:
		f.start(r)
	case wire.TypeShutdown:
		r.Answer(nil, nil)
		f.change(func(s *wire.State) { s.Phase = v1alpha1.InstanceStopping })
		f.change(func(s *wire.State) { s.Phase, s.Exit = v1alpha1.InstanceStopped, exit(v1alpha1.ExitHostShutdown) })
	case wire.TypeKill:
		r.Answer(nil, nil)
		f.change(func(s *wire.State) { s.Phase, s.Exit = v1alpha1.InstanceStopped, exit(v1alpha1.ExitKilled) })
	case wire.TypeResume:
		r.Answer(nil, nil)
		f.change(func(s *wire.State) { s.Phase, s.PauseReason = v1alpha1.InstanceRunning, "" })
	case wire.TypeRebootAction:
		r.Answer(nil, nil)
	case wire.TypeAttach, wire.TypeDetach:
		f.plug(r)
	case wire.TypeBye:
		r.Answer(nil, nil)
		close(f.bye)
	default:
		r.Answer(nil, wire.Errorf(wire.CodeUnsupported, "unknown"))
	}
}

// start reads the disk through its descriptor: what stands there becomes the
// version of this QEMU, for the test to see.
func (f *fake) start(r *wire.Request) {
	var s wire.Start
	if err := r.Decode(&s); err != nil {
		r.Answer(nil, err)
		return
	}
	if f.state.InstanceUID != "" {
		wire.CloseFiles(r.Files)
		r.Answer(nil, wire.ErrAlreadyStarted)
		return
	}
	f.held = r.Files
	size := "no disk"
	if len(s.Disks) > 0 {
		info, err := r.Files[s.Disks[0].FDs[0]].Stat()
		if err != nil {
			r.Answer(nil, err)
			return
		}
		size = fmt.Sprint(info.Size())
	}
	now := time.Now()
	r.Answer(nil, nil)
	f.change(func(st *wire.State) {
		st.InstanceUID, st.Phase, st.StartTime = s.InstanceUID, v1alpha1.InstanceRunning, &now
		st.RebootAction, st.QEMUVersion = s.RebootAction, "disk of "+size
		for _, d := range s.Machine.Disks {
			st.Disks = append(st.Disks, v1alpha1.DiskStatus{ID: d.ID, Attached: true})
		}
	})
}

// plug changes the disks. The size of an attached one is that of its file; one called
// vd-stuck is never let go of.
func (f *fake) plug(r *wire.Request) {
	var a wire.Attach
	var d wire.Detach
	if r.Type == wire.TypeAttach {
		err := r.Decode(&a)
		var info os.FileInfo
		if err == nil {
			info, err = r.Files[a.FDs[0]].Stat()
		}
		if err == nil {
			f.change(func(s *wire.State) {
				s.Disks = append(slices.Clone(s.Disks), v1alpha1.DiskStatus{ID: a.Disk.ID, Attached: true, Size: info.Size()})
			})
		}
		wire.CloseFiles(r.Files)
		r.Answer(nil, err)
		return
	}
	if err := r.Decode(&d); err != nil {
		r.Answer(nil, err)
		return
	}
	f.change(func(s *wire.State) {
		disks := slices.Clone(s.Disks)
		if d.ID == "vd-stuck" {
			for i := range disks {
				if disks[i].ID == d.ID {
					disks[i].Message = "Waiting for the guest"
				}
			}
		} else {
			disks = slices.DeleteFunc(disks, func(o v1alpha1.DiskStatus) bool { return o.ID == d.ID })
		}
		s.Disks = disks
	})
	r.Answer(nil, nil)
}
