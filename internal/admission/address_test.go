package admission

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"orlop.dev/orlop/api/core/v1alpha2"
	deckhousev1alpha1 "orlop.dev/orlop/api/deckhouse/v1alpha1"
	"orlop.dev/orlop/internal/testkit"
)

// leasedAddresses is a cluster with a /24, in which .9 is leased, .10 released and
// one hardware address leased.
func leasedAddresses() client.Reader {
	config := &deckhousev1alpha1.ModuleConfig{ObjectMeta: metav1.ObjectMeta{Name: "virtualization"}}
	config.Spec.Version = 1
	config.Spec.Settings = &runtime.RawExtension{Raw: []byte(
		`{"virtualMachineCIDRs":["10.66.10.0/24"],"dvcr":{"storage":{"type":"PersistentVolumeClaim","persistentVolumeClaim":{"size":"1G"}}}}`)}
	lease := func(name, holder string) client.Object {
		return &v1alpha2.VirtualMachineIPAddressLease{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha2.VirtualMachineIPAddressLeaseSpec{
			VirtualMachineIPAddressRef: &v1alpha2.VirtualMachineIPAddressLeaseIPAddressRef{Name: holder, Namespace: "default"}}}
	}
	hardware := &v1alpha2.VirtualMachineMACAddressLease{ObjectMeta: metav1.ObjectMeta{Name: "mac-5e-e6-19-22-0f-d8"}, Spec: v1alpha2.VirtualMachineMACAddressLeaseSpec{
		VirtualMachineMACAddressRef: &v1alpha2.VirtualMachineMACAddressLeaseMACAddressRef{Name: "b", Namespace: "default"}}}
	return fake.NewClientBuilder().WithScheme(testkit.Scheme()).WithObjects(config, lease("ip-10-66-10-9", "b"), lease("ip-10-66-10-10", ""), hardware).Build()
}

func staticAddress(address string) *v1alpha2.VirtualMachineIPAddress {
	a := testkit.Address("a")
	a.Spec = v1alpha2.VirtualMachineIPAddressSpec{Type: v1alpha2.VirtualMachineIPAddressStatic, StaticIP: address}
	return a
}

func autoAddress(static string) *v1alpha2.VirtualMachineIPAddress {
	a := testkit.Address("a")
	a.Spec = v1alpha2.VirtualMachineIPAddressSpec{Type: v1alpha2.VirtualMachineIPAddressAuto, StaticIP: static}
	return a
}

func TestAddressCreate(t *testing.T) {
	cases := map[string]struct {
		claim   *v1alpha2.VirtualMachineIPAddress
		wantErr string
	}{
		"any address":                  {claim: autoAddress("")},
		"any address, but this one":    {claim: autoAddress("10.66.10.4"), wantErr: "must be empty"},
		"a free one":                   {claim: staticAddress("10.66.10.4")},
		"the network's own":            {claim: staticAddress("10.66.10.0"), wantErr: "not in the ranges"},
		"the router's":                 {claim: staticAddress("10.66.10.1"), wantErr: "not in the ranges"},
		"the broadcast address":        {claim: staticAddress("10.66.10.255"), wantErr: "not in the ranges"},
		"one of elsewhere":             {claim: staticAddress("10.66.11.4"), wantErr: "not in the ranges"},
		"none":                         {claim: staticAddress(""), wantErr: "not an IPv4 address"},
		"one of version 6":             {claim: staticAddress("fd00::4"), wantErr: "not an IPv4 address"},
		"one of version 4 in disguise": {claim: staticAddress("::ffff:10.66.10.4"), wantErr: "not an IPv4 address"},
		"one that is leased":           {claim: staticAddress("10.66.10.9"), wantErr: "leased to another"},
		"a released one: whose it is, the controller decides": {claim: staticAddress("10.66.10.10")},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			warnings, err := (&address{client: leasedAddresses()}).ValidateCreate(t.Context(), c.claim)
			check(t, warnings, err, "", c.wantErr)
		})
	}
	empty := &address{client: fake.NewClientBuilder().WithScheme(testkit.Scheme()).Build()}
	warnings, err := empty.ValidateCreate(t.Context(), autoAddress(""))
	check(t, warnings, err, "", "there are no address ranges")
}

