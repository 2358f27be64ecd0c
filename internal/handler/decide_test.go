package handler

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/wire"
)

var noon = time.Date(2030, 1, 2, 12, 0, 0, 0, time.UTC)

func instance(change ...func(*v1alpha1.Instance)) *v1alpha1.Instance {
	in := &v1alpha1.Instance{
		ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: "virt-launcher-linux-1", UID: "instance-1", Generation: 3},
		Spec:       v1alpha1.InstanceSpec{NodeName: "node-1", PodUID: "pod-1", Power: v1alpha1.PowerOn},
	}
	for _, c := range change {
		c(in)
	}
	return in
}

func power(p v1alpha1.PowerState) func(*v1alpha1.Instance) {
	return func(in *v1alpha1.Instance) { in.Spec.Power = p }
}

func was(phase v1alpha1.InstancePhase) func(*v1alpha1.Instance) {
	return func(in *v1alpha1.Instance) {
		in.Status = v1alpha1.InstanceStatus{Phase: phase, PodUID: "pod-1", ObservedGeneration: 3}
	}
}

func says(phase v1alpha1.InstancePhase, reason string) *wire.State {
	return &wire.State{InstanceUID: "instance-1", Phase: phase, PauseReason: reason}
}

func died() *wire.State {
	s := says(v1alpha1.InstanceStopped, "")
	s.Exit = &v1alpha1.Exit{Cause: v1alpha1.ExitGuestShutdown, Time: metav1.NewTime(noon)}
	return s
}

// TestDecide is the handler's whole behaviour, one situation per line.
func TestDecide(t *testing.T) {
	unnamed := func(in *v1alpha1.Instance) { in.Spec.PodUID = "" }
	deleted := func(in *v1alpha1.Instance) { in.DeletionTimestamp = &metav1.Time{Time: noon} }
	otherPod := func(in *v1alpha1.Instance) { in.Status.PodUID = "pod-0" }
	shutdown := func(in *v1alpha1.Instance) { in.Spec.RebootAction = v1alpha1.RebootShutdown }
	cases := map[string]struct {
		instance *v1alpha1.Instance
		launcher *wire.State // none: not connected
		wired    bool
		asked    act
		want     act
	}{
		"no pod is named yet":                                         {instance: instance(unnamed), want: ""},
		"a pod is named: find its launcher":                           {instance: instance(), want: actConnect},
		"a launcher is found: claim before starting":                  {instance: instance(), launcher: &wire.State{}, want: actReport},
		"the claim is written: start":                                 {instance: instance(was(v1alpha1.InstanceStarting)), launcher: &wire.State{}, want: actStart},
		"claimed for another pod: never start":                        {instance: instance(was(v1alpha1.InstanceStarting), otherPod), launcher: &wire.State{}, want: ""},
		"told to stop before the start: let the launcher go":          {instance: instance(power(v1alpha1.PowerOff)), launcher: &wire.State{}, want: actBye},
		"told to stop after the claim: never start, let it go":        {instance: instance(was(v1alpha1.InstanceStarting), power(v1alpha1.PowerKill)), launcher: &wire.State{}, want: actBye},
		"deleted before the start: never start":                       {instance: instance(deleted), launcher: &wire.State{}, want: ""},
		"ran before, but the launcher knows nothing: say so":          {instance: instance(was(v1alpha1.InstanceRunning)), launcher: &wire.State{}, want: actReport},
		"starting, and the launcher knows: wire":                      {instance: instance(was(v1alpha1.InstanceStarting)), launcher: says(v1alpha1.InstanceStarting, ""), want: actWire},
		"runs: write that":                                            {instance: instance(was(v1alpha1.InstanceStarting)), launcher: says(v1alpha1.InstanceRunning, ""), wired: true, want: actReport},
		"runs, after the handler's restart: wire again":               {instance: instance(was(v1alpha1.InstanceRunning)), launcher: says(v1alpha1.InstanceRunning, ""), want: actWire},
		"runs, all is well":                                           {instance: instance(was(v1alpha1.InstanceRunning)), launcher: says(v1alpha1.InstanceRunning, ""), wired: true, want: ""},
		"runs, to be shut down":                                       {instance: instance(was(v1alpha1.InstanceRunning), power(v1alpha1.PowerOff)), launcher: says(v1alpha1.InstanceRunning, ""), wired: true, want: actShutdown},
		"told once, that is enough":                                   {instance: instance(was(v1alpha1.InstanceRunning), power(v1alpha1.PowerOff)), launcher: says(v1alpha1.InstanceRunning, ""), wired: true, asked: actShutdown, want: ""},
		"stopping already: a new handler does not set the clock back": {instance: instance(was(v1alpha1.InstanceStopping), power(v1alpha1.PowerOff)), launcher: says(v1alpha1.InstanceStopping, ""), wired: true, want: ""},
		"stopping, to be killed":                                      {instance: instance(was(v1alpha1.InstanceStopping), power(v1alpha1.PowerKill)), launcher: says(v1alpha1.InstanceStopping, ""), wired: true, asked: actShutdown, want: actKill},
		"a kill is one order, too":                                    {instance: instance(was(v1alpha1.InstanceRunning), power(v1alpha1.PowerKill)), launcher: says(v1alpha1.InstanceRunning, ""), wired: true, asked: actKill, want: ""},
		"resets shall end the process":                                {instance: instance(was(v1alpha1.InstanceRunning), shutdown), launcher: says(v1alpha1.InstanceRunning, ""), wired: true, want: actReboot},
		"a full disk: try whether it still is":                        {instance: instance(was(v1alpha1.InstancePaused), func(in *v1alpha1.Instance) { in.Status.PauseReason = "NoSpace" }), launcher: says(v1alpha1.InstancePaused, "NoSpace"), wired: true, want: actResume},
		"a panicked guest is left alone":                              {instance: instance(was(v1alpha1.InstancePaused), func(in *v1alpha1.Instance) { in.Status.PauseReason = "GuestPanicked" }), launcher: says(v1alpha1.InstancePaused, "GuestPanicked"), wired: true, want: ""},
		"dead: write the exit":                                        {instance: instance(was(v1alpha1.InstanceRunning)), launcher: died(), want: actReport},
		"written: let the launcher go":                                {instance: instance(was(v1alpha1.InstanceStopped)), launcher: died(), want: actBye},
		"written, but the launcher may still wait":                    {instance: instance(was(v1alpha1.InstanceStopped)), want: actConnect},
		"another instance's launcher: say so":                         {instance: instance(was(v1alpha1.InstanceStarting)), launcher: &wire.State{InstanceUID: "instance-0", Phase: v1alpha1.InstanceRunning}, want: actReport},
		"unreachable: nothing but trying changes":                     {instance: instance(was(v1alpha1.InstanceRunning)), want: actConnect},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			m := newMemory(c.instance)
			if c.launcher != nil {

				m.hear(noon.Add(-time.Hour), c.launcher)
			}
			m.wired = c.wired
			if c.asked != "" {
				m.asked[c.asked] = true
			}
			got, wake := decide(m, noon)
			if got != c.want {
				t.Errorf("act %q, want %q", got, c.want)
			}
			if got == "" && !wake.IsZero() {
				t.Errorf("wakes at %s for nothing", wake)
			}
		})
	}
}

