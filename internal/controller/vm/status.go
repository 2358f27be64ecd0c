package vm

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/qemu"
	"orlop.dev/orlop/internal/steps"
)

// status is the only writer of a machine's status.
func status(w *world, d steps.Decision, errs steps.Errors) v1alpha2.VirtualMachineStatus {
	s := *w.vm.Status.DeepCopy()
	s.ObservedGeneration = w.vm.Generation
	s.Instance = remember(w)
	s.MigrationState = migrationState(w, s.Instance)
	s.Conditions = steps.Conditions(s.Conditions, d, errs, w.vm.Generation, w.now)
	s.Phase = phase(w, s.Instance)
	s.NodeName = nodeName(w)
	s.VirtualMachineIPAddressName, s.IPAddress = shownAddress(w)
	s.BlockDeviceRefs = blockDeviceRefs(w)
	s.RestartAwaitingChanges = w.changes()
	s.VirtualMachinePods = pods(w)
	s.Resources = resources(w)
	s.Networks = networks(w)
	s.Versions = v1alpha2.Versions{}
	if w.live() && w.instance != nil {
		s.Versions.QEMU = w.instance.Status.QEMUVersion
	}
	s.Stats = stats(w, s.Phase)
	s.GuestOSInfo = guestOSInfo(w)
	s.Stats.LaunchTimeDuration.GuestOSAgentStarting = agentStarting(w, s.Stats.LaunchTimeDuration.GuestOSAgentStarting)
	return s
}

// phase is for the print column and the rules that name it; r is what is remembered
// by the end of this pass.
func phase(w *world, r *v1alpha2.InstanceRecord) v1alpha2.MachinePhase {
	if w.deleting() {
		return v1alpha2.MachineTerminating
	}
	if r == nil {
		r = &v1alpha2.InstanceRecord{}
	}
	wanted := w.wantsOn(r.Power)
	if !w.live() {
		switch {
		case !w.gone():
			return v1alpha2.MachineStopping
		case wanted && r.Counter > w.record.Counter:
			return v1alpha2.MachineStarting
		case wanted:
			return v1alpha2.MachinePending
		default:
			return v1alpha2.MachineStopped
		}
	}
	if r.Exit != "" || w.mustEnd() {
		return v1alpha2.MachineStopping
	}
	if w.moving() {
		return v1alpha2.MachineMigrating
	}
	if w.instance == nil {
		return v1alpha2.MachineStarting
	}
	switch w.instance.Status.Phase {
	case v1alpha1.InstanceRunning:
		return v1alpha2.MachineRunning
	case v1alpha1.InstancePaused:
		return v1alpha2.MachinePause
	case v1alpha1.InstanceStopping, v1alpha1.InstanceStopped:
		return v1alpha2.MachineStopping
	case v1alpha1.InstancePending:
		if w.pod != nil && stuck(w.pod) {
			return v1alpha2.MachinePending
		}
	case v1alpha1.InstanceStarting:
	}
	return v1alpha2.MachineStarting
}

func nodeName(w *world) string {
	if w.live() && w.pod != nil {
		return w.pod.Spec.NodeName
	}
	if w.live() {
		return w.record.NodeName
	}
	return ""
}

func pods(w *world) []v1alpha2.VirtualMachinePod {
	var all []v1alpha2.VirtualMachinePod
	if w.pod != nil {
		all = append(all, v1alpha2.VirtualMachinePod{Name: w.pod.Name, Active: w.live() && w.instance != nil && started(w.instance)})
	}
	for _, p := range append([]process{w.target}, w.former...) {
		if p.pod != nil {
			all = append(all, v1alpha2.VirtualMachinePod{Name: p.pod.Name})
		}
	}
	for _, p := range w.strayPods {
		all = append(all, v1alpha2.VirtualMachinePod{Name: p.Name})
	}
	return all
}

func started(i *v1alpha1.Instance) bool {
	return i.Status.Phase != v1alpha1.InstancePending && i.Status.Exit == nil
}

