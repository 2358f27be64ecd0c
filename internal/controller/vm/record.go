package vm

import (
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orlop.dev/orlop/api/core/v1alpha2"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/plan"
	"orlop.dev/orlop/internal/policy"
)

// remember computes what must be known before anything is done about it: the next
// value of status.instance. The steps act on the value as it was read, never on this
// one, so that whatever they do has been written down first.
func remember(w *world) *v1alpha2.InstanceRecord {
	r := w.record
	r.Power = policy.RememberPower(w.vm.Spec.RunPolicy, r.Power)
	takeSignal(w, &r)
	if w.live() {
		takePod(w, &r)
		takeSlots(w, &r)
		takeExit(w, &r)
	}
	takeMigration(w, &r)
	if nextCounter(w, r) {
		r.Counter++
		r.Name = plan.InstanceName(w.vm.Name, r.Counter)
		r.PodUID, r.NodeName, r.Exit, r.ExitMessage, r.ExitTime = "", "", "", "", nil
	}
	if equality.Semantic.DeepEqual(r, v1alpha2.InstanceRecord{}) {
		return nil
	}
	return &r
}

// takeSignal accepts an operation, or decides on a restart of our own.
func takeSignal(w *world, r *v1alpha2.InstanceRecord) {
	if w.deleting() {
		return
	}
	if o := w.operation(); o != nil && (r.Signal == nil || r.Signal.Operation != o.UID) {
		r.Signal = &v1alpha2.InstanceSignal{Operation: o.UID, Type: o.Spec.Type, Counter: r.Counter,
			Force: o.Spec.Force != nil && *o.Spec.Force}
		r.Failures = 0
		r.Power = v1alpha2.InstancePowerOn
		if o.Spec.Type == v1alpha2.OperationStop {
			r.Power = v1alpha2.InstancePowerOff
		}
		return
	}
	if w.automaticRestart() && w.live() && w.signalled() == nil && len(w.changes()) > 0 {
		r.Signal = &v1alpha2.InstanceSignal{Type: v1alpha2.OperationRestart, Counter: r.Counter}
	}
}

// takePod records the only pod the process may start in, and its node.
func takePod(w *world, r *v1alpha2.InstanceRecord) {
	if w.pod == nil {
		return
	}
	if r.PodUID == "" {
		r.PodUID = w.pod.UID
	}
	if r.PodUID == w.pod.UID && w.pod.Spec.NodeName != "" {
		r.NodeName = w.pod.Spec.NodeName
	}
}

// takeSlots records where the devices sit, before the Instance that says so is gone,
// and those that are still leaving it.
func takeSlots(w *world, r *v1alpha2.InstanceRecord) {
	if w.instance != nil {
		r.Slots = w.takenSlots()
	}
}

// takeExit records how the process ended once that is proven, and what it means for
// the wish to run.
func takeExit(w *world, r *v1alpha2.InstanceRecord) {
	exit, proven := w.death()
	if !proven || w.handedOver() && !w.guestLost() {
		return
	}
	// A signal for this very process has already said what is wanted next, also a
	// start that came while it was stopping.
	asked := r.Signal != nil && r.Signal.Counter == r.Counter
	r.Exit, r.ExitMessage = string(exit.Cause), exit.Message
	now := metav1.NewTime(w.now.Truncate(time.Second))
	r.ExitTime = &now
	r.Failures = policy.FailuresAfterExit(r.Failures, exit.Cause, w.uptime(exit))
	if asked {
		r.Failures = 0
	}
	if !w.deleting() {
		r.Power = policy.PowerAfterExit(w.vm.Spec.RunPolicy, r.Power, exit.Cause, asked)
	}
}

// death is policy.Death, and beside it the process that was called off before
// anything of it was created.
func (w *world) death() (v1alpha1.Exit, bool) {
	if w.gone() && w.record.PodUID == "" && (w.mustEnd() || !w.canStart()) {
		return v1alpha1.Exit{Cause: policy.ExitNeverStarted}, true
	}
	pod := w.pod
	if pod != nil && w.record.PodUID != "" && pod.UID != w.record.PodUID {
		pod = nil
	}
	return policy.Death(w.instance, pod, w.node)
}

func (w *world) uptime(exit v1alpha1.Exit) time.Duration {
	if w.instance == nil || w.instance.Status.StartTime == nil || exit.Time.IsZero() {
		return 0
	}
	return exit.Time.Sub(w.instance.Status.StartTime.Time)
}

// nextCounter says whether a new process may be prepared: it is wanted, the last one
// is proven dead and cleaned up, everything it needs is there, and the pause after
// failures is over.
func nextCounter(w *world, r v1alpha2.InstanceRecord) bool {
	if w.live() || !w.gone() || blocked(r) || !w.wantsOn(r.Power) || !w.canStart() || len(w.strayInstances)+len(w.strayPods) > 0 {
		return false
	}
	return w.retryIn() <= 0
}

func (w *world) retryIn() time.Duration {
	if w.record.ExitTime == nil {
		return 0
	}
	return policy.RetryIn(w.record.Failures, w.record.ExitTime.Time, w.now)
}