func TestFailuresAreSpacedOut(t *testing.T) {
	m := newMemory(instance(was(v1alpha1.InstanceRunning)))
	var waits []time.Duration
	now := noon
	for range 10 {
		if a, _ := decide(m, now); a != actConnect {
			t.Fatalf("act %q", a)
		}
		m.retries[actConnect].failed(now)
		a, wake := decide(m, now)
		if a != "" {
			t.Fatalf("act %q without a pause", a)
		}
		waits = append(waits, wake.Sub(now))
		now = wake
	}
	if waits[0] != 20*time.Millisecond || waits[9] != time.Second {
		t.Errorf("waits %v", waits)
	}
}

// TestResumeOnAFullDisk: while the disk stays full the status does not flicker and
// the attempts get rarer; when it helps, the status says so soon.
func TestResumeOnAFullDisk(t *testing.T) {
	m := newMemory(instance(was(v1alpha1.InstanceRunning)))
	m.wired = true
	now := noon
	m.hear(now, says(v1alpha1.InstanceRunning, ""))
	now = now.Add(2 * steady)
	m.hear(now, says(v1alpha1.InstancePaused, "NoSpace"))
	m.status = statusOf(m, now)
	var waits []time.Duration
	for range 8 {
		a, wake := decide(m, now)
		if a == "" {
			now = wake
			if a, _ = decide(m, now); a == "" {
				continue // the end of a settling time
			}
		}
		if a != actResume {
			t.Fatalf("act %q, want %q", a, actResume)
		}
		m.retries[actResume].failed(now)
		m.resumedAt = now
		m.hear(now, says(v1alpha1.InstanceRunning, ""))
		if got := statusOf(m, now).Phase; got != v1alpha1.InstancePaused {
			t.Errorf("status flickers to %s", got)
		}
		m.hear(now, says(v1alpha1.InstancePaused, "NoSpace"))
		waits = append(waits, m.retries[actResume].next.Sub(now))
	}
	if last := waits[len(waits)-1]; last <= waits[0] {
		t.Errorf("attempts do not get rarer: %v", waits)
	}
	m.hear(now, says(v1alpha1.InstanceRunning, ""))
	a, wake := decide(m, now)
	if a != "" || wake.IsZero() {
		t.Fatalf("act %q, wake %s; want to look again after the settling time", a, wake)
	}
	if a, _ := decide(m, wake); a != actReport {
		t.Errorf("act %q after the settling time, want %q", a, actReport)
	}
	m.hear(wake.Add(2*steady), says(v1alpha1.InstancePaused, "NoSpace"))
	if f := m.retries[actResume].failures; f != 0 {
		t.Errorf("a new pause begins with %d failures", f)
	}
}

