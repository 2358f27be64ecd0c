package policy

import (
	"maps"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
)

const (
	on  = v1alpha2.InstancePowerOn
	off = v1alpha2.InstancePowerOff
)

func TestTopology(t *testing.T) {
	cases := map[string]struct {
		cores, sockets, perSocket int32
		ok                        bool
	}{
		"one core":                     {1, 1, 1, true},
		"16 is the last on one socket": {16, 1, 16, true},
		"17 does not divide by two":    {17, 2, 8, false},
		"32 on two":                    {32, 2, 16, true},
		"34 does not divide by four":   {34, 4, 8, false},
		"64 on four":                   {64, 4, 16, true},
		"72 on eight":                  {72, 8, 9, true},
		"the greatest":                 {248, 8, 31, true},
		"more than the greatest":       {256, 0, 0, false},
		"none":                         {0, 0, 0, false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s, p, ok := Topology(c.cores)
			if ok != c.ok || ok && (s != c.sockets || p != c.perSocket) {
				t.Errorf("got %d × %d, %v", s, p, ok)
			}
		})
	}
}

// The table of run policies in the documentation, row by row.
func TestPowerAfterExit(t *testing.T) {
	const until, manual, always = v1alpha2.AlwaysOnUnlessStoppedManually, v1alpha2.Manual, v1alpha2.AlwaysOn
	cases := map[string]struct {
		run   v1alpha2.RunPolicy
		asked v1alpha2.InstancePower
		cause v1alpha1.ExitCause
		again bool
		want  bool
	}{
		"until stopped: guest power-off stays off":           {until, on, v1alpha1.ExitGuestShutdown, false, false},
		"until stopped: guest reset goes on":                 {until, on, v1alpha1.ExitGuestReset, false, true},
		"until stopped: a deleted pod starts again":          {until, on, v1alpha1.ExitHostShutdown, false, true},
		"until stopped: a crash starts again":                {until, "", v1alpha1.ExitCrashed, false, true},
		"until stopped: node loss starts again":              {until, on, ExitNodeFenced, false, true},
		"until stopped: power-off during a restart restarts": {until, on, v1alpha1.ExitGuestShutdown, true, true},
		"until stopped: a stop stays off":                    {until, off, v1alpha1.ExitHostShutdown, true, false},
		"always on: guest power-off starts again":            {always, on, v1alpha1.ExitGuestShutdown, false, true},
		"manual: guest power-off stays off":                  {manual, on, v1alpha1.ExitGuestShutdown, false, false},
		"manual: a crash stays down":                         {manual, on, v1alpha1.ExitCrashed, false, false},
		"manual: guest reset goes on":                        {manual, on, v1alpha1.ExitGuestReset, false, true},
		"manual: a restart goes on":                          {manual, on, v1alpha1.ExitHostShutdown, true, true},
		"manual: a pod lost before it had a node is retried": {manual, on, ExitNeverStarted, false, true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := WantsOn(c.run, PowerAfterExit(c.run, c.asked, c.cause, c.again)); got != c.want {
				t.Errorf("wants on: %v", got)
			}
		})
	}
}

func TestChangeOfPolicy(t *testing.T) {
	cases := map[string]struct {
		asked    v1alpha2.InstancePower
		from, to v1alpha2.RunPolicy
		want     bool
	}{
		"a machine that was always on stays on under Manual": {"", v1alpha2.AlwaysOn, v1alpha2.Manual, true},
		"one that was always off stays off under Manual":     {on, v1alpha2.AlwaysOff, v1alpha2.Manual, false},
		"always off to until stopped starts it":              {off, v1alpha2.AlwaysOff, v1alpha2.AlwaysOnUnlessStoppedManually, true},
		"a new machine under Manual stays off":               {"", v1alpha2.Manual, v1alpha2.Manual, false},
		"a new machine by default starts":                    {"", v1alpha2.AlwaysOnUnlessStoppedManually, v1alpha2.AlwaysOnUnlessStoppedManually, true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			asked := RememberPower(c.to, RememberPower(c.from, c.asked))
			if got := WantsOn(c.to, asked); got != c.want {
				t.Errorf("wants on: %v", got)
			}
		})
	}
}

