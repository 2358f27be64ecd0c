package vm

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/plan"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/settings"
)

// A migration is a second process beside the present one, remembered in
// status.instance.target:
//
//	recorded → Instance and Pod → bound to a node → the target's handler is Ready
//	   │          syncing: recorded, then the source is told
//	   │             │── the source reports Completed: recorded, then the target is told
//	   │             │        └── the target reports Completed: it becomes the present process
//	   └─ called off ┴── the source reports Failed, or was never told: the target goes
//
// Until the source has been told, the target can be dropped at will. From then on the
// source's word decides and nothing else does: while it is missing, neither end is
// touched. Whoever is left behind becomes a former process and is killed.
const (
	// prepareTime is how long a target may take until it is ready.
	prepareTime = 5 * time.Minute
	// turnTime is how soon a machine that waits for its turn asks again: a turn can be
	// given back without any object changing.
	turnTime = 10 * time.Second
	// mostFormer is how many processes of one machine may wait for the proof of their
	// death before no further one is added.
	mostFormer = 3
)

// process is what there is of a process beside the present one.
type process struct {
	instance *v1alpha1.Instance
	pod      *corev1.Pod
	node     *corev1.Node
}

// moves is the part of the world that is about migration.
type moves struct {
	// target is what there is of record.Target, former of record.Former in its order.
	target process
	former []process
	// claims are those of the running process's disks, by name; a claim that does not
	// exist is missing.
	claims map[string]*corev1.PersistentVolumeClaim
	// elsewhere is true if another node could take the guest.
	elsewhere bool
	// turn says whether the limits let the next stage begin; turnProblem says why not.
	turn        bool
	turnProblem string
	// firstBoot is what the source's Secret holds, while the target's is missing.
	firstBoot       map[string][]byte
	firstBootGone   bool
	budget          *policyv1.PodDisruptionBudget
	migration       settings.Migration
	launcherProblem string
}

func (p process) gone() bool { return p.instance == nil && p.pod == nil }

// death is policy.Death for a process beside the present one; uid is that of its only pod.
func (p process) death(uid types.UID) (v1alpha1.Exit, bool) {
	if p.gone() && uid == "" {
		return v1alpha1.Exit{Cause: policy.ExitNeverStarted}, true
	}
	pod := p.pod
	if pod != nil && uid != "" && pod.UID != uid {
		pod = nil
	}
	return policy.Death(p.instance, pod, p.node)
}

// beside finds the place of an object that belongs to a process beside the present one.
func (w *world) beside(name string) *process {
	if t := w.record.Target; t != nil && t.Name == name {
		return &w.target
	}
	for i := range w.record.Former {
		if w.record.Former[i].Name == name {
			return &w.former[i]
		}
	}
	return nil
}

// sourceReport and targetReport are what the two handlers say about this migration.
func (w *world) sourceReport() *v1alpha1.MigrationStatus {
	if w.record.Target == nil {
		return nil
	}
	return policy.MigrationReport(w.instance, w.record.Target.Operation)
}

func (w *world) targetReport() *v1alpha1.MigrationStatus {
	if w.record.Target == nil {
		return nil
	}
	return policy.MigrationReport(w.target.instance, w.record.Target.Operation)
}

// handedOver is true once the guest has left the present process for good.
func (w *world) handedOver() bool {
	return w.record.Target != nil && (w.record.Target.SourceCompleted || policy.Reported(w.sourceReport(), v1alpha1.MigrationCompleted))
}

// guestLost is true when the guest has left the present process and the one it went
// to is proven dead without ever having run it.
func (w *world) guestLost() bool {
	if !w.handedOver() || policy.Reported(w.targetReport(), v1alpha1.MigrationCompleted) {
		return false
	}
	_, dead := w.target.death(w.record.Target.PodUID)
	return dead
}

