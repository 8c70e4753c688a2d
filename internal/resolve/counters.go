package resolve

import (
	"context"
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/verify"
)

// Names of sources that are treated in a way of their own.
const (
	cacheName    = "cache"
	peerName     = "peer"
	upstreamName = "upstream"
)

// counters are those that are needed per request, looked up once.
type counters struct {
	m                     *metrics.Metrics
	memoryHit, memoryMiss prometheus.Counter
}

func newCounters(m *metrics.Metrics) counters {
	return counters{
		m:          m,
		memoryHit:  m.NarinfoRequests.WithLabelValues("memory", "hit"),
		memoryMiss: m.NarinfoRequests.WithLabelValues("memory", "miss"),
	}
}

// info counts the answer to a narinfo request that the memory did not have.
func (c *counters) info(k *known, err error) {
	source, result := "none", "miss"
	switch {
	case err == nil:
		source, result = k.source, "hit"
	case errors.Is(err, context.DeadlineExceeded):
		result = "timeout"
	}
	c.m.NarinfoRequests.WithLabelValues(source, result).Inc()
}

func (c *counters) lie(source string, lie *verify.InvalidError) {
	c.m.VerifyFailures.WithLabelValues(source, string(lie.Reason)).Inc()
}

// sent counts NAR bytes that went to the client.
func (c *counters) sent(source string, n int64) {
	if n <= 0 {
		return
	}
	c.m.NarBytes.WithLabelValues(source).Add(float64(n))
	if source != upstreamName {
		c.m.SavedBytes.Add(float64(n))
	}
}
