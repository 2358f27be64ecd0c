package attachment

import (
	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/steps"
)

// status is the only writer of an attachment's status.
func status(w *world, d steps.Decision, errs steps.Errors) v1alpha2.VirtualMachineBlockDeviceAttachmentStatus {
	s := *w.attachment.Status.DeepCopy()
	s.Conditions = steps.Conditions(s.Conditions, d, errs, w.attachment.Generation, w.now)
	s.ObservedGeneration = w.attachment.Generation
	s.Phase = phase(w, d)
	s.VirtualMachineName = ""
	if w.vm != nil {
		s.VirtualMachineName = w.vm.Name
	}
	return s
}

func phase(w *world, d steps.Decision) v1alpha2.AttachmentPhase {
	if w.deleting() {
		return v1alpha2.AttachmentTerminating
	}
	o := d.Outcome(v1alpha2.AttachmentConditionAttached)
	switch v1alpha2.Reason(o.Reason) {
	case v1alpha2.AttachmentReasonAttached:
		return v1alpha2.AttachmentAttached
	case v1alpha2.AttachmentReasonAttachmentRequestSent:
		return v1alpha2.AttachmentInProgress
	default:
	}
	if o.State == steps.FailedState {
		return v1alpha2.AttachmentFailed
	}
	return v1alpha2.AttachmentPending
}
