package handler

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/handler/podfs"
	"orlop.dev/orlop/internal/stream"
	"orlop.dev/orlop/internal/testkit"
)

// TestRealGuest starts the tiny guest with the real launcher and QEMU: it must get
// its address by DHCP, answer from the node and through a forwarded port, show its
// console, live through a new handler, and follow the power button.
func TestRealGuest(t *testing.T) {
	bin, err := filepath.Abs("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	for _, need := range []string{"virt-launcher", "qemu/qemu-system-x86_64", "guests/tiny.qcow2"} {
		if _, err := os.Stat(filepath.Join(bin, need)); err != nil {
			t.Skipf("needs the built programs, QEMU and the tiny guest: %v", err)
		}
	}
	n := newTestNode(t)
	p := n.pod()
	disk := filepath.Join(p.dir, "volumes/kubernetes.io~csi/pv-1/mount", podfs.DiskFile)
	sh(t, fmt.Sprintf("cp %s/guests/tiny.qcow2 %s", bin, disk))
	in := n.create(p, "virt-launcher-linux-1")
	_, stop := n.run()
	// The limit of socket paths is for the launcher's own, short view of the directory.
	run := filepath.Join(n.fs.Root, "run")
	if err := os.Symlink(p.runDir(), run); err != nil {
		t.Fatal(err)
	}
	p.exec(t, launcherUID, true, fmt.Sprintf("sh -c 'echo ready; exec %s/virt-launcher --qemu %s/qemu/qemu-system-x86_64 --run-dir %s --termination-log /dev/null'", bin, bin, run))

	s := n.await(in, "run", inPhase(v1alpha1.InstanceRunning))
	if s.QEMUVersion == "" || len(s.Disks) != 1 || !s.Disks[0].Attached {
		t.Errorf("status %+v", s)
	}
	client := &http.Client{Timeout: 2 * time.Second}
	hostname := func() error {
		response, err := client.Get("http://" + p.address + ":8080/")
		if err != nil {
			return err
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil || strings.TrimSpace(string(body)) != in.Spec.Machine.Hostname {
			return fmt.Errorf("the guest says %q, %w", body, err)
		}
		return nil
	}
	testkit.Eventually(t, 2*time.Minute, "answer from the node", hostname)

	stop()
	if err := hostname(); err != nil {
		t.Errorf("without a handler: %v", err)
	}
	node, _ := n.run()
	web := httptest.NewServer(node.Streams())
	defer web.Close()
	base := web.URL + "/v1/namespaces/" + n.namespace + "/instances/" + in.Name
	forwarded := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			c, err := stream.Dial(ctx, web.Client(), base+"/portforward/8080/tcp", nil)
			if err != nil {
				return nil, err
			}
			return duplex{c}, nil
		},
		DisableKeepAlives: true,
	}}
	testkit.Eventually(t, 20*time.Second, "answer through a forwarded port", func() error {
		response, err := forwarded.Get("http://guest/")
		if err != nil {
			return err
		}
		return response.Body.Close()
	})
	console, err := stream.Dial(t.Context(), web.Client(), base+"/console", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(console, "\rip -o -4 addr show eth0; ip link show eth0; ip route; cat /etc/resolv.conf; echo fin''ished\r"); err != nil {
		t.Fatal(err)
	}
	said := readUntil(console, "finished")
	for _, want := range []string{p.address + "/24", "mtu 1500", "default via 10.66.10.1", "nameserver 10.222.0.10"} {
		if !strings.Contains(said, want) {
			t.Errorf("the guest lacks %q:\n%s", want, said)
		}
	}
	_ = console.Close()

	n.patch(in, func(s *v1alpha1.InstanceSpec) { s.Power, s.GracePeriodSeconds = v1alpha1.PowerOff, 60 })
	var exited v1alpha1.InstanceStatus
	testkit.Eventually(t, time.Minute, "stop", func() error {
		exited = n.await(in, "be there", func(v1alpha1.InstanceStatus) bool { return true })
		if exited.Phase != v1alpha1.InstanceStopped {
			return fmt.Errorf("phase %s", exited.Phase)
		}
		return nil
	})
	if exited.Exit == nil || exited.Exit.Cause != v1alpha1.ExitHostShutdown {
		t.Errorf("exit %+v", exited.Exit)
	}
	if out, err := exec.Command("fuser", disk).Output(); err == nil {
		t.Errorf("somebody still holds the disk: %s", out)
	}
}

func readUntil(r io.Reader, mark string) string {
	var all strings.Builder
	buffer := make([]byte, 4096)
	for !strings.Contains(all.String(), mark) {
		n, err := r.Read(buffer)
		all.Write(buffer[:n])
		if err != nil {
			break
		}
	}
	return all.String()
}

// duplex makes a stream a net.Conn, as far as an HTTP client needs one.
type duplex struct{ *stream.Conn }

var errNoDeadline = errors.New("no deadlines here")

func (duplex) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (duplex) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (duplex) SetDeadline(time.Time) error      { return errNoDeadline }
func (duplex) SetReadDeadline(time.Time) error  { return errNoDeadline }
func (duplex) SetWriteDeadline(time.Time) error { return errNoDeadline }
