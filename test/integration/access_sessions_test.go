//go:build integration

package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	coordinationv1 "k8s.io/api/coordination/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"orlop.dev/orlop/api/core/v1alpha2"
	subresources "orlop.dev/orlop/api/subresources/v1alpha2"
	"orlop.dev/orlop/internal/apiserver"
	"orlop.dev/orlop/internal/stream"
	"orlop.dev/orlop/internal/testkit"
)

// TestAccessSessions is about who holds a console: the record, the probe, the event.
// The clock stands unless a test moves it.
func TestAccessSessions(t *testing.T) {
	clock := clocktesting.NewFakeClock(time.Now())
	s := newSite(t, func(o *apiserver.Options) { o.Clock = clock })
	alice, bob := s.user(t, "alice", privilegedUserRules...), s.user(t, "bob", privilegedUserRules...)

	t.Run("the record of a session, from its beginning to its end", func(t *testing.T) { s.record(t, clock, alice) })
	t.Run("a take-over changes the holder and makes an event", func(t *testing.T) { s.preemption(t, alice, bob) })
	t.Run("a record that nobody renews runs out", func(t *testing.T) { s.expiry(t, clock, alice) })
	t.Run("a record that cannot be had stands in nobody's way", func(t *testing.T) { s.unwritable(t, clock, alice) })
	t.Run("the question before a take-over", func(t *testing.T) { s.questions(t, alice, bob) })
}

// oneClient serves a console to the newest client, as a handler does.
func oneClient() http.HandlerFunc {
	var mutex sync.Mutex
	var holder *stream.Conn
	return func(w http.ResponseWriter, r *http.Request) {
		mutex.Lock()
		former := holder
		if former != nil {
			w.Header().Set(stream.TookOver, "true")
			_ = former.TakeOver("another client has opened the console")
		}
		conn, err := stream.Accept(w, r)
		holder = conn
		mutex.Unlock()
		if err != nil {
			return
		}
		_, _ = io.Copy(conn, conn)
		mutex.Lock()
		if holder == conn {
			holder = nil
		}
		mutex.Unlock()
		_ = conn.Close()
	}
}

func (s *site) account(name string) string {
	return "system:serviceaccount:" + s.namespace + ":" + name
}

// probe asks through kube-apiserver who holds a console.
func (s *site) probe(t *testing.T, user *rest.Config, vm string) subresources.StreamHolder {
	t.Helper()
	response, err := upgrading(t, user).Get(user.Host + s.path(vm, "/console?probe=true"))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(response.Body)
	var holder subresources.StreamHolder
	if err := json.Unmarshal(body, &holder); err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s", response.Status, body)
	}
	return holder
}

func (s *site) holds(t *testing.T, user *rest.Config, vm, name string) {
	t.Helper()
	testkit.Eventually(t, patience, fmt.Sprintf("%q holds the console of %s", name, vm), func() error {
		if holder := s.probe(t, user, vm); holder.Holder != name {
			return fmt.Errorf("%+v", holder)
		}
		return nil
	})
}

func (s *site) lease(t *testing.T, vm *v1alpha2.VirtualMachine) *coordinationv1.Lease {
	t.Helper()
	lease := &coordinationv1.Lease{}
	key := client.ObjectKey{Namespace: s.namespace, Name: fmt.Sprintf("d8v-vm-console-%s-%s", vm.Name, vm.UID)}
	if err := s.admin.Get(t.Context(), key, lease); err != nil {
		t.Fatal(err)
	}
	return lease
}