func TestPodStopped(t *testing.T) {
	now := metav1.NewTime(time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC))
	running := corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
	pod := func(node string, phase corev1.PodPhase, state *corev1.ContainerState, conditions ...corev1.PodCondition) *corev1.Pod {
		p := &corev1.Pod{Spec: corev1.PodSpec{NodeName: node, Containers: make([]corev1.Container, 1)}, Status: corev1.PodStatus{Phase: phase, Conditions: conditions}}
		if state != nil {
			p.Status.ContainerStatuses = []corev1.ContainerStatus{{State: *state}}
		}
		return p
	}
	deleted := func(p *corev1.Pod) *corev1.Pod { p.DeletionTimestamp = &now; return p }
	refused := pod("n", corev1.PodFailed, nil)
	refused.Status.Reason = "OutOfmemory"
	collected := corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "DeletionByPodGC"}
	cases := map[string]struct {
		pod  *corev1.Pod
		node *corev1.Node
		want bool
	}{
		"it runs":                               {pod("n", corev1.PodRunning, &running), nil, false},
		"a forced deletion is a wish, no proof": {deleted(pod("n", corev1.PodRunning, &running)), nil, false},
		"an unreachable node proves nothing": {deleted(pod("n", corev1.PodRunning, &running)), &corev1.Node{Spec: corev1.NodeSpec{
			Taints: []corev1.Taint{{Key: corev1.TaintNodeUnreachable}}}}, false},
		"its node is out of service": {pod("n", corev1.PodRunning, &running), &corev1.Node{Spec: corev1.NodeSpec{
			Taints: []corev1.Taint{{Key: corev1.TaintNodeOutOfService}}}}, true},
		"garbage collection called it failed": {deleted(pod("n", corev1.PodFailed, &running, collected)), nil, false},
		"the kubelet saw its container end": {pod("n", corev1.PodRunning,
			&corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ContainerID: "containerd://1", FinishedAt: now}}), nil, true},
		"the kubelet found no container of a pod it ended": {deleted(pod("n", corev1.PodFailed,
			&corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: "ContainerStatusUnknown"}})), nil, true},
		"the kubelet refused it":                     {refused, nil, true},
		"no node yet: it may get one":                {pod("", corev1.PodPending, nil), nil, false},
		"deleted without a node: it never gets one":  {deleted(pod("", corev1.PodPending, nil)), nil, true},
		"given to a node that has not said anything": {deleted(pod("n", corev1.PodPending, nil)), nil, false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := PodStopped(c.pod, c.node); got != c.want {
				t.Errorf("got %v", got)
			}
		})
	}
}

func TestDeath(t *testing.T) {
	terminated := func(id string, at metav1.Time, message string) *corev1.Pod {
		return &corev1.Pod{Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Name: ComputeContainer,
			State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ContainerID: id, FinishedAt: at, Message: message}}}}}}
	}
	now := metav1.NewTime(time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC))
	claimed := &v1alpha1.Instance{Spec: v1alpha1.InstanceSpec{NodeName: "n", Power: v1alpha1.PowerOn},
		Status: v1alpha1.InstanceStatus{PodUID: "p", Phase: v1alpha1.InstanceRunning}}
	given := &v1alpha1.Instance{Spec: v1alpha1.InstanceSpec{NodeName: "n", Power: v1alpha1.PowerOff}}
	failed := func(change func(*corev1.Pod)) *corev1.Pod {
		p := &corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodFailed}}
		change(p)
		return p
	}
	cases := map[string]struct {
		instance *v1alpha1.Instance
		pod      *corev1.Pod
		node     *corev1.Node
		want     v1alpha1.ExitCause
	}{
		"nothing is known: not proven": {nil, nil, nil, ""},
		"the handler has reaped it": {&v1alpha1.Instance{Status: v1alpha1.InstanceStatus{
			Exit: &v1alpha1.Exit{Cause: v1alpha1.ExitKilled}}}, nil, nil, v1alpha1.ExitKilled},
		"the container has ended and said how": {claimed, terminated("containerd://1", now, `{"cause":"GuestShutdown","time":null}`), nil, v1alpha1.ExitGuestShutdown},
		"the container has ended in silence":   {claimed, terminated("containerd://1", now, "oops"), nil, ExitPodTerminated},
		"a status made up for a container nobody found proves nothing": {
			claimed, terminated("", metav1.Time{}, ""), nil, ""},
		"a pod phase alone proves nothing, garbage collection writes it": {
			claimed, failed(func(p *corev1.Pod) { p.Status.Reason = "NodeLost" }), nil, ""},
		"the node is out of service": {claimed, nil, &corev1.Node{Spec: corev1.NodeSpec{
			Taints: []corev1.Taint{{Key: corev1.TaintNodeOutOfService}}}}, ExitNodeFenced},
		"a node that is only unreachable proves nothing": {claimed, nil, &corev1.Node{Spec: corev1.NodeSpec{
			Taints: []corev1.Taint{{Key: corev1.TaintNodeUnreachable}}}}, ""},
		"called off before it had a node":                              {&v1alpha1.Instance{Spec: v1alpha1.InstanceSpec{Power: v1alpha1.PowerOff}}, nil, nil, ExitNeverStarted},
		"without a node but still wanted":                              {&v1alpha1.Instance{Spec: v1alpha1.InstanceSpec{Power: v1alpha1.PowerOn}}, nil, nil, ""},
		"given to a node, then called off: the handler may have begun": {given, nil, nil, ""},
		"the kubelet refused the pod before any handler claimed it": {
			given, failed(func(p *corev1.Pod) { p.Status.Reason = "OutOfmemory" }), nil, ExitPodTerminated},
		"garbage collection failed the pod before any handler claimed it: the handler may claim it yet": {
			given, failed(func(p *corev1.Pod) {
				p.Status.Reason = "x"
				p.Status.Conditions = []corev1.PodCondition{{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "DeletionByPodGC"}}
			}), nil, ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			exit, proven := Death(c.instance, c.pod, c.node)
			if exit.Cause != c.want || proven != (c.want != "") {
				t.Errorf("got %q, proven %v", exit.Cause, proven)
			}
		})
	}
}

