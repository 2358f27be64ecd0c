package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
)

// DrainTaint on a node asks all machines to leave it.
const DrainTaint = "kubevirt.internal.virtualization.deckhouse.io/drain"

// Migrates says whether an operation of that type moves a machine.
func Migrates(t v1alpha2.OperationType) bool {
	return t == v1alpha2.OperationEvict || t == v1alpha2.OperationMigrate
}

// AutoConverge says whether a migration may slow the guest down until the copy keeps
// up. system is the platform's own policy, which overrides the machine's and the
// operation's wish; evacuation is true for operations that the platform made. A
// refusal says why there must be no such migration at all.
func AutoConverge(own v1alpha2.LiveMigrationPolicy, system string, force *bool, evacuation bool) (on bool, refusal string) {
	switch system {
	case "":
	case "Never":
		return false, "Live migration is switched off by the system migration policy Never"
	case "Manual":
		if evacuation {
			return false, "The system migration policy Manual leaves migrations to users: migrate or stop the machine"
		}
		return false, ""
	default:
		own, force = v1alpha2.LiveMigrationPolicy(system), nil
	}
	switch own {
	case v1alpha2.AlwaysSafe:
		if force != nil && *force {
			return false, "The live migration policy AlwaysSafe forbids force: leave force out, or change the policy of the machine"
		}
		return false, ""
	case v1alpha2.AlwaysForced:
		if force != nil && !*force {
			return false, "The live migration policy AlwaysForced demands force: leave force out, or change the policy of the machine"
		}
		return true, ""
	case v1alpha2.PreferForced:
		return force == nil || *force, ""
	default:
		return force != nil && *force, ""
	}
}

// MigrationReport is what the handler of one end says about a migration, nil if it
// has said nothing about this one yet.
func MigrationReport(instance *v1alpha1.Instance, operation types.UID) *v1alpha1.MigrationStatus {
	if instance == nil || instance.Status.Migration == nil || instance.Status.Migration.ID != string(operation) {
		return nil
	}
	return instance.Status.Migration
}

// Reported says whether a report has one of these phases.
func Reported(report *v1alpha1.MigrationStatus, phases ...v1alpha1.MigrationPhase) bool {
	return report != nil && slices.Contains(phases, report.Phase)
}

// Move is how far a migration is, for its operation.
type Move struct {
	Reason  v1alpha2.Reason
	Percent int
	Message string
}

// MigrationProgress reads from the two ends of a migration how far it is. pod is the
// target's; everything but t may be nil.
func MigrationProgress(t *v1alpha2.MigrationTarget, source, target *v1alpha1.Instance, pod *corev1.Pod) Move {
	from, to := MigrationReport(source, t.Operation), MigrationReport(target, t.Operation)
	switch {
	case Reported(to, v1alpha1.MigrationCompleted):
		return Move{v1alpha2.OperationReasonTargetResumed, 92, "The guest runs on node " + t.NodeName}
	case t.SourceCompleted || Reported(from, v1alpha1.MigrationSwitching, v1alpha1.MigrationCompleted):
		return Move{v1alpha2.OperationReasonSourceSuspended, 91, "The last of the guest is handed over to node " + t.NodeName}
	case t.Reason != "":
		return Move{t.Reason, 0, "The migration is being called off: " + t.Message}
	case Reported(from, v1alpha1.MigrationTransferring):
		return transferring(t, from)
	case t.Syncing:
		return Move{v1alpha2.OperationReasonSyncing, 10, "The transfer to node " + t.NodeName + " begins"}
	case Reported(to, v1alpha1.MigrationReady):
		return Move{v1alpha2.OperationReasonWaitingForSyncSlot, 4, "Waiting until nodes of this migration have no other transfer to do"}
	}
	return preparing(t, target, pod)
}

func preparing(t *v1alpha2.MigrationTarget, target *v1alpha1.Instance, pod *corev1.Pod) Move {
	if t.NodeName == "" {
		if why := unschedulable(pod); why != "" {
			return Move{v1alpha2.OperationReasonTargetUnschedulable, 2, "Pod " + t.Name + " cannot be placed: " + why}
		}
		return Move{v1alpha2.OperationReasonTargetScheduling, 2, "Pod " + t.Name + " is being placed on another node"}
	}
	m := Move{v1alpha2.OperationReasonTargetPreparing, 3, "Pod " + t.Name + " is being prepared on node " + t.NodeName}
	if target != nil && target.Status.Message != "" {
		m.Message = strings.TrimRight(target.Status.Message, ".")
		if aboutDisks(m.Message) {
			m.Reason = v1alpha2.OperationReasonTargetDiskError
		}
	}
	return m
}

// transferring spreads the bulk copy over 10 to 45 percent and what follows over 45
// to 90: the less is left, the nearer the end.
func transferring(t *v1alpha2.MigrationTarget, from *v1alpha1.MigrationStatus) Move {
	m := Move{Reason: v1alpha2.OperationReasonSyncing, Percent: 10}
	copied := int64(0)
	if from.TotalBytes > 0 {
		copied = max(0, from.TotalBytes-from.RemainingBytes)
		m.Percent = 10 + int(35*copied/from.TotalBytes)
		if from.Iteration > 1 {
			m.Percent = 45 + int(45*copied/from.TotalBytes)
		}
	}
	const mebibyte = 1 << 20
	m.Message = fmt.Sprintf("The guest's memory is copied to node %s: %d MiB of %d MiB left", t.NodeName, from.RemainingBytes/mebibyte, from.TotalBytes/mebibyte)
	if from.NotConverging {
		m.Reason = v1alpha2.OperationReasonNotConverging
		m.Message += ", and the guest changes it faster than it can be copied"
	}
	return m
}

