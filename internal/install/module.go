package install

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	corev1alpha2 "orlop.dev/orlop/api/core/v1alpha2"
	deckhousev1alpha1 "orlop.dev/orlop/api/deckhouse/v1alpha1"
	"orlop.dev/orlop/internal/settings"
)

// newModuleConfig makes the ModuleConfig of a first installation.
func newModuleConfig(options ModuleOptions) (*deckhousev1alpha1.ModuleConfig, error) {
	claim := map[string]any{"size": options.DVCRSize}
	if options.DVCRStorageClass != "" {
		claim["storageClassName"] = options.DVCRStorageClass
	}
	document := map[string]any{
		"virtualMachineCIDRs": options.VirtualMachineCIDRs,
		"dvcr":                map[string]any{"storage": map[string]any{"type": "PersistentVolumeClaim", "persistentVolumeClaim": claim}},
	}
	raw, err := json.Marshal(document)
	if err != nil {
		return nil, fmt.Errorf("bug: encode settings: %w", err)
	}
	enabled := true
	config := &deckhousev1alpha1.ModuleConfig{
		ObjectMeta: metav1.ObjectMeta{Name: settings.Name},
		Spec: deckhousev1alpha1.ModuleConfigSpec{
			Enabled: &enabled, Version: settings.Version, Settings: &runtime.RawExtension{Raw: raw},
		},
	}
	if options.AllowEmulation {
		config.Annotations = map[string]string{corev1alpha2.AnnotationAllowEmulation: "true"}
	}
	if _, err := settings.Parse(config); err != nil {
		return nil, err
	}
	return config, nil
}

// stateName is the ConfigMap that remembers what was made once.
const stateName = "virtualization-install"

// classMade is its key for the class `generic`.
const classMade = "generic-class"

// installClass makes the class `generic` once: whoever deletes it does not want it back.
func (i *installer) installClass(ctx context.Context) error {
	done := i.progress.step("class generic")
	state := &corev1.ConfigMap{}
	err := i.client.Get(ctx, client.ObjectKey{Namespace: settings.Namespace, Name: stateName}, state)
	if err == nil && state.Data[classMade] == "created" {
		done("kept as it is")
		return nil
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("get ConfigMap %s: %w", stateName, err)
	}
	if err := i.client.Create(ctx, genericClass()); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create VirtualMachineClass generic: %w", err)
	}
	remember := &corev1.ConfigMap{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: settings.Namespace, Name: stateName,
			Labels: map[string]string{corev1alpha2.LabelHeritage: corev1alpha2.HeritageValue, corev1alpha2.LabelModule: corev1alpha2.ModuleValue},
		},
		Data: map[string]string{classMade: "created"},
	}
	if err := apply(ctx, i.client, remember); err != nil {
		return fmt.Errorf("apply ConfigMap %s: %w", stateName, err)
	}
	done("created")
	return nil
}

// genericClass fits nearly every x86-64 node made since 2008.
func genericClass() *corev1alpha2.VirtualMachineClass {
	policy := func(low, high int, fractions ...corev1alpha2.CoreFractionValue) corev1alpha2.SizingPolicy {
		return corev1alpha2.SizingPolicy{
			Cores:               &corev1alpha2.SizingPolicyCores{Min: low, Max: high},
			CoreFractions:       fractions,
			DefaultCoreFraction: &intstr.IntOrString{Type: intstr.Int, IntVal: 100},
		}
	}
	return &corev1alpha2.VirtualMachineClass{
		ObjectMeta: metav1.ObjectMeta{
			Name:        "generic",
			Annotations: map[string]string{corev1alpha2.AnnotationDefaultClass: "true"},
			Labels:      map[string]string{corev1alpha2.LabelModule: corev1alpha2.ModuleValue},
		},
		Spec: corev1alpha2.VirtualMachineClassSpec{
			CPU: corev1alpha2.VirtualMachineClassCPU{Type: corev1alpha2.CPUTypeModel, Model: "Nehalem"},
			SizingPolicies: []corev1alpha2.SizingPolicy{
				policy(1, 4, 5, 10, 20, 50, 100),
				policy(5, 8, 20, 50, 100),
				policy(9, 16, 50, 100),
				policy(17, 1024, 100),
			},
		},
	}
}