// unsettled is true while the source has been told to move its guest and has not said
// how that ended: what is wanted of it else has to wait.
func (w *world) unsettled() bool {
	t := w.record.Target
	return t != nil && t.Syncing && w.instance != nil && !policy.Reported(w.sourceReport(), v1alpha1.MigrationFailed)
}

// moving is true while users see the machine move.
func (w *world) moving() bool {
	t := w.record.Target
	if t == nil || !w.live() || w.mustEnd() {
		return false
	}
	return w.handedOver() || t.Reason == "" && t.NodeName != "" && w.guestRuns()
}

// guestRuns is true while the present process runs the guest, also in the moment in
// which it stands still for the hand-over.
func (w *world) guestRuns() bool {
	if w.instance == nil || w.instance.Status.Exit != nil {
		return false
	}
	phase := w.instance.Status.Phase
	return phase == v1alpha1.InstanceRunning ||
		phase == v1alpha1.InstancePaused && policy.Reported(w.sourceReport(), v1alpha1.MigrationSwitching, v1alpha1.MigrationCompleted)
}

// migrationOperation is the accepted migration that comes next. One that has had its
// migration is none, and while its own controller has not closed it, neither is any other.
func (w *world) migrationOperation() *v1alpha2.VirtualMachineOperation {
	var first *v1alpha2.VirtualMachineOperation
	for i := range w.operations {
		o := &w.operations[i]
		if !policy.Migrates(o.Spec.Type) || o.Status.Phase != v1alpha2.OperationInProgress || o.DeletionTimestamp != nil {
			continue
		}
		if m := w.record.Migrated; m != nil && m.Operation == o.UID {
			return nil
		}
		if first == nil || policy.OlderOperation(o, first) {
			first = o
		}
	}
	return first
}

// ordered is the operation of the present migration, nil if it is over or gone.
func (w *world) ordered() *v1alpha2.VirtualMachineOperation {
	for i := range w.operations {
		o := &w.operations[i]
		if o.UID == w.record.Target.Operation && o.Status.Phase == v1alpha2.OperationInProgress && o.DeletionTimestamp == nil {
			return o
		}
	}
	return nil
}

// mayBegin says whether a machine's guest can be moved now, but for the limits.
func (w *world) mayBegin(r *v1alpha2.InstanceRecord) bool {
	asked := r.Signal != nil && r.Signal.Counter == r.Counter && r.Signal.Type != v1alpha2.OperationStart
	if !w.live() || r.Exit != "" || asked || w.mustEnd() || r.Target != nil || len(r.Former) >= mostFormer {
		return false
	}
	if slices.ContainsFunc(r.Former, func(f v1alpha2.FormerProcess) bool { return f.Blocks }) {
		return false
	}
	_, obstacle := w.obstacle()
	return obstacle == "" && w.guestRuns() && w.devicesSettled() && w.migrationOperation() != nil
}

// devicesSettled is true while no device is on its way into the guest or out of it:
// the target is started with those that the source has.
func (w *world) devicesSettled() bool {
	for _, d := range w.instance.Spec.Machine.Disks {
		if s := policy.DeviceStatus(w.instance, d.ID); d.Hotplugged && (s == nil || !s.Attached) {
			return false
		}
	}
	return !slices.ContainsFunc(w.record.Slots, func(s v1alpha2.DeviceSlot) bool {
		return policy.Device(w.instance, s.ID) == nil && !policy.DeviceGone(w.instance, s.ID)
	})
}