func TestAddressUpdate(t *testing.T) {
	bound := func(a *v1alpha2.VirtualMachineIPAddress, address string) *v1alpha2.VirtualMachineIPAddress {
		a.Status = v1alpha2.VirtualMachineIPAddressStatus{Phase: v1alpha2.VirtualMachineIPAddressBound, Address: address}
		return a
	}
	cases := map[string]struct {
		before, after *v1alpha2.VirtualMachineIPAddress
		wantErr, warn string
	}{
		"the address it has becomes a chosen one":    {before: bound(autoAddress(""), "10.66.10.4"), after: staticAddress("10.66.10.4")},
		"a bound one gets no other":                  {before: bound(autoAddress(""), "10.66.10.4"), after: staticAddress("10.66.10.5"), wantErr: "10.66.10.4 is leased"},
		"a chosen one stays chosen":                  {before: bound(staticAddress("10.66.10.4"), "10.66.10.4"), after: autoAddress(""), wantErr: "10.66.10.4 is leased"},
		"a bound one of another address":             {before: bound(staticAddress("10.66.10.4"), "10.66.10.4"), after: staticAddress("10.66.10.5"), wantErr: "10.66.10.4 is leased"},
		"one without an address may choose":          {before: staticAddress("10.66.11.4"), after: staticAddress("10.66.10.4")},
		"outside is only a warning now":              {before: staticAddress("10.66.10.4"), after: staticAddress("10.66.11.4"), warn: "not in the ranges"},
		"not a leased one":                           {before: staticAddress("10.66.10.4"), after: staticAddress("10.66.10.9"), wantErr: "leased to another"},
		"what was wrong before does not matter here": {before: staticAddress("many"), after: staticAddress("many")},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			warnings, err := (&address{client: leasedAddresses()}).ValidateUpdate(t.Context(), c.before, c.after)
			check(t, warnings, err, c.warn, c.wantErr)
		})
	}
}

func TestMACAddressAdmission(t *testing.T) {
	claim := func(address string, bound string) *v1alpha2.VirtualMachineMACAddress {
		a := &v1alpha2.VirtualMachineMACAddress{ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: "default"}, Spec: v1alpha2.VirtualMachineMACAddressSpec{Address: address}}
		if bound != "" {
			a.Status = v1alpha2.VirtualMachineMACAddressStatus{Phase: v1alpha2.VirtualMachineMACAddressBound, Address: bound}
		}
		return a
	}
	const mine, theirs = "5e:e6:19:22:0f:d7", "5e:e6:19:22:0f:d8"
	cases := map[string]struct {
		before, after *v1alpha2.VirtualMachineMACAddress
		wantErr       string
	}{
		"any":                                {after: claim("", "")},
		"a free one":                         {after: claim(mine, "")},
		"a leased one":                       {after: claim("5E-E6-19-22-0F-D8", ""), wantErr: "leased to another"},
		"a group address":                    {after: claim("01:00:5e:00:00:01", ""), wantErr: "group address"},
		"a bound one gets no other":          {before: claim(mine, mine), after: claim("5e:e6:19:22:0f:d6", mine), wantErr: "cannot be changed"},
		"nor back to any":                    {before: claim(mine, mine), after: claim("", mine), wantErr: "cannot be changed"},
		"the same in other letters":          {before: claim(mine, mine), after: claim("5E-E6-19-22-0F-D7", mine)},
		"a generated one becomes a chosen":   {before: claim("", mine), after: claim(mine, mine)},
		"an unbound one may choose another":  {before: claim(theirs, ""), after: claim(mine, "")},
		"but not one that somebody else has": {before: claim(mine, ""), after: claim(theirs, ""), wantErr: "leased to another"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			w := &macAddress{client: leasedAddresses()}
			var err error
			if c.before == nil {
				_, err = w.ValidateCreate(t.Context(), c.after)
			} else {
				_, err = w.ValidateUpdate(t.Context(), c.before, c.after)
			}
			check(t, nil, err, "", c.wantErr)
		})
	}
}

func TestLeaseNames(t *testing.T) {
	for name, ok := range map[string]bool{"ip-10-66-10-4": true, "ip-10.66.10.4": false, "web": false} {
		_, err := lease{}.ValidateCreate(t.Context(), &v1alpha2.VirtualMachineIPAddressLease{ObjectMeta: metav1.ObjectMeta{Name: name}})
		if (err == nil) != ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, ok := range map[string]bool{"mac-5e-e6-19-22-0f-d8": true, "mac-5e": false, "ip-10-66-10-4": false} {
		_, err := macLease{}.ValidateCreate(t.Context(), &v1alpha2.VirtualMachineMACAddressLease{ObjectMeta: metav1.ObjectMeta{Name: name}})
		if (err == nil) != ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
