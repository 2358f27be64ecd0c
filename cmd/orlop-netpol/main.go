// Command orlop-netpol enforces NetworkPolicy on its node of the embedded cluster;
// see package networkpolicy. It runs with the node's network and NET_ADMIN, once on
// every node.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"orlop.dev/orlop/internal/networkpolicy"
	"orlop.dev/orlop/internal/version"
)

func main() {
	node := flag.String("node", os.Getenv("NODE_NAME"), "name of this Node object (default: the variable NODE_NAME)")
	health := flag.String("health-address", ":4106", "address of metrics and health")
	logging := zap.Options{}
	logging.BindFlags(flag.CommandLine)
	flag.Parse()
	ctrl.SetLogger(zap.New(zap.UseFlagOptions(&logging)))
	log := ctrl.Log.WithName("orlop-netpol")
	log.Info("starting", "version", version.Version(), "node", *node)
	if err := run(ctrl.SetupSignalHandler(), *node, *health); err != nil {
		log.Error(err, "stopped")
		os.Exit(1)
	}
}

func run(ctx context.Context, node, health string) error {
	if node == "" {
		return errors.New("the name of this node is missing: set NODE_NAME or --node")
	}
	firewall, err := networkpolicy.NewFirewall()
	if err != nil {
		return err
	}
	config, err := ctrl.GetConfig()
	if err != nil {
		return fmt.Errorf("find the API server: %w", err)
	}
	scheme := runtime.NewScheme()
	if err := errors.Join(corev1.AddToScheme(scheme), networkingv1.AddToScheme(scheme)); err != nil {
		return fmt.Errorf("build scheme: %w", err)
	}
	agent := &networkpolicy.Agent{Node: node, Firewall: firewall, Now: time.Now}
	m, err := ctrl.NewManager(config, ctrl.Options{
		Scheme:                 scheme,
		HealthProbeBindAddress: "0", // with the metrics, on one port
		Metrics: metricsserver.Options{
			BindAddress: health,
			ExtraHandlers: map[string]http.Handler{
				"/healthz": http.StripPrefix("/healthz", &healthz.Handler{}),
				"/readyz": http.StripPrefix("/readyz", &healthz.Handler{Checks: map[string]healthz.Checker{
					"table": func(*http.Request) error { return agent.Ready() },
				}}),
			},
		},
		Cache: cache.Options{DefaultTransform: networkpolicy.Strip},
	})
	if err != nil {
		return fmt.Errorf("make manager: %w", err)
	}
	agent.Client = m.GetClient()
	if err := agent.SetupWithManager(m); err != nil {
		return fmt.Errorf("set up policies: %w", err)
	}
	return m.Start(ctx)
}