// resources are those of the running process, or of the one that would be started.
func resources(w *world) v1alpha2.ResourcesStatus {
	spec := &w.vm.Spec
	if w.running != nil {
		spec = w.running
	}
	sockets, perSocket, ok := policy.Topology(spec.CPU.Cores)
	share, err := policy.CoreFraction(spec.CPU.CoreFraction)
	if !ok || err != nil {
		return v1alpha2.ResourcesStatus{}
	}
	memory := &v1alpha2.MemoryStatus{Size: spec.Memory.Size}
	if w.live() && w.instance != nil {
		memory.RuntimeOverhead = podOverhead(w)
	}
	fraction := spec.CPU.CoreFraction
	if fraction == "" {
		fraction = "100%"
	}
	return v1alpha2.ResourcesStatus{
		CPU: &v1alpha2.CPUStatus{Cores: int(spec.CPU.Cores), CoreFraction: fraction,
			RequestedCores:  new(policy.CPURequest(spec.CPU.Cores, share)),
			RuntimeOverhead: resource.NewQuantity(0, resource.DecimalSI),
			Topology:        &v1alpha2.Topology{CoresPerSocket: int(perSocket), Sockets: int(sockets)}},
		Memory: memory,
	}
}

func podOverhead(w *world) *resource.Quantity {
	if w.pod == nil || len(w.pod.Spec.Containers) == 0 {
		return new(qemu.Overhead(w.instance.Spec.Machine))
	}
	q := w.pod.Spec.Containers[0].Resources.Limits[corev1.ResourceMemory].DeepCopy()
	q.Sub(w.instance.Spec.Machine.Memory.Size)
	return &q
}

// shownAddress is the claim and the address of the running process, which keeps its
// own when another claim is named meanwhile; else those of the claim in use.
func shownAddress(w *world) (claim, address string) {
	if w.address != nil {
		claim, address = w.address.Name, w.address.Status.Address
	}
	if !w.live() || w.instance == nil || w.instance.Spec.Network == nil {
		return claim, address
	}
	if own := w.instance.Spec.Network.Address; own != address {
		return w.vm.Status.VirtualMachineIPAddressName, own
	}
	return claim, address
}

func networks(w *world) []v1alpha2.NetworksStatus {
	n := v1alpha2.NetworksStatus{ID: 1, Type: v1alpha2.NetworkMain}
	if w.live() && w.instance != nil && len(w.instance.Spec.Machine.Interfaces) > 0 {
		n.MAC = w.instance.Spec.Machine.Interfaces[0].MAC
	}
	return []v1alpha2.NetworksStatus{n}
}

// rememberedTransitions is how many changes of phase a status keeps.
const rememberedTransitions = 5

// stats adds this pass's change of phase, if there is one, and what it tells about
// the length of the start.
func stats(w *world, now v1alpha2.MachinePhase) *v1alpha2.VirtualMachineStats {
	s := w.vm.Status.Stats.DeepCopy()
	if s == nil {
		s = &v1alpha2.VirtualMachineStats{}
	}
	if w.live() && w.instance != nil && w.instance.Status.StartTime != nil {
		s.LastStartTime = w.instance.Status.StartTime
	}
	if w.vm.Status.Phase == now && len(s.PhasesTransitions) > 0 {
		return s
	}
	stamp := metav1.NewTime(w.now.Truncate(time.Second))
	lasted := func(of v1alpha2.MachinePhase) *metav1.Duration {
		last := len(s.PhasesTransitions) - 1
		if last < 0 || s.PhasesTransitions[last].Phase != of {
			return nil
		}
		return &metav1.Duration{Duration: stamp.Sub(s.PhasesTransitions[last].Timestamp.Time)}
	}
	switch now {
	case v1alpha2.MachinePending:
		s.LaunchTimeDuration = v1alpha2.LaunchTimeDuration{}
	case v1alpha2.MachineStarting:
		s.LaunchTimeDuration = v1alpha2.LaunchTimeDuration{WaitingForDependencies: lasted(v1alpha2.MachinePending)}
	case v1alpha2.MachineRunning:
		if d := lasted(v1alpha2.MachineStarting); d != nil {
			s.LaunchTimeDuration.VirtualMachineStarting = d
		}
	case v1alpha2.MachineStopped:
		s.LastStartTime = nil
	default: // measures nothing
	}
	s.PhasesTransitions = append(s.PhasesTransitions, v1alpha2.PhaseTransition{Phase: now, Timestamp: stamp})
	if extra := len(s.PhasesTransitions) - rememberedTransitions; extra > 0 {
		s.PhasesTransitions = s.PhasesTransitions[extra:]
	}
	return s
}
