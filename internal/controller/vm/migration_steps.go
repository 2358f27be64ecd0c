package vm

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/plan"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/steps"
)

// migrationSteps are those of a migration; they act on the record as it was read.
var migrationSteps = []steps.Step[*world]{
	{Condition: v1alpha2.MachineConditionMigratable, Decide: migratable},
	{Condition: v1alpha2.MachineConditionMigrating, Decide: migrating},
	{Decide: targetInstance},
	{Decide: targetPod},
	{Decide: targetFirstBoot},
	{Decide: formerInstances},
	{Decide: formerPods},
	{Decide: budget},
}

// migratable says whether the machine can be moved while it runs.
func migratable(w *world) (steps.Outcome, steps.Act) {
	if reason, message := w.obstacle(); message != "" {
		return steps.Waiting(reason, "%s", message), nil
	}
	return steps.Done(v1alpha2.MachineReasonVirtualMachineMigratable, "The machine can move to another node while it runs"), nil
}

// migrating exists only while a migration is wanted or under way.
func migrating(w *world) (steps.Outcome, steps.Act) {
	t := w.record.Target
	if t == nil {
		if w.migrationOperation() == nil || !w.live() || w.mustEnd() {
			return steps.Absent(), nil
		}
		if _, obstacle := w.obstacle(); obstacle != "" {
			return steps.Waiting(v1alpha2.MachineReasonPending, "The migration waits: %s", obstacle), nil
		}
		if !w.turn && w.turnProblem != "" {
			return steps.Waiting(v1alpha2.MachineReasonPending, "The migration waits for its turn: %s", w.turnProblem).Within(turnTime), nil
		}
		return steps.Waiting(v1alpha2.MachineReasonPending, "The migration is about to begin"), nil
	}
	move := policy.MigrationProgress(t, w.instance, w.target.instance, w.target.pod)
	// The operation tells how much is left; here it would only make every pass a write.
	if move.Reason == v1alpha2.OperationReasonSyncing || move.Reason == v1alpha2.OperationReasonNotConverging {
		move.Message = "The guest is copied to node " + t.NodeName
	}
	switch {
	case t.Syncing || w.handedOver():
		return steps.Waiting(v1alpha2.MachineReasonInProgress, "%s", move.Message).As(metav1.ConditionTrue), nil
	case t.Reason == "" && w.readyToSync():
		return steps.Waiting(v1alpha2.MachineReasonReadyToMigrate, "%s", move.Message).Within(turnTime), nil
	default:
		return steps.Waiting(v1alpha2.MachineReasonPending, "%s", move.Message).Within(max(w.prepareBy().Sub(w.now), turnTime)), nil
	}
}

// wantedTarget says that the migration goes on, so its target is made and kept.
func (w *world) wantedTarget() bool {
	t := w.record.Target
	return t != nil && w.live() && w.instance != nil && (t.Reason == "" || t.SourceCompleted)
}

// targetInstance makes the Instance of the target, gives it to its pod's node, and
// tells it that the source has completed.
func targetInstance(w *world) (steps.Outcome, steps.Act) {
	t, i := w.record.Target, w.target.instance
	if !w.wantedTarget() {
		return steps.Outcome{}, nil
	}
	if i == nil {
		if t.PodUID != "" || w.handedOver() || !w.devicesSettled() {
			return steps.Outcome{}, nil
		}
		return steps.Outcome{}, steps.Create{Object: plan.TargetInstance(w.instance, t.Name, v1alpha1.Migration{ID: string(t.Operation),
			Role: v1alpha1.MigrationTarget, Peer: w.record.Name, PeerNode: w.record.NodeName})}
	}
	wanted := i.DeepCopy()
	if w.targetBindable() {
		wanted = plan.OnNode(i, t.NodeName, t.PodUID, w.instance.Spec.Machine.Accelerator)
	}
	if t.SourceCompleted && wanted.Spec.Migration != nil && wanted.Spec.Migration.ID == string(t.Operation) {
		wanted.Spec.Migration.SourceCompleted = true
	}
	if equality.Semantic.DeepEqual(wanted.Spec, i.Spec) {
		return steps.Outcome{}, nil
	}
	return steps.Outcome{}, steps.Apply{Object: wanted}
}

// targetBindable says that the target may be given to its pod's node: the pod is the
// recorded one, and the node is as the guest needs it.
func (w *world) targetBindable() bool {
	t, p := w.record.Target, w.target
	if p.instance.Spec.NodeName != "" || t.Reason != "" || w.mustEnd() || p.pod == nil || p.node == nil || p.pod.UID != t.PodUID || t.NodeName == "" ||
		p.pod.Spec.NodeName != t.NodeName || p.node.Name != t.NodeName || p.instance.DeletionTimestamp != nil || p.instance.Spec.Power != v1alpha1.PowerOn {
		return false
	}
	reason, _ := w.targetLost(t)
	return reason == ""
}

// targetPod makes the pod of the target.
func targetPod(w *world) (steps.Outcome, steps.Act) {
	t, p := w.record.Target, w.target
	if !w.wantedTarget() || t.PodUID != "" || p.pod != nil || p.instance == nil || p.instance.DeletionTimestamp != nil || t.Reason != "" {
		return steps.Outcome{}, nil
	}
	l := w.launchAgain()
	l.Name, l.Network = t.Name, *p.instance.Spec.Network
	return steps.Outcome{}, steps.Create{Object: plan.TargetPod(l, p.instance, w.record.NodeName, policy.TargetLabels(w.instance, w.node), t.NodeSelector)}
}

