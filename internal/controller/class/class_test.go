package class

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/steps"
	"orlop.dev/orlop/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func node(name, cpu, memory string) corev1.Node {
	return corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NodeStatus{Allocatable: corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}}}
}

func TestClass(t *testing.T) {
	model := func(c *v1alpha2.VirtualMachineClass) {
		c.Spec.CPU = v1alpha2.VirtualMachineClassCPU{Type: v1alpha2.CPUTypeModel, Model: "Nehalem"}
	}
	two := []corev1.Node{node("a", "4", "1Gi"), node("b", "2", "8Gi")}
	cases := map[string]struct {
		change  func(*v1alpha2.VirtualMachineClass)
		nodes   []corev1.Node
		user    string
		phase   v1alpha2.VirtualMachineClassPhase
		shown   int
		release bool
	}{
		"a model with nodes":                          {model, two, "", v1alpha2.VirtualMachineClassReady, 2, false},
		"a model without nodes":                       {model, nil, "", v1alpha2.VirtualMachineClassPending, 0, false},
		"the host's processor needs no list of nodes": {func(*v1alpha2.VirtualMachineClass) {}, nil, "", v1alpha2.VirtualMachineClassReady, 0, false},
		"and shows none":                              {func(*v1alpha2.VirtualMachineClass) {}, two, "", v1alpha2.VirtualMachineClassReady, 0, false},
		"a class in use stays": {func(c *v1alpha2.VirtualMachineClass) { c.DeletionTimestamp = new(metav1.Now()) }, two, "n/a",
			v1alpha2.VirtualMachineClassTerminating, 0, false},
		"a class that nobody uses goes": {func(c *v1alpha2.VirtualMachineClass) { c.DeletionTimestamp = new(metav1.Now()) }, two, "",
			v1alpha2.VirtualMachineClassTerminating, 0, true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			w := &world{now: time.Unix(0, 0), class: testkit.Class("c").With(c.change).Object(), suitable: c.nodes, user: c.user}
			d := steps.Decide(w, all...)
			s := status(w, d, nil)
			released := false
			for _, f := range d {
				_, ok := f.Act.(steps.Release)
				released = released || ok
			}
			if s.Phase != c.phase || len(s.AvailableNodes) != c.shown || released != c.release {
				t.Errorf("phase %s, nodes %v, released %v", s.Phase, s.AvailableNodes, released)
			}
			if len(c.nodes) == 2 {
				most := s.MaxAllocatableResources
				if most.Cpu().String() != "4" || most.Memory().String() != "8Gi" {
					t.Errorf("greatest resources %v", most)
				}
			}
		})
	}
}