// takeMigration is what remember says about a migration.
func takeMigration(w *world, r *v1alpha2.InstanceRecord) {
	takeFormer(w, r)
	if r.Target == nil {
		beginMigration(w, r)
		return
	}
	t := r.Target.DeepCopy()
	r.Target = t
	takeTargetPod(w, t)
	t.SourceCompleted = t.SourceCompleted || policy.Reported(w.sourceReport(), v1alpha1.MigrationCompleted)
	switch {
	case policy.Reported(w.targetReport(), v1alpha1.MigrationCompleted):
		promote(w, r)
		return
	case t.SourceCompleted:
		// The target must run the guest now, or the guest is lost.
		if r.Exit == "" {
			return
		}
		t.Reason, t.Message = v1alpha2.OperationReasonFailed, "The process on node "+t.NodeName+" ended before it ran the guest"
	case t.Reason == "":
		t.Reason, t.Message = w.callOff(r)
	}
	switch {
	case t.Reason != "" && w.settled(r):
		dropTarget(r, r.Exit != "" && t.Syncing)
	case t.Reason == "" && !t.Syncing && w.turn && w.readyToSync():
		t.Syncing = true
	}
}

// beginMigration takes an operation up.
func beginMigration(w *world, r *v1alpha2.InstanceRecord) {
	if !w.turn || !w.mayBegin(r) {
		return
	}
	o := w.migrationOperation()
	r.Counter++
	r.Target = &v1alpha2.MigrationTarget{Operation: o.UID, Type: o.Spec.Type, Name: plan.InstanceName(w.vm.Name, r.Counter),
		StartTime: metav1.NewTime(w.now.Truncate(time.Second))}
	if o.Spec.Migrate != nil {
		r.Target.NodeSelector = o.Spec.Migrate.NodeSelector
	}
}

// takeTargetPod records the only pod the target may start in, and its node.
func takeTargetPod(w *world, t *v1alpha2.MigrationTarget) {
	if w.target.pod == nil {
		return
	}
	if t.PodUID == "" {
		t.PodUID = w.target.pod.UID
	}
	if t.PodUID == w.target.pod.UID && w.target.pod.Spec.NodeName != "" {
		t.NodeName = w.target.pod.Spec.NodeName
	}
}

// readyToSync is true when the target listens.
func (w *world) readyToSync() bool {
	report := w.targetReport()
	return policy.Reported(report, v1alpha1.MigrationReady) && report.Endpoint != ""
}

// settled says that the target will never get the guest: the source has not been told
// of it, or has said that the guest stays, or is proven dead.
func (w *world) settled(r *v1alpha2.InstanceRecord) bool {
	return !w.record.Target.Syncing || policy.Reported(w.sourceReport(), v1alpha1.MigrationFailed) || r.Exit != ""
}

// promote makes the target the present process.
func promote(w *world, r *v1alpha2.InstanceRecord) {
	t := r.Target
	r.Former = append(slices.Clone(r.Former), v1alpha2.FormerProcess{Name: r.Name, PodUID: r.PodUID, NodeName: r.NodeName, Blocks: true})
	from := r.NodeName
	r.Name, r.PodUID, r.NodeName = t.Name, t.PodUID, t.NodeName
	r.Exit, r.ExitMessage, r.ExitTime = "", "", nil
	r.Target = nil
	r.Migrated = &v1alpha2.MigrationOutcome{Operation: t.Operation, Reason: v1alpha2.OperationReasonCompleted,
		Message: fmt.Sprintf("The guest moved from node %s to node %s", from, t.NodeName)}
	_ = w
}

// dropTarget leaves the target behind. It blocks further processes if its source died
// without a word: then nobody can say that the target never gets the guest.
func dropTarget(r *v1alpha2.InstanceRecord, blocks bool) {
	t := r.Target
	r.Former = append(slices.Clone(r.Former), v1alpha2.FormerProcess{Name: t.Name, PodUID: t.PodUID, NodeName: t.NodeName, Blocks: blocks})
	r.Migrated = &v1alpha2.MigrationOutcome{Operation: t.Operation, Reason: t.Reason, Message: t.Message}
	r.Target = nil
}

