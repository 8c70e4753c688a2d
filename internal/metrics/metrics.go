// Package metrics holds every metric and its meaning in one struct, which is passed to
// those who count. There is no global registry. It serves nothing itself: the admin
// listener does.
package metrics

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	dto "github.com/prometheus/client_model/go"
)

// Metrics is all that this program counts. Every field is safe for concurrent use.
type Metrics struct {
	Registry *prometheus.Registry

	NarinfoRequests   *prometheus.CounterVec // source, result
	AheadRequests     *prometheus.CounterVec // source, result
	NarRequests       *prometheus.CounterVec // result
	NarBytes          *prometheus.CounterVec // source
	NarUnpacked       *prometheus.CounterVec // source
	UpstreamBytes     prometheus.Counter
	UpstreamRequests  *prometheus.CounterVec // kind, status
	UpstreamUp        *prometheus.GaugeVec   // upstream
	BucketBytes       *prometheus.CounterVec // direction
	BucketWrites      *prometheus.CounterVec // result
	PeerReceivedBytes prometheus.Counter
	OtherZoneBytes    prometheus.Counter
	PeerSentBytes     prometheus.Counter
	Peers             prometheus.Gauge
	PeersByStanding   *prometheus.GaugeVec   // standing
	PeerDials         *prometheus.CounterVec // result
	PeerSessionsEnded *prometheus.CounterVec // reason
	PeerHedges        *prometheus.CounterVec // kind, event
	PeerMoves         *prometheus.CounterVec // reason
	PeerBusy          *prometheus.CounterVec // direction
	PeerUploads       prometheus.Gauge
	Leases            *prometheus.CounterVec // told
	InventoryBytes    *prometheus.CounterVec // direction
	DHTLookups        *prometheus.CounterVec // result
	VerifyFailures    *prometheus.CounterVec // source, reason
	CacheBytes        prometheus.Gauge
	CacheDeltaBytes   prometheus.Gauge
	CacheDeltaSaved   prometheus.Gauge
	CacheRestored     prometheus.Counter
	CacheDegraded     prometheus.Gauge
	StorePathsShared  prometheus.Gauge
	StoreQuarantined  prometheus.Gauge
	Failovers         *prometheus.CounterVec // source
	SavedBytes        prometheus.Counter
	SavedEstimated    prometheus.Counter
	FollowMissing     *prometheus.GaugeVec   // list
	Replicated        *prometheus.CounterVec // result
	ReplicatedBytes   prometheus.Counter
	Delta             *prometheus.CounterVec // result
	DeltaSavedBytes   prometheus.Counter
	DeltaCPUSeconds   prometheus.Counter
}