// launchAgain is what the present process was launched from: the target's pod has to
// have room for the same machine, whatever is wanted by now.
func (w *world) launchAgain() plan.Launch {
	l := plan.Launch{VM: w.vm.DeepCopy(), Class: &v1alpha2.VirtualMachineClass{}, LauncherImage: w.platform.LauncherImage, AllowEmulation: w.allowEmulation}
	if w.running != nil {
		l.VM.Spec = *w.running.DeepCopy()
	}
	switch {
	case w.runningClass != nil:
		l.Class.Spec = *w.runningClass.DeepCopy()
	case w.class != nil:
		l.Class = w.class
	}
	return l
}

// targetFirstBoot gives the target's pod the Secret that the source's has.
func targetFirstBoot(w *world) (steps.Outcome, steps.Act) {
	if !w.wantedTarget() || w.target.instance == nil || w.firstBoot == nil {
		return steps.Outcome{}, nil
	}
	return steps.Outcome{}, steps.Create{Object: plan.TargetFirstBootSecret(w.target.instance, w.firstBoot)}
}

// sourceOrder is what the present process is told about the migration: nothing until
// the record says that it may be told, and afterwards only that it is called off.
func (w *world) sourceOrder() *v1alpha1.Migration {
	t := w.record.Target
	if t == nil || !t.Syncing || w.handedOver() {
		return w.instance.Spec.Migration
	}
	if m := w.instance.Spec.Migration; m != nil && m.ID == string(t.Operation) {
		order := *m
		order.Abort = order.Abort || t.Reason != ""
		return &order
	}
	order := &v1alpha1.Migration{ID: string(t.Operation), Role: v1alpha1.MigrationSource, Peer: t.Name, PeerNode: t.NodeName,
		BandwidthBytes: w.migration.BandwidthBytes, ProgressTimeoutSeconds: w.migration.ProgressTimeout, Abort: t.Reason != ""}
	if report := w.targetReport(); report != nil {
		order.Endpoint = report.Endpoint
	}
	if o := w.ordered(); o != nil {
		order.AutoConverge, _ = policy.AutoConverge(w.vm.Spec.LiveMigrationPolicy, string(w.migration.Policy), o.Spec.Force, policy.Evacuation(o))
	}
	const gibibyte = 1 << 30
	memory := w.instance.Spec.Machine.Memory.Size.Value()
	order.CompletionTimeoutSeconds = w.migration.CompletionTimeoutPerGiB * ((memory + gibibyte - 1) / gibibyte)
	return order
}

// formerInstances ends what is left behind and removes it once it is proven dead.
func formerInstances(w *world) (steps.Outcome, steps.Act) {
	for i, f := range w.record.Former {
		in := w.former[i].instance
		switch {
		case in == nil:
		case f.Exit != "":
			return steps.Outcome{}, steps.Delete{Object: in, Finalizer: v1alpha2.FinalizerPodProtection}
		case in.Spec.Power != v1alpha1.PowerKill:
			wanted := in.DeepCopy()
			wanted.Spec.Power = v1alpha1.PowerKill
			if wanted.Spec.Migration != nil && wanted.Spec.Migration.Role == v1alpha1.MigrationTarget && !wanted.Spec.Migration.SourceCompleted {
				wanted.Spec.Migration.Abort = true
			}
			return steps.Outcome{}, steps.Apply{Object: wanted}
		}
	}
	return steps.Outcome{}, nil
}

// formerPods removes their pods. Where no handler has a process in hand, the kubelet
// ends the pod, and its word is the proof.
func formerPods(w *world) (steps.Outcome, steps.Act) {
	for i, f := range w.record.Former {
		p := w.former[i]
		switch {
		case p.pod == nil:
		case f.Exit != "":
			return steps.Outcome{}, steps.Delete{Object: p.pod, Finalizer: v1alpha2.FinalizerPodProtection, Now: policy.OutOfService(p.node)}
		case p.pod.DeletionTimestamp == nil && p.unstarted():
			return steps.Outcome{}, steps.Delete{Object: p.pod}
		}
	}
	return steps.Outcome{}, nil
}

// unstarted is true when no handler will ever report how a former process ended.
func (p process) unstarted() bool {
	i := p.instance
	return i == nil || i.Spec.Power == v1alpha1.PowerKill && i.Status.StartTime == nil &&
		(i.Status.Phase == v1alpha1.InstancePending || i.Status.Phase == v1alpha1.InstanceStarting)
}

// budget keeps both pods from eviction while the guest moves: beside the webhook, in
// case it does not answer.
func budget(w *world) (steps.Outcome, steps.Act) {
	wanted := w.record.Target != nil && w.live()
	switch {
	case wanted && w.budget == nil:
		return steps.Outcome{}, steps.Create{Object: plan.MigrationBudget(w.vm)}
	case !wanted && w.budget != nil && w.budget.DeletionTimestamp == nil && metav1.IsControlledBy(w.budget, w.vm):
		return steps.Outcome{}, steps.Delete{Object: w.budget}
	}
	return steps.Outcome{}, nil
}

// movingOutcome is the condition Running while the guest moves.
func movingOutcome(w *world) (steps.Outcome, bool) {
	if !w.moving() {
		return steps.Outcome{}, false
	}
	o := steps.Done(v1alpha2.MachineReasonRunning, "The guest runs and moves from node %s to node %s", w.record.NodeName, w.record.Target.NodeName)
	if w.handedOver() && w.target.node != nil && !nodeReady(w.target.node) {
		o = steps.Waiting(v1alpha2.MachineReasonGuestNotRunning,
			"The guest was handed over to node %s, which does not answer; if it is powered off for certain, taint it with %s",
			w.record.Target.NodeName, corev1.TaintNodeOutOfService)
	}
	return o, true
}