func (s *site) record(t *testing.T, clock *clocktesting.FakeClock, alice *rest.Config) {
	vm := s.machine(t, "recorded", v1alpha2.MachineRunning, oneClient())
	if diff := cmp.Diff(subresources.StreamHolder{}, s.probe(t, alice, "recorded")); diff != "" {
		t.Errorf("nobody holds it yet: %s", diff)
	}
	began := clock.Now()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	agent := http.Header{"User-Agent": {"tool/" + strings.Repeat("x", 200)}}
	conn, err := stream.Dial(ctx, upgrading(t, alice), alice.Host+s.path("recorded", "/console"), agent)
	if err != nil {
		t.Fatal(err)
	}
	s.holds(t, alice, "recorded", s.account("alice"))
	holder := s.probe(t, alice, "recorded")
	if holder.StartTime == nil || !holder.StartTime.Time.Equal(began.Truncate(time.Microsecond)) || len(holder.Client) != 128 || !strings.HasPrefix(holder.Client, "tool/") {
		t.Errorf("the probe answers %+v", holder)
	}
	lease := s.lease(t, vm)
	if lease.Labels["virtualization.deckhouse.io/session"] != "console" || lease.Annotations["virtualization.deckhouse.io/session-id"] == "" ||
		lease.Annotations["virtualization.deckhouse.io/session-client"] != holder.Client || *lease.Spec.LeaseDurationSeconds != 30 ||
		len(lease.OwnerReferences) != 1 || lease.OwnerReferences[0].UID != vm.UID {
		t.Errorf("the record is %+v", lease)
	}
	for range 4 { // longer than a record's lifetime
		before := s.lease(t, vm).Spec.RenewTime.Time
		testkit.Eventually(t, patience, "the session waits for its next renewal", func() error {
			if !clock.HasWaiters() {
				return errors.New("nobody waits")
			}
			return nil
		})
		clock.Step(10 * time.Second)
		testkit.Eventually(t, patience, "the record is renewed", func() error {
			if now := s.lease(t, vm).Spec.RenewTime.Time; !now.After(before) {
				return fmt.Errorf("renewed at %v", now)
			}
			return nil
		})
	}
	s.holds(t, alice, "recorded", s.account("alice"))
	_ = conn.Close()
	s.holds(t, alice, "recorded", "")
	if lease := s.lease(t, vm); lease.Spec.HolderIdentity != nil || lease.Annotations["virtualization.deckhouse.io/session-id"] != "" {
		t.Errorf("a released record is %+v", lease)
	}
}

func (s *site) events(t *testing.T, vm *v1alpha2.VirtualMachine) []eventsv1.Event {
	t.Helper()
	var list eventsv1.EventList
	if err := s.admin.List(t.Context(), &list, client.InNamespace(s.namespace)); err != nil {
		t.Fatal(err)
	}
	var found []eventsv1.Event
	for _, event := range list.Items {
		if event.Regarding.UID == vm.UID {
			found = append(found, event)
		}
	}
	return found
}

func (s *site) preemption(t *testing.T, alice, bob *rest.Config) {
	vm := s.machine(t, "popular", v1alpha2.MachineRunning, oneClient())
	first := s.mustDial(t, alice, "popular", "/console")
	s.holds(t, bob, "popular", s.account("alice"))
	second := s.mustDial(t, bob, "popular", "/console")
	if _, err := first.Read(make([]byte, 1)); !errors.Is(err, stream.ErrTakenOver) {
		t.Errorf("the former holder reads %v", err)
	}
	_ = first.Close()
	s.holds(t, alice, "popular", s.account("bob"))
	testkit.Eventually(t, patience, "an event of the take-over", func() error {
		if n := len(s.events(t, vm)); n != 1 {
			return fmt.Errorf("%d events", n)
		}
		return nil
	})
	event := s.events(t, vm)[0]
	if want := s.account("bob") + " took over the console from " + s.account("alice"); event.Reason != "ConsoleSessionPreempted" || event.Type != "Warning" || event.Note != want {
		t.Errorf("the event is %s %s %q, want %q", event.Type, event.Reason, event.Note, want)
	}
	exchange(t, second, "still here")
	s.holds(t, alice, "popular", s.account("bob")) // the former one's release took nothing away
	_ = second.Close()
	s.holds(t, alice, "popular", "")
}

// foreign writes a record as another replica would have left it.
func (s *site) foreign(t *testing.T, vm *v1alpha2.VirtualMachine, acquired, renewed time.Time) {
	t.Helper()
	s.create(t, &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: s.namespace, Name: fmt.Sprintf("d8v-vm-console-%s-%s", vm.Name, vm.UID),
			Labels:      map[string]string{"virtualization.deckhouse.io/session": "console"},
			Annotations: map[string]string{"virtualization.deckhouse.io/session-id": "another", "virtualization.deckhouse.io/session-client": "d8"},
		},
		Spec: coordinationv1.LeaseSpec{
			HolderIdentity: new("carol"), LeaseDurationSeconds: new(int32(30)),
			AcquireTime: &metav1.MicroTime{Time: acquired}, RenewTime: &metav1.MicroTime{Time: renewed},
		},
	})
}

