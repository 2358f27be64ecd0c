package admission

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/plan"
	"orlop.dev/orlop/internal/policy"
	"orlop.dev/orlop/internal/settings"
)

// longestName is how long a machine's name may be: it becomes a label and a host name.
const longestName = 63

type machine struct{ client client.Reader }

func machines(m ctrl.Manager, _ settings.Platform) error {
	w := &machine{client: m.GetClient()}
	return ctrl.NewWebhookManagedBy(m, &v1alpha2.VirtualMachine{}).WithDefaulter(w).WithValidator(w).Complete()
}

// Default fills in the class, the share of a core and the ids of interfaces.
func (w *machine) Default(ctx context.Context, vm *v1alpha2.VirtualMachine) error {
	if deleting(vm) {
		return nil
	}
	if vm.Spec.VirtualMachineClassName == "" {
		name, err := w.defaultClass(ctx)
		if err != nil {
			return err
		}
		vm.Spec.VirtualMachineClassName = name
	}
	if vm.Spec.CPU.CoreFraction == "" {
		class := &v1alpha2.VirtualMachineClass{}
		if err := w.client.Get(ctx, client.ObjectKey{Name: vm.Spec.VirtualMachineClassName}, class); err != nil {
			if apierrors.IsNotFound(err) {
				return fmt.Errorf("VirtualMachineClass %s does not exist: create it, name another one, or set spec.cpu.coreFraction",
					vm.Spec.VirtualMachineClassName)
			}
			return err
		}
		share, err := policy.DefaultCoreFraction(class, vm.Spec.CPU.Cores)
		if err != nil {
			return err
		}
		vm.Spec.CPU.CoreFraction = share
	}
	numberNetworks(vm.Spec.Networks)
	return nil
}

