package address

import (
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/steps"
	"orlop.dev/orlop/internal/testkit"
)

func TestLease(t *testing.T) {
	noon := time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)
	held := &v1alpha2.VirtualMachineIPAddressLeaseIPAddressRef{Name: "a", Namespace: "n"}
	free := &v1alpha2.VirtualMachineIPAddressLeaseIPAddressRef{Namespace: "n"}
	at := func(d time.Duration) map[string]string {
		return map[string]string{ReleasedAtAnnotation: noon.Add(-d).Format(time.RFC3339)}
	}
	knows, young := testkit.Address("a"), testkit.Address("a")
	knows.Namespace, young.Namespace = "n", "n"
	knows.Status = v1alpha2.VirtualMachineIPAddressStatus{Phase: v1alpha2.VirtualMachineIPAddressBound, Address: "10.66.10.2"}
	young.Status = v1alpha2.VirtualMachineIPAddressStatus{Phase: v1alpha2.VirtualMachineIPAddressPending, Address: "10.66.10.2"}
	cases := map[string]struct {
		ref         *v1alpha2.VirtualMachineIPAddressLeaseIPAddressRef
		annotations map[string]string
		claim       *v1alpha2.VirtualMachineIPAddress
		deleted     bool
		phase       v1alpha2.VirtualMachineIPAddressLeasePhase
		act         string
		after       time.Duration
	}{
		"held": {held, nil, knows, false, v1alpha2.VirtualMachineIPAddressLeaseBound, "", 0},
		"held and deleted by somebody: it goes, its claim makes it again":   {held, nil, knows, true, v1alpha2.VirtualMachineIPAddressLeaseBound, "delete", 0},
		"deleted before its claim remembers the address: it waits for that": {held, nil, young, true, v1alpha2.VirtualMachineIPAddressLeaseBound, "", 0},
		"its claim vanished":            {held, nil, nil, false, v1alpha2.VirtualMachineIPAddressLeaseReleased, "apply", 0},
		"free for three minutes":        {free, at(3 * time.Minute), nil, false, v1alpha2.VirtualMachineIPAddressLeaseReleased, "", 7 * time.Minute},
		"free for ten minutes":          {free, at(10 * time.Minute), nil, false, v1alpha2.VirtualMachineIPAddressLeaseReleased, "delete", 0},
		"free, and deleted by somebody": {free, at(time.Minute), nil, true, v1alpha2.VirtualMachineIPAddressLeaseReleased, "delete", 9 * time.Minute},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			w := &leaseWorld{now: noon, retention: Retention, lease: &v1alpha2.VirtualMachineIPAddressLease{
				ObjectMeta: metav1.ObjectMeta{Name: "ip-10-66-10-2", Annotations: c.annotations},
				Spec:       v1alpha2.VirtualMachineIPAddressLeaseSpec{VirtualMachineIPAddressRef: c.ref}}}
			w.claim = c.claim
			if c.deleted {
				w.lease.DeletionTimestamp = new(metav1.NewTime(noon))
			}
			d := steps.Decide(w, leaseSteps...)
			got := ""
			for _, f := range d {
				switch f.Act.(type) {
				case steps.Apply:
					got = "apply"
				case steps.Delete:
					got = "delete"
				}
			}
			if s := leaseStatus(w, d, nil); s.Phase != c.phase || got != c.act || d.After() != c.after {
				t.Errorf("phase %s act %q after %s", s.Phase, got, d.After())
			}
		})
	}
}