func TestSupersedes(t *testing.T) {
	op := func(kind v1alpha2.OperationType, force bool) v1alpha2.VirtualMachineOperationSpec {
		return v1alpha2.VirtualMachineOperationSpec{Type: kind, Force: new(force)}
	}
	const start, stop, restart = v1alpha2.OperationStart, v1alpha2.OperationStop, v1alpha2.OperationRestart
	cases := map[string]struct {
		active, next v1alpha2.VirtualMachineOperationSpec
		want         bool
	}{
		"a stop ends a start":            {op(start, false), op(stop, false), true},
		"a restart does not end a start": {op(start, false), op(restart, true), false},
		"a forced stop ends a stop":      {op(stop, false), op(stop, true), true},
		"a forced restart ends a stop":   {op(stop, false), op(restart, true), true},
		"a stop does not end a stop":     {op(stop, false), op(stop, false), false},
		"nothing ends a forced stop":     {op(stop, true), op(stop, true), false},
		"a forced stop ends a restart":   {op(restart, false), op(stop, true), true},
		"a start ends nothing":           {op(stop, false), op(start, false), false},
		"a stop ends a migration":        {op(v1alpha2.OperationEvict, false), op(stop, false), true},
		"nothing ends a restore":         {op(v1alpha2.OperationRestore, false), op(stop, true), false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := Supersedes(c.next, c.active); got != c.want {
				t.Errorf("got %v", got)
			}
		})
	}
}

func TestOperationPossible(t *testing.T) {
	cases := map[string]struct {
		kind  v1alpha2.OperationType
		force bool
		phase v1alpha2.MachinePhase
		want  bool
	}{
		"start a stopped machine":             {v1alpha2.OperationStart, false, v1alpha2.MachineStopped, true},
		"start one that is stopping":          {v1alpha2.OperationStart, false, v1alpha2.MachineStopping, true},
		"start a running one":                 {v1alpha2.OperationStart, false, v1alpha2.MachineRunning, false},
		"stop a pending one":                  {v1alpha2.OperationStop, false, v1alpha2.MachinePending, true},
		"stop one that is stopping":           {v1alpha2.OperationStop, false, v1alpha2.MachineStopping, false},
		"stop one that is stopping, by force": {v1alpha2.OperationStop, true, v1alpha2.MachineStopping, true},
		"restart a paused one":                {v1alpha2.OperationRestart, false, v1alpha2.MachinePause, true},
		"restart a pending one":               {v1alpha2.OperationRestart, false, v1alpha2.MachinePending, false},
		"restart a stopped one":               {v1alpha2.OperationRestart, true, v1alpha2.MachineStopped, false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := OperationPossible(c.kind, c.force, c.phase); got != c.want {
				t.Errorf("got %v", got)
			}
		})
	}
}

func TestRetryIn(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	for failures, want := range map[int32]time.Duration{0: 0, 1: 5 * time.Second, 2: 10 * time.Second, 7: 5 * time.Minute, 1000: 5 * time.Minute} {
		if got := RetryIn(failures, now, now); got != want {
			t.Errorf("after %d failures %s, want %s", failures, got, want)
		}
	}
	if got := FailuresAfterExit(9, v1alpha1.ExitCrashed, time.Hour); got != 1 {
		t.Errorf("a crash after an hour is number %d", got)
	}
}

