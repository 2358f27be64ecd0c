package operation

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/settings"
	"orlop.dev/orlop/internal/steps"
)

// readyTime is how long an operation waits for its machine to become migratable.
const readyTime = 5 * time.Minute

// moving is true while the machine carries this operation out, moved once it has.
func (w *world) moving() bool {
	r := w.vm.Status.Instance
	return r != nil && r.Target != nil && r.Target.Operation == w.operation.UID
}

func (w *world) moved() bool {
	r := w.vm.Status.Instance
	return r != nil && r.Migrated != nil && r.Migrated.Operation == w.operation.UID
}

// precheckMigration decides whether a migration may begin.
func precheckMigration(w *world) verdict {
	spec, vm := w.operation.Spec, w.vm
	_, refusal := policy.AutoConverge(vm.Spec.LiveMigrationPolicy, w.systemPolicy, spec.Force, policy.Evacuation(w.operation))
	if refusal != "" {
		return failed(v1alpha2.OperationReasonNotApplicableForLiveMigrationPolicy, "%s", refusal)
	}
	// Two migrations look at each other here: the order decides, so that one goes on.
	for i := range w.others {
		o := &w.others[i]
		switch {
		case policy.Migrates(o.Spec.Type) && policy.OlderOperation(o, w.operation):
			return queued(v1alpha2.OperationReasonOtherMigrationInProgress, "VirtualMachineOperation %s moves the machine and has to finish first", o.Name)
		case !policy.Migrates(o.Spec.Type) && older(o, w.operation):
			return pending("VirtualMachineOperation %s has to finish first", o.Name)
		}
	}
	switch {
	case vm.Status.Phase == v1alpha2.MachineMigrating:
		return queued(v1alpha2.OperationReasonOtherMigrationInProgress, "VirtualMachine %s is being moved by another operation", vm.Name)
	case !policy.OperationPossible(spec.Type, false, vm.Status.Phase):
		return failed(v1alpha2.OperationReasonNotApplicableForVirtualMachinePhase, "%s is not possible in phase %s", spec.Type, vm.Status.Phase)
	}
	if v, ready := migratable(w); !ready {
		return v
	}
	return migrationPending(w)
}

// migratable waits a while for a machine that cannot be moved at present.
func migratable(w *world) (verdict, bool) {
	c := meta.FindStatusCondition(w.vm.Status.Conditions, v1alpha2.MachineConditionMigratable)
	if c == nil || c.Status != metav1.ConditionFalse {
		return verdict{}, true
	}
	left := w.operation.CreationTimestamp.Add(readyTime).Sub(w.now)
	if left <= 0 {
		return failed(v1alpha2.OperationReasonWaitingForVirtualMachineToBeReadyToMigrate, "VirtualMachine %s did not become migratable: %s", w.vm.Name, c.Message), false
	}
	v := queued(v1alpha2.OperationReasonWaitingForVirtualMachineToBeReadyToMigrate, "VirtualMachine %s cannot be moved: %s", w.vm.Name, c.Message)
	v.outcome = v.outcome.Within(left)
	return v, false
}

func queued(reason v1alpha2.Reason, format string, args ...any) verdict {
	return verdict{phase: v1alpha2.OperationPending, outcome: steps.Waiting(reason, format, args...)}
}

// migrationPending is an accepted migration that the machine has not taken up yet.
func migrationPending(w *world) verdict {
	message := fmt.Sprintf("%s of VirtualMachine %s waits for its turn", w.operation.Spec.Type, w.vm.Name)
	if c := meta.FindStatusCondition(w.vm.Status.Conditions, v1alpha2.MachineConditionMigrating); c != nil && c.Reason == v1alpha2.MachineReasonPending.String() {
		message = c.Message
	}
	return verdict{phase: v1alpha2.OperationInProgress, outcome: steps.Waiting(v1alpha2.OperationReasonMigrationPending, "%s", message)}
}