func TestStatusOf(t *testing.T) {
	started := noon.Add(300 * time.Millisecond)
	cases := map[string]struct {
		instance *v1alpha1.Instance
		launcher *wire.State
		problem  string
		want     v1alpha1.InstanceStatus
	}{
		"a claim names the pod": {
			instance: instance(), launcher: &wire.State{},
			want: v1alpha1.InstanceStatus{Phase: v1alpha1.InstanceStarting, PodUID: "pod-1", ObservedGeneration: 3},
		},
		"the launcher's word": {
			instance: instance(was(v1alpha1.InstanceStarting), disksOf(v1alpha1.Disk{ID: "vd-root"})),
			launcher: &wire.State{InstanceUID: "instance-1", Phase: v1alpha1.InstanceRunning, StartTime: &started, QEMUVersion: "10.0.2",
				Disks: []v1alpha1.DiskStatus{{ID: "vd-root", Attached: true}}},
			want: v1alpha1.InstanceStatus{Phase: v1alpha1.InstanceRunning, PodUID: "pod-1", ObservedGeneration: 3, QEMUVersion: "10.0.2",
				StartTime: &metav1.Time{Time: noon}, Disks: []v1alpha1.DiskStatus{{ID: "vd-root", Attached: true}}},
		},
		"an unreachable launcher changes only the message": {
			instance: instance(was(v1alpha1.InstanceRunning)), problem: "Launcher of pod x cannot be reached",
			want: v1alpha1.InstanceStatus{Phase: v1alpha1.InstanceRunning, PodUID: "pod-1", ObservedGeneration: 3, Message: "Launcher of pod x cannot be reached"},
		},
		"an exit is final": {
			instance: instance(was(v1alpha1.InstanceStopped)), launcher: says(v1alpha1.InstanceRunning, ""),
			want: v1alpha1.InstanceStatus{Phase: v1alpha1.InstanceStopped, PodUID: "pod-1", ObservedGeneration: 3},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			m := newMemory(c.instance)
			m.launcher = c.launcher
			if c.problem != "" {
				m.problems[actConnect] = c.problem
				m.retries[actConnect].failures = 100
			}
			if diff := cmp.Diff(c.want, statusOf(m, noon)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestInPod(t *testing.T) {
	const uid = "5d1c6c4e-0000-4000-8000-000000000001"
	cases := map[string]struct {
		cgroup string
		want   bool
	}{
		"cgroup v1, cgroupfs":                        {"4:memory:/kubepods/burstable/pod" + uid + "/0123abcd\n", true},
		"cgroup v2, systemd":                         {"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod5d1c6c4e_0000_4000_8000_000000000001.slice/cri-containerd-0123.scope\n", true},
		"seen from another cgroup namespace":         {"0::/../../pod" + uid + "/0123\n", true},
		"under a box's own root":                     {"3:cpu:/orlop/one/kubepods/pod" + uid + "/abc\n", true},
		"another pod":                                {"0::/kubepods/pod5d1c6c4e-0000-4000-8000-000000000002/0123\n", false},
		"a name that only contains the pod's":        {"0::/kubepods/evilpod" + uid + "/0123\n", false},
		"a hierarchy named after the pod is no path": {"1:name=pod" + uid + ":/user.slice\n", false},
		"no pod at all":                              {"0::/init.scope\n", false},
		"nothing":                                    {"", false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := inPod(c.cgroup, uid); got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestNodeLabels(t *testing.T) {
	want := map[string]string{labelSchedulable: "true", labelKVM: "", labelAccelerator: "tcg"}
	if diff := cmp.Diff(want, nodeLabels(v1alpha1.AcceleratorTCG)); diff != "" {
		t.Error(diff)
	}
	if got := nodeLabels(v1alpha1.AcceleratorKVM); got[labelKVM] != "true" || got[labelAccelerator] != "kvm" {
		t.Errorf("labels %v", got)
	}
}
