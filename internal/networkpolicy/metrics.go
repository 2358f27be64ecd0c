package networkpolicy

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
)

var (
	isolated = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "orlop_netpol_isolated_pods", Help: "Pods of this node that a policy selects.",
	}, []string{"direction"})
	elements = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "orlop_netpol_elements", Help: "Elements of all sets of the table.",
	})
	failures = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "orlop_netpol_failures_total", Help: "Passes that left the last good table in place.",
	})
	passes = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "orlop_netpol_apply_seconds", Help: "Time to plan and apply a table that changed.",
		Buckets: prometheus.ExponentialBuckets(0.005, 2, 12),
	})
)

func init() { // as controller-runtime's registry expects
	metrics.Registry.MustRegister(isolated, elements, failures, passes)
}

func record(t Table, took time.Duration) {
	for _, d := range []direction{ingress, egress} {
		isolated.WithLabelValues(string(d)).Set(float64(len(t.Maps[verdicts(d, with)].Verdicts)))
	}
	count := 0
	for _, s := range t.Sets {
		count += len(s.Elements)
	}
	elements.Set(float64(count))
	passes.Observe(took.Seconds())
}
