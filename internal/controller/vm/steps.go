package vm

import (
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/plan"
	"orlop.dev/orlop/internal/steps"
)

// all are the steps of this controller. Their order does not matter.
var all = append([]steps.Step[*world]{
	{Condition: v1alpha2.MachineConditionVirtualMachineClassReady, Decide: class},
	{Condition: v1alpha2.MachineConditionSizingPolicyMatched, Decide: sizing},
	{Condition: v1alpha2.MachineConditionVirtualMachineIPAddressReady, Decide: address},
	{Condition: v1alpha2.MachineConditionBlockDevicesReady, Decide: blockDevices},
	{Condition: v1alpha2.MachineConditionProvisioningReady, Decide: provisioning},
	{Condition: v1alpha2.MachineConditionRunning, Decide: running},
	{Condition: v1alpha2.MachineConditionConfigurationApplied, Decide: configuration},
	{Condition: v1alpha2.MachineConditionAwaitingRestartToApplyConfiguration, Decide: awaitingRestart},
	{Condition: v1alpha2.MachineConditionAgentReady, Decide: agentReady},
	{Condition: v1alpha2.MachineConditionAgentVersionNotSupported, Decide: agentVersion},
	{Condition: v1alpha2.MachineConditionFilesystemFrozen, Decide: filesystemFrozen},
	{Decide: instance},
	{Decide: pod},
	{Decide: deviceHold},
	{Decide: deviceChange},
	{Decide: attachmentPodMade},
	{Decide: attachmentPodGone},
	{Decide: diskRelease},
	{Decide: strays},
	{Decide: finalizer},
}, append(migrationSteps, evacuationSteps...)...)

func class(w *world) (steps.Outcome, steps.Act) {
	name := w.vm.Spec.VirtualMachineClassName
	switch {
	case w.class == nil:
		return steps.Failed(v1alpha2.MachineReasonVirtualMachineClassNotReady, "VirtualMachineClass %s does not exist", name), nil
	case w.class.DeletionTimestamp != nil:
		return steps.Failed(v1alpha2.MachineReasonVirtualMachineClassNotReady, "VirtualMachineClass %s is being deleted", name), nil
	case !w.classReady():
		return steps.Waiting(v1alpha2.MachineReasonVirtualMachineClassNotReady, "VirtualMachineClass %s is not ready", name), nil
	}
	return steps.Done(v1alpha2.MachineReasonVirtualMachineClassReady, "VirtualMachineClass %s is ready", name), nil
}

// sizing shows a condition only in the bad state.
func sizing(w *world) (steps.Outcome, steps.Act) {
	problems := w.sizeProblems()
	if len(problems) == 0 {
		return steps.Absent(), nil
	}
	return steps.Failed(v1alpha2.MachineReasonSizingPolicyNotMatched, "The size does not fit VirtualMachineClass %s: %s",
		w.class.Name, strings.Join(problems, "; ")), nil
}

func address(w *world) (steps.Outcome, steps.Act) {
	name := w.addressName()
	switch {
	case w.address == nil && w.vm.Spec.VirtualMachineIPAddressName != "":
		return steps.Failed(v1alpha2.MachineReasonVirtualMachineIPAddressNotReady, "VirtualMachineIPAddress %s does not exist", name), nil
	case w.address == nil:
		o := steps.Waiting(v1alpha2.MachineReasonVirtualMachineIPAddressNotReady, "VirtualMachineIPAddress %s is being created", name)
		if w.deleting() {
			return o, nil
		}
		return o, steps.Create{Object: autoAddress(w.vm, name)}
	case w.addressTaken():
		return steps.Failed(v1alpha2.MachineReasonVirtualMachineIPAddressNotAvailable,
			"VirtualMachineIPAddress %s is used by VirtualMachine %s", name, w.address.Status.VirtualMachineName), nil
	case !w.addressReady():
		return steps.Waiting(v1alpha2.MachineReasonVirtualMachineIPAddressNotReady, "VirtualMachineIPAddress %s is not ready: %s", name, addressState(w.address)), nil
	}
	return steps.Done(v1alpha2.MachineReasonVirtualMachineIPAddressReady, "VirtualMachineIPAddress %s holds address %s", name, w.address.Status.Address), nil
}

// addressState is what a claim says about itself.
func addressState(a *v1alpha2.VirtualMachineIPAddress) string {
	if c := meta.FindStatusCondition(a.Status.Conditions, v1alpha2.AddressConditionBound); c != nil && c.Status != metav1.ConditionTrue && c.Message != "" {
		return c.Message
	}
	return "It is not attached yet"
}