func sizingClass(change func(*v1alpha2.SizingPolicy)) *v1alpha2.VirtualMachineClass {
	p := v1alpha2.SizingPolicy{Cores: &v1alpha2.SizingPolicyCores{Min: 1, Max: 8}}
	change(&p)
	return &v1alpha2.VirtualMachineClass{ObjectMeta: metav1.ObjectMeta{Name: "c"},
		Spec: v1alpha2.VirtualMachineClassSpec{SizingPolicies: []v1alpha2.SizingPolicy{p}}}
}

func TestSizeProblems(t *testing.T) {
	q := func(s string) *resource.Quantity { return new(resource.MustParse(s)) }
	total := func(low, high, step string) func(*v1alpha2.SizingPolicy) {
		return func(p *v1alpha2.SizingPolicy) {
			p.Memory = &v1alpha2.SizingPolicyMemory{MemoryMinMax: v1alpha2.MemoryMinMax{Min: q(low), Max: q(high)}, Step: q(step)}
		}
	}
	perCore := func(p *v1alpha2.SizingPolicy) {
		p.Memory = &v1alpha2.SizingPolicyMemory{Step: q("512Mi"),
			PerCore: &v1alpha2.SizingPolicyMemoryPerCore{MemoryMinMax: v1alpha2.MemoryMinMax{Min: q("1Gi"), Max: q("2Gi")}}}
	}
	cases := map[string]struct {
		class  *v1alpha2.VirtualMachineClass
		cores  int32
		share  string
		memory string
		want   int
	}{
		"no rule is broken":                      {sizingClass(func(*v1alpha2.SizingPolicy) {}), 4, "5%", "1Gi", 0},
		"cores outside of every range":           {sizingClass(func(*v1alpha2.SizingPolicy) {}), 9, "5%", "1Gi", 1},
		"cores off the grid":                     {sizingClass(func(p *v1alpha2.SizingPolicy) { p.Cores.Step = 3 }), 3, "5%", "1Gi", 1},
		"the greatest number is always on it":    {sizingClass(func(p *v1alpha2.SizingPolicy) { p.Cores.Step = 3 }), 8, "5%", "1Gi", 0},
		"a share that is not listed":             {sizingClass(func(p *v1alpha2.SizingPolicy) { p.CoreFractions = []v1alpha2.CoreFractionValue{50} }), 1, "20%", "1Gi", 1},
		"too little memory":                      {sizingClass(total("1Gi", "8Gi", "1Gi")), 1, "5%", "512Mi", 1},
		"memory off the grid":                    {sizingClass(total("1Gi", "8Gi", "1Gi")), 1, "5%", "1536Mi", 1},
		"two rules broken are two problems":      {sizingClass(func(p *v1alpha2.SizingPolicy) { total("1Gi", "8Gi", "1Gi")(p); p.Cores.Step = 3 }), 3, "5%", "9Gi", 2},
		"memory per core fits":                   {sizingClass(perCore), 2, "5%", "3Gi", 0},
		"memory per core is too much":            {sizingClass(perCore), 2, "5%", "5Gi", 1},
		"the step counts for each core, not all": {sizingClass(perCore), 2, "5%", "2560Mi", 1},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			spec := &v1alpha2.VirtualMachineSpec{CPU: v1alpha2.CPUSpec{Cores: c.cores, CoreFraction: c.share}, Memory: v1alpha2.MemorySpec{Size: resource.MustParse(c.memory)}}
			if got := SizeProblems(spec, &c.class.Spec); len(got) != c.want {
				t.Errorf("got %q", got)
			}
		})
	}
}

