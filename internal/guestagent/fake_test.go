package guestagent

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// fake is the guest's side of a channel. Its answers are whatever a test makes them.
type fake struct {
	t    *testing.T
	conn net.Conn
	// answer returns the bytes to send for a command; nil stands for the true agent's.
	answer func(command string) []byte
	// asked are the commands so far, but for synchronisations.
	asked chan string
}

// start makes a client whose agent is a fake.
func start(t *testing.T, answer func(command string) []byte) *Client {
	t.Helper()
	client, guest := socketPair(t)
	f := &fake{t: t, conn: guest, answer: answer, asked: make(chan string, 100)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.serve()
	}()
	c := New(client)
	t.Cleanup(func() {
		_ = c.Close()
		_ = guest.Close()
		<-done
	})
	return c
}

func socketPair(t *testing.T) (net.Conn, net.Conn) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range pair {
		f := os.NewFile(uintptr(fd), "channel")
		if ends[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
	return ends[0], ends[1]
}

// request is one line of the client.
type request struct {
	Execute   string `json:"execute"`
	Arguments struct {
		ID int64 `json:"id"`
	} `json:"arguments"`
}

func (f *fake) serve() {
	lines := bufio.NewScanner(f.conn)
	for lines.Scan() {
		var r request
		if err := json.Unmarshal(bytes.TrimLeft(lines.Bytes(), "\xff"), &r); err != nil {
			f.t.Errorf("the client sent %q: %v", lines.Bytes(), err)
			return
		}
		reply := f.answer(r.Execute)
		if reply == nil {
			reply = truth(r)
		}
		if _, err := f.conn.Write(reply); err != nil {
			return
		}
	}
}

// truth is what an agent of version 9.2.0 on Debian 13 says, shortened.
func truth(r request) []byte {
	switch r.Execute {
	case "guest-sync-delimited":
		return fmt.Appendf(nil, "\xff{\"return\": %d}\n", r.Arguments.ID)
	case "guest-fsfreeze-status":
		return []byte(`{"return": "thawed"}` + "\n")
	case "guest-fsfreeze-freeze", "guest-fsfreeze-thaw":
		return []byte(`{"return": 2}` + "\n")
	case "guest-info":
		return []byte(`{"return": {"version": "9.2.0", "supported_commands": [{"enabled": true, "name": "guest-info", "success-response": true}]}}` + "\n")
	case "guest-get-osinfo":
		return []byte(`{"return": {"name": "Debian GNU/Linux", "kernel-release": "6.12.48+deb13-cloud-amd64", "version": "13 (trixie)", "pretty-name": "Debian GNU/Linux 13 (trixie)", "version-id": "13", "kernel-version": "#1 SMP PREEMPT_DYNAMIC", "machine": "x86_64", "id": "debian"}}` + "\n")
	case "guest-get-host-name":
		return []byte(`{"return": {"host-name": "linux"}}` + "\n")
	case "guest-get-timezone":
		return []byte(`{"return": {"zone": "UTC", "offset": 0}}` + "\n")
	case "guest-network-get-interfaces":
		return []byte(`{"return": [{"name": "lo", "ip-addresses": [{"ip-address-type": "ipv4", "ip-address": "127.0.0.1", "prefix": 8}], "statistics": {"tx-packets": 1}, "hardware-address": "00:00:00:00:00:00"}, {"name": "enp1s0", "ip-addresses": [{"ip-address-type": "ipv4", "ip-address": "10.66.10.2", "prefix": 24}, {"ip-address-type": "ipv6", "ip-address": "fe80::ff:fe42:a02", "prefix": 64}], "hardware-address": "02:00:0a:42:0a:02"}]}` + "\n")
	case "guest-get-users":
		return []byte(`{"return": [{"login-time": 1763640000.5, "user": "root"}, {"login-time": 1763640001.5, "user": "cloud"}, {"login-time": 1763640002, "user": "root"}]}` + "\n")
	default:
		return []byte(`{"error": {"class": "CommandNotFound", "desc": "The command ` + r.Execute + ` has not been found"}}` + "\n")
	}
}
