// Command virt-handler is the node agent; see package handler. It runs privileged,
// with the node's network and PID namespaces, once on every node.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"orlop.dev/orlop/api/instance/v1alpha1"
	"orlop.dev/orlop/internal/handler"
	"orlop.dev/orlop/internal/handler/images"
	"orlop.dev/orlop/internal/handler/kvm"
	"orlop.dev/orlop/internal/handler/podfs"
	"orlop.dev/orlop/internal/handler/tunnel"
	"orlop.dev/orlop/internal/version"
)

// options are the flags; --help is their reference.
type options struct {
	nodeName, namespace    string
	hostRoot, kubeletDir   string
	healthAddr, streamAddr string
	nodeAddress            string
	imageDir               string
	imageLimit             int64
}

func main() {
	if len(os.Args) == 2 && os.Args[1] == kvm.Command {
		if err := kvm.Run(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	var o options
	flag.StringVar(&o.nodeName, "node", os.Getenv("NODE_NAME"), "name of this Node object (default: the variable NODE_NAME)")
	flag.StringVar(&o.namespace, "namespace", "d8-virtualization", "namespace of the module")
	flag.StringVar(&o.hostRoot, "host-root", "/proc/1/root", "the node's root directory")
	flag.StringVar(&o.kubeletDir, "kubelet-dir", "/var/lib/kubelet", "the kubelet's root directory, below the node's root")
	flag.StringVar(&o.healthAddr, "health-address", ":4100", "address of metrics and health")
	flag.StringVar(&o.streamAddr, "stream-address", ":4101", "address of consoles and forwarded ports")
	flag.StringVar(&o.nodeAddress, "node-address", os.Getenv("NODE_IP"), "address at which other nodes reach this one for migrations (default: the variable NODE_IP)")
	flag.StringVar(&o.imageDir, "image-dir", "/var/lib/orlop-images", "folder of images that machines of this node have attached")
	flag.Int64Var(&o.imageLimit, "image-limit", images.DefaultLimit, "how much that folder may hold, in bytes")
	logging := zap.Options{}
	logging.BindFlags(flag.CommandLine)
	flag.Parse()
	ctrl.SetLogger(zap.New(zap.UseFlagOptions(&logging)))
	log := ctrl.Log.WithName("virt-handler")
	if err := run(ctrl.SetupSignalHandler(), o, log); err != nil {
		log.Error(err, "stopped")
		os.Exit(1)
	}
}

func run(ctx context.Context, o options, log logr.Logger) error {
	if o.nodeName == "" {
		return errors.New("the name of this node is missing: set NODE_NAME or --node")
	}
	if o.nodeAddress == "" {
		return errors.New("the address of this node is missing: set NODE_IP or --node-address")
	}
	log.Info("starting", "version", version.Version(), "node", o.nodeName)
	accelerator := probe(ctx, log)
	config, err := ctrl.GetConfig()
	if err != nil {
		return fmt.Errorf("find the API server: %w", err)
	}
	m, scheme, err := newManager(config, o)
	if err != nil {
		return err
	}
	watcher, err := client.NewWithWatch(config, client.Options{Scheme: scheme})
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	node := &handler.Node{
		Name:        o.nodeName,
		FS:          podfs.Node{Root: o.hostRoot, KubeletDir: o.kubeletDir},
		Accelerator: accelerator,
		Cache:       m.GetCache(),
		Client:      watcher,
		Reader:      watcher,
		Now:         time.Now,
		Log:         log,
	}
	certificate := &handler.Certificate{NodeName: o.nodeName, Cache: m.GetCache(), Client: watcher, Now: time.Now, Log: log}
	kept := &images.Cache{
		Dir: o.imageDir, Limit: o.imageLimit, InUse: node.ImagesInUse, Now: time.Now, Log: log,
		Source: images.Registry{TLS: certificate.RegistryClient(watcher, o.namespace)},
	}
	node.Images = kept
	endpoint := net.JoinHostPort(o.nodeAddress, strconv.Itoa(tunnel.Port))
	node.Tunnel = &handler.Tunnel{Endpoint: endpoint, Client: certificate.TunnelClient}
	for _, r := range []manager.Runnable{kept, node, certificate, streamServer(o.streamAddr, node, certificate), tunnelServer(node, certificate, log)} {
		if err := m.Add(r); err != nil {
			return fmt.Errorf("add to manager: %w", err)
		}
	}
	return m.Start(ctx)
}

// probe finds the accelerator and says so once.
func probe(ctx context.Context, log logr.Logger) v1alpha1.Accelerator {
	if works, reason := kvm.Probe(ctx); !works {
		log.Info("no KVM on this node: guests would be emulated (TCG)", "reason", reason)
		return v1alpha1.AcceleratorTCG
	}
	log.Info("a 64-bit guest ran under KVM")
	return v1alpha1.AcceleratorKVM
}

// newManager watches what concerns this node, and nothing else.
func newManager(config *rest.Config, o options) (ctrl.Manager, *runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return nil, nil, fmt.Errorf("build scheme: %w", err)
	}
	m, err := ctrl.NewManager(config, ctrl.Options{
		Scheme:                 scheme,
		HealthProbeBindAddress: "0", // with the metrics, on one port
		Metrics: metricsserver.Options{
			BindAddress: o.healthAddr,
			ExtraHandlers: map[string]http.Handler{
				"/healthz": http.StripPrefix("/healthz", &healthz.Handler{}),
				"/readyz":  http.StripPrefix("/readyz", &healthz.Handler{}),
			},
		},
		Cache: cache.Options{
			DefaultTransform: cache.TransformStripManagedFields(),
			ByObject: map[client.Object]cache.ByObject{
				&v1alpha1.Instance{}: {Field: fields.OneTermEqualSelector("spec.nodeName", o.nodeName)},
				&corev1.Node{}:       {Field: fields.OneTermEqualSelector("metadata.name", o.nodeName)},
				&corev1.ConfigMap{}: {
					Namespaces: map[string]cache.Config{o.namespace: {}},
					Field:      fields.OneTermEqualSelector("metadata.name", handler.TrustConfigMap),
				},
			},
		},
	})
	if err != nil {
		return nil, nil, fmt.Errorf("make manager: %w", err)
	}
	return m, scheme, nil
}

// streamServer serves streams until the context ends.
func streamServer(address string, node *handler.Node, certificate *handler.Certificate) manager.RunnableFunc {
	return func(ctx context.Context) error {
		server := &http.Server{
			Handler:           node.Streams(),
			TLSConfig:         certificate.ServerConfig(),
			ReadHeaderTimeout: 10 * time.Second,
			BaseContext:       func(net.Listener) context.Context { return ctx },
		}
		listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
		if err != nil {
			return fmt.Errorf("listen for streams: %w", err)
		}
		go func() {
			<-ctx.Done()
			_ = server.Close()
		}()
		if err := server.ServeTLS(listener, "", ""); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve streams: %w", err)
		}
		return nil
	}
}

// tunnelServer takes migrations of other nodes until the context ends.
func tunnelServer(node *handler.Node, certificate *handler.Certificate, log logr.Logger) manager.RunnableFunc {
	return func(ctx context.Context) error {
		server := &tunnel.Server{
			Config: certificate.TunnelServer(),
			Admit:  node.Admit,
			Refused: func(peer string, h tunnel.Header, err error) {
				log.Info("refused a channel of another node", "node", peer, "instance", h.Namespace+"/"+h.Target, "channel", h.Channel, "reason", err.Error())
			},
		}
		listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", fmt.Sprintf(":%d", tunnel.Port))
		if err != nil {
			return fmt.Errorf("listen for migrations: %w", err)
		}
		return server.Serve(ctx, listener)
	}
}
