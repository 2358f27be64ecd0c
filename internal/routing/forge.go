package routing

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"

	deckhousev1alpha1 "orlop.dev/orlop/api/deckhouse/v1alpha1"
	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/settings"
)

// resync is how often memory is compared with the kernel, in which anybody with the
// right can delete routes.
const resync = 5 * time.Minute

// Forge reconciles the node's routing as one whole.
type Forge struct {
	// Node is the name of this node.
	Node   string
	Client client.Client
	Now    func() time.Time

	table Table
	read  time.Time
	ready atomic.Bool
}

// Ready is nil once the routes have been right for the first time.
func (f *Forge) Ready() error {
	if !f.ready.Load() {
		return errors.New("routes have not been set yet")
	}
	return nil
}

// SetupWithManager makes every change of an Instance, a Node or the ranges lead to
// one and the same request, so that a burst of them is one pass.
func (f *Forge) SetupWithManager(m ctrl.Manager) error {
	whole := handler.EnqueueRequestsFromMapFunc(func(context.Context, client.Object) []ctrl.Request {
		return []ctrl.Request{{NamespacedName: types.NamespacedName{Name: "routes"}}}
	})
	return ctrl.NewControllerManagedBy(m).
		Named("routes").
		Watches(&v1alpha1.Instance{}, whole).
		Watches(&corev1.Node{}, whole).
		Watches(&deckhousev1alpha1.ModuleConfig{}, whole).
		Complete(f)
}

// Reconcile makes the table what it should be.
//
// +kubebuilder:rbac:groups=deckhouse.io,resources=moduleconfigs,verbs=get;list;watch
// +kubebuilder:rbac:groups=internal.virtualization.deckhouse.io,resources=instances,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=nodes,verbs=get;list;watch
func (f *Forge) Reconcile(ctx context.Context, _ ctrl.Request) (ctrl.Result, error) {
	want, err := f.observe(ctx)
	if err != nil {
		return ctrl.Result{}, err
	}
	if now := f.Now(); now.Sub(f.read) >= resync {
		f.table.Forget()
		f.read = now
	}
	if err := f.table.Apply(want); err != nil {
		return ctrl.Result{}, err
	}
	if !f.ready.Swap(true) {
		log.FromContext(ctx).Info("routes are set", "routes", len(want.Routes), "ranges", len(want.Ranges))
	}
	return ctrl.Result{RequeueAfter: resync}, nil
}

// observe reads everything and decides.
func (f *Forge) observe(ctx context.Context) (State, error) {
	s, err := settings.Load(ctx, f.Client)
	if err != nil && !errors.Is(err, settings.ErrNotFound) && s == nil {
		return State{}, fmt.Errorf("read settings: %w", err)
	}
	var ranges []netip.Prefix
	if s != nil {
		ranges = s.VirtualMachineCIDRs
	}
	var nodes corev1.NodeList
	if err := f.Client.List(ctx, &nodes); err != nil {
		return State{}, fmt.Errorf("list nodes: %w", err)
	}
	var instances v1alpha1.InstanceList
	if err := f.Client.List(ctx, &instances); err != nil {
		return State{}, fmt.Errorf("list instances: %w", err)
	}
	return desired(f.Node, addresses(nodes.Items), places(instances.Items), ranges), nil
}

func addresses(nodes []corev1.Node) map[string]netip.Addr {
	out := map[string]netip.Addr{}
	for i := range nodes {
		for _, a := range nodes[i].Status.Addresses {
			ip, err := netip.ParseAddr(a.Address)
			if a.Type == corev1.NodeInternalIP && err == nil && ip.Is4() {
				out[nodes[i].Name] = ip
				break
			}
		}
	}
	return out
}

// places leaves out machines on plain pod addresses: those the CNI routes.
func places(instances []v1alpha1.Instance) []place {
	var out []place
	for i := range instances {
		in := &instances[i]
		n := in.Spec.Network
		if n == nil || n.AddressSource != v1alpha1.AddressFromLease {
			continue
		}
		if a, err := netip.ParseAddr(n.Address); err == nil && a.Is4() {
			out = append(out, place{address: a, node: in.Spec.NodeName, phase: in.Status.Phase, created: in.CreationTimestamp.Time, left: left(in)})
		}
	}
	return out
}

// left says whether a machine's guest has gone from here by a migration: it goes on in
// an Instance that may still be Starting.
func left(in *v1alpha1.Instance) bool {
	return in.Status.Phase == v1alpha1.InstancePaused && in.Status.PauseReason == "Migrated" ||
		in.Spec.Migration != nil && in.Status.Migration != nil && in.Spec.Migration.ID == in.Status.Migration.ID &&
			in.Spec.Migration.Role == v1alpha1.MigrationSource && in.Status.Migration.Phase == v1alpha1.MigrationCompleted
}

// Strip keeps of an object only what Reconcile reads, since every node holds all of
// them in memory.
func Strip() toolscache.TransformFunc {
	return func(obj any) (any, error) {
		switch o := obj.(type) {
		case *v1alpha1.Instance:
			return &v1alpha1.Instance{
				TypeMeta: o.TypeMeta, ObjectMeta: bare(o.ObjectMeta),
				Spec:   v1alpha1.InstanceSpec{NodeName: o.Spec.NodeName, Network: o.Spec.Network, Migration: o.Spec.Migration},
				Status: status(o),
			}, nil
		case *corev1.Node:
			return &corev1.Node{
				TypeMeta: o.TypeMeta, ObjectMeta: bare(o.ObjectMeta),
				Status: corev1.NodeStatus{Addresses: o.Status.Addresses},
			}, nil
		default:
			return obj, nil
		}
	}
}

// status keeps the two facts of a migration; its progress is nobody's business here.
func status(o *v1alpha1.Instance) v1alpha1.InstanceStatus {
	s := v1alpha1.InstanceStatus{Phase: o.Status.Phase, PauseReason: o.Status.PauseReason}
	if m := o.Status.Migration; m != nil {
		s.Migration = &v1alpha1.MigrationStatus{ID: m.ID, Phase: m.Phase}
	}
	return s
}

func bare(m metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name: m.Name, Namespace: m.Namespace, UID: m.UID,
		ResourceVersion: m.ResourceVersion, CreationTimestamp: m.CreationTimestamp,
	}
}
