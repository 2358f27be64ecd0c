package policy

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"

	"orlop.dev/orlop/api/core/v1alpha2"
)

// FindSizingPolicy returns the policy whose range holds the number of cores, or nil.
func FindSizingPolicy(class *v1alpha2.VirtualMachineClassSpec, cores int32) *v1alpha2.SizingPolicy {
	for i := range class.SizingPolicies {
		p := &class.SizingPolicies[i]
		if p.Cores != nil && p.Cores.Min <= int(cores) && int(cores) <= p.Cores.Max {
			return p
		}
	}
	return nil
}

// DefaultCoreFraction is the share of a core for a machine that names none.
func DefaultCoreFraction(class *v1alpha2.VirtualMachineClass, cores int32) (string, error) {
	if len(class.Spec.SizingPolicies) == 0 {
		return "100%", nil
	}
	p := FindSizingPolicy(&class.Spec, cores)
	if p == nil {
		return "", fmt.Errorf("%d cores are in no range of the sizing policies of class %s (%s)", cores, class.Name, ranges(&class.Spec))
	}
	if d := p.DefaultCoreFraction; d != nil {
		if d.Type == intstr.String {
			return d.StrVal, nil
		}
		return fmt.Sprintf("%d%%", d.IntVal), nil
	}
	if len(p.CoreFractions) == 0 {
		return "100%", nil
	}
	if slices.Contains(p.CoreFractions, 100) {
		return "100%", nil
	}
	return "", fmt.Errorf("class %s has no default coreFraction for %d cores: set spec.cpu.coreFraction to one of %s",
		class.Name, cores, fractions(p.CoreFractions))
}

// CoreFraction reads "20%" as 20; an empty share is a whole core.
func CoreFraction(share string) (int64, error) {
	if share == "" {
		return 100, nil
	}
	n, err := strconv.ParseInt(strings.TrimSuffix(share, "%"), 10, 64)
	if err != nil || n < 1 || n > 100 {
		return 0, fmt.Errorf("coreFraction %q is not a share from 1%% to 100%%", share)
	}
	return n, nil
}

// SizeProblems lists every way in which a machine's size breaks the policies of its
// class; none means that it fits.
func SizeProblems(spec *v1alpha2.VirtualMachineSpec, class *v1alpha2.VirtualMachineClassSpec) []string {
	if len(class.SizingPolicies) == 0 {
		return nil
	}
	p := FindSizingPolicy(class, spec.CPU.Cores)
	if p == nil {
		return []string{fmt.Sprintf("%d cores are in no allowed range (%s)", spec.CPU.Cores, ranges(class))}
	}
	problems := coreProblems(spec.CPU, p)
	if p.Memory != nil {
		problems = append(problems, memoryProblems(spec, p.Memory)...)
	}
	return problems
}

func coreProblems(cpu v1alpha2.CPUSpec, p *v1alpha2.SizingPolicy) []string {
	var problems []string
	cores := int(cpu.Cores)
	if step := p.Cores.Step; step > 1 && cores != p.Cores.Max && (cores-p.Cores.Min)%step != 0 {
		problems = append(problems, fmt.Sprintf("%d cores are off the grid: allowed are %d to %d in steps of %d",
			cores, p.Cores.Min, p.Cores.Max, step))
	}
	if len(p.CoreFractions) == 0 || cpu.CoreFraction == v1alpha2.CoreFractionAuto {
		return problems
	}
	share, err := CoreFraction(cpu.CoreFraction)
	for _, f := range p.CoreFractions {
		if err == nil && int64(f) == share {
			return problems
		}
	}
	return append(problems, fmt.Sprintf("coreFraction %s is not allowed for %d cores: allowed are %s",
		cpu.CoreFraction, cores, fractions(p.CoreFractions)))
}

func memoryProblems(spec *v1alpha2.VirtualMachineSpec, rules *v1alpha2.SizingPolicyMemory) []string {
	problems := limits("memory", spec.Memory.Size, rules.MemoryMinMax)
	if rules.PerCore == nil {
		return append(problems, grid("memory", spec.Memory.Size, rules.MemoryMinMax, rules.Step)...)
	}
	perCore := *resource.NewQuantity(spec.Memory.Size.Value()/int64(spec.CPU.Cores), resource.BinarySI)
	problems = append(problems, limits("memory per core", perCore, rules.PerCore.MemoryMinMax)...)
	return append(problems, grid("memory per core", perCore, rules.PerCore.MemoryMinMax, rules.Step)...)
}

func limits(what string, size resource.Quantity, r v1alpha2.MemoryMinMax) []string {
	var problems []string
	if r.Min != nil && !r.Min.IsZero() && size.Cmp(*r.Min) < 0 {
		problems = append(problems, fmt.Sprintf("%s %s is less than the allowed %s", what, size.String(), r.Min.String()))
	}
	if r.Max != nil && !r.Max.IsZero() && size.Cmp(*r.Max) > 0 {
		problems = append(problems, fmt.Sprintf("%s %s is more than the allowed %s", what, size.String(), r.Max.String()))
	}
	return problems
}

// grid checks the step, which counts only where there is an upper end.
func grid(what string, size resource.Quantity, r v1alpha2.MemoryMinMax, step *resource.Quantity) []string {
	if step == nil || step.IsZero() || r.Max == nil || r.Max.IsZero() || size.Cmp(*r.Max) == 0 {
		return nil
	}
	from := int64(0)
	if r.Min != nil {
		from = r.Min.Value()
	}
	above := size.Value() - from
	if above < 0 || above%step.Value() == 0 {
		return nil
	}
	lower := resource.NewQuantity(from+above/step.Value()*step.Value(), resource.BinarySI)
	upper := resource.NewQuantity(min(lower.Value()+step.Value(), r.Max.Value()), resource.BinarySI)
	return []string{fmt.Sprintf("%s %s is off the grid: the nearest allowed sizes are %s and %s",
		what, size.String(), lower.String(), upper.String())}
}

func ranges(class *v1alpha2.VirtualMachineClassSpec) string {
	var all []string
	for _, p := range class.SizingPolicies {
		if p.Cores != nil {
			all = append(all, fmt.Sprintf("%d–%d", p.Cores.Min, p.Cores.Max))
		}
	}
	return strings.Join(all, ", ")
}

func fractions(list []v1alpha2.CoreFractionValue) string {
	all := make([]string, len(list))
	for i, f := range list {
		all[i] = strconv.Itoa(int(f)) + "%"
	}
	return strings.Join(all, ", ")
}

// CPURequest is what a pod asks for: cores times share, rounded up to a millicore.
func CPURequest(cores int32, share int64) resource.Quantity {
	milli := int64(math.Ceil(float64(int64(cores)*1000*share) / 100))
	return *resource.NewMilliQuantity(milli, resource.DecimalSI)
}