func unschedulable(pod *corev1.Pod) string {
	if pod == nil {
		return ""
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			return strings.TrimRight(c.Message, ".")
		}
	}
	return ""
}

// MigrationFailure puts what an end says about its failure into the words of the API.
func MigrationFailure(report *v1alpha1.MigrationStatus) v1alpha2.Reason {
	text := strings.ToLower(report.Reason + " " + report.Message)
	switch {
	case report.Reason == "Aborted":
		return v1alpha2.OperationReasonAborted
	case strings.Contains(text, "converg"), strings.Contains(text, "progress"):
		return v1alpha2.OperationReasonNotConverging
	case strings.Contains(text, "schedul"):
		return v1alpha2.OperationReasonTargetUnschedulable
	case aboutDisks(text):
		return v1alpha2.OperationReasonTargetDiskError
	default:
		return v1alpha2.OperationReasonFailed
	}
}

func aboutDisks(text string) bool {
	text = strings.ToLower(text)
	return slices.ContainsFunc([]string{"csi", "attach", "volume", "disk"}, func(word string) bool { return strings.Contains(text, word) })
}

// Shared says whether a volume can be used on two nodes at once.
func Shared(claim *corev1.PersistentVolumeClaim) bool {
	return slices.Contains(claim.Spec.AccessModes, corev1.ReadWriteMany)
}

// TargetLabels are what a node must carry to take over a guest that runs on another
// one: the same accelerator, and the guest's processor model where nodes say which
// ones they offer.
func TargetLabels(instance *v1alpha1.Instance, node *corev1.Node) map[string]string {
	wanted := map[string]string{v1alpha2.LabelNodeSchedulable: "true"}
	switch instance.Spec.Machine.Accelerator {
	case v1alpha1.AcceleratorKVM:
		wanted[v1alpha2.LabelNodeAccelerator] = "kvm"
	case v1alpha1.AcceleratorTCG:
		wanted[v1alpha2.LabelNodeAccelerator] = "tcg"
	}
	model := v1alpha2.LabelNodeCPUModelPrefix + instance.Spec.Machine.CPU.Model
	if node != nil && node.Labels[model] != "" {
		wanted[model] = node.Labels[model]
	}
	return wanted
}

// CanTake says whether a node could take a guest over from another node.
func CanTake(node *corev1.Node, from string, wanted map[string]string) bool {
	if node.Name == from || node.Spec.Unschedulable || node.DeletionTimestamp != nil {
		return false
	}
	for k := range maps.Keys(wanted) {
		if node.Labels[k] != wanted[k] {
			return false
		}
	}
	return true
}

// Leaving says whether a node asks its machines to go: an administrator or a tool has
// tainted it, or its kubelet is shutting it down. A cordoned node does not ask.
func Leaving(node *corev1.Node) bool {
	if node == nil {
		return false
	}
	for _, t := range node.Spec.Taints {
		if t.Key == DrainTaint {
			return true
		}
	}
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status == corev1.ConditionFalse && strings.Contains(c.Message, "node is shutting down") {
			return true
		}
	}
	return false
}

// OlderOperation orders operations: by their creation, and within one second by UID,
// so that of two at least one knows that it comes first.
func OlderOperation(a, b *v1alpha2.VirtualMachineOperation) bool {
	if a.CreationTimestamp.Equal(&b.CreationTimestamp) {
		return a.UID < b.UID
	}
	return a.CreationTimestamp.Before(&b.CreationTimestamp)
}

// Evacuation says whether the platform made an operation to empty a node.
func Evacuation(o *v1alpha2.VirtualMachineOperation) bool {
	_, found := o.Annotations[v1alpha2.AnnotationEvacuation]
	return found
}

// FailedEvacuation finds an evacuation of a machine that failed. While it stands there,
// no other is tried.
func FailedEvacuation(all []v1alpha2.VirtualMachineOperation, vm string) *v1alpha2.VirtualMachineOperation {
	for i := range all {
		o := &all[i]
		if o.Spec.VirtualMachineName == vm && Evacuation(o) && o.Status.Phase == v1alpha2.OperationFailed && o.DeletionTimestamp == nil {
			return o
		}
	}
	return nil
}

// Unfinished says whether a machine has an operation that has not ended.
func Unfinished(all []v1alpha2.VirtualMachineOperation, vm string) bool {
	return slices.ContainsFunc(all, func(o v1alpha2.VirtualMachineOperation) bool {
		return o.Spec.VirtualMachineName == vm && !OperationFinished(o.Status.Phase)
	})
}

// MachineOf is the name of a launcher pod's machine.
func MachineOf(pod *corev1.Pod) string { return pod.Labels[v1alpha2.LabelVirtualMachineName] }
