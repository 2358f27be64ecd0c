//go:build integration

package integration

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"

	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/pki"
	"orlop.dev/orlop/internal/stream"
	"orlop.dev/orlop/internal/testkit"
)

// TestAccess takes the way of consoles and ports, from the user's token to the handler.
func TestAccess(t *testing.T) {
	s := newSite(t)
	user := s.user(t, "privileged", privilegedUserRules...)
	s.machine(t, "echo", v1alpha2.MachineRunning, echo)
	s.machine(t, "moving", v1alpha2.MachineMigrating, echo)
	s.machine(t, "stopped", v1alpha2.MachineStopped, echo)
	s.machine(t, "starting", "", echo)
	s.machine(t, "elsewhere", v1alpha2.MachineRunning, nil)
	s.machine(t, "closed", v1alpha2.MachineRunning, func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "dial tcp 10.66.10.1:22: connect: connection refused", http.StatusBadGateway)
	})

	t.Run("get is metadata only", func(t *testing.T) { s.metadataOnly(t, user) })
	t.Run("refusals", func(t *testing.T) { s.refusals(t, user) })
	t.Run("a console carries bytes both ways", func(t *testing.T) {
		for _, vm := range []string{"echo", "moving"} {
			conn := s.mustDial(t, user, vm, "/console")
			exchange(t, conn, "login: \x00\xff\x1d")
		}
	})
	t.Run("a mebibyte both ways with a half-close", func(t *testing.T) { s.bulk(t, user) })
	t.Run("a take-over is told", func(t *testing.T) { s.takeOver(t, user) })
	t.Run("a plain request is told to upgrade", func(t *testing.T) { s.plainRequest(t, user) })
	t.Run("credentials stay here", func(t *testing.T) { s.credentials(t, user) })
	t.Run("only the node's own handler is trusted", func(t *testing.T) { s.impostors(t, user) })
	t.Run("nothing is left of fifty consoles", func(t *testing.T) { s.fifty(t, user) })
}

func (s *site) metadataOnly(t *testing.T, user *rest.Config) {
	response, err := upgrading(t, user).Get(user.Host + s.path("echo", ""))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(response.Body)
	var got map[string]any
	if err := json.Unmarshal(body, &got); err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%s: %v: %s", response.Status, err, body)
	}
	meta, _ := got["metadata"].(map[string]any)
	if meta["name"] != "echo" || meta["namespace"] != s.namespace || meta["managedFields"] != nil {
		t.Errorf("metadata is %v", meta)
	}
	for _, field := range []string{"spec", "status"} {
		if _, has := got[field]; has {
			t.Errorf("the answer has %s", field)
		}
	}
}

func (s *site) refusals(t *testing.T, user *rest.Config) {
	stranger, reader := s.user(t, "stranger"), s.user(t, "reader", userRules...)
	tests := map[string]struct {
		user *rest.Config
		vm   string
		rest string
		code int
		want string
	}{
		"without a role":                                {stranger, "echo", "/console", 403, "forbidden"},
		"a reader may look but not type":                {reader, "echo", "/console", 403, "virtualmachines/console"},
		"nor forward ports":                             {reader, "echo", "/portforward?port=22", 403, "virtualmachines/portforward"},
		"no token at all":                               {rest.AnonymousClientConfig(s.server.Config()), "echo", "/console", 403, "system:anonymous"},
		"a stopped machine names its phase":             {user, "stopped", "/console", 409, "its phase is Stopped"},
		"and does so for ports":                         {user, "stopped", "/portforward?port=22", 409, "its phase is Stopped"},
		"a machine nobody has looked at yet is pending": {user, "starting", "/console", 409, "its phase is Pending"},
		"a machine that does not exist":                 {user, "nobody", "/console", 404, `"nobody" not found`},
		"an instance its handler does not know, yet":    {user, "elsewhere", "/console", 409, "not on this node"},
		"a port that is closed in the guest":            {user, "closed", "/portforward?port=22", 502, "connection refused"},
		"port zero":                                     {user, "echo", "/portforward?port=0", 400, "port 0 is not from 1 to 65535"},
		"a port beyond the last":                        {user, "echo", "/portforward?port=65536", 400, "65536"},
		"a negative port":                               {user, "echo", "/portforward?port=-1", 400, "-1"},
		"a port that is a word":                         {user, "echo", "/portforward?port=ssh", 400, `"ssh" is not a number`},
		"a forgotten port":                              {user, "echo", "/portforward", 400, "port"},
		"a protocol that is not forwarded":              {user, "echo", "/portforward?port=22&protocol=sctp", 400, `protocol "sctp" is not tcp or udp`},
		"a probe without the right to connect":          {reader, "echo", "/console?probe=true", 403, "virtualmachines/console"},
		"a probe of a machine that does not run":        {user, "stopped", "/console?probe=true", 409, "its phase is Stopped"},
		"a probe that is neither true nor false":        {user, "echo", "/console?probe=maybe", 400, `"maybe" is not true or false`},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			conn, err := s.dial(t, test.user, test.vm, test.rest)
			if err == nil {
				_ = conn.Close()
				t.Fatal("was let in")
			}
			var refused *stream.HandshakeError
			if !errors.As(err, &refused) {
				t.Fatal(err)
			}
			if refused.StatusCode != test.code || !strings.Contains(answer(err), test.want) {
				t.Errorf("got %d %q, want %d with %q", refused.StatusCode, answer(err), test.code, test.want)
			}
		})
	}
}

// answer is the message of a refusal; refusals are Status objects.
func answer(err error) string {
	var refused *stream.HandshakeError
	if !errors.As(err, &refused) {
		return ""
	}
	var status metav1.Status
	if json.Unmarshal(refused.Body, &status) != nil {
		return "not a status: " + string(refused.Body)
	}
	return status.Message
}

