package resolve

import (
	"context"
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/source"
)

// counters are those that are needed per request, looked up once.
type counters struct {
	requests              *prometheus.CounterVec // source, result
	ahead                 *prometheus.CounterVec // the same, of Resolver.Ahead
	memoryHit, memoryMiss prometheus.Counter
}

func newCounters(m *metrics.Metrics) counters {
	memory := source.Memory.String()
	return counters{
		requests:   m.NarinfoRequests,
		ahead:      m.AheadRequests,
		memoryHit:  m.NarinfoRequests.WithLabelValues(memory, "hit"),
		memoryMiss: m.NarinfoRequests.WithLabelValues(memory, "miss"),
	}
}

// countAnswer counts the answer to a question that the memory did not have.
func countAnswer(c *prometheus.CounterVec, k *cached, err error) {
	role, result := source.None, "miss"
	switch {
	case err == nil:
		role, result = k.role, "hit"
	case errors.Is(err, context.DeadlineExceeded):
		result = "timeout"
	}
	c.WithLabelValues(role.String(), result).Inc()
}
