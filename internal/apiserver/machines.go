package apiserver

import (
	"context"
	"fmt"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	apirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	core "orlop.dev/orlop/api/core/v1alpha2"
	instance "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/api/subresources/v1alpha2"
)

// resource names the machines in errors.
var resource = schema.GroupResource{Group: v1alpha2.GroupVersion.Group, Resource: "virtualmachines"}

// machines serves GET of a virtual machine (metadata only) and finds the node a
// stream must go to.
type machines struct{ reader client.Reader }

var (
	_ rest.Getter               = machines{}
	_ rest.Scoper               = machines{}
	_ rest.SingularNameProvider = machines{}
)

// New returns an empty object of the served kind.
func (machines) New() runtime.Object { return &v1alpha2.VirtualMachine{} }

// Destroy frees nothing.
func (machines) Destroy() {}

// NamespaceScoped says that machines live in namespaces.
func (machines) NamespaceScoped() bool { return true }

// GetSingularName is the name kubectl prints.
func (machines) GetSingularName() string { return "virtualmachine" }

// Get answers a machine's metadata.
func (m machines) Get(ctx context.Context, name string, _ *metav1.GetOptions) (runtime.Object, error) {
	vm, err := m.find(ctx, name)
	if err != nil {
		return nil, err
	}
	meta := vm.ObjectMeta
	meta.ManagedFields = nil
	return &v1alpha2.VirtualMachine{ObjectMeta: meta}, nil
}

func (m machines) find(ctx context.Context, name string) (*core.VirtualMachine, error) {
	var vm core.VirtualMachine
	key := client.ObjectKey{Namespace: apirequest.NamespaceValue(ctx), Name: name}
	if err := m.reader.Get(ctx, key, &vm); err != nil {
		if apierrors.IsNotFound(err) {
			return nil, apierrors.NewNotFound(resource, name)
		}
		return nil, apierrors.NewInternalError(fmt.Errorf("get virtual machine: %w", err))
	}
	return &vm, nil
}

// place is where a machine runs.
type place struct {
	namespace, machine string
	uid                types.UID
	instance           string
	node, address      string
}

// locate finds the node of a running machine. A machine without one is a conflict
// that names its phase, so that clients know waiting may help.
func (m machines) locate(ctx context.Context, name string) (place, error) {
	vm, err := m.find(ctx, name)
	if err != nil {
		return place{}, err
	}
	if phase := vm.Status.Phase; phase != core.MachineRunning && phase != core.MachineMigrating {
		return place{}, notRunning(name, fmt.Sprintf("virtual machine %s is not running: its phase is %s", name, phaseName(phase)))
	}
	if vm.Status.Instance == nil || vm.Status.Instance.Name == "" {
		return place{}, notRunning(name, fmt.Sprintf("virtual machine %s has no instance yet", name))
	}
	var running instance.Instance
	key := client.ObjectKey{Namespace: vm.Namespace, Name: vm.Status.Instance.Name}
	if err := m.reader.Get(ctx, key, &running); apierrors.IsNotFound(err) {
		return place{}, notRunning(name, fmt.Sprintf("instance %s of virtual machine %s is gone", key.Name, name))
	} else if err != nil {
		return place{}, apierrors.NewInternalError(fmt.Errorf("get instance: %w", err))
	}
	if running.Spec.NodeName == "" {
		return place{}, notRunning(name, fmt.Sprintf("virtual machine %s has no node yet", name))
	}
	address, err := m.nodeAddress(ctx, running.Spec.NodeName)
	if err != nil {
		return place{}, apierrors.NewServiceUnavailable(err.Error())
	}
	return place{
		namespace: vm.Namespace, machine: vm.Name, uid: vm.UID,
		instance: key.Name, node: running.Spec.NodeName, address: address,
	}, nil
}

func (m machines) nodeAddress(ctx context.Context, name string) (string, error) {
	var node corev1.Node
	if err := m.reader.Get(ctx, client.ObjectKey{Name: name}, &node); err != nil {
		return "", fmt.Errorf("get node %s: %w", name, err)
	}
	for _, address := range node.Status.Addresses {
		if address.Type == corev1.NodeInternalIP {
			return address.Address, nil
		}
	}
	return "", fmt.Errorf("node %s has no InternalIP", name)
}

func phaseName(phase core.MachinePhase) string {
	if phase == "" {
		return string(core.MachinePending)
	}
	return string(phase)
}

// notRunning is 409 with a plain sentence; apierrors.NewConflict would prefix it
// with advice about resource versions.
func notRunning(name, message string) error {
	return status(http.StatusConflict, metav1.StatusReasonConflict, name, message)
}

func status(code int32, reason metav1.StatusReason, name, message string) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status:  metav1.StatusFailure,
		Code:    code,
		Reason:  reason,
		Message: message,
		Details: &metav1.StatusDetails{Group: resource.Group, Kind: resource.Resource, Name: name},
	}}
}