func exchange(t *testing.T, conn *stream.Conn, text string) {
	t.Helper()
	if _, err := conn.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(conn, got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(text, string(got)); diff != "" {
		t.Error(diff)
	}
}

func (s *site) bulk(t *testing.T, user *rest.Config) {
	payload := make([]byte, 1<<20)
	_, _ = rand.Read(payload)
	conn := s.mustDial(t, user, "echo", "/portforward?port=22&protocol=tcp")
	go func() {
		_, _ = io.Copy(struct{ io.Writer }{conn}, bytes.NewReader(payload))
		_ = conn.CloseWrite()
	}()
	got, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, payload) {
		t.Errorf("%d bytes came back that are not the %d sent", len(got), len(payload))
	}
}

func (s *site) takeOver(t *testing.T, user *rest.Config) {
	s.machine(t, "taken", v1alpha2.MachineRunning, func(w http.ResponseWriter, r *http.Request) {
		if conn, err := stream.Accept(w, r); err == nil {
			_ = conn.TakeOver("another client has opened the console")
		}
	})
	conn := s.mustDial(t, user, "taken", "/console")
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, stream.ErrTakenOver) {
		t.Errorf("got %v", err)
	}
}

func (s *site) plainRequest(t *testing.T, user *rest.Config) {
	response, err := upgrading(t, user).Get(user.Host + s.path("echo", "/console"))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(response.Body)
	if response.StatusCode != http.StatusBadRequest || !bytes.Contains(body, []byte("a WebSocket upgrade is required")) {
		t.Errorf("got %s: %s", response.Status, body)
	}
}

// credentials looks at what the handler was sent, by all streams so far and by one
// that goes around kube-apiserver with everything a caller could add.
func (s *site) credentials(t *testing.T, user *rest.Config) {
	direct := rest.CopyConfig(user)
	direct.Host = s.direct
	direct.CAData, direct.ServerName = s.authority.CertificatePEM(), "virtualization-api."+s.namespace+".svc"
	socket, response, err := websocket.Dial(t.Context(), s.direct+s.path("echo", "/console?probe=false"), &websocket.DialOptions{
		HTTPClient: upgrading(t, direct),
		HTTPHeader: http.Header{
			"Cookie": {"session=secret"}, "Origin": {"https://attacker.example"}, "X-Remote-User": {"admin"},
			"X-Remote-Group": {"system:masters"}, "X-Forwarded-For": {"10.0.0.1"}, "X-Anything": {"secret"},
		},
		Subprotocols: []string{"base64url.bearer.authorization.k8s.io.c2VjcmV0", stream.Protocol},
	})
	if err != nil {
		t.Fatalf("%v: %+v", err, response)
	}
	_ = socket.Close(websocket.StatusNormalClosure, "")

	allowed := map[string]bool{
		"Connection": true, "Upgrade": true, "Sec-Websocket-Key": true, "Sec-Websocket-Version": true,
		"Sec-Websocket-Protocol": true, "Sec-Websocket-Extensions": true, "X-Remote-User": true, "User-Agent": true,
	}
	seen := s.node.seen()
	if len(seen) < 5 {
		t.Fatalf("the handler saw %d requests only", len(seen))
	}
	for _, header := range seen {
		for name := range header {
			if !allowed[name] {
				t.Errorf("the handler got %s: %v", name, header[name])
			}
		}
		if got, want := header.Get("X-Remote-User"), "system:serviceaccount:"+s.namespace+":privileged"; got != want {
			t.Errorf("the handler was told the user %q, want %q", got, want)
		}
		if diff := cmp.Diff([]string{stream.Protocol}, header.Values("Sec-Websocket-Protocol")); diff != "" {
			t.Error(diff)
		}
	}
}

func (s *site) impostors(t *testing.T, user *rest.Config) {
	defer s.node.certify(t, s.node.authority, s.node.name)
	tests := map[string]struct {
		by   *pki.Authority
		name string
	}{
		"the handler of another node":              {s.node.authority, "another-node"},
		"the right name from an unknown authority": {authority(t, "impostor"), s.node.name},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s.node.certify(t, test.by, test.name)
			before := len(s.node.seen())
			_, err := s.dial(t, user, "echo", "/console")
			var refused *stream.HandshakeError
			if !errors.As(err, &refused) || refused.StatusCode != http.StatusServiceUnavailable ||
				!strings.Contains(answer(err), "node "+s.node.name+" does not answer") || !strings.Contains(answer(err), "certificate") {
				t.Errorf("got %v: %s", err, answer(err))
			}
			if len(s.node.seen()) != before {
				t.Error("a request was sent all the same")
			}
		})
	}
}

// fifty counts goroutines of the aggregated API, the handler and the clients, which
// all live in this process.
func (s *site) fifty(t *testing.T, user *rest.Config) {
	before := runtime.NumGoroutine()
	for i := range 50 {
		conn, err := s.dial(t, user, "echo", "/console")
		if err != nil {
			t.Fatal(err)
		}
		exchange(t, conn, "x")
		if i%2 == 0 { // some say goodbye on one side first
			_ = conn.CloseWrite()
		}
		if err := conn.Close(); err != nil {
			t.Errorf("close %d: %v", i, err)
		}
	}
	testkit.Eventually(t, patience, "goroutines are gone", func() error {
		if now := runtime.NumGoroutine(); now > before+10 {
			buffer := make([]byte, 1<<20)
			return errors.New(string(buffer[:runtime.Stack(buffer, true)][:4000]))
		}
		return nil
	})
}
