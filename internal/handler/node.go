package handler

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/handler/network"
	"orlop.dev/orlop/internal/handler/podfs"
)

// Owner is the field owner of everything the handler applies.
const Owner = "virt-handler"

// The labels of our own Node (see docs/design/0001-contracts.md).
const (
	labelSchedulable = "kubevirt.internal.virtualization.deckhouse.io/schedulable"
	labelKVM         = "virtualization.deckhouse.io/kvm-enabled"
	labelAccelerator = "internal.virtualization.deckhouse.io/accelerator"
)

// Node is this node with all its instances. Fill the exported fields, then Start.
type Node struct {
	// Name of the Node object.
	Name string
	// FS is the node's file system.
	FS podfs.Node
	// Accelerator that really runs guests here.
	Accelerator v1alpha1.Accelerator
	// Images are the node's copies of images.
	Images Images
	// Cache watches the Instances of this node and its Node object, and no others.
	Cache cache.Cache
	// Client writes.
	Client client.Client
	// Reader reads from the API server itself.
	Reader client.Reader
	// Tunnel connects handlers for migrations. Without it none is possible.
	Tunnel *Tunnel
	// Now is the clock.
	Now func() time.Time
	Log logr.Logger

	steering network.Steering

	mu      sync.Mutex
	workers map[types.UID]*running
	ctx     context.Context
	wg      sync.WaitGroup
}

// running is a worker and the way to stop it.
type running struct {
	*worker
	key  types.NamespacedName
	stop context.CancelFunc
}

// +kubebuilder:rbac:groups=internal.virtualization.deckhouse.io,resources=instances,verbs=get;list;watch
// +kubebuilder:rbac:groups=internal.virtualization.deckhouse.io,resources=instances/status,verbs=patch
// +kubebuilder:rbac:groups="",resources=nodes,verbs=get;list;watch;patch

// Start works until the context ends; then the instances go on by themselves. It
// is a manager.Runnable.
func (n *Node) Start(ctx context.Context) error {
	n.mu.Lock() // streams may be asked for before we begin
	n.ctx, n.workers = ctx, map[types.UID]*running{}
	n.mu.Unlock()
	defer n.wg.Wait()
	if err := n.steering.Prune(); err != nil {
		return err
	}
	if err := n.watch(ctx); err != nil {
		if ctx.Err() != nil {
			return nil // told to stop before it had begun
		}
		return err
	}
	return network.WatchHostRoutes(ctx, n.routeRemoved)
}

// watch begins to pass events on.
func (n *Node) watch(ctx context.Context) error {
	nodes, err := n.Cache.GetInformer(ctx, &corev1.Node{})
	if err != nil {
		return fmt.Errorf("watch node: %w", err)
	}
	if _, err := nodes.AddEventHandler(n.nodeEvents()); err != nil {
		return fmt.Errorf("watch node: %w", err)
	}
	instances, err := n.Cache.GetInformer(ctx, &v1alpha1.Instance{})
	if err != nil {
		return fmt.Errorf("watch instances: %w", err)
	}
	if _, err := instances.AddEventHandler(n.instanceEvents()); err != nil {
		return fmt.Errorf("watch instances: %w", err)
	}
	return nil
}

// instanceEvents passes every Instance to its worker. client-go calls these one
// after the other.
func (n *Node) instanceEvents() toolscache.ResourceEventHandlerFuncs {
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) { n.see(obj.(*v1alpha1.Instance)) },
		UpdateFunc: func(old, obj any) {
			if was := old.(*v1alpha1.Instance); was.UID != obj.(*v1alpha1.Instance).UID {
				n.forget(was.UID) // deleted and made anew in one breath
			}
			n.see(obj.(*v1alpha1.Instance))
		},
		DeleteFunc: func(obj any) {
			if last, ok := obj.(toolscache.DeletedFinalStateUnknown); ok {
				obj = last.Obj
			}
			if in, ok := obj.(*v1alpha1.Instance); ok {
				n.forget(in.UID)
			}
		},
	}
}