func (s *site) expiry(t *testing.T, clock *clocktesting.FakeClock, alice *rest.Config) {
	vm := s.machine(t, "abandoned", v1alpha2.MachineRunning, oneClient())
	s.foreign(t, vm, clock.Now().Add(-time.Hour), clock.Now().Add(-time.Second))
	s.holds(t, alice, "abandoned", "carol")
	clock.Step(30 * time.Second)
	s.holds(t, alice, "abandoned", "")
	s.mustDial(t, alice, "abandoned", "/console")
	s.holds(t, alice, "abandoned", s.account("alice"))
	if events := s.events(t, vm); len(events) != 0 {
		t.Errorf("nobody was sent away: %v", events)
	}
}

// unwritable has a record of a session that seems newer than any.
func (s *site) unwritable(t *testing.T, clock *clocktesting.FakeClock, alice *rest.Config) {
	vm := s.machine(t, "blocked", v1alpha2.MachineRunning, oneClient())
	s.foreign(t, vm, clock.Now().Add(time.Hour), clock.Now().Add(time.Hour))
	conn := s.mustDial(t, alice, "blocked", "/console")
	exchange(t, conn, "through all the same")
	s.holds(t, alice, "blocked", "carol")
}

func (s *site) questions(t *testing.T, alice, bob *rest.Config) {
	tests := map[string]struct {
		args    []string
		holder  *rest.Config
		script  bool // input is no terminal
		answers string
		says    string // on standard error, in the end
		takes   bool
	}{
		"free":                                 {takes: true},
		"one's own session":                    {holder: bob, takes: true},
		"no is the default":                    {holder: alice, answers: "\r", says: "to its holder"},
		"no":                                   {holder: alice, answers: "n\r", says: "to its holder"},
		"yes":                                  {holder: alice, answers: "y\r", takes: true, says: "Take it over? [y/N/w]"},
		"what is no answer is asked for again": {holder: alice, answers: "what\ry\r", takes: true},
		"force asks nothing":                   {args: []string{"--force"}, holder: alice, takes: true},
		"a script takes it and says so":        {holder: alice, script: true, takes: true, says: "Warning: taking over the console"},
	}
	kubeconfig := s.kubeconfig(t, bob)
	number := 0
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			number++
			vm := fmt.Sprintf("asked-%d", number)
			s.machine(t, vm, v1alpha2.MachineRunning, oneClient())
			if test.holder != nil {
				s.mustDial(t, test.holder, vm, "/console")
				testkit.Eventually(t, patience, "the session is recorded", func() error {
					if s.probe(t, bob, vm).Holder == "" {
						return errors.New("nobody")
					}
					return nil
				})
			}
			if test.script {
				in, typed := io.Pipe()
				c := command(t, kubeconfig, in, "console", vm)
				c.err.shows(t, test.says)
				c.err.shows(t, "Connected to the console")
				_, _ = typed.Write([]byte{29})
				_ = typed.Close()
				if err := c.wait(t); err != nil {
					t.Error(err)
				}
				return
			}
			c := consoleSession(t, kubeconfig, append([]string{vm}, test.args...)...)
			if test.answers != "" {
				c.err.shows(t, s.account("alice")+" (for ")
				c.types(t, test.answers)
			}
			if test.takes {
				c.err.shows(t, "Connected to the console")
				c.types(t, "\x1d")
			}
			if err := c.ends(t); err != nil {
				t.Error(err)
			}
			c.err.shows(t, test.says)
			if asked := strings.Contains(c.err.String(), "Take it over?"); asked != (test.answers != "") {
				t.Errorf("was a question asked? %q", c.err.String())
			}
		})
	}
	t.Run("waiting until it is free", func(t *testing.T) {
		s.machine(t, "awaited", v1alpha2.MachineRunning, oneClient())
		first := s.mustDial(t, alice, "awaited", "/console")
		s.holds(t, bob, "awaited", s.account("alice"))
		c := consoleSession(t, kubeconfig, "awaited")
		c.err.shows(t, "Take it over?")
		c.types(t, "w\r")
		c.err.shows(t, "Waiting until the console of awaited is free")
		exchange(t, first, "not sent away")
		_ = first.Close()
		c.err.shows(t, "Connected to the console")
		c.types(t, "\x1d")
		if err := c.ends(t); err != nil {
			t.Error(err)
		}
	})
}
