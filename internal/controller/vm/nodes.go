package vm

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"orlop.dev/orlop/api/core/v1alpha2"
)

// landscape is what the nodes offer to a guest that has to move: which kinds there
// are and whether there is more than one of each. Only when that changes can a machine
// become migratable or cease to be, so only then are all of them looked at again.
type landscape struct {
	mu   sync.Mutex
	last string
}

// offers wakes every running machine when the landscape has changed.
func (r *Reconciler) offers() handler.EventHandler {
	return handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, _ client.Object) []reconcile.Request {
		nodes, list := &corev1.NodeList{}, &v1alpha2.VirtualMachineList{}
		if r.Client.List(ctx, nodes, client.UnsafeDisableDeepCopy) != nil || !r.landscape.changed(summary(nodes.Items)) {
			return nil
		}
		if r.Client.List(ctx, list, client.UnsafeDisableDeepCopy) != nil {
			return nil // the cache answers; it fails only when it is being stopped
		}
		var requests []reconcile.Request
		for i := range list.Items {
			if s := list.Items[i].Status; s.Instance != nil && s.NodeName != "" {
				requests = append(requests, request(list.Items[i].Namespace, list.Items[i].Name)...)
			}
		}
		return requests
	})
}

func (l *landscape) changed(now string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	was := l.last
	l.last = now
	return was != now
}

// summary counts nodes that can take a guest, by what they offer, up to two of a kind.
func summary(nodes []corev1.Node) string {
	kinds := map[string]int{}
	for i := range nodes {
		if usable(&nodes[i]) {
			kinds[offer(&nodes[i])]++
		}
	}
	var text strings.Builder
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		fmt.Fprintf(&text, "%d of %s\n", min(kinds[kind], 2), kind)
	}
	return text.String()
}

func usable(n *corev1.Node) bool {
	return n.Labels[v1alpha2.LabelNodeSchedulable] == "true" && !n.Spec.Unschedulable && n.DeletionTimestamp == nil
}

// offer names a node's kind.
func offer(n *corev1.Node) string {
	var all []string
	for k, v := range n.Labels {
		if k == v1alpha2.LabelNodeAccelerator || strings.HasPrefix(k, v1alpha2.LabelNodeCPUModelPrefix) {
			all = append(all, k+"="+v)
		}
	}
	slices.Sort(all)
	return strings.Join(all, ",")
}

// offersMatter lets only those node events through that can change the landscape.
func offersMatter() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		before, after := e.ObjectOld.(*corev1.Node), e.ObjectNew.(*corev1.Node)
		return usable(before) != usable(after) || offer(before) != offer(after)
	}}
}
