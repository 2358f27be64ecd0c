package address

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/steps"
)

// Event reasons for what has been done.
const (
	eventAllocated   = "IPAddressHasBeenAllocated"
	eventAttached    = "Attached"
	eventNotAttached = "NotAttached"
	eventBound       = "Bound"
	eventReleased    = "Released"
	eventDeleted     = "Deleted"
)

// claimEvents are the changes of Bound, the first lease of an address, and who began
// or ceased to use it.
func claimEvents(before, after *v1alpha2.VirtualMachineIPAddress, d steps.Decision) []steps.Event {
	told := steps.Decision{}
	for _, f := range d {
		if f.Condition != v1alpha2.AddressConditionAttached {
			told = append(told, f)
		}
	}
	all := steps.Transitions(before.Status.Conditions, after.Status.Conditions, told)
	if settled(after) && !settled(before) {
		all = append(all, normal(eventAllocated, "Address %s has been allocated", after.Status.Address))
	}
	switch was, is := before.Status.VirtualMachineName, after.Status.VirtualMachineName; {
	case is != "" && is != was:
		all = append(all, normal(eventAttached, "VirtualMachine %s uses the address", is))
	case is == "" && was != "":
		all = append(all, normal(eventNotAttached, "VirtualMachine %s no longer uses the address", was))
	}
	return all
}

// leaseEvents are the changes of hands of a lease, and its end.
func leaseEvents(before, after *v1alpha2.VirtualMachineIPAddressLease, d steps.Decision, errs steps.Errors) []steps.Event {
	var all []steps.Event
	if was, is := before.Status.Phase, after.Status.Phase; was != is {
		switch is {
		case v1alpha2.VirtualMachineIPAddressLeaseBound:
			all = append(all, normal(eventBound, "The address was taken by %s", holder(after)))
		case v1alpha2.VirtualMachineIPAddressLeaseReleased:
			all = append(all, normal(eventReleased, "The address was given back"))
		}
	}
	for i, f := range d {
		if _, ok := f.Act.(steps.Delete); ok && errs[i] == nil && before.DeletionTimestamp != nil {
			all = append(all, normal(eventDeleted, "The lease has been deleted"))
		}
	}
	return all
}

func normal(reason, format string, args ...any) steps.Event {
	return steps.Event{Type: corev1.EventTypeNormal, Reason: reason, Message: fmt.Sprintf(format, args...)}
}
