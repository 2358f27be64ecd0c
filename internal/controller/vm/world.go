package vm

import (
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/plan"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/settings"
)

// world is everything one pass knows. What does not exist is nil.
type world struct {
	now time.Time
	vm  *v1alpha2.VirtualMachine
	// record is vm.Status.Instance as it was read, zero if there is none.
	record v1alpha2.InstanceRecord

	class      *v1alpha2.VirtualMachineClass
	address    *v1alpha2.VirtualMachineIPAddress
	disks      []disk                  // of spec.blockDeviceRefs
	attached   []disk                  // of accepted attachments
	held       []*v1alpha2.VirtualDisk // all disks this machine holds
	operations []v1alpha2.VirtualMachineOperation

	// userData is the first-boot text; userDataProblem says why there is none.
	userData        []byte
	userDataProblem string
	firstBootExists bool

	instance *v1alpha1.Instance
	pod      *corev1.Pod
	// node is the one the pod is (or was) bound to.
	node *corev1.Node
	// strays are objects of this machine under other names than the recorded one.
	strayInstances []*v1alpha1.Instance
	strayPods      []*corev1.Pod
	// attachmentPods hold volumes for processes of this machine; podOwners are those
	// processes, as far as they exist.
	attachmentPods []*corev1.Pod
	podOwners      map[types.UID]*v1alpha1.Instance

	moves

	// running and runningClass are the specifications the present instance was made from.
	running      *v1alpha2.VirtualMachineSpec
	runningClass *v1alpha2.VirtualMachineClassSpec

	cidrs          []netip.Prefix
	allowEmulation bool
	platform       settings.Platform

	// act is what named calls need; it is not looked at by decisions.
	act *actor
}

func (w *world) deleting() bool { return w.vm.DeletionTimestamp != nil }

// wantsOn is the intent, given what has been asked for.
func (w *world) wantsOn(asked v1alpha2.InstancePower) bool {
	return !w.deleting() && policy.WantsOn(w.vm.Spec.RunPolicy, asked)
}

// live is true while the recorded process may exist.
func (w *world) live() bool { return w.record.Name != "" && w.record.Exit == "" }

// gone is true when nothing is left of the recorded process.
func (w *world) gone() bool {
	return w.instance == nil && w.pod == nil && len(w.attachmentPods) == 0
}

// signalled is the accepted stop or restart of the recorded process, if any.
func (w *world) signalled() *v1alpha2.InstanceSignal {
	s := w.record.Signal
	if s == nil || s.Counter != w.record.Counter || s.Type == v1alpha2.OperationStart {
		return nil
	}
	return s
}

// mustEnd is true when the recorded process has to go, for whatever reason.
func (w *world) mustEnd() bool {
	if w.handedOver() {
		return w.guestLost() // whatever else is wanted is wanted of the process the guest went to
	}
	return w.signalled() != nil || !w.wantsOn(w.record.Power) || policy.PodDoomed(w.pod) || w.podLost() || w.instanceLost() || w.instanceDoomed() ||
		w.outdated()
}

// instanceLost is true when somebody tore the Instance away from its pod. It is not
// made again: whoever runs in that pod has to end first.
func (w *world) instanceLost() bool { return w.record.PodUID != "" && w.instance == nil }

// instanceDoomed is true when somebody deleted the Instance of a process that does
// not run yet: no handler starts it any more. A guest that runs is not ended for that.
func (w *world) instanceDoomed() bool {
	return w.instance != nil && w.instance.DeletionTimestamp != nil && w.instance.Status.StartTime == nil
}

// podLost is true when the one pod of the process no longer exists.
func (w *world) podLost() bool {
	return w.record.PodUID != "" && (w.pod == nil || w.pod.UID != w.record.PodUID)
}

// wantedPower is how far the process has to be taken down.
func (w *world) wantedPower() v1alpha1.PowerState {
	switch s := w.signalled(); {
	case !w.mustEnd():
		return v1alpha1.PowerOn
	case w.guestLost() || s != nil && s.Force:
		return v1alpha1.PowerKill
	case w.unsettled():
		return v1alpha1.PowerOn // the migration is called off first
	default:
		return v1alpha1.PowerOff
	}
}

// canStart is true when everything a new process depends on is there.
func (w *world) canStart() bool {
	return w.classReady() && w.addressReady() && w.disksReady() && w.userDataProblem == "" && len(w.sizeProblems()) == 0
}

