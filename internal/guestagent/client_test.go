package guestagent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"orlop.dev/orlop/api/instance/v1alpha1"
)

func trueGuest() *v1alpha1.Guest {
	return &v1alpha1.Guest{
		AgentVersion: "9.2.0",
		Hostname:     "linux",
		OS: v1alpha1.GuestOS{
			ID: "debian", Name: "Debian GNU/Linux", PrettyName: "Debian GNU/Linux 13 (trixie)", Version: "13 (trixie)", VersionID: "13",
			KernelRelease: "6.12.48+deb13-cloud-amd64", KernelVersion: "#1 SMP PREEMPT_DYNAMIC", Machine: "x86_64",
		},
		Timezone: "UTC, 0",
		Interfaces: []v1alpha1.GuestInterface{
			{Name: "lo", MAC: "00:00:00:00:00:00", Addresses: []string{"127.0.0.1/8"}},
			{Name: "enp1s0", MAC: "02:00:0a:42:0a:02", Addresses: []string{"10.66.10.2/24", "fe80::ff:fe42:a02/64"}},
		},
		Users: []string{"cloud", "root"},
	}
}

func TestFacts(t *testing.T) {
	line := func(s string) []byte { return []byte(s + "\n") }
	none := trueGuest()
	none.Users = nil
	plain := trueGuest()
	plain.Hostname = "evil[31m name" // the escape itself is gone
	cut := trueGuest()
	cut.Hostname = strings.Repeat("x", maxText)
	many := trueGuest()
	many.Interfaces = nil
	for range maxInterfaces {
		many.Interfaces = append(many.Interfaces, v1alpha1.GuestInterface{Name: "x"})
	}
	strange := trueGuest()
	strange.Interfaces = []v1alpha1.GuestInterface{{Name: "x", Addresses: []string{"192.0.2.1/24"}}}
	blind := trueGuest()
	blind.Frozen = true
	cases := map[string]struct {
		command string
		answer  []byte
		want    *v1alpha1.Guest
		wantErr error
	}{
		"an agent that tells everything":                       {want: trueGuest()},
		"a command that the guest's administrator has blocked": {"guest-get-users", line(`{"error": {"class": "CommandNotFound", "desc": "disabled"}}`), none, nil},
		"a guest without fsfreeze":                             {"guest-fsfreeze-status", line(`{"error": {"class": "GenericError", "desc": "unsupported"}}`), trueGuest(), nil},
		"file systems that somebody froze":                     {"guest-fsfreeze-status", line(`{"return": "frozen"}`), blind, nil},
		"a text with control characters":                       {"guest-get-host-name", line(`{"return": {"host-name": "evil\u001b[31m \u202ename\u0000"}}`), plain, nil},
		"a text without end":                                   {"guest-get-host-name", line(`{"return": {"host-name": "` + strings.Repeat("x", 100_000) + `"}}`), cut, nil},
		"more interfaces than anybody wants to read": {"guest-network-get-interfaces",
			line(`{"return": [` + strings.Repeat(`{"name": "x"},`, 5000) + `{"name": "y"}]}`), many, nil},
		"addresses that are none": {"guest-network-get-interfaces",
			line(`{"return": [{"name": "x", "hardware-address": "$(reboot)", "ip-addresses": [{"ip-address": "<script>", "prefix": 1}, {"ip-address": "192.0.2.1", "prefix": 24}, {"ip-address": "192.0.2.2", "prefix": 999}]}]}`), strange, nil},
		"a status that does not exist":     {"guest-fsfreeze-status", line(`{"return": "molten"}`), nil, ErrAnswer},
		"not JSON":                         {"guest-info", line("\x00\xfe\x01}{"), nil, ErrAnswer},
		"JSON of the wrong shape":          {"guest-get-users", line(`{"return": {"user": 1}}`), nil, ErrAnswer},
		"a number that no type can hold":   {"guest-get-timezone", line(`{"return": {"offset": 1e999999}}`), nil, ErrAnswer},
		"an answer without an answer":      {"guest-info", line(`{}`), nil, ErrAnswer},
		"JSON a hundred thousand deep":     {"guest-get-users", line(`{"return": ` + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + `}`), nil, ErrAnswer},
		"one answer that is too long":      {"guest-info", line(`{"return": "` + strings.Repeat("x", MaxAnswer) + `"}`), nil, ErrAnswer},
		"empty lines instead of an answer": {"guest-info", bytes.Repeat([]byte("\n"), MaxAnswer+1), nil, ErrAnswer},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			client := start(t, func(command string) []byte {
				if command == c.command {
					return c.answer
				}
				return nil
			})
			got, err := client.Facts(t.Context(), trueGuest())
			if !errors.Is(err, c.wantErr) {
				t.Fatalf("error %v, want %v", err, c.wantErr)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("facts (-want +got):\n%s", diff)
			}
		})
	}
}

