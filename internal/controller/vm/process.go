package vm

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/plan"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/steps"
)

// instance makes the Instance of the recorded process, keeps its spec as wanted, and
// removes it once its end has been recorded.
func instance(w *world) (steps.Outcome, steps.Act) {
	switch {
	case w.instance == nil && w.live() && !w.mustEnd() && w.canStart():
		object, err := plan.Instance(w.launch())
		if err != nil {
			return steps.Outcome{}, steps.Call{Name: "plan instance", Do: fails(err)}
		}
		return steps.Outcome{}, steps.Create{Object: object}
	case w.instance == nil:
		return steps.Outcome{}, nil
	case !w.live():
		return steps.Outcome{}, steps.Delete{Object: w.instance, Finalizer: v1alpha2.FinalizerPodProtection}
	}
	wanted := w.wantedInstance()
	if equality.Semantic.DeepEqual(wanted.Spec, w.instance.Spec) {
		return steps.Outcome{}, nil
	}
	return steps.Outcome{}, steps.Apply{Object: wanted}
}

// wantedInstance is the observed Instance with what the controller wants changed.
func (w *world) wantedInstance() *v1alpha1.Instance {
	i := w.instance.DeepCopy()
	if accelerator, ok := w.bindable(); ok {
		i = plan.OnNode(i, w.pod.Spec.NodeName, w.pod.UID, accelerator)
	}
	if power := w.wantedPower(); below(power, i.Spec.Power) {
		i.Spec.Power = power
	}
	i.Spec.Migration = w.sourceOrder()
	i.Spec.RebootAction = v1alpha1.RebootReset
	if len(w.changes()) > 0 || w.bootOrderChanged() {
		i.Spec.RebootAction = v1alpha1.RebootShutdown
	}
	return i
}

// bindable says that the Instance may be given to its pod's node: the pod is the
// recorded one and nothing wants the process to end.
func (w *world) bindable() (v1alpha1.Accelerator, bool) {
	if w.instance.Spec.NodeName != "" || w.pod == nil || w.node == nil || w.pod.Spec.NodeName != w.node.Name ||
		w.record.PodUID != w.pod.UID || w.mustEnd() {
		return "", false
	}
	switch w.node.Labels[v1alpha2.LabelNodeAccelerator] {
	case "kvm":
		return v1alpha1.AcceleratorKVM, true
	case "tcg":
		return v1alpha1.AcceleratorTCG, true
	default:
		return "", false
	}
}

// below orders the power states; a process is only ever taken further down.
func below(a, b v1alpha1.PowerState) bool {
	order := []v1alpha1.PowerState{v1alpha1.PowerKill, v1alpha1.PowerOff, v1alpha1.PowerOn}
	return slices.Index(order, a) < slices.Index(order, b)
}

// pod makes the launcher pod of an Instance, keeps its labels, and removes it once
// the end of the process has been recorded.
func pod(w *world) (steps.Outcome, steps.Act) {
	switch {
	case w.pod == nil:
		if !w.live() || w.mustEnd() || w.instance == nil || w.record.PodUID != "" || w.instance.Spec.Power != v1alpha1.PowerOn || !w.canStart() {
			return steps.Outcome{}, nil
		}
		return steps.Outcome{}, steps.Create{Object: plan.LauncherPod(w.launch(), w.instance)}
	case !w.live():
		return steps.Outcome{}, steps.Delete{Object: w.pod, Finalizer: v1alpha2.FinalizerPodProtection,
			Now: policy.OutOfService(w.node)}
	case w.mustEnd() && w.unstarted() && w.pod.DeletionTimestamp == nil:
		// No handler has the process in hand, so the kubelet ends the pod. The finalizer
		// stays until there is proof.
		return steps.Outcome{}, steps.Delete{Object: w.pod}
	case w.pod.DeletionTimestamp != nil:
		return steps.Outcome{}, nil
	}
	if fresh, changed := plan.RefreshedMetadata(w.pod, w.vm); changed {
		return steps.Outcome{}, w.act.relabel(w.pod, fresh)
	}
	return steps.Outcome{}, nil
}

// unstarted is true while no handler is known to have a process in hand: none has
// taken the Instance up, or it is called off before QEMU ran, or the Instance was torn
// away. Should QEMU start all the same, the pod's launcher shuts it down. An Instance
// without a node needs no handler to be over.
func (w *world) unstarted() bool {
	if w.instance == nil {
		return true
	}
	phase := w.instance.Status.Phase
	return w.instance.Spec.NodeName != "" && w.instance.Spec.Power != v1alpha1.PowerOn && w.instance.Status.StartTime == nil &&
		(phase == v1alpha1.InstancePending || phase == v1alpha1.InstanceStarting)
}

