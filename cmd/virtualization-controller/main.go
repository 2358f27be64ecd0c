// Command virtualization-controller reconciles and admits every kind that users write:
// machines, their classes, operations and addresses, disks and images; and it keeps the
// certificates of the module.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/webhook"

	"orlop.dev/orlop/api/core/v1alpha2"
	deckhousev1alpha1 "orlop.dev/orlop/api/deckhouse/v1alpha1"
	instancev1alpha1 "orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/admission"
	"orlop.dev/orlop/internal/controller/address"
	"orlop.dev/orlop/internal/controller/attachment"
	"orlop.dev/orlop/internal/controller/certificates"
	"orlop.dev/orlop/internal/controller/class"
	"orlop.dev/orlop/internal/controller/disk"
	"orlop.dev/orlop/internal/controller/image"
	"orlop.dev/orlop/internal/controller/macaddress"
	"orlop.dev/orlop/internal/controller/operation"
	"orlop.dev/orlop/internal/controller/vm"
	"orlop.dev/orlop/internal/pki"
	"orlop.dev/orlop/internal/settings"
	"orlop.dev/orlop/internal/version"
)

type flags struct {
	platform       settings.Platform
	metrics        string
	health         string
	webhookPort    int
	leaderElection bool
	// addressRetention is how long a released address stays with its namespace.
	addressRetention time.Duration
}

func main() {
	var f flags
	f.platform.Flags(flag.CommandLine)
	flag.StringVar(&f.metrics, "metrics-address", ":8080", "address to serve metrics on, 0 for none")
	flag.StringVar(&f.health, "health-address", ":8081", "address to serve /healthz and /readyz on, 0 for none")
	flag.IntVar(&f.webhookPort, "webhook-port", 9443, "port of the admission webhooks, 0 for none")
	flag.BoolVar(&f.leaderElection, "leader-election", true, "let only one replica reconcile at a time")
	flag.DurationVar(&f.addressRetention, "ip-address-lease-retention", address.Retention, "how long a released address stays reserved for its namespace")
	logs := zap.Options{}
	logs.BindFlags(flag.CommandLine)
	show := flag.Bool("version", false, "print the version and exit")
	flag.Parse()
	if *show {
		fmt.Println(version.Version())
		return
	}
	log := zap.New(zap.UseFlagOptions(&logs))
	ctrl.SetLogger(log)
	klog.SetLogger(log)
	if err := run(ctrl.SetupSignalHandler(), log, f); err != nil {
		log.Error(err, "controller ended")
		os.Exit(1)
	}
}

func run(ctx context.Context, log logr.Logger, f flags) error {
	if f.platform.LauncherImage == "" {
		return errors.New("--launcher-image is not set")
	}
	config, err := ctrl.GetConfig()
	if err != nil {
		return fmt.Errorf("find the cluster: %w", err)
	}
	// Many small requests by few workers: the server's own fairness limits us better.
	config.QPS, config.Burst = 200, 400
	scheme, err := newScheme()
	if err != nil {
		return err
	}
	keeper, err := bootstrap(ctx, f.platform)
	if err != nil {
		return err
	}
	options := ctrl.Options{
		Scheme:                        scheme,
		Logger:                        log,
		Metrics:                       server.Options{BindAddress: f.metrics},
		HealthProbeBindAddress:        f.health,
		LeaderElection:                f.leaderElection,
		LeaderElectionID:              "virtualization-controller",
		LeaderElectionNamespace:       f.platform.Namespace,
		LeaderElectionReleaseOnCancel: true,
		Cache:                         cache.Options{DefaultTransform: cache.TransformStripManagedFields()},
	}
	if f.webhookPort > 0 {
		options.WebhookServer = webhooks(f.webhookPort, keeper.Webhook)
	}
	m, err := ctrl.NewManager(config, options)
	if err != nil {
		return fmt.Errorf("make manager: %w", err)
	}
	if err := controllers(ctx, m, keeper, f); err != nil {
		return err
	}
	if f.webhookPort > 0 {
		if err := admission.Setup(m, f.platform); err != nil {
			return fmt.Errorf("set up admission: %w", err)
		}
	}
	if err := health(m, f); err != nil {
		return fmt.Errorf("set up health checks: %w", err)
	}
	return m.Start(ctx)
}

// bootstrap makes the certificates that the controller itself needs to serve.
func bootstrap(ctx context.Context, platform settings.Platform) (*certificates.Keeper, error) {
	scheme, err := certificates.Scheme()
	if err != nil {
		return nil, err
	}
	config, err := ctrl.GetConfig()
	if err != nil {
		return nil, fmt.Errorf("find the cluster: %w", err)
	}
	direct, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		return nil, fmt.Errorf("make client: %w", err)
	}
	keeper, err := certificates.Bootstrap(ctx, direct, platform)
	if err != nil {
		return nil, fmt.Errorf("prepare certificates: %w", err)
	}
	return keeper, nil
}

func webhooks(port int, identity pki.Identity) webhook.Server {
	return webhook.NewServer(webhook.Options{Port: port, TLSOpts: []func(*tls.Config){func(c *tls.Config) {
		c.MinVersion = tls.VersionTLS13
		c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return identity.Current() }
	}}})
}

func newScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		clientgoscheme.AddToScheme, v1alpha2.AddToScheme, instancev1alpha1.AddToScheme, deckhousev1alpha1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("bug: build scheme: %w", err)
		}
	}
	return scheme, nil
}

func controllers(ctx context.Context, m ctrl.Manager, keeper *certificates.Keeper, f flags) error {
	p := f.platform
	setups := []struct {
		name string
		add  func() error
	}{
		{"certificates", func() error { return keeper.Add(m) }},
		{"machines", func() error { return vm.Setup(ctx, m, p) }},
		{"attachments", func() error { return attachment.Setup(ctx, m) }},
		{"operations", func() error { return operation.Setup(ctx, m) }},
		{"addresses", func() error { return address.Setup(ctx, m, f.addressRetention) }},
		{"hardware addresses", func() error { return macaddress.Setup(ctx, m) }},
		{"classes", func() error { return class.Setup(ctx, m) }},
		{"disks", func() error { return disk.Setup(ctx, m, p) }},
		{"images", func() error { return image.Setup(ctx, m, p) }},
	}
	for _, s := range setups {
		if err := s.add(); err != nil {
			return fmt.Errorf("set up %s: %w", s.name, err)
		}
	}
	return nil
}

// health is ready when the webhooks answer: until then the API server would refuse
// every write of our kinds anyway.
func health(m ctrl.Manager, f flags) error {
	ready := healthz.Ping
	if f.webhookPort > 0 {
		ready = func(r *http.Request) error {
			ctx, cancel := context.WithTimeout(r.Context(), time.Second)
			defer cancel()
			return m.GetWebhookServer().StartedChecker()(r.WithContext(ctx))
		}
	}
	return errors.Join(m.AddHealthzCheck("ping", healthz.Ping), m.AddReadyzCheck("webhooks", ready))
}
