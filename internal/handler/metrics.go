package handler

import (
	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
)

var (
	instances = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "virt_handler_instances", Help: "Instances of this node.",
	})
	transitions = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "virt_handler_instance_transitions_total", Help: "Phases that instances have entered, as reported.",
	}, []string{"phase"})
	connections = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "virt_handler_launcher_connections_total", Help: "Connections made to launchers.",
	})
	starts = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "virt_handler_start_seconds", Help: "Time from the claim of an instance to a running QEMU.",
		Buckets: prometheus.ExponentialBuckets(0.05, 2, 12),
	})
	streams = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "virt_handler_streams", Help: "Open streams to guests.",
	}, []string{"kind"})
	certificateExpiry = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "virt_handler_certificate_expiry_seconds", Help: "End of the serving certificate, as Unix time.",
	})
)

func init() { // as controller-runtime's registry expects
	metrics.Registry.MustRegister(instances, transitions, connections, starts, streams, certificateExpiry)
}
