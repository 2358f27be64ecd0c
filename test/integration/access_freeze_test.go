//go:build integration

package integration

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"orlop.dev/orlop/api/core/v1alpha2"
)

// TestFreeze takes the way of freeze and unfreeze from the user to the handler.
func TestFreeze(t *testing.T) {
	s := newSite(t)
	admin := s.server.Config()
	// The handler refuses as asked, and otherwise says what it was asked for.
	s.machine(t, "linux", v1alpha2.MachineRunning, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPut {
			http.Error(w, "method "+r.Method, http.StatusBadRequest)
			return
		}
		http.Error(w, r.PathValue("rest")+"?"+r.URL.RawQuery, http.StatusConflict)
	})
	s.machine(t, "good", v1alpha2.MachineRunning, func(http.ResponseWriter, *http.Request) {})
	s.machine(t, "late", v1alpha2.MachineRunning, func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "the guest agent does not answer in time", http.StatusGatewayTimeout)
	})
	s.machine(t, "moving", v1alpha2.MachineMigrating, func(http.ResponseWriter, *http.Request) {})
	s.machine(t, "stopped", v1alpha2.MachineStopped, nil)
	tests := map[string]struct {
		user           *rest.Config
		vm, rest, body string
		code           int
		want           string
	}{
		"without a role":                    {s.user(t, "reader", privilegedUserRules...), "good", "/freeze", "", 403, "virtualmachines/freeze"},
		"the time-out is optional":          {admin, "linux", "/freeze", "", 409, "freeze?timeout=300"},
		"it may stand in the query":         {admin, "linux", "/freeze?unfreezeTimeout=90s", "", 409, "freeze?timeout=90"},
		"or in the body":                    {admin, "linux", "/freeze", `{"unfreezeTimeout":"1m30s"}`, 409, "freeze?timeout=90"},
		"it is rounded up":                  {admin, "linux", "/freeze?unfreezeTimeout=10ms", "", 409, "freeze?timeout=1"},
		"it is not negative":                {admin, "linux", "/freeze?unfreezeTimeout=-1s", "", 400, "not from 1s to 1h0m0s"},
		"nor longer than an hour":           {admin, "linux", "/freeze?unfreezeTimeout=2h", "", 400, "not from 1s to 1h0m0s"},
		"nor a bare number":                 {admin, "linux", "/freeze?unfreezeTimeout=30", "", 400, "not a duration such as 30s"},
		"nor anything else":                 {admin, "linux", "/freeze", `[1]`, 400, "the body must be empty or like"},
		"success":                           {admin, "good", "/freeze", "", 200, ""},
		"unfreeze":                          {admin, "linux", "/unfreeze", "", 409, "unfreeze?"},
		"unfreeze with success":             {admin, "good", "/unfreeze", "", 200, ""},
		"what the guest says gets through":  {admin, "late", "/freeze", "", 504, "does not answer in time"},
		"a machine that is not running":     {admin, "stopped", "/freeze", "", 409, "its phase is Stopped"},
		"a machine that is moving":          {admin, "moving", "/freeze", "", 409, "its phase is Migrating"},
		"a machine that is moving may thaw": {admin, "moving", "/unfreeze", "", 200, ""},
		"a machine that does not exist":     {admin, "nobody", "/freeze", "", 404, `"nobody" not found`},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			code, status := s.put(t, test.user, test.vm, test.rest, test.body)
			if code != test.code || !strings.Contains(status.Message, test.want) {
				t.Errorf("got %d %q, want %d with %q", code, status.Message, test.code, test.want)
			}
			if want := map[bool]string{true: metav1.StatusSuccess, false: metav1.StatusFailure}[test.code == 200]; status.Status != want {
				t.Errorf("status %q, want %q", status.Status, want)
			}
		})
	}
}

// put sends a request through kube-apiserver, whose answer is a Status.
func (s *site) put(t *testing.T, user *rest.Config, vm, path, body string) (int, metav1.Status) {
	t.Helper()
	client, err := rest.HTTPClientFor(user)
	if err != nil {
		t.Fatal(err)
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPut, user.Host+s.path(vm, path), strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	content, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	var status metav1.Status
	if err := json.Unmarshal(content, &status); err != nil {
		t.Fatalf("%s: %v", content, err)
	}
	return response.StatusCode, status
}