// see makes sure the Instance has a worker, and tells it what is new.
func (n *Node) see(in *v1alpha1.Instance) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if w := n.workers[in.UID]; w != nil {
		w.tell(in)
		return
	}
	if n.ctx.Err() != nil {
		return
	}
	ctx, stop := context.WithCancel(n.ctx)
	w := newWorker(n, in)
	n.workers[in.UID] = &running{worker: w, key: client.ObjectKeyFromObject(in), stop: stop}
	instances.Set(float64(len(n.workers)))
	n.wg.Go(func() {
		defer close(w.stopped)
		w.run(ctx)
	})
}

// forget ends the worker of an Instance that is no more.
func (n *Node) forget(uid types.UID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if w := n.workers[uid]; w != nil {
		w.stop()
		n.wg.Go(func() {
			<-w.stopped
			n.steer(w.worker, network.Nowhere)
		})
		delete(n.workers, uid)
		instances.Set(float64(len(n.workers)))
	}
}

// find returns the worker of an Instance by name.
func (n *Node) find(key types.NamespacedName) *worker {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, w := range n.workers {
		if w.key == key {
			return w.worker
		}
	}
	return nil
}

func (n *Node) routeRemoved(address netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, w := range n.workers {
		if a, up := w.address(); up && a == address {
			w.routeRemoved()
		}
	}
}

// writeStatus applies the whole status. It has no other writer, so there is nothing
// to merge; the UID keeps it from landing on a namesake.
func (n *Node) writeStatus(ctx context.Context, in *v1alpha1.Instance, s v1alpha1.InstanceStatus) error {
	body, err := json.Marshal(map[string]any{
		"apiVersion": v1alpha1.GroupVersion.String(),
		"kind":       "Instance",
		"metadata":   map[string]any{"name": in.Name, "namespace": in.Namespace, "uid": in.UID},
		"status":     s,
	})
	if err != nil {
		return fmt.Errorf("encode status: %w", err)
	}
	target := &v1alpha1.Instance{ObjectMeta: metav1.ObjectMeta{Namespace: in.Namespace, Name: in.Name}}
	patch := client.RawPatch(types.ApplyPatchType, body)
	if err := n.Client.SubResource("status").Patch(ctx, target, patch, client.FieldOwner(Owner), client.ForceOwnership); err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	return nil
}

// nodeEvents keeps our labels on our Node: at the start, and whenever somebody
// takes them off.
func (n *Node) nodeEvents() toolscache.ResourceEventHandlerFuncs {
	label := func(obj any) {
		if err := n.label(n.ctx, obj.(*corev1.Node)); err != nil && n.ctx.Err() == nil {
			// The next heartbeat of the kubelet brings us back here.
			n.Log.Info("cannot label node, will try again", "node", n.Name, "reason", err.Error())
		}
	}
	return toolscache.ResourceEventHandlerFuncs{AddFunc: label, UpdateFunc: func(_, obj any) { label(obj) }}
}

// nodeLabels are our labels; an empty value means none.
func nodeLabels(a v1alpha1.Accelerator) map[string]string {
	if a == v1alpha1.AcceleratorKVM {
		return map[string]string{labelSchedulable: "true", labelKVM: "true", labelAccelerator: "kvm"}
	}
	return map[string]string{labelSchedulable: "true", labelKVM: "", labelAccelerator: "tcg"}
}

func (n *Node) label(ctx context.Context, node *corev1.Node) error {
	changes := map[string]any{}
	for key, want := range nodeLabels(n.Accelerator) {
		got, there := node.Labels[key]
		switch {
		case want == "" && there:
			changes[key] = nil
		case want != "" && got != want:
			changes[key] = want
		}
	}
	if len(changes) == 0 {
		return nil
	}
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": changes}})
	if err != nil {
		return fmt.Errorf("encode labels: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	target := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.Name}}
	if err := n.Client.Patch(ctx, target, client.RawPatch(types.MergePatchType, body), client.FieldOwner(Owner)); err != nil {
		return fmt.Errorf("label node: %w", err)
	}
	n.Log.Info("node labelled", "node", n.Name, "accelerator", string(n.Accelerator))
	return nil
}
