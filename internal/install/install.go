package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/discovery"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	corev1alpha2 "orlop.dev/orlop/api/core/v1alpha2"
	deckhousev1alpha1 "orlop.dev/orlop/api/deckhouse/v1alpha1"
	instancev1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/settings"
)

// floor is the oldest Kubernetes that has all we need, above all the node name in
// bound tokens and policies that read it.
const floor = "1.32.0"

// fieldOwner marks what the installer writes.
const fieldOwner = "d8-install"

// Options of an installation.
type Options struct {
	// Getter reaches the cluster.
	Getter genericclioptions.RESTClientGetter
	// Out gets the progress, one line for each step.
	Out io.Writer
	// Clock measures the steps and paces the waiting.
	Clock clock.Clock

	// Registry and Version say where the images are: registry/<name>:<version>.
	Registry string
	Version  string
	// PullSecrets are names of Secrets in the module's namespace.
	PullSecrets []string
	// Replicas of controller and API; 0 chooses 1, or 2 with three or more control plane nodes.
	Replicas int

	// Module is what a new ModuleConfig says; an existing one is kept.
	Module ModuleOptions
	// Network has facts about the cluster; what is empty is found out.
	Network settings.Platform

	// Timeout for everything together.
	Timeout time.Duration
}

// ModuleOptions is what a new ModuleConfig says.
type ModuleOptions struct {
	VirtualMachineCIDRs []string
	DVCRSize            string
	DVCRStorageClass    string
	// AllowEmulation lets machines run on nodes without working KVM.
	AllowEmulation bool
}

// installer is one run.
type installer struct {
	Options

	client    client.Client
	discovery discovery.DiscoveryInterface
	progress  progress
}

// Install puts the platform onto the cluster, or brings an installation up to date.
func Install(ctx context.Context, options Options) error {
	ctx, cancel := context.WithTimeout(ctx, options.Timeout)
	defer cancel()
	i, err := newInstaller(options)
	if err != nil {
		return err
	}
	if err := i.checkVersion(); err != nil {
		return err
	}
	if err := i.installDefinitions(ctx); err != nil {
		return err
	}
	config, err := i.installConfig(ctx)
	if err != nil {
		return err
	}
	if err := i.installWorkloads(ctx, config); err != nil {
		return err
	}
	if err := i.installClass(ctx); err != nil {
		return err
	}
	i.summary(config)
	return nil
}

func newInstaller(options Options) (*installer, error) {
	scheme, err := newScheme()
	if err != nil {
		return nil, err
	}
	config, err := options.Getter.ToRESTConfig()
	if err != nil {
		return nil, fmt.Errorf("find the cluster: %w", err)
	}
	config.QPS = -1
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		return nil, fmt.Errorf("reach the cluster at %s: %w", config.Host, err)
	}
	d, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("reach the cluster at %s: %w", config.Host, err)
	}
	return &installer{Options: options, client: c, discovery: d, progress: progress{out: options.Out, clock: options.Clock}}, nil
}

func newScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		clientgoscheme.AddToScheme, apiextensionsv1.AddToScheme, apiregistrationv1.AddToScheme,
		corev1alpha2.AddToScheme, deckhousev1alpha1.AddToScheme, instancev1alpha1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("bug: build scheme: %w", err)
		}
	}
	return scheme, nil
}

// checkVersion refuses clusters below the floor.
func (i *installer) checkVersion() error {
	info, err := i.discovery.ServerVersion()
	if err != nil {
		return fmt.Errorf("ask the cluster for its version: %w", err)
	}
	return checkVersion(info.GitVersion)
}

func checkVersion(text string) error {
	present, err := version.ParseGeneric(text)
	if err != nil {
		return fmt.Errorf("read the cluster's version: %w", err)
	}
	if !present.AtLeast(version.MustParseGeneric(floor)) {
		return fmt.Errorf("the cluster runs Kubernetes %s, at least %s is needed", text, floor)
	}
	return nil
}

// installConfig makes the namespace and the ModuleConfig, and returns what it says.
func (i *installer) installConfig(ctx context.Context) (*settings.Settings, error) {
	if err := i.installNamespace(ctx); err != nil {
		return nil, err
	}
	done := i.progress.step("ModuleConfig")
	present := &deckhousev1alpha1.ModuleConfig{}
	err := i.client.Get(ctx, client.ObjectKey{Name: settings.Name}, present)
	if apierrors.IsNotFound(err) {
		present, err = newModuleConfig(i.Module)
		if err != nil {
			return nil, err
		}
		if err := i.client.Create(ctx, present); err != nil {
			return nil, fmt.Errorf("create ModuleConfig: %w", err)
		}
		done("created")
	} else if err != nil {
		return nil, fmt.Errorf("get ModuleConfig: %w", err)
	} else {
		done("kept as it is")
	}
	config, err := settings.Parse(present)
	if err != nil {
		return nil, fmt.Errorf("ModuleConfig %s cannot be used: %w", settings.Name, err)
	}
	if !config.Enabled {
		return nil, fmt.Errorf("ModuleConfig %s says that the module is switched off (spec.enabled: false)", settings.Name)
	}
	return config, nil
}

