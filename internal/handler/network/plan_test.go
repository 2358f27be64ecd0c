package network

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPlan(t *testing.T) {
	addr := netip.MustParseAddr
	cases := map[string]struct {
		request      Request
		pod, gateway string
		want         Plan
		wantErr      string
	}{
		"a lease: the first address of the range is the guest's router and the bridge's own": {
			request: Request{Address: addr("10.66.10.5"), CIDR: netip.MustParsePrefix("10.66.10.0/24")},
			pod:     "10.66.10.5", gateway: "10.244.1.1",
			want: Plan{Guest: netip.MustParsePrefix("10.66.10.5/24"), Router: addr("10.66.10.1"), Local: addr("10.66.10.1"), MTU: 1450},
		},
		"a lease that the CNI did not give the pod would never be reached": {
			request: Request{Address: addr("10.66.10.5"), CIDR: netip.MustParsePrefix("10.66.10.0/24")},
			pod:     "10.244.1.9", gateway: "10.244.1.1", wantErr: "10.244.1.9 instead of 10.66.10.5",
		},
		"a lease outside its range": {
			request: Request{Address: addr("10.66.11.5"), CIDR: netip.MustParsePrefix("10.66.10.0/24")},
			pod:     "10.66.11.5", gateway: "10.244.1.1", wantErr: "is not in",
		},
		"a lease on the router's address": {
			request: Request{Address: addr("10.66.10.1"), CIDR: netip.MustParsePrefix("10.66.10.0/24")},
			pod:     "10.66.10.1", gateway: "10.244.1.1", wantErr: "is the router",
		},
		"a range of one address: the router is reached by proxy ARP, and may be a real host": {
			request: Request{Address: addr("10.66.10.7"), CIDR: netip.MustParsePrefix("10.66.10.7/32")},
			pod:     "10.66.10.7", gateway: "10.244.1.1",
			want: Plan{Guest: netip.MustParsePrefix("10.66.10.7/24"), Router: addr("10.66.10.1"), Local: linkLocal, MTU: 1450},
		},
		"a range of one address that is another one": {
			request: Request{Address: addr("10.66.10.7"), CIDR: netip.MustParsePrefix("10.66.10.8/32")},
			pod:     "10.66.10.7", gateway: "10.244.1.1", wantErr: "is not 10.66.10.8/32",
		},
		"a router that is the pod's gateway would cut the pod off": {
			request: Request{Address: addr("10.66.10.5"), CIDR: netip.MustParsePrefix("10.66.10.0/24")},
			pod:     "10.66.10.5", gateway: "10.66.10.1", wantErr: "gateway as well",
		},
		"a pod address: the pod's gateway is the router, by proxy ARP": {
			pod: "10.244.1.9", gateway: "10.244.1.1",
			want: Plan{Guest: netip.MustParsePrefix("10.244.1.9/24"), Router: addr("10.244.1.1"), Local: linkLocal, MTU: 1450},
		},
		"a pod address with a gateway elsewhere: a router the guest can accept": {
			pod: "10.244.1.9", gateway: "169.254.1.1",
			want: Plan{Guest: netip.MustParsePrefix("10.244.1.9/24"), Router: addr("10.244.1.1"), Local: addr("10.244.1.1"), MTU: 1450},
		},
		"that router is never the guest itself": {
			pod: "10.244.1.1", gateway: "169.254.1.1",
			want: Plan{Guest: netip.MustParsePrefix("10.244.1.1/24"), Router: addr("10.244.1.2"), Local: addr("10.244.1.2"), MTU: 1450},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := plan(c.request, addr(c.pod), addr(c.gateway), 1450)
			if c.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), c.wantErr) {
					t.Fatalf("error %v, want one with %q", err, c.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			equal := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
			equalPrefix := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
			if diff := cmp.Diff(c.want, got, equal, equalPrefix); diff != "" {
				t.Error(diff)
			}
		})
	}
}
