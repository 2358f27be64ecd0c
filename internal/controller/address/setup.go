package address

import (
	"context"
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"orlop.dev/orlop/api/core/v1alpha2"
	deckhousev1alpha1 "orlop.dev/orlop/api/deckhouse/v1alpha1"
	"orlop.dev/orlop/internal/policy"
)

// Names of the field indexes of these controllers.
const (
	machinesByClaim = "address.claim"
	leasesByClaim   = "address.lease"
	claimsByAddress = "address.static"
)

// workers is how many claims are reconciled at a time.
const workers = 4

// Setup registers both controllers with a manager.
func Setup(ctx context.Context, m ctrl.Manager) error {
	if err := Index(ctx, m.GetFieldIndexer()); err != nil {
		return err
	}
	o := Options{Client: m.GetClient(), Recorder: m.GetEventRecorder(fieldOwner), Clock: clock.RealClock{}, Pool: NewPool()}
	if err := feed(ctx, m, o.Pool); err != nil {
		return err
	}
	claims := &Claims{o}
	err := ctrl.NewControllerManagedBy(m).
		Named("address").
		For(&v1alpha2.VirtualMachineIPAddress{}).
		WithOptions(controller.Options{MaxConcurrentReconciles: workers}).
		Watches(&v1alpha2.VirtualMachineIPAddressLease{}, handler.EnqueueRequestsFromMapFunc(claims.ofLease)).
		Watches(&v1alpha2.VirtualMachine{}, handler.EnqueueRequestsFromMapFunc(ofMachine)).
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
	err := indexer.IndexField(ctx, &v1alpha2.VirtualMachine{}, machinesByClaim, func(o client.Object) []string {
		return claimNames(o.(*v1alpha2.VirtualMachine))
	})
	if err != nil {
		return err
	}
	err = indexer.IndexField(ctx, &v1alpha2.VirtualMachineIPAddress{}, claimsByAddress, func(o client.Object) []string {
		if a := o.(*v1alpha2.VirtualMachineIPAddress).Spec.StaticIP; a != "" {
			return []string{a}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return indexer.IndexField(ctx, &v1alpha2.VirtualMachineIPAddressLease{}, leasesByClaim, func(o client.Object) []string {
		ref := o.(*v1alpha2.VirtualMachineIPAddressLease).Spec.VirtualMachineIPAddressRef
		if ref == nil || ref.Name == "" {
			return nil
		}
		return []string{ref.Namespace + "/" + ref.Name}
	})
}

// feed lets the pool follow the cache of leases.
func feed(ctx context.Context, m ctrl.Manager, pool *Pool) error {
	informer, err := m.GetCache().GetInformer(ctx, &v1alpha2.VirtualMachineIPAddressLease{})
	if err != nil {
		return fmt.Errorf("watch leases: %w", err)
	}
	_, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc: func(o any) {
			if lease, ok := o.(*v1alpha2.VirtualMachineIPAddressLease); ok {
				if a, ok := policy.LeasedAddress(lease.Name); ok {
					pool.Take(a)
				}
			}
		},
		DeleteFunc: func(o any) {
			if last, ok := o.(toolscache.DeletedFinalStateUnknown); ok {
				o = last.Obj
			}
			if lease, ok := o.(*v1alpha2.VirtualMachineIPAddressLease); ok {
				if a, ok := policy.LeasedAddress(lease.Name); ok {
					pool.Free(a)
				}
			}
		},
	})
	return err
}

// ofLease wakes the claim that holds a lease and those that wait for its address.
func (r *Claims) ofLease(ctx context.Context, o client.Object) []reconcile.Request {
	var requests []reconcile.Request
	if ref := o.(*v1alpha2.VirtualMachineIPAddressLease).Spec.VirtualMachineIPAddressRef; ref != nil && ref.Name != "" {
		requests = append(requests, reconcile.Request{NamespacedName: types.NamespacedName{Namespace: ref.Namespace, Name: ref.Name}})
	}
	a, ok := policy.LeasedAddress(o.GetName())
	list := &v1alpha2.VirtualMachineIPAddressList{}
	if !ok || r.Client.List(ctx, list, client.MatchingFields{claimsByAddress: a.String()}) != nil {
		return requests
	}
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
	var requests []reconcile.Request
	if a := o.(*v1alpha2.VirtualMachineIPAddress).Status.Address; a != "" {
		requests = append(requests, reconcile.Request{NamespacedName: types.NamespacedName{Name: "ip-" + strings.ReplaceAll(a, ".", "-")}})
	}
	return requests
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