func TestDefaultCoreFraction(t *testing.T) {
	cases := map[string]struct {
		class *v1alpha2.VirtualMachineClass
		want  string
	}{
		"a class without policies": {&v1alpha2.VirtualMachineClass{}, "100%"},
		"no list":                  {sizingClass(func(*v1alpha2.SizingPolicy) {}), "100%"},
		"a list with 100":          {sizingClass(func(p *v1alpha2.SizingPolicy) { p.CoreFractions = []v1alpha2.CoreFractionValue{5, 100} }), "100%"},
		"a list without 100 and without a default": {sizingClass(func(p *v1alpha2.SizingPolicy) { p.CoreFractions = []v1alpha2.CoreFractionValue{5} }), ""},
		"a default": {sizingClass(func(p *v1alpha2.SizingPolicy) { p.DefaultCoreFraction = new(intstr.FromInt32(20)) }), "20%"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := DefaultCoreFraction(c.class, 2)
			if got != c.want || (err != nil) != (c.want == "") {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

func TestRestartChanges(t *testing.T) {
	base := v1alpha2.VirtualMachineSpec{CPU: v1alpha2.CPUSpec{Cores: 1, CoreFraction: "100%"},
		Memory:          v1alpha2.MemorySpec{Size: resource.MustParse("1Gi")},
		BlockDeviceRefs: []v1alpha2.BlockDeviceSpecRef{{Kind: v1alpha2.DiskDevice, Name: "a"}}}
	cases := map[string]struct {
		change func(*v1alpha2.VirtualMachineSpec)
		want   []string
	}{
		"nothing":                        {func(*v1alpha2.VirtualMachineSpec) {}, nil},
		"the run policy acts at once":    {func(s *v1alpha2.VirtualMachineSpec) { s.RunPolicy = v1alpha2.Manual }, nil},
		"1024Mi is 1Gi":                  {func(s *v1alpha2.VirtualMachineSpec) { s.Memory.Size = resource.MustParse("1024Mi") }, nil},
		"cores alone":                    {func(s *v1alpha2.VirtualMachineSpec) { s.CPU.Cores = 2 }, []string{"replace cpu.cores"}},
		"cores and share are one change": {func(s *v1alpha2.VirtualMachineSpec) { s.CPU.Cores, s.CPU.CoreFraction = 2, "50%" }, []string{"replace cpu"}},
		"interface ids only name things": {func(s *v1alpha2.VirtualMachineSpec) {
			s.Networks = []v1alpha2.NetworksSpec{{ID: new(1), Type: v1alpha2.NetworkMain}}
		}, nil},
		"first-boot data added": {func(s *v1alpha2.VirtualMachineSpec) {
			s.Provisioning = &v1alpha2.Provisioning{Type: v1alpha2.ProvisioningUserData}
		}, []string{"add provisioning"}},
		"the address goes by another name": {func(s *v1alpha2.VirtualMachineSpec) { s.VirtualMachineIPAddressName = "x" }, []string{"add virtualMachineIPAddress"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			wanted := *base.DeepCopy()
			c.change(&wanted)
			var got []string
			for _, change := range RestartChanges(&base, &wanted) {
				got = append(got, string(change.Operation)+" "+change.Path)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestSuitable(t *testing.T) {
	labels := map[string]string{v1alpha2.LabelNodeSchedulable: "true", v1alpha2.LabelNodeAccelerator: "tcg", "zone": "a"}
	cases := map[string]struct {
		change    func(*corev1.Node)
		class     v1alpha2.VirtualMachineClassSpec
		emulation bool
		want      bool
	}{
		"software emulation is allowed":     {func(*corev1.Node) {}, v1alpha2.VirtualMachineClassSpec{}, true, true},
		"software emulation is not allowed": {func(*corev1.Node) {}, v1alpha2.VirtualMachineClassSpec{}, false, false},
		"KVM needs no permission":           {func(n *corev1.Node) { n.Labels[v1alpha2.LabelNodeAccelerator] = "kvm" }, v1alpha2.VirtualMachineClassSpec{}, false, true},
		"a cordoned node":                   {func(n *corev1.Node) { n.Spec.Unschedulable = true }, v1alpha2.VirtualMachineClassSpec{}, true, false},
		"the selector does not match": {func(*corev1.Node) {}, v1alpha2.VirtualMachineClassSpec{
			NodeSelector: v1alpha2.NodeSelector{MatchLabels: map[string]string{"zone": "b"}}}, true, false},
		"the expression does not match": {func(*corev1.Node) {}, v1alpha2.VirtualMachineClassSpec{
			NodeSelector: v1alpha2.NodeSelector{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "zone", Operator: corev1.NodeSelectorOpNotIn, Values: []string{"a"}}}}}, true, false},
		"a taint": {func(n *corev1.Node) { n.Spec.Taints = []corev1.Taint{{Key: "k", Effect: corev1.TaintEffectNoSchedule}} }, v1alpha2.VirtualMachineClassSpec{}, true, false},
		"a taint that is tolerated": {func(n *corev1.Node) { n.Spec.Taints = []corev1.Taint{{Key: "k", Effect: corev1.TaintEffectNoSchedule}} },
			v1alpha2.VirtualMachineClassSpec{Tolerations: []corev1.Toleration{{Key: "k", Operator: corev1.TolerationOpExists}}}, true, true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{}}}
			maps.Copy(n.Labels, labels)
			c.change(n)
			if got := Suitable(n, &c.class, c.emulation); got != c.want {
				t.Errorf("got %v", got)
			}
		})
	}
}
