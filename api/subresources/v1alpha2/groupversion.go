package v1alpha2

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is subresources.virtualization.deckhouse.io/v1alpha2.
var GroupVersion = schema.GroupVersion{Group: "subresources.virtualization.deckhouse.io", Version: "v1alpha2"}

// SchemeBuilder collects the functions that add this group to a scheme.
var SchemeBuilder = runtime.NewSchemeBuilder(addKnownTypes, addConversions)

// AddToScheme adds this group's kinds to a scheme.
var AddToScheme = SchemeBuilder.AddToScheme

func addKnownTypes(scheme *runtime.Scheme) error {
	scheme.AddKnownTypes(GroupVersion,
		&VirtualMachine{},
		&VirtualMachineList{},
		&VirtualMachineConsole{},
		&VirtualMachineVNC{},
		&VirtualMachinePortForward{},
		&VirtualMachineFreeze{},
		&VirtualMachineUnfreeze{},
	)
	metav1.AddToGroupVersion(scheme, GroupVersion)
	return nil
}