func autoAddress(vm *v1alpha2.VirtualMachine, name string) *v1alpha2.VirtualMachineIPAddress {
	return &v1alpha2.VirtualMachineIPAddress{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Namespace: vm.Namespace,
			Labels:          map[string]string{v1alpha2.LabelVirtualMachineUID: string(vm.UID)},
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(vm, v1alpha2.GroupVersion.WithKind(v1alpha2.VirtualMachineKind))},
		},
		Spec: v1alpha2.VirtualMachineIPAddressSpec{Type: v1alpha2.VirtualMachineIPAddressAuto},
	}
}

func diskState(d disk) string {
	if d.object.DeletionTimestamp != nil {
		return "it is being deleted"
	}
	for _, c := range d.object.Status.Conditions {
		if c.Type == v1alpha2.DiskConditionReady && c.Status != metav1.ConditionTrue && c.Message != "" {
			return c.Message
		}
	}
	if d.object.Status.Phase == "" {
		return "its phase is Pending"
	}
	return "its phase is " + string(d.object.Status.Phase)
}

// provisioning makes the first-boot Secret of a process whose pod has not started yet.
func provisioning(w *world) (steps.Outcome, steps.Act) {
	p := w.vm.Spec.Provisioning
	if p == nil {
		return steps.Done(v1alpha2.MachineReasonProvisioningReady, "The machine has no first-boot data"), nil
	}
	var act steps.Act
	if w.live() && !w.mustEnd() && w.instance != nil && w.instance.Spec.FirstBoot != nil && !w.firstBootExists && w.userDataProblem == "" {
		act = steps.Create{Object: plan.FirstBootSecret(w.vm, w.instance, w.userData)}
	}
	if w.userDataProblem != "" {
		return steps.Failed(v1alpha2.MachineReasonProvisioningNotReady, "%s", w.userDataProblem), act
	}
	if warning := plan.UserDataWarning(w.userData); warning != "" {
		return steps.Done(v1alpha2.MachineReasonProvisioningReadyWithWarnings, "%s", warning), act
	}
	return steps.Done(v1alpha2.MachineReasonProvisioningReady, "The first-boot data is complete"), act
}

// configuration exists only while a process runs.
func configuration(w *world) (steps.Outcome, steps.Act) {
	if !w.live() || w.running == nil {
		return steps.Absent(), nil
	}
	if n := len(w.changes()); n > 0 {
		return steps.Waiting(v1alpha2.MachineReasonConfigurationNotApplied, "Changes that wait for a restart: %d", n), nil
	}
	if pending := w.pendingDevices(); len(pending) > 0 {
		return pendingChange(pending), nil
	}
	return steps.Done(v1alpha2.MachineReasonConfigurationApplied, "The guest runs with what the machine asks for"), nil
}

// awaitingRestart is True in the bad state.
func awaitingRestart(w *world) (steps.Outcome, steps.Act) {
	changes := w.changes()
	if len(changes) == 0 {
		return steps.Absent(), nil
	}
	return steps.Waiting(v1alpha2.MachineReasonChangesPendingRestart, "Restart the machine to apply changes of %s",
		paths(changes)).As(metav1.ConditionTrue), nil
}

func paths(changes []v1alpha2.RestartAwaitingChange) string {
	all := make([]string, len(changes))
	for i, c := range changes {
		all[i] = c.Path
	}
	return strings.Join(all, ", ")
}

// strays removes what an earlier pass may have made under another name; none of it
// was ever given to a node, for that needs the recorded name.
func strays(w *world) (steps.Outcome, steps.Act) {
	for _, i := range w.strayInstances {
		if i.Spec.NodeName == "" || i.Status.Exit != nil {
			return steps.Outcome{}, steps.Delete{Object: i, Finalizer: v1alpha2.FinalizerPodProtection}
		}
	}
	for _, p := range w.strayPods {
		return steps.Outcome{}, steps.Delete{Object: p, Finalizer: v1alpha2.FinalizerPodProtection}
	}
	return steps.Outcome{}, nil
}

// finalizer lets a deleted machine go when nothing of it is left.
func finalizer(w *world) (steps.Outcome, steps.Act) {
	if !w.deleting() || w.live() || !w.gone() || !w.alone() || len(w.held)+len(w.strayInstances)+len(w.strayPods) > 0 {
		return steps.Outcome{}, nil
	}
	return steps.Outcome{}, steps.Release{Object: w.vm, Finalizer: v1alpha2.FinalizerVirtualMachineCleanup}
}