func (w *world) classReady() bool {
	return w.class != nil && w.class.DeletionTimestamp == nil && w.class.Status.Phase == v1alpha2.VirtualMachineClassReady
}

// addressReady is true when the claim says itself that it is this machine's: two
// machines that name one claim may both have seen it without a user. A claim that is
// being deleted stays as long as its user.
func (w *world) addressReady() bool {
	a := w.address
	if a == nil || a.Status.Address == "" || a.Status.VirtualMachineName != w.vm.Name {
		return false
	}
	return a.Status.Phase == v1alpha2.VirtualMachineIPAddressBound || a.Status.Phase == v1alpha2.VirtualMachineIPAddressAttached
}

func (w *world) addressTaken() bool {
	user := w.address.Status.VirtualMachineName
	return user != "" && user != w.vm.Name
}

// addressName is the claim in use: the one the user named or the one made for the machine.
func (w *world) addressName() string {
	return claimName(w.vm)
}

func claimName(vm *v1alpha2.VirtualMachine) string {
	if name := vm.Spec.VirtualMachineIPAddressName; name != "" {
		return name
	}
	return plan.AddressName(vm.Name, vm.UID)
}

// disksReady is true when every device is usable or bindable and held by this machine.
func (w *world) disksReady() bool {
	return !slices.ContainsFunc(w.disks, func(d disk) bool {
		return d.use() == policy.DiskUnusable || !w.mine(d)
	})
}

func (w *world) holds(d *v1alpha2.VirtualDisk) bool {
	_, uid := policy.DiskHolder(d)
	return uid == w.vm.UID
}

func (w *world) sizeProblems() []string {
	if w.class == nil {
		return nil
	}
	return policy.SizeProblems(&w.vm.Spec, &w.class.Spec)
}

// changes are the differences that wait for a restart of the running process.
func (w *world) changes() []v1alpha2.RestartAwaitingChange {
	if !w.live() || w.running == nil {
		return nil
	}
	all := append(policy.RestartChanges(w.running, &w.vm.Spec), policy.DeviceRestartChanges(w.running, &w.vm.Spec, w.keptBootDevice())...)
	if w.runningClass != nil && w.class != nil && w.vm.Spec.VirtualMachineClassName == w.running.VirtualMachineClassName {
		all = append(all, policy.ClassRestartChanges(w.runningClass, &w.class.Spec)...)
	}
	return all
}

func (w *world) automaticRestart() bool {
	d := w.vm.Spec.Disruptions
	return d != nil && d.RestartApprovalMode == v1alpha2.RestartAutomatic
}

// operation is the newest accepted stop, start or restart.
func (w *world) operation() *v1alpha2.VirtualMachineOperation {
	var newest *v1alpha2.VirtualMachineOperation
	for i := range w.operations {
		o := &w.operations[i]
		if o.Status.Phase != v1alpha2.OperationInProgress || o.DeletionTimestamp != nil {
			continue
		}
		switch o.Spec.Type {
		case v1alpha2.OperationStart, v1alpha2.OperationStop, v1alpha2.OperationRestart:
		default:
			continue
		}
		if newest == nil || newest.CreationTimestamp.Before(&o.CreationTimestamp) ||
			(newest.CreationTimestamp.Equal(&o.CreationTimestamp) && newest.UID < o.UID) {
			newest = o
		}
	}
	return newest
}

// launch gathers what the plan of a new process needs.
func (w *world) launch() plan.Launch { return w.launchWith(w.starting()) }

func (w *world) launchWith(devices []disk) plan.Launch {
	l := plan.Launch{VM: w.vm, Class: w.class, Name: w.record.Name, Network: w.network(), Slots: w.record.Slots,
		LauncherImage: w.platform.LauncherImage, AllowEmulation: w.allowEmulation}
	for _, d := range devices {
		l.Disks = append(l.Disks, d.launchDisk())
	}
	return l
}

func (w *world) network() v1alpha1.Network {
	n := v1alpha1.Network{AddressSource: v1alpha1.AddressFromLease, Address: w.address.Status.Address,
		Nameservers: w.platform.ClusterDNS}
	if a, err := netip.ParseAddr(n.Address); err == nil {
		for _, prefix := range w.cidrs {
			if prefix.Contains(a) {
				n.CIDR = prefix.String()
			}
		}
	}
	if domain := w.platform.ClusterDomain; domain != "" {
		n.SearchDomains = []string{w.vm.Namespace + ".svc." + domain, "svc." + domain, domain}
	}
	return n
}