func (w *machine) defaultClass(ctx context.Context) (string, error) {
	list := &v1alpha2.VirtualMachineClassList{}
	if err := w.client.List(ctx, list); err != nil {
		return "", err
	}
	var found []string
	for i := range list.Items {
		if list.Items[i].Annotations[v1alpha2.AnnotationDefaultClass] == "true" {
			found = append(found, list.Items[i].Name)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return "", errors.New("spec.virtualMachineClassName is empty and there is no default VirtualMachineClass")
	default:
		return "", fmt.Errorf("spec.virtualMachineClassName is empty and there is more than one default VirtualMachineClass: %s", strings.Join(found, ", "))
	}
}

// numberNetworks gives ids to interfaces without one: 1 to Main, the lowest free from
// 2 to others.
func numberNetworks(networks []v1alpha2.NetworksSpec) {
	used := map[int]bool{1: true}
	for _, n := range networks {
		if n.ID != nil {
			used[*n.ID] = true
		}
	}
	for i := range networks {
		switch {
		case networks[i].ID != nil:
		case networks[i].Type == v1alpha2.NetworkMain:
			networks[i].ID = new(1)
		default:
			id := 2
			for used[id] {
				id++
			}
			used[id] = true
			networks[i].ID = new(id)
		}
	}
}

// ValidateCreate checks a new machine.
func (w *machine) ValidateCreate(ctx context.Context, vm *v1alpha2.VirtualMachine) (admission.Warnings, error) {
	return w.validate(ctx, nil, vm)
}

// ValidateUpdate checks a changed machine.
func (w *machine) ValidateUpdate(ctx context.Context, before, vm *v1alpha2.VirtualMachine) (admission.Warnings, error) {
	if deleting(vm) || equality.Semantic.DeepEqual(before.Spec, vm.Spec) && equality.Semantic.DeepEqual(before.Labels, vm.Labels) &&
		equality.Semantic.DeepEqual(before.Annotations, vm.Annotations) {
		return nil, nil
	}
	return w.validate(ctx, before, vm)
}

// ValidateDelete allows everything.
func (w *machine) ValidateDelete(context.Context, *v1alpha2.VirtualMachine) (admission.Warnings, error) {
	return nil, nil
}

func (w *machine) validate(ctx context.Context, before, vm *v1alpha2.VirtualMachine) (admission.Warnings, error) {
	var p problems
	var warnings admission.Warnings
	if before == nil && len(vm.Name) > longestName {
		p.add("metadata.name: at most %d characters are possible, got %d", longestName, len(vm.Name))
	}
	foreignKeys(&p, before, vm)
	blockDevices(&p, vm.Spec.BlockDeviceRefs)
	networks(&p, vm.Spec.Networks)
	cores(&p, vm.Spec.CPU)
	placement(&p, &vm.Spec)
	notBuilt(&p, before, vm)
	if before == nil || !equality.Semantic.DeepEqual(before.Spec, vm.Spec) {
		missing, err := w.size(ctx, &p, vm)
		if err != nil {
			return nil, err
		}
		warnings = append(warnings, missing...)
	}
	if err := w.devices(ctx, &p, before, vm); err != nil {
		return nil, err
	}
	if err := w.address(ctx, &p, before, vm); err != nil {
		return nil, err
	}
	if u := vm.Spec.Provisioning; u != nil && u.Type == v1alpha2.ProvisioningUserData {
		if text := plan.UserDataWarning([]byte(u.UserData)); text != "" {
			warnings = append(warnings, "spec.provisioning.userData: "+text)
		}
	}
	return warnings, p.err()
}

// foreignKeys refuses metadata that would be mistaken for orders by other software.
func foreignKeys(p *problems, before, vm *v1alpha2.VirtualMachine) {
	check := func(where string, keys, old map[string]string) {
		for key := range keys {
			if _, had := old[key]; !had && strings.Contains(key, "kubevirt.io") {
				p.add("metadata.%s: key %s is reserved", where, key)
			}
		}
	}
	was := &v1alpha2.VirtualMachine{}
	if before != nil {
		was = before
	}
	check("labels", vm.Labels, was.Labels)
	check("annotations", vm.Annotations, was.Annotations)
}

func blockDevices(p *problems, refs []v1alpha2.BlockDeviceSpecRef) {
	seen, orders := map[string]bool{}, map[int]bool{}
	for i, r := range refs {
		key := string(r.Kind) + " " + r.Name
		if seen[key] {
			p.add("spec.blockDeviceRefs[%d]: %s is listed twice", i, key)
		}
		seen[key] = true
		if r.BootOrder == nil {
			continue
		}
		if *r.BootOrder < 1 || orders[*r.BootOrder] {
			p.add("spec.blockDeviceRefs[%d].bootOrder: %d must be at least 1 and unique", i, *r.BootOrder)
		}
		orders[*r.BootOrder] = true
	}
}

func networks(p *problems, list []v1alpha2.NetworksSpec) {
	ids := map[int]bool{}
	for i, n := range list {
		at := fmt.Sprintf("spec.networks[%d]", i)
		main := n.Type == v1alpha2.NetworkMain
		if main && (i != 0 || n.Name != "") {
			p.add("%s: the Main network must come first, once, and without a name", at)
		}
		if !main && n.Name == "" {
			p.add("%s.name: is required for type %s", at, n.Type)
		}
		if n.ID == nil {
			continue
		}
		if main != (*n.ID == 1) || *n.ID < 1 || *n.ID > 16383 {
			p.add("%s.id: must be 1 for Main and from 2 to 16383 for others, got %d", at, *n.ID)
		}
		if ids[*n.ID] {
			p.add("%s.id: %d is used twice", at, *n.ID)
		}
		ids[*n.ID] = true
	}
}

func cores(p *problems, cpu v1alpha2.CPUSpec) {
	if _, _, ok := policy.Topology(cpu.Cores); ok {
		return
	}
	if cpu.Cores > policy.MaxCores {
		p.add("spec.cpu.cores: at most %d are possible, got %d", policy.MaxCores, cpu.Cores)
		return
	}
	step := map[bool]int{true: 2, false: 4}[cpu.Cores <= 32]
	if cpu.Cores > 64 {
		step = 8
	}
	p.add("spec.cpu.cores: %d do not divide evenly among sockets, use a multiple of %d", cpu.Cores, step)
}

// placement checks selectors, which the API server would otherwise refuse only when
// the pod is created.
func placement(p *problems, spec *v1alpha2.VirtualMachineSpec) {
	selector := func(path string, s *metav1.LabelSelector) {
		for _, e := range metavalidation.ValidateLabelSelector(s, metavalidation.LabelSelectorValidationOptions{}, field.NewPath(path)) {
			p.add("%s", e.Error())
		}
	}
	for i, c := range spec.TopologySpreadConstraints {
		at := fmt.Sprintf("spec.topologySpreadConstraints[%d]", i)
		if c.MaxSkew < 1 || c.TopologyKey == "" {
			p.add("%s: maxSkew must be at least 1 and topologyKey must be set", at)
		}
		selector(at+".labelSelector", c.LabelSelector)
	}
	for _, e := range metavalidation.ValidateLabels(spec.NodeSelector, field.NewPath("spec", "nodeSelector")) {
		p.add("%s", e.Error())
	}
	if spec.Affinity == nil {
		return
	}
	term := func(at string, t v1alpha2.VirtualMachineAndPodAffinityTerm) {
		if t.TopologyKey == "" {
			p.add("%s.topologyKey: must be set", at)
		}
		selector(at+".labelSelector", t.LabelSelector)
		selector(at+".namespaceSelector", t.NamespaceSelector)
	}
	if a := spec.Affinity.VirtualMachineAndPodAffinity; a != nil {
		for i, t := range a.RequiredDuringSchedulingIgnoredDuringExecution {
			term(fmt.Sprintf("spec.affinity.virtualMachineAndPodAffinity.required[%d]", i), t)
		}
		for i, t := range a.PreferredDuringSchedulingIgnoredDuringExecution {
			term(fmt.Sprintf("spec.affinity.virtualMachineAndPodAffinity.preferred[%d]", i), t.VirtualMachineAndPodAffinityTerm)
		}
	}
	if a := spec.Affinity.VirtualMachineAndPodAntiAffinity; a != nil {
		for i, t := range a.RequiredDuringSchedulingIgnoredDuringExecution {
			term(fmt.Sprintf("spec.affinity.virtualMachineAndPodAntiAffinity.required[%d]", i), t)
		}
		for i, t := range a.PreferredDuringSchedulingIgnoredDuringExecution {
			term(fmt.Sprintf("spec.affinity.virtualMachineAndPodAntiAffinity.preferred[%d]", i), t.VirtualMachineAndPodAffinityTerm)
		}
	}
}

// size checks a machine against its class. A class that does not exist yet is no
// reason to refuse: the machine waits for it.
func (w *machine) size(ctx context.Context, p *problems, vm *v1alpha2.VirtualMachine) (admission.Warnings, error) {
	if vm.Spec.CPU.CoreFraction != v1alpha2.CoreFractionAuto {
		if _, err := policy.CoreFraction(vm.Spec.CPU.CoreFraction); err != nil {
			p.add("spec.cpu.coreFraction: %s", err)
		}
	}
	if vm.Spec.Memory.Size.Value() < 1<<20 {
		p.add("spec.memory.size: must be at least 1Mi, got %s", vm.Spec.Memory.Size.String())
	}
	class := &v1alpha2.VirtualMachineClass{}
	err := w.client.Get(ctx, client.ObjectKey{Name: vm.Spec.VirtualMachineClassName}, class)
	if apierrors.IsNotFound(err) {
		return admission.Warnings{"VirtualMachineClass " + vm.Spec.VirtualMachineClassName + " does not exist yet"}, nil
	}
	if err != nil {
		return nil, err
	}
	for _, problem := range policy.SizeProblems(&vm.Spec, &class.Spec) {
		p.add("VirtualMachineClass %s: %s", class.Name, problem)
	}
	return nil, nil
}

// address checks that the Main network can work at all.
func (w *machine) address(ctx context.Context, p *problems, before, vm *v1alpha2.VirtualMachine) error {
	if before != nil && before.Spec.VirtualMachineIPAddressName == vm.Spec.VirtualMachineIPAddressName {
		return nil
	}
	s, err := settings.Load(ctx, w.client)
	if err != nil && s == nil && !errors.Is(err, settings.ErrNotFound) {
		return err
	}
	if s == nil || len(s.VirtualMachineCIDRs) == 0 {
		p.add("machines need addresses: set virtualMachineCIDRs in ModuleConfig virtualization")
	}
	if before != nil || vm.Spec.VirtualMachineIPAddressName != "" {
		return nil
	}
	// An address of that name would look like the machine's own and not be it.
	namesake := &v1alpha2.VirtualMachineIPAddress{}
	err = w.client.Get(ctx, client.ObjectKey{Namespace: vm.Namespace, Name: vm.Name}, namesake)
	if err == nil {
		p.add("VirtualMachineIPAddress %s exists: name it in spec.virtualMachineIPAddressName to use it", vm.Name)
		return nil
	}
	return client.IgnoreNotFound(err)
}

// notBuilt refuses what does not exist yet, unless it was there already.
func notBuilt(p *problems, before, vm *v1alpha2.VirtualMachine) {
	was := v1alpha2.VirtualMachineSpec{}
	if before != nil {
		was = before.Spec
	}
	refuse := func(path string, present bool, old, now any, what string) {
		if present && (before == nil || !equality.Semantic.DeepEqual(old, now)) {
			p.add("%s: %s is not supported in this release", path, what)
		}
	}
	s := vm.Spec
	refuse("spec.bootloader", s.Bootloader != "" && s.Bootloader != v1alpha2.BIOS, was.Bootloader, s.Bootloader, string(s.Bootloader))
	refuse("spec.osType", s.OSType != "" && s.OSType != v1alpha2.OSTypeGeneric, was.OSType, s.OSType, string(s.OSType))
	refuse("spec.enableParavirtualization", s.EnableParavirtualization != nil && !*s.EnableParavirtualization,
		was.EnableParavirtualization, s.EnableParavirtualization, "false")
	refuse("spec.provisioning.type", s.Provisioning != nil && s.Provisioning.Type == v1alpha2.ProvisioningSysprepRef,
		was.Provisioning, s.Provisioning, "SysprepRef")
	refuse("spec.cpu.coreFraction", s.CPU.CoreFraction == v1alpha2.CoreFractionAuto, was.CPU.CoreFraction, s.CPU.CoreFraction, "Auto")
	refuse("spec.usbDevices", len(s.USBDevices) > 0, was.USBDevices, s.USBDevices, "USB pass-through")
	refuse("spec.gpus", len(s.GPUs) > 0, was.GPUs, s.GPUs, "GPU pass-through")
	additional := len(s.Networks) > 0 && (len(s.Networks) > 1 || s.Networks[0].Type != v1alpha2.NetworkMain)
	refuse("spec.networks", additional, was.Networks, s.Networks, "a network other than Main")
	if len(s.Networks) > 0 && s.Networks[0].Type == v1alpha2.NetworkMain {
		n := s.Networks[0]
		refuse("spec.networks[0]", n.VirtualMachineMACAddressName != "" || n.IPAddressName != "", was.Networks, s.Networks,
			"an address object of another network on Main")
	}
}