// New returns metrics on a registry of their own, together with the Go runtime's and the
// process's.
func New() *Metrics {
	r := prometheus.NewRegistry()
	m := &Metrics{Registry: r}
	b := builder{r}
	m.NarinfoRequests = b.counters("narinfo_requests_total", "Narinfo requests by where the answer came from and what it was.", "source", "result")
	m.AheadRequests = b.counters("ahead_requests_total", "Look-ups of narinfos that no client asked for, as narinfo_requests_total: of followed lists, of what peers share, and of nixp2p prefetch.", "source", "result")
	m.NarRequests = b.counters("nar_requests_total", "NAR requests by how they ended: sent, cut after the first byte, left by the client.", "result")
	m.NarBytes = b.counters("nar_bytes_total", "NAR bytes sent to Nix, by source: as sent, packed or not.", "source")
	m.NarUnpacked = b.counters("nar_unpacked_bytes_total", "The same NARs as they are unpacked, by source: comparable between sources.", "source")
	m.UpstreamBytes = b.counter("upstream_bytes_total", "Bytes of all response bodies received from upstreams.")
	m.UpstreamRequests = b.counters("upstream_requests_total", "Requests to upstreams by kind and status.", "kind", "status")
	m.UpstreamUp = b.gauges("upstream_up", "1 while the upstream is asked, 0 while it is down.", "upstream")
	m.BucketBytes = b.counters("bucket_bytes_total", "Bytes read from the bucket and written to it.", "direction")
	m.BucketWrites = b.counters("bucket_writes_total", "Paths for the bucket by what became of them: written, there (another node wrote it), failed (more than once), dropped (too many waited).", "result")
	m.PeerReceivedBytes = b.counter("peer_received_bytes_total", "NAR bytes received from peers, as on the wire.")
	m.OtherZoneBytes = b.counter("peer_other_zone_bytes_total", "NAR bytes received from peers of other zones than this node's, as on the wire; 0 without --zone.")
	m.PeerSentBytes = b.counter("peer_sent_bytes_total", "NAR bytes sent to peers, as on the wire.")
	m.Peers = b.gauge("peers", "Connected peers.")
	m.PeersByStanding = b.gauges("peers_by_standing", "Peers by reputation: good, silent, muted (its inventory named what it lacks), guest (an extra peer, without inventories), liar (blamed for wrong bytes, also if it is not connected).", "standing")
	m.PeerDials = b.counters("peer_dials_total", "Attempts to connect to a peer, by result: ok, failed.", "result")
	m.PeerSessionsEnded = b.counters("peer_sessions_ended_total", "Sessions with peers that ended: lost, silent, stranger (of another site), protocol, full.", "reason")
	m.PeerHedges = b.counters("peer_hedges_total", "Second peers asked because the first was slower than usual (sent), and how often they were first (won), by what was asked for: narinfo, nar.", "kind", "event")
	m.PeerMoves = b.counters("peer_moves_total", "NARs that moved from one peer to another in the middle, by reason: stalled, slow, failed.", "reason")
	m.PeerBusy = b.counters("peer_busy_total", "NAR requests refused because too many were served already: given to peers, received from peers.", "direction")
	m.PeerUploads = b.gauge("peer_uploads", "NARs that are being sent to peers.")
	m.Leases = b.counters("leases_total", "Answers of coordinators: fetch the NAR, follow another node, yield (to another one that fetches it too).", "told")
	m.InventoryBytes = b.counters("peer_inventory_bytes_total", "Bytes of inventories and their changes, sent and received.", "direction")
	m.DHTLookups = b.counters("dht_lookups_total", "Lookups of NARs in the DHT: found, none, dropped (too many at a time).", "result")
	m.VerifyFailures = b.counters("verify_failures_total", "Wrong narinfos and NARs refused, by source and reason.", "source", "reason")
	m.CacheBytes = b.gauge("cache_bytes", "Bytes on disk of the NAR cache, downloads in progress included.")
	m.CacheDeltaBytes = b.gauge("cache_delta_bytes", "Bytes of older versions in the NAR cache that are stored as what differs from a newer one.")
	m.CacheDeltaSaved = b.gauge("cache_delta_saved_bytes", "Bytes that these took before less those that they take.")
	m.CacheRestored = b.counter("cache_restored_total", "NARs that were made of a delta in the NAR cache because somebody asked for them.")
	m.CacheDegraded = b.gauge("cache_degraded", "1 while the NAR cache cannot write and everything streams through.")
	m.StorePathsShared = b.gauge("store_paths_shared", "Paths of this machine's store that may be shown to others.")
	m.StoreQuarantined = b.gauge("store_quarantined", "Paths of this machine's store whose bytes do not match their hash.")
	m.Failovers = b.counters("failovers_total", "Transfers that went on with another source, by the source that failed.", "source")
	m.SavedBytes = b.counter("saved_bytes_total", "Bytes that did not have to cross the uplink: the file that an upstream would have sent, once for each client and NAR.")
	m.SavedEstimated = b.counter("saved_estimated_bytes_total", "The part of saved_bytes_total that is an estimate: no upstream of this node has said how large the file is.")
	m.FollowMissing = b.gauges("follow_missing_bytes", "Bytes of the newest generation of a followed list that are still to be fetched.", "list")
	m.Replicated = b.counters("replicated_total", "NARs that peers share and this machine lacked, by what came of copying them: copied, failed.", "result")
	m.ReplicatedBytes = b.counter("replicated_bytes_total", "Bytes of NARs, unpacked, that were copied from peers.")
	m.Delta = b.counters("delta_total", "NARs that a peer or an upstream might have sent as deltas. Here: used, failed (it broke off or was wrong), no_base (no version of it is here), declined (it came as usual). To others: sent, no_base (none of the proposed is here), no_slot (no encoder was free), poor (sent, but little of the base returned), cut.", "result")
	m.DeltaSavedBytes = b.counter("delta_saved_bytes_total", "Bytes of NARs received as deltas less the bytes of the deltas.")
	m.DeltaCPUSeconds = b.counter("delta_cpu_seconds_total", "CPU seconds spent on deltas for others.")
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Value returns what a counter or gauge says now.
func Value(m prometheus.Metric) int64 {
	var d dto.Metric
	if err := m.Write(&d); err != nil {
		return 0
	}
	return int64(d.GetCounter().GetValue() + d.GetGauge().GetValue())
}

type builder struct{ r prometheus.Registerer }

const namespace = "nixp2p"

func (b builder) counter(name, help string) prometheus.Counter {
	c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help})
	b.r.MustRegister(c)
	return c
}

func (b builder) counters(name, help string, labels ...string) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}, labels)
	b.r.MustRegister(c)
	return c
}

func (b builder) gauge(name, help string) prometheus.Gauge {
	g := prometheus.NewGauge(prometheus.GaugeOpts{Namespace: namespace, Name: name, Help: help})
	b.r.MustRegister(g)
	return g
}

func (b builder) gauges(name, help string, labels ...string) *prometheus.GaugeVec {
	g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: namespace, Name: name, Help: help}, labels)
	b.r.MustRegister(g)
	return g
}
