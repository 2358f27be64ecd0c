package vm

import (
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/steps"
)

// tells lets the guest's agent answer.
func tells(g v1alpha1.Guest) func(*world) {
	return func(w *world) {
		up(w)
		g.Since = new(metav1.NewTime(noon.Add(-time.Hour + 40*time.Second)))
		w.instance.Status.Guest = &g
	}
}

func TestGuestAgentConditions(t *testing.T) {
	const ready, version, frozen = v1alpha2.MachineConditionAgentReady, v1alpha2.MachineConditionAgentVersionNotSupported, v1alpha2.MachineConditionFilesystemFrozen
	cases := map[string]struct {
		world *world
		want  map[string]string
	}{
		"nothing runs":                      {calm(), nil},
		"the guest has not started":         {calm(placed), nil},
		"the guest has no agent":            {calm(up), map[string]string{ready: "False AgentNotReady"}},
		"the agent answers":                 {calm(tells(v1alpha1.Guest{AgentVersion: "9.2.0"})), map[string]string{ready: "True AgentReady"}},
		"the oldest that will do":           {calm(tells(v1alpha1.Guest{AgentVersion: "5.2.0"})), map[string]string{ready: "True AgentReady"}},
		"one that is too old":               {calm(tells(v1alpha1.Guest{AgentVersion: "5.1.99"})), map[string]string{ready: "True AgentReady", version: "True AgentVersionNotSupported"}},
		"a version nobody has heard of":     {calm(tells(v1alpha1.Guest{AgentVersion: "banana"})), map[string]string{ready: "True AgentReady"}},
		"file systems that are frozen":      {calm(tells(v1alpha1.Guest{Frozen: true})), map[string]string{ready: "True AgentReady", frozen: "True Frozen"}},
		"the guest stands still for a disk": {calm(tells(v1alpha1.Guest{}), func(w *world) { w.instance.Status.Phase = v1alpha1.InstancePaused }), map[string]string{ready: "True AgentReady"}},
		"the process has ended": {calm(tells(v1alpha1.Guest{}), func(w *world) {
			w.instance.Status.Exit = &v1alpha1.Exit{Cause: v1alpha1.ExitGuestShutdown}
		}), nil},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			d := steps.Decide(c.world, all...)
			for _, condition := range []string{ready, version, frozen} {
				got := ""
				if o := d.Outcome(condition); o.State != steps.None {
					got = string(o.Status) + " " + o.Reason
				}
				if got != c.want[condition] {
					t.Errorf("%s is %q, want %q", condition, got, c.want[condition])
				}
			}
		})
	}
}

// TestGuestNeverDecides: what a guest says changes what is shown and nothing else.
func TestGuestNeverDecides(t *testing.T) {
	silent, talking := calm(up), calm(tells(v1alpha1.Guest{AgentVersion: "1.0", Frozen: true}))
	for i, f := range steps.Decide(silent, all...) {
		other := steps.Decide(talking, all...)[i]
		if (f.Act == nil) != (other.Act == nil) {
			t.Errorf("step %d of condition %q acts differently", i, f.Condition)
		}
	}
	if a, b := phase(silent, &silent.record), phase(talking, &talking.record); a != b {
		t.Errorf("phases %s and %s", a, b)
	}
}

func TestGuestStatus(t *testing.T) {
	info := v1alpha2.GuestOSInfo{ID: "debian", PrettyName: "Debian GNU/Linux 13 (trixie)"}
	w := calm(tells(v1alpha1.Guest{OS: v1alpha1.GuestOS{ID: info.ID, PrettyName: info.PrettyName}}))
	s := status(w, steps.Decide(w, all...), nil)
	if s.GuestOSInfo != info {
		t.Errorf("info %+v", s.GuestOSInfo)
	}
	if d := s.Stats.LaunchTimeDuration.GuestOSAgentStarting; d == nil || d.Duration != 40*time.Second {
		t.Errorf("agent starting %v", d)
	}

	w.vm.Status = s
	w.instance.Status.Guest.Since = new(metav1.NewTime(noon)) // a second agent, in the same guest
	if d := status(w, nil, nil).Stats.LaunchTimeDuration.GuestOSAgentStarting; d == nil || d.Duration != 40*time.Second {
		t.Errorf("agent starting %v after it was started again", d)
	}
	w.instance.Status.Guest = nil
	if got := status(w, nil, nil).GuestOSInfo; got != info {
		t.Errorf("info %+v while the agent is away", got)
	}
	w.instance = nil
	if got := status(w, nil, nil).GuestOSInfo; got != (v1alpha2.GuestOSInfo{}) {
		t.Errorf("info %+v of a guest that is gone", got)
	}
}
