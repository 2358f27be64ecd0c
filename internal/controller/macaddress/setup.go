package macaddress

import (
	"context"
	"crypto/rand"
	"fmt"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/policy"
)

// Names of the field indexes of these controllers.
const (
	machinesByClaim = "macaddress.claim"
	claimsByAddress = "macaddress.address"
	leasesByClaim   = "macaddress.lease"
)

// Setup registers both controllers with a manager.
func Setup(ctx context.Context, m ctrl.Manager) error {
	if err := Index(ctx, m.GetFieldIndexer()); err != nil {
		return err
	}
	o := Options{Client: m.GetClient(), Reader: m.GetAPIReader(), Recorder: m.GetEventRecorder(fieldOwner), Clock: clock.RealClock{},
		Random: func(b []byte) error {
			_, err := rand.Read(b)
			return err
		}}
	claims := &Claims{Options: o}
	err := ctrl.NewControllerManagedBy(m).
		Named("mac-address").
		For(&v1alpha2.VirtualMachineMACAddress{}).
		Watches(&v1alpha2.VirtualMachineMACAddress{}, handler.EnqueueRequestsFromMapFunc(claims.ofRival)).
		Watches(&v1alpha2.VirtualMachineMACAddressLease{}, handler.EnqueueRequestsFromMapFunc(claims.ofLease)).
		Watches(&v1alpha2.VirtualMachine{}, handler.EnqueueRequestsFromMapFunc(ofMachine)).
		Complete(claims)
	if err != nil {
		return err
	}
	return ctrl.NewControllerManagedBy(m).
		Named("mac-address-lease").
		For(&v1alpha2.VirtualMachineMACAddressLease{}).
		Watches(&v1alpha2.VirtualMachineMACAddress{}, handler.EnqueueRequestsFromMapFunc(ofClaim)).
		Complete(&Leases{o})
}

// Index makes the field indexes that the controllers read by.
func Index(ctx context.Context, indexer client.FieldIndexer) error {
	indexes := []struct {
		object client.Object
		name   string
		keys   client.IndexerFunc
	}{
		{&v1alpha2.VirtualMachine{}, machinesByClaim, func(o client.Object) []string { return claimNames(o.(*v1alpha2.VirtualMachine)) }},
		{&v1alpha2.VirtualMachineMACAddress{}, claimsByAddress, func(o client.Object) []string {
			return addressesOf(o.(*v1alpha2.VirtualMachineMACAddress))
		}},
		{&v1alpha2.VirtualMachineMACAddressLease{}, leasesByClaim, func(o client.Object) []string {
			ref := o.(*v1alpha2.VirtualMachineMACAddressLease).Spec.VirtualMachineMACAddressRef
			if ref == nil {
				return nil
			}
			return []string{ref.Namespace + "/" + ref.Name}
		}},
	}
	for _, i := range indexes {
		if err := indexer.IndexField(ctx, i.object, i.name, i.keys); err != nil {
			return fmt.Errorf("index %s: %w", i.name, err)
		}
	}
	return nil
}

// claimNames are the claims a machine names for its interfaces.
func claimNames(vm *v1alpha2.VirtualMachine) []string {
	var names []string
	for _, n := range vm.Spec.Networks {
		if n.VirtualMachineMACAddressName != "" {
			names = append(names, n.VirtualMachineMACAddressName)
		}
	}
	return names
}

// addressesOf are the addresses a claim has or wants.
func addressesOf(claim *v1alpha2.VirtualMachineMACAddress) []string {
	var all []string
	if claim.Status.Address != "" {
		all = append(all, claim.Status.Address)
	}
	if wants, ok := policy.MACAddress(claim.Spec.Address); ok && wants != claim.Status.Address {
		all = append(all, wants)
	}
	return all
}

// ofLease wakes the claim that holds a lease and those that have or want its address.
func (r *Claims) ofLease(ctx context.Context, o client.Object) []reconcile.Request {
	var requests []reconcile.Request
	if ref := o.(*v1alpha2.VirtualMachineMACAddressLease).Spec.VirtualMachineMACAddressRef; ref != nil {
		requests = append(requests, reconcile.Request{NamespacedName: types.NamespacedName{Namespace: ref.Namespace, Name: ref.Name}})
	}
	if a, ok := policy.LeasedMAC(o.GetName()); ok {
		requests = append(requests, r.claimsOf(ctx, a)...)
	}
	return requests
}

// ofRival wakes the claims that want the address of another one.
func (r *Claims) ofRival(ctx context.Context, o client.Object) []reconcile.Request {
	var requests []reconcile.Request
	for _, a := range addressesOf(o.(*v1alpha2.VirtualMachineMACAddress)) {
		requests = append(requests, r.claimsOf(ctx, a)...)
	}
	return requests
}

func (r *Claims) claimsOf(ctx context.Context, address string) []reconcile.Request {
	list := &v1alpha2.VirtualMachineMACAddressList{}
	if r.Client.List(ctx, list, client.MatchingFields{claimsByAddress: address}) != nil {
		return nil // the cache answers; it fails only when it is being stopped
	}
	var requests []reconcile.Request
	for i := range list.Items {
		requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&list.Items[i])})
	}
	return requests
}

func ofMachine(_ context.Context, o client.Object) []reconcile.Request {
	var requests []reconcile.Request
	for _, name := range claimNames(o.(*v1alpha2.VirtualMachine)) {
		requests = append(requests, reconcile.Request{NamespacedName: types.NamespacedName{Namespace: o.GetNamespace(), Name: name}})
	}
	return requests
}

func ofClaim(_ context.Context, o client.Object) []reconcile.Request {
	a := o.(*v1alpha2.VirtualMachineMACAddress).Status.Address
	if a == "" {
		return nil
	}
	return []reconcile.Request{{NamespacedName: types.NamespacedName{Name: policy.MACLeaseName(a)}}}
}