// takeFormer records proofs of death, and forgets processes that are dead and gone.
func takeFormer(w *world, r *v1alpha2.InstanceRecord) {
	var left []v1alpha2.FormerProcess
	for i, f := range r.Former {
		if f.Exit != "" && w.former[i].gone() {
			continue
		}
		if exit, dead := w.former[i].death(f.PodUID); dead && f.Exit == "" {
			f.Exit = string(exit.Cause)
		}
		left = append(left, f)
	}
	r.Former = left
}

// blocked is true while a process beside the present one may hold the guest.
func blocked(r v1alpha2.InstanceRecord) bool {
	return r.Target != nil || slices.ContainsFunc(r.Former, func(f v1alpha2.FormerProcess) bool { return f.Blocks && f.Exit == "" })
}

// alone is true when no process beside the present one is left.
func (w *world) alone() bool { return w.record.Target == nil && len(w.record.Former) == 0 }

// callOff finds a reason not to go on with a migration whose guest has not left yet.
func (w *world) callOff(r *v1alpha2.InstanceRecord) (v1alpha2.Reason, string) {
	t, from, to := r.Target, w.sourceReport(), w.targetReport()
	switch {
	case r.Exit != "":
		return v1alpha2.OperationReasonAborted, "The process that was to be moved has ended: " + r.Exit
	case w.mustEnd():
		return v1alpha2.OperationReasonAborted, "The machine is being stopped"
	case policy.Reported(from, v1alpha1.MigrationFailed):
		return policy.MigrationFailure(from), said("The transfer failed", from)
	case w.ordered() == nil:
		return v1alpha2.OperationReasonAborted, "The operation was deleted or superseded"
	case policy.Reported(to, v1alpha1.MigrationFailed):
		return policy.MigrationFailure(to), said("The process on node "+t.NodeName+" failed", to)
	}
	if reason, message := w.targetLost(t); reason != "" {
		return reason, message
	}
	if !t.Syncing && !w.readyToSync() && !w.now.Before(w.prepareBy()) {
		move := policy.MigrationProgress(t, w.instance, w.target.instance, w.target.pod)
		if move.Reason == v1alpha2.OperationReasonTargetScheduling || move.Reason == v1alpha2.OperationReasonTargetUnschedulable {
			return v1alpha2.OperationReasonTargetUnschedulable, move.Message + ", for 5 minutes"
		}
		if move.Reason != v1alpha2.OperationReasonTargetDiskError {
			move.Reason = v1alpha2.OperationReasonFailed
		}
		return move.Reason, move.Message + ", for 5 minutes"
	}
	return "", ""
}

func (w *world) prepareBy() time.Time { return w.record.Target.StartTime.Add(prepareTime) }

// targetLost finds out that the target can no longer take the guest.
func (w *world) targetLost(t *v1alpha2.MigrationTarget) (v1alpha2.Reason, string) {
	p := w.target
	switch {
	case t.PodUID != "" && (p.instance == nil || p.pod == nil || p.pod.UID != t.PodUID):
		return v1alpha2.OperationReasonFailed, "Pod " + t.Name + " or its Instance was deleted"
	case policy.PodDoomed(p.pod):
		return v1alpha2.OperationReasonFailed, "Pod " + t.Name + " is ending" + exitWords(p, t.PodUID)
	case p.instance != nil && (p.instance.DeletionTimestamp != nil || p.instance.Status.Exit != nil):
		return v1alpha2.OperationReasonFailed, "The process of pod " + t.Name + " has ended" + exitWords(p, t.PodUID)
	case t.NodeName != "" && p.node == nil, p.node != nil && !nodeReady(p.node), policy.OutOfService(p.node):
		return v1alpha2.OperationReasonFailed, "Node " + t.NodeName + " does not answer"
	case w.firstBootGone:
		return v1alpha2.OperationReasonFailed, "Secret " + w.record.Name + " with the first-boot data is gone: restart the machine before it is moved"
	}
	if t.NodeName != "" && p.node != nil && w.instance != nil {
		for k, v := range policy.TargetLabels(w.instance, w.node) {
			if k != v1alpha2.LabelNodeSchedulable && p.node.Labels[k] != v {
				return v1alpha2.OperationReasonTargetUnschedulable, fmt.Sprintf("Node %s no longer carries the label %s=%s", t.NodeName, k, v)
			}
		}
	}
	return "", ""
}

