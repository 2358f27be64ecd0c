package address

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"orlop.dev/orlop/api/core/v1alpha2"
	deckhousev1alpha1 "orlop.dev/orlop/api/deckhouse/v1alpha1"
	v1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/policy"
)

// Names of the field indexes of these controllers.
const (
	machinesByClaim    = "address.claim"
	processesByAddress = "address.process"
	claimsByAddress    = "address.address"
	leasesByClaim      = "address.lease"
	leasesByHeir       = "address.heir"
	leasesByNamespace  = "address.namespace"
)

// noAddress is the index key of Auto claims that wait for an address to become free.
const noAddress = "none"

// workers is how many claims are reconciled at a time.
const workers = 4

// Setup registers both controllers with a manager. retention is how long a released
// address stays with its namespace.
func Setup(ctx context.Context, m ctrl.Manager, retention time.Duration) error {
	if err := Index(ctx, m.GetFieldIndexer()); err != nil {
		return err
	}
	o := Options{Client: m.GetClient(), Reader: m.GetAPIReader(), Recorder: m.GetEventRecorder(fieldOwner),
		Clock: clock.RealClock{}, Pool: NewPool(), Retention: retention}
	claims := &Claims{o}
	err := ctrl.NewControllerManagedBy(m).
		Named("address").
		For(&v1alpha2.VirtualMachineIPAddress{}).
		WithOptions(controller.Options{MaxConcurrentReconciles: workers}).
		Watches(&v1alpha2.VirtualMachineIPAddress{}, handler.EnqueueRequestsFromMapFunc(claims.ofRival)).
		Watches(&v1alpha2.VirtualMachineIPAddressLease{}, claims.leaseHandler()).
		Watches(&v1alpha2.VirtualMachine{}, handler.EnqueueRequestsFromMapFunc(ofMachine)).
		Watches(&v1alpha1.Instance{}, handler.EnqueueRequestsFromMapFunc(claims.ofProcess)).
		Watches(&deckhousev1alpha1.ModuleConfig{}, handler.EnqueueRequestsFromMapFunc(claims.pending)).
		Complete(claims)
	if err != nil {
		return err
	}
	return ctrl.NewControllerManagedBy(m).
		Named("address-lease").
		For(&v1alpha2.VirtualMachineIPAddressLease{}).
		Watches(&v1alpha2.VirtualMachineIPAddress{}, handler.EnqueueRequestsFromMapFunc(ofClaim)).
		Complete(&Leases{o})
}

// Index makes the field indexes that the controllers read by.
func Index(ctx context.Context, indexer client.FieldIndexer) error {
	indexes := []struct {
		object client.Object
		name   string
		keys   client.IndexerFunc
	}{
		{&v1alpha2.VirtualMachine{}, machinesByClaim, func(o client.Object) []string {
			return claimNames(o.(*v1alpha2.VirtualMachine))
		}},
		{&v1alpha1.Instance{}, processesByAddress, func(o client.Object) []string {
			if in := o.(*v1alpha1.Instance); in.Spec.Network != nil && in.Status.Exit == nil {
				return some(in.Spec.Network.Address)
			}
			return nil
		}},
		{&v1alpha2.VirtualMachineIPAddress{}, claimsByAddress, addressesOf},
		{&v1alpha2.VirtualMachineIPAddressLease{}, leasesByClaim, func(o client.Object) []string {
			ref := o.(*v1alpha2.VirtualMachineIPAddressLease).Spec.VirtualMachineIPAddressRef
			if ref == nil || ref.Name == "" {
				return nil
			}
			return []string{ref.Namespace + "/" + ref.Name}
		}},
		{&v1alpha2.VirtualMachineIPAddressLease{}, leasesByHeir, func(o client.Object) []string {
			namespace, heir := releasedIn(o.(*v1alpha2.VirtualMachineIPAddressLease)), o.GetAnnotations()[HeirAnnotation]
			if namespace == "" || heir == "" {
				return nil
			}
			return []string{namespace + "/" + heir}
		}},
		{&v1alpha2.VirtualMachineIPAddressLease{}, leasesByNamespace, func(o client.Object) []string {
			return some(releasedIn(o.(*v1alpha2.VirtualMachineIPAddressLease)))
		}},
	}
	for _, i := range indexes {
		if err := indexer.IndexField(ctx, i.object, i.name, i.keys); err != nil {
			return fmt.Errorf("index %s: %w", i.name, err)
		}
	}
	return nil
}

func some(value string) []string {
	if value == "" {
		return nil
	}
	return []string{value}
}