func (i *installer) installNamespace(ctx context.Context) error {
	namespace := &corev1.Namespace{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"},
		ObjectMeta: metav1.ObjectMeta{
			Name: settings.Namespace,
			Labels: map[string]string{
				corev1alpha2.LabelHeritage: corev1alpha2.HeritageValue,
				corev1alpha2.LabelModule:   corev1alpha2.ModuleValue,
				// The handler is privileged; nothing of the users runs here.
				"pod-security.kubernetes.io/enforce": "privileged",
			},
		},
	}
	if err := apply(ctx, i.client, namespace); err != nil {
		return fmt.Errorf("apply namespace %s: %w", settings.Namespace, err)
	}
	return nil
}

// installWorkloads installs the chart. The configurations that make the API server
// call us come only after we answer, unless they are there from an earlier
// installation.
func (i *installer) installWorkloads(ctx context.Context, config *settings.Settings) error {
	values, err := i.values(ctx, config)
	if err != nil {
		return err
	}
	bundle, err := i.bundle(ctx)
	if err != nil {
		return err
	}
	installed, err := i.webhooksInstalled(ctx)
	if err != nil {
		return err
	}
	values.Webhooks.CABundle, values.Webhooks.Enabled = bundle, installed && bundle != ""
	chart, err := newChart(i.Getter, i.Version)
	if err != nil {
		return err
	}
	done := i.progress.step("workloads")
	if err := chart.apply(ctx, values); err != nil {
		return err
	}
	done("applied")
	if err := i.waitForWorkloads(ctx); err != nil {
		return err
	}
	if !values.Webhooks.Enabled {
		if err := i.installWebhooks(ctx, chart, values); err != nil {
			return err
		}
	}
	return i.waitForAPI(ctx)
}

func (i *installer) installWebhooks(ctx context.Context, chart *chart, values *values) error {
	done := i.progress.step("admission and aggregated API")
	bundle, err := i.bundle(ctx)
	if err != nil {
		return err
	}
	if bundle == "" {
		return errors.New("the controller answers but made no certificates: look at the log of Deployment virtualization-controller")
	}
	values.Webhooks.CABundle, values.Webhooks.Enabled = bundle, true
	if err := chart.apply(ctx, values); err != nil {
		return err
	}
	done("applied")
	return nil
}

// waitForWorkloads waits until every component is ready.
func (i *installer) waitForWorkloads(ctx context.Context) error {
	return i.progress.wait(ctx, "components", func() (string, error) {
		waiting, err := i.unready(ctx)
		if err != nil || len(waiting) == 0 {
			return "", err
		}
		return i.describe(ctx, waiting), nil
	})
}

// unready returns the names of components that are not ready.
func (i *installer) unready(ctx context.Context) ([]string, error) {
	ours := []client.ListOption{client.InNamespace(settings.Namespace), client.MatchingLabels{corev1alpha2.LabelModule: corev1alpha2.ModuleValue}}
	var deployments appsv1.DeploymentList
	if err := i.client.List(ctx, &deployments, ours...); err != nil {
		return nil, fmt.Errorf("list Deployments: %w", err)
	}
	var daemons appsv1.DaemonSetList
	if err := i.client.List(ctx, &daemons, ours...); err != nil {
		return nil, fmt.Errorf("list DaemonSets: %w", err)
	}
	var waiting []string
	for _, d := range deployments.Items {
		if !deploymentReady(&d) {
			waiting = append(waiting, d.Name)
		}
	}
	for _, d := range daemons.Items {
		if !daemonReady(&d) {
			waiting = append(waiting, d.Name)
		}
	}
	return waiting, nil
}

func deploymentReady(d *appsv1.Deployment) bool {
	wanted := int32(1)
	if d.Spec.Replicas != nil {
		wanted = *d.Spec.Replicas
	}
	s := d.Status
	return s.ObservedGeneration >= d.Generation && s.UpdatedReplicas == wanted && s.ReadyReplicas == wanted && s.Replicas == wanted
}

func daemonReady(d *appsv1.DaemonSet) bool {
	s := d.Status
	return s.ObservedGeneration >= d.Generation && s.UpdatedNumberScheduled == s.DesiredNumberScheduled && s.NumberReady == s.DesiredNumberScheduled
}

// waitForAPI waits until the aggregated API answers through the API server.
func (i *installer) waitForAPI(ctx context.Context) error {
	return i.progress.wait(ctx, "aggregated API", func() (string, error) {
		service := &apiregistrationv1.APIService{}
		if err := i.client.Get(ctx, client.ObjectKey{Name: apiService}, service); err != nil {
			return "", fmt.Errorf("get APIService %s: %w", apiService, err)
		}
		for _, condition := range service.Status.Conditions {
			if condition.Type == apiregistrationv1.Available {
				if condition.Status == apiregistrationv1.ConditionTrue {
					return "", nil
				}
				return condition.Message, nil
			}
		}
		return "it was not looked at yet", nil
	})
}

func (i *installer) summary(config *settings.Settings) {
	if config.AllowEmulation {
		i.progress.note("Machines may run without KVM on this cluster (software emulation, slow): annotation %s.", corev1alpha2.AnnotationAllowEmulation)
	}
	i.progress.note("The platform is ready, machine addresses are taken from %s.", join(config.VirtualMachineCIDRs))
}