func exitWords(p process, uid types.UID) string {
	exit, dead := p.death(uid)
	if !dead {
		return ""
	}
	text := ": " + string(exit.Cause)
	if exit.Message != "" {
		text += ": " + strings.TrimRight(exit.Message, ".\n")
	}
	return text
}

func said(what string, report *v1alpha1.MigrationStatus) string {
	if report.Message == "" {
		return what + ": " + report.Reason
	}
	return what + ": " + strings.TrimRight(report.Message, ".")
}

// obstacle says why the machine cannot be moved while it runs; an empty message means
// that it can.
func (w *world) obstacle() (v1alpha2.Reason, string) {
	for _, d := range w.disks {
		if d.object != nil && d.claim != nil && !policy.Shared(d.claim) {
			return v1alpha2.MachineReasonVirtualMachineDisksNotMigratable, notShared("VirtualDisk "+d.ref.Name, d.claim)
		}
	}
	if !w.live() || w.instance == nil {
		return "", ""
	}
	for _, d := range w.instance.Spec.Machine.Disks {
		source := d.Source.PersistentVolumeClaim
		if source == nil {
			continue
		}
		if claim := w.claims[source.ClaimName]; claim != nil && !policy.Shared(claim) {
			return v1alpha2.MachineReasonVirtualMachineDisksNotMigratable, notShared("Disk "+d.ID, claim)
		}
	}
	switch n := w.instance.Spec.Network; {
	case n != nil && n.AddressSource == v1alpha1.AddressFromPod:
		return v1alpha2.MachineReasonVirtualMachineNonMigratable, "The machine's address belongs to its pod and cannot move with it"
	case w.launcherProblem != "":
		return v1alpha2.MachineReasonVirtualMachineNonMigratable, w.launcherProblem
	case w.instance.Spec.NodeName != "" && !w.elsewhere:
		return v1alpha2.MachineReasonVirtualMachineNonMigratable, fmt.Sprintf(
			"No other node can take the guest: it needs one that is not cordoned, runs machines with accelerator %s and offers processor model %s",
			w.instance.Spec.Machine.Accelerator, w.instance.Spec.Machine.CPU.Model)
	}
	return "", ""
}

func notShared(disk string, claim *corev1.PersistentVolumeClaim) string {
	modes := make([]string, len(claim.Spec.AccessModes))
	for i, m := range claim.Spec.AccessModes {
		modes[i] = string(m)
	}
	return fmt.Sprintf("%s is on a volume that one node alone can use (%s): use a StorageClass with ReadWriteMany", disk, strings.Join(modes, ", "))
}

// migrationState is the record that users see.
func migrationState(w *world, next *v1alpha2.InstanceRecord) *v1alpha2.MigrationState {
	s := w.vm.Status.MigrationState.DeepCopy()
	was := w.record.Target
	if next != nil && next.Target != nil {
		t := next.Target
		return &v1alpha2.MigrationState{StartTimestamp: t.StartTime.DeepCopy(),
			Source: v1alpha2.MigrationEnd{Node: next.NodeName, Pod: next.Name}, Target: v1alpha2.MigrationEnd{Node: t.NodeName, Pod: t.Name}}
	}
	if was == nil || s == nil || next == nil || next.Migrated == nil || next.Migrated.Operation != was.Operation {
		return s
	}
	s.EndTimestamp = new(metav1.NewTime(w.now.Truncate(time.Second)))
	s.Result = v1alpha2.MigrationFailed
	if next.Migrated.Reason == v1alpha2.OperationReasonCompleted {
		s.Result = v1alpha2.MigrationSucceeded
	}
	return s
}