// addressesOf are the addresses a claim has or wants.
func addressesOf(o client.Object) []string {
	claim := o.(*v1alpha2.VirtualMachineIPAddress)
	has, wants := claim.Status.Address, claim.Spec.StaticIP
	switch {
	case has == "" && wants == "" && len(claim.Status.Conditions) > 0:
		return []string{noAddress}
	case has == "" && wants == "":
		return nil // not looked at yet
	case has == "" || has == wants:
		return []string{wants}
	case wants == "":
		return []string{has}
	}
	return []string{has, wants}
}

// leaseHandler lets the pool follow the leases and then wakes the claims they matter
// to, in this order: a claim that waits for a free address must find it.
func (r *Claims) leaseHandler() handler.EventHandler {
	type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]
	follow := func(ctx context.Context, o client.Object, gone bool, q queue) {
		if a, ok := policy.LeasedAddress(o.GetName()); ok {
			if gone {
				r.Pool.Free(a)
			} else {
				r.Pool.Take(a)
			}
		}
		requests := r.ofLease(ctx, o)
		if gone || releasedIn(o.(*v1alpha2.VirtualMachineIPAddressLease)) != "" {
			requests = append(requests, r.claimsOf(ctx, noAddress)...)
		}
		for _, request := range requests {
			q.Add(request)
		}
	}
	return handler.Funcs{
		CreateFunc: func(ctx context.Context, e event.CreateEvent, q queue) { follow(ctx, e.Object, false, q) },
		UpdateFunc: func(ctx context.Context, e event.UpdateEvent, q queue) {
			for _, request := range r.ofLease(ctx, e.ObjectOld) {
				q.Add(request)
			}
			follow(ctx, e.ObjectNew, false, q)
		},
		DeleteFunc: func(ctx context.Context, e event.DeleteEvent, q queue) { follow(ctx, e.Object, true, q) },
	}
}

// ofLease wakes the claim that holds a lease and those that have or want its address.
func (r *Claims) ofLease(ctx context.Context, o client.Object) []reconcile.Request {
	var requests []reconcile.Request
	if ref := o.(*v1alpha2.VirtualMachineIPAddressLease).Spec.VirtualMachineIPAddressRef; ref != nil && ref.Name != "" {
		requests = append(requests, reconcile.Request{NamespacedName: types.NamespacedName{Namespace: ref.Namespace, Name: ref.Name}})
	}
	if a, ok := policy.LeasedAddress(o.GetName()); ok {
		requests = append(requests, r.claimsOf(ctx, a.String())...)
	}
	return requests
}

// claimsOf are the claims that have or want an address.
func (r *Claims) claimsOf(ctx context.Context, address string) []reconcile.Request {
	list := &v1alpha2.VirtualMachineIPAddressList{}
	if r.Client.List(ctx, list, client.MatchingFields{claimsByAddress: address}) != nil {
		return nil // the cache answers; it fails only when it is being stopped
	}
	var requests []reconcile.Request
	for i := range list.Items {
		requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&list.Items[i])})
	}
	return requests
}

// ofRival wakes the claims that want the address of another one.
func (r *Claims) ofRival(ctx context.Context, o client.Object) []reconcile.Request {
	var requests []reconcile.Request
	for _, address := range addressesOf(o) {
		if address != noAddress {
			requests = append(requests, r.claimsOf(ctx, address)...)
		}
	}
	return requests
}

// ofProcess wakes the claim of the address that a process has, or had.
func (r *Claims) ofProcess(ctx context.Context, o client.Object) []reconcile.Request {
	n := o.(*v1alpha1.Instance).Spec.Network
	if n == nil || n.Address == "" {
		return nil
	}
	return r.claimsOf(ctx, n.Address)
}

func ofMachine(_ context.Context, o client.Object) []reconcile.Request {
	var requests []reconcile.Request
	for _, name := range claimNames(o.(*v1alpha2.VirtualMachine)) {
		requests = append(requests, reconcile.Request{NamespacedName: types.NamespacedName{Namespace: o.GetNamespace(), Name: name}})
	}
	return requests
}

func ofClaim(_ context.Context, o client.Object) []reconcile.Request {
	a, err := netip.ParseAddr(o.(*v1alpha2.VirtualMachineIPAddress).Status.Address)
	if err != nil {
		return nil
	}
	return []reconcile.Request{{NamespacedName: types.NamespacedName{Name: policy.LeaseName(a)}}}
}

// pending wakes claims without a lease, when the ranges may have changed.
func (r *Claims) pending(ctx context.Context, _ client.Object) []reconcile.Request {
	list := &v1alpha2.VirtualMachineIPAddressList{}
	if r.Client.List(ctx, list) != nil {
		return nil // the cache answers; it fails only when it is being stopped
	}
	var requests []reconcile.Request
	for i := range list.Items {
		if p := list.Items[i].Status.Phase; p == "" || p == v1alpha2.VirtualMachineIPAddressPending {
			requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&list.Items[i])})
		}
	}
	return requests
}