// running is the condition users look at first.
func running(w *world) (steps.Outcome, steps.Act) {
	if !w.live() {
		return notLive(w), nil
	}
	if o, moving := movingOutcome(w); moving {
		return o, nil
	}
	i := w.instance
	switch {
	case w.podLost() && w.pod == nil:
		return steps.Waiting(v1alpha2.MachineReasonPodNotFound, "Pod %s is gone, waiting for proof that its process has ended%s",
			w.record.Name, w.fencingHint()), nil
	case w.mustEnd():
		return steps.Waiting(v1alpha2.MachineReasonPodTerminating, "The guest is being shut down%s", w.fencingHint()), nil
	case i == nil:
		return steps.Waiting(v1alpha2.MachineReasonPodNotStarted, "Instance %s is being created", w.record.Name), nil
	case w.pod == nil:
		return steps.Waiting(v1alpha2.MachineReasonPodNotStarted, "Pod %s is being created", w.record.Name), nil
	case i.Status.Phase == v1alpha1.InstancePending:
		message := podProblem(w.pod)
		if message == "" && i.Status.Message != "" {
			message = i.Status.Message
		}
		if message == "" {
			message = "Pod " + w.pod.Name + " is being started"
		}
		return steps.Waiting(v1alpha2.MachineReasonPodNotStarted, "%s", message), nil
	}
	return guestState(i), nil
}

// notLive tells why there is no process.
func notLive(w *world) steps.Outcome {
	wanted := w.wantsOn(policy.RememberPower(w.vm.Spec.RunPolicy, w.record.Power))
	switch pause := w.retryIn(); {
	case !w.gone():
		return steps.Waiting(v1alpha2.MachineReasonPodTerminating, "Pod %s is being removed", w.record.Name)
	case !wanted:
		return steps.Waiting(v1alpha2.MachineReasonNotRunning, "The machine is stopped")
	case w.record.Failures > 0 && pause > 0:
		return steps.Failed(v1alpha2.MachineReasonInternalVirtualMachineError, "The last %d starts failed (%s), trying again soon",
			w.record.Failures, failure(w.record)).Within(pause)
	case !w.canStart():
		return steps.Waiting(v1alpha2.MachineReasonNotRunning, "The machine waits for what it depends on, see the other conditions")
	}
	return steps.Waiting(v1alpha2.MachineReasonNotRunning, "The machine is about to start")
}

func failure(r v1alpha2.InstanceRecord) string {
	if r.ExitMessage != "" {
		return r.Exit + ": " + strings.TrimRight(r.ExitMessage, ".\n")
	}
	return r.Exit
}

// guestState tells what the handler last saw.
func guestState(i *v1alpha1.Instance) steps.Outcome {
	if i.Status.Exit != nil {
		return steps.Waiting(v1alpha2.MachineReasonNotRunning, "The process has ended")
	}
	switch i.Status.Phase {
	case v1alpha1.InstanceRunning:
		return steps.Done(v1alpha2.MachineReasonRunning, "The guest runs on node %s", i.Spec.NodeName)
	case v1alpha1.InstancePaused:
		return steps.Failed(v1alpha2.MachineReasonGuestNotRunning, "%s", pauseMessage(i))
	case v1alpha1.InstanceStopping:
		return steps.Waiting(v1alpha2.MachineReasonPodTerminating, "The guest is shutting down")
	case v1alpha1.InstanceStopped:
		return steps.Waiting(v1alpha2.MachineReasonNotRunning, "The process has ended")
	default:
		message := "The process is being started on node " + i.Spec.NodeName
		if i.Status.Message != "" {
			message = i.Status.Message
		}
		return steps.Waiting(v1alpha2.MachineReasonGuestNotRunning, "%s", message)
	}
}

func pauseMessage(i *v1alpha1.Instance) string {
	why := map[string]string{
		"NoSpace":       "The guest is paused because a disk has no space left, and resumes by itself when there is space again",
		"IOError":       "The guest is paused because a disk fails, and resumes by itself when the disk works again",
		"GuestPanicked": "The guest is paused because its kernel has crashed: restart the machine",
		"Suspended":     "The guest has suspended itself",
	}[i.Status.PauseReason]
	if why == "" {
		why = "The guest is paused"
	}
	if i.Status.Message != "" {
		why += " (" + i.Status.Message + ")"
	}
	return why
}

// podProblem finds in a pod that does not run yet what stands in its way.
func podProblem(p *corev1.Pod) string {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			return "Pod " + p.Name + " cannot be placed: " + strings.TrimRight(c.Message, ".")
		}
	}
	for _, s := range p.Status.ContainerStatuses {
		if wait := s.State.Waiting; wait != nil && wait.Reason != "" && wait.Reason != "ContainerCreating" && wait.Reason != "PodInitializing" {
			message := "Pod " + p.Name + " cannot start: " + wait.Reason
			if wait.Message != "" {
				message += ": " + strings.TrimRight(wait.Message, ".")
			}
			return message
		}
	}
	return ""
}

// stuck is true while the pod cannot be placed or started: the machine is Pending then.
func stuck(p *corev1.Pod) bool {
	return podProblem(p) != ""
}

// fencingHint is added where nobody can tell whether a process lives because its
// node does not answer.
func (w *world) fencingHint() string {
	name := w.record.NodeName
	if name == "" {
		return ""
	}
	if w.node != nil && nodeReady(w.node) {
		return ""
	}
	return ": node " + name + " does not answer; if it is powered off for certain, taint it with " + corev1.TaintNodeOutOfService
}

func nodeReady(n *corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return true
}