// migrationProgress reads from the machine and the two ends how far it is.
func migrationProgress(w *world) verdict {
	vm := w.vm
	switch {
	case w.moved():
		return migrationEnd(w, vm.Status.Instance.Migrated)
	case w.moving():
		move := policy.MigrationProgress(vm.Status.Instance.Target, w.source, w.target, w.pod)
		return verdict{phase: v1alpha2.OperationInProgress, outcome: steps.Waiting(move.Reason, "%s", move.Message), percent: move.Percent}
	case vm.Status.Phase != v1alpha2.MachineMigrating && !policy.OperationPossible(w.operation.Spec.Type, false, vm.Status.Phase):
		return failed(v1alpha2.OperationReasonNotApplicableForVirtualMachinePhase, "VirtualMachine %s is %s by now and cannot be moved", vm.Name, vm.Status.Phase)
	}
	if v, ready := migratable(w); !ready {
		if v.phase == v1alpha2.OperationPending {
			v.phase = v1alpha2.OperationInProgress // what was accepted stays accepted
		}
		return v
	}
	return migrationPending(w)
}

// migrationEnd waits until the machine shows where its guest runs now.
func migrationEnd(w *world, m *v1alpha2.MigrationOutcome) verdict {
	switch {
	case m.Reason != v1alpha2.OperationReasonCompleted:
		return failed(m.Reason, "%s", m.Message)
	case w.vm.Status.Phase == v1alpha2.MachineMigrating:
		return verdict{phase: v1alpha2.OperationInProgress, percent: 92, outcome: steps.Waiting(v1alpha2.OperationReasonTargetResumed, "%s", m.Message)}
	default:
		return verdict{phase: v1alpha2.OperationCompleted, percent: 100, outcome: steps.Done(v1alpha2.OperationReasonOperationCompleted, "%s", m.Message)}
	}
}

// percent is progress for users; it never goes back.
func percent(shown string, now int) string {
	before, err := strconv.Atoi(strings.TrimSuffix(shown, "%"))
	if err == nil {
		now = max(now, before)
	}
	return strconv.Itoa(now) + "%"
}

// +kubebuilder:rbac:groups="",resources=pods,verbs=get;list;watch
// +kubebuilder:rbac:groups=deckhouse.io,resources=moduleconfigs,verbs=get;list;watch
// +kubebuilder:rbac:groups=internal.virtualization.deckhouse.io,resources=instances,verbs=get;list;watch

// observeMigration reads the system's policy and both ends of the migration.
func (r *Reconciler) observeMigration(ctx context.Context, w *world) error {
	if !policy.Migrates(w.operation.Spec.Type) || w.vm == nil {
		return nil
	}
	s, err := settings.Load(ctx, r.Client)
	if err != nil && s == nil && !errors.Is(err, settings.ErrNotFound) {
		return err
	}
	if s != nil {
		w.systemPolicy = string(s.Migration.Policy)
	}
	if !w.moving() {
		return nil
	}
	record, source, target, pod := w.vm.Status.Instance, &v1alpha1.Instance{}, &v1alpha1.Instance{}, &corev1.Pod{}
	for _, want := range []struct {
		name   string
		object client.Object
		found  func()
	}{
		{record.Name, source, func() { w.source = source }},
		{record.Target.Name, target, func() { w.target = target }},
		{record.Target.Name, pod, func() { w.pod = pod }},
	} {
		err := r.Client.Get(ctx, client.ObjectKey{Namespace: w.vm.Namespace, Name: want.name}, want.object)
		if client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("get %s: %w", want.name, err)
		}
		if err == nil {
			want.found()
		}
	}
	return nil
}

// ofInstance wakes the unfinished operations of an Instance's machine.
func (r *Reconciler) ofInstance(ctx context.Context, o client.Object) []reconcile.Request {
	return r.requests(ctx, o.GetNamespace(), o.(*v1alpha1.Instance).Spec.VirtualMachine.Name, false)
}