// values finds out what the chart has to know.
func (i *installer) values(ctx context.Context, config *settings.Settings) (*values, error) {
	v := &values{}
	v.Images.Registry, v.Images.Version, v.Images.PullSecrets = i.Registry, i.Version, i.PullSecrets
	v.LogLevel, v.LogFormat = config.LogLevel, config.LogFormat
	v.DVCR.StorageClassName = config.DVCR.StorageClassName
	v.DVCR.Size = config.DVCR.Size.String()
	if err := i.fitRegistry(ctx, v); err != nil {
		return nil, err
	}
	var nodes corev1.NodeList
	if err := i.client.List(ctx, &nodes); err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	v.Replicas = replicas(i.Replicas, config.HighAvailability, nodes.Items)
	v.Network.NodeCIDRs = orElse(i.Network.NodeCIDRs, nodeCIDRs(nodes.Items))
	v.Network.PodCIDR = i.Network.PodCIDR
	if v.Network.PodCIDR == "" {
		v.Network.PodCIDR = podCIDR(nodes.Items)
	}
	v.Network.ClusterDomain = i.Network.ClusterDomain
	services := &corev1.ServiceList{}
	if err := i.client.List(ctx, services, client.InNamespace(metav1.NamespaceSystem), client.MatchingLabels{"k8s-app": "kube-dns"}); err != nil {
		return nil, fmt.Errorf("list services: %w", err)
	}
	var dns []string
	for _, service := range services.Items {
		if service.Spec.ClusterIP != corev1.ClusterIPNone && service.Spec.ClusterIP != "" {
			dns = append(dns, service.Spec.ClusterIP)
		}
	}
	v.Network.ClusterDNS = orElse(i.Network.ClusterDNS, dns)
	v.Network.ServiceCIDR = i.Network.ServiceCIDR
	if v.Network.ServiceCIDR == "" {
		v.Network.ServiceCIDR = i.serviceCIDR(ctx)
	}
	return v, nil
}

// fitRegistry keeps the size and the class of a volume that exists, where a claim
// could not follow the settings: it never shrinks and never changes its class.
func (i *installer) fitRegistry(ctx context.Context, v *values) error {
	claim := &corev1.PersistentVolumeClaim{}
	err := i.client.Get(ctx, client.ObjectKey{Namespace: settings.Namespace, Name: "dvcr"}, claim)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("get PersistentVolumeClaim dvcr: %w", err)
	}
	if claim.Spec.StorageClassName != nil {
		v.DVCR.StorageClassName = *claim.Spec.StorageClassName
	}
	present := claim.Spec.Resources.Requests[corev1.ResourceStorage]
	if wanted := resource.MustParse(v.DVCR.Size); wanted.Cmp(present) < 0 {
		v.DVCR.Size = present.String()
	}
	return nil
}

// serviceCIDR asks the API server, which tells since Kubernetes 1.33; before that it
// stays unknown and is not checked against machine ranges.
func (i *installer) serviceCIDR(ctx context.Context) string {
	list := &networkingv1.ServiceCIDRList{}
	if err := i.client.List(ctx, list); err != nil {
		return ""
	}
	for _, item := range list.Items {
		for _, cidr := range item.Spec.CIDRs {
			if prefix, err := netip.ParsePrefix(cidr); err == nil && prefix.Addr().Is4() {
				return cidr
			}
		}
	}
	return ""
}

func replicas(wanted int, highlyAvailable *bool, nodes []corev1.Node) int {
	if wanted > 0 {
		return wanted
	}
	masters := 0
	for _, node := range nodes {
		if _, ok := node.Labels["node-role.kubernetes.io/control-plane"]; ok {
			masters++
		}
	}
	if highlyAvailable != nil && *highlyAvailable {
		return 3
	}
	if highlyAvailable == nil && masters >= 3 {
		return 3
	}
	return 1
}

func nodeCIDRs(nodes []corev1.Node) []string {
	var list []string
	for _, node := range nodes {
		for _, address := range node.Status.Addresses {
			if ip, err := netip.ParseAddr(address.Address); err == nil && address.Type == corev1.NodeInternalIP {
				list = append(list, netip.PrefixFrom(ip, ip.BitLen()).String())
			}
		}
	}
	return list
}

// podCIDR is the smallest range around the ranges of all nodes.
func podCIDR(nodes []corev1.Node) string {
	var around netip.Prefix
	for _, node := range nodes {
		prefix, err := netip.ParsePrefix(node.Spec.PodCIDR)
		if err != nil || !prefix.Addr().Is4() {
			continue
		}
		if !around.IsValid() {
			around = prefix
		}
		for bits := min(around.Bits(), prefix.Bits()); bits >= 0; bits-- {
			around = netip.PrefixFrom(around.Addr(), bits).Masked()
			if around.Contains(prefix.Addr()) {
				break
			}
		}
	}
	if !around.IsValid() {
		return ""
	}
	return around.String()
}

func orElse(given, found []string) []string {
	if len(given) > 0 {
		return given
	}
	return found
}

func join(prefixes []netip.Prefix) string {
	texts := make([]string, len(prefixes))
	for i, prefix := range prefixes {
		texts[i] = prefix.String()
	}
	return strings.Join(texts, ", ")
}
