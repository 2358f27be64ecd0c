// Command vm-route-forge keeps the node's routes to virtual machines on other
// nodes; see package routing. It runs with the node's network and NET_ADMIN, once
// on every node.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	deckhousev1alpha1 "orlop.dev/orlop/api/deckhouse/v1alpha1"
	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/routing"
	"orlop.dev/orlop/internal/version"
)

func main() {
	node := flag.String("node", os.Getenv("NODE_NAME"), "name of this Node object (default: the variable NODE_NAME)")
	health := flag.String("health-address", ":4105", "address of metrics and health")
	logging := zap.Options{}
	logging.BindFlags(flag.CommandLine)
	flag.Parse()
	ctrl.SetLogger(zap.New(zap.UseFlagOptions(&logging)))
	log := ctrl.Log.WithName("vm-route-forge")
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
	config, err := ctrl.GetConfig()
	if err != nil {
		return fmt.Errorf("find the API server: %w", err)
	}
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme), deckhousev1alpha1.AddToScheme(scheme)); err != nil {
		return fmt.Errorf("build scheme: %w", err)
	}
	forge := &routing.Forge{Node: node, Now: time.Now}
	m, err := ctrl.NewManager(config, ctrl.Options{
		Scheme:                 scheme,
		HealthProbeBindAddress: "0", // with the metrics, on one port
		Metrics: metricsserver.Options{
			BindAddress: health,
			ExtraHandlers: map[string]http.Handler{
				"/healthz": http.StripPrefix("/healthz", &healthz.Handler{}),
				"/readyz": http.StripPrefix("/readyz", &healthz.Handler{Checks: map[string]healthz.Checker{
					"routes": func(*http.Request) error { return forge.Ready() },
				}}),
			},
		},
		Cache: cache.Options{DefaultTransform: routing.Strip()},
	})
	if err != nil {
		return fmt.Errorf("make manager: %w", err)
	}
	forge.Client = m.GetClient()
	if err := forge.SetupWithManager(m); err != nil {
		return fmt.Errorf("set up routes: %w", err)
	}
	return m.Start(ctx)
}