// TestFreeze: the outcome of freezing is the agent's count or its refusal.
func TestFreeze(t *testing.T) {
	refuse := false
	client := start(t, func(command string) []byte {
		if refuse && command == "guest-fsfreeze-freeze" {
			return []byte("{\"error\": {\"class\": \"GenericError\", \"desc\": \"the hook\\u001b failed\"}}\n")
		}
		return nil
	})
	if n, err := client.Freeze(t.Context()); n != 2 || err != nil {
		t.Errorf("freeze: %d, %v", n, err)
	}
	if n, err := client.Thaw(t.Context()); n != 2 || err != nil {
		t.Errorf("thaw: %d, %v", n, err)
	}
	refuse = true
	_, err := client.Freeze(t.Context())
	if want := "guest-fsfreeze-freeze: the guest agent says: the hook failed"; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	if frozen, err := client.Frozen(t.Context()); frozen || err != nil {
		t.Errorf("after a refusal the connection must go on: %t, %v", frozen, err)
	}
}

// TestSilence: an agent that says nothing costs its time-out and no more, and the
// cancelled context even less.
func TestSilence(t *testing.T) {
	ours, theirs := socketPair(t)
	defer theirs.Close()
	client := New(ours)
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := client.Facts(ctx, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := client.Facts(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	_ = theirs.Close()
	if err := client.Sync(t.Context()); err == nil {
		t.Error("an agent that hung up was not noticed")
	}
}

// TestLateAnswer: an answer that comes after its time-out, whole or in part, is not
// taken for another's.
func TestLateAnswer(t *testing.T) {
	ours, theirs := socketPair(t)
	defer theirs.Close()
	client := New(ours)
	defer client.Close()
	expect := func(what string) request {
		t.Helper()
		return readRequest(t, theirs, what)
	}
	send := func(s string) {
		t.Helper()
		if _, err := io.WriteString(theirs, s); err != nil {
			t.Fatal(err)
		}
	}
	late := make(chan error)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		_, err := client.Freeze(ctx)
		late <- err
	}()
	first := expect("guest-sync-delimited")
	send(string(truth(first)))
	expect("guest-fsfreeze-freeze")
	send(`{"retu`) // the guest's disks are slow
	if err := <-late; !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("error %v", err)
	}
	result := make(chan error)
	var frozen bool
	go func() {
		var err error
		frozen, err = client.Frozen(context.Background())
		result <- err
	}()
	second := expect("guest-sync-delimited")
	if first.Arguments.ID == second.Arguments.ID {
		t.Error("the same number twice")
	}
	// The rest of the late answer, a complaint about the delimiter, an answer to an old
	// synchronisation, then ours, torn apart.
	send(`rn": 3}` + "\n" + `{"error": {"class": "GenericError", "desc": "JSON parse error"}}` + "\n")
	send(string(truth(first)))
	for _, b := range truth(second) {
		send(string([]byte{b}))
	}
	expect("guest-fsfreeze-status")
	send("\n" + `{"return": "fro`)
	send(`zen"}` + "\n")
	if err := <-result; err != nil || !frozen {
		t.Errorf("frozen %t, %v", frozen, err)
	}
}

func readRequest(t *testing.T, conn net.Conn, want string) request {
	t.Helper()
	var line []byte
	one := make([]byte, 1)
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	for len(line) == 0 || line[len(line)-1] != '\n' {
		if _, err := conn.Read(one); err != nil {
			t.Fatalf("wait for %s: %v", want, err)
		}
		line = append(line, one[0])
	}
	if _, after, found := bytes.Cut(line, []byte(`"execute":"`)); !found || !bytes.HasPrefix(after, []byte(want+`"`)) {
		t.Fatalf("the client sent %q, want %s", line, want)
	}
	var r request
	if _, after, found := bytes.Cut(line, []byte(`"id":`)); found {
		_, _ = fmt.Sscan(string(after[:bytes.IndexByte(after, '}')]), &r.Arguments.ID)
	}
	r.Execute = want
	return r
}

// TestStream: bytes without end are read up to the bound and not a megabyte further.
func TestStream(t *testing.T) {
	cases := map[string]string{
		"garbage before the delimiter":      strings.Repeat("x", 4096),
		"delimiters":                        strings.Repeat("\xff", 4096),
		"answers to other synchronisations": strings.Repeat("\xff{\"return\": 1}\n", 256),
		"an answer without an end":          "\xff" + strings.Repeat("y", 4095),
	}
	for name, chunk := range cases {
		t.Run(name, func(t *testing.T) {
			ours, theirs := socketPair(t)
			client := New(ours)
			sent := make(chan int)
			go func() {
				total := 0
				for {
					n, err := io.WriteString(theirs, chunk)
					if total += n; err != nil {
						sent <- total
						return
					}
				}
			}()
			if err := client.Sync(t.Context()); !errors.Is(err, ErrAnswer) {
				t.Errorf("error %v", err)
			}
			_ = client.Close()
			total := <-sent
			_ = theirs.Close()
			if most := maxStale + 2*MaxAnswer; total > most {
				t.Errorf("%d bytes were taken, at most %d should be", total, most)
			}
		})
	}
}
