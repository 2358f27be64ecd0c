package guestagent

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"testing"
	"time"
	"unicode/utf8"

	"orlop.dev/orlop/api/instance/v1alpha1"
)

// recording is a connection whose other end has already said everything it will say,
// apart from our number, which no recording can know.
type recording struct {
	said io.Reader
	// echo is what a true agent would answer to the last synchronisation.
	echo bytes.Buffer
}

func (r *recording) Read(b []byte) (int, error) {
	if n, err := r.echo.Read(b); n > 0 || err == nil {
		return n, nil
	}
	return r.said.Read(b)
}

func (r *recording) Write(b []byte) (int, error) {
	var q request
	if json.Unmarshal(bytes.TrimLeft(b, "\xff"), &q) == nil && q.Execute == "guest-sync-delimited" {
		r.echo.Write(truth(q))
	}
	return len(b), nil
}

func (r *recording) Close() error                     { return nil }
func (r *recording) LocalAddr() net.Addr              { return nil }
func (r *recording) RemoteAddr() net.Addr             { return nil }
func (r *recording) SetDeadline(time.Time) error      { return nil }
func (r *recording) SetReadDeadline(time.Time) error  { return nil }
func (r *recording) SetWriteDeadline(time.Time) error { return nil }

// FuzzFacts: whatever the agent says, the client comes to an end, and what it takes
// from it is small and printable. The seeds are in testdata/fuzz.
func FuzzFacts(f *testing.F) {
	var whole []byte
	for _, command := range []string{"guest-fsfreeze-status", "guest-info", "guest-get-osinfo", "guest-get-host-name",
		"guest-get-timezone", "guest-network-get-interfaces", "guest-get-users"} {
		whole = append(whole, truth(request{Execute: command})...)
	}
	f.Add(whole)
	f.Add(whole[:len(whole)/2])
	f.Add(bytes.ReplaceAll(whole, []byte(": "), []byte{0xff}))
	f.Fuzz(func(t *testing.T, said []byte) {
		client := New(&recording{said: bytes.NewReader(said)})
		g, err := client.Facts(context.Background(), nil)
		if err != nil {
			if !utf8.ValidString(err.Error()) || len(err.Error()) > 2*maxText+200 {
				t.Errorf("error of %d bytes: %q", len(err.Error()), err)
			}
			return
		}
		checkBounds(t, g)
	})
}

func checkBounds(t *testing.T, g *v1alpha1.Guest) {
	t.Helper()
	text, err := json.Marshal(g)
	if err != nil {
		t.Fatal(err)
	}
	if len(text) > 64<<10 {
		t.Errorf("facts of %d bytes", len(text))
	}
	if !utf8.Valid(text) || bytes.ContainsAny(text, "\x1b\x00\n\r") {
		t.Errorf("unfit to be shown: %q", text)
	}
	if len(g.Interfaces) > maxInterfaces || len(g.Users) > maxUsers {
		t.Errorf("%d interfaces, %d users", len(g.Interfaces), len(g.Users))
	}
}
