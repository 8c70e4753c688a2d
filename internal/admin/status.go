package admin

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// Status is the answer at /api/v1/status. Names of fields are kept: programs read them.
type Status struct {
	Version          string  `json:"version"`
	UptimeSeconds    float64 `json:"uptime_seconds"`
	Ready            bool    `json:"ready"`
	NotReady         string  `json:"not_ready,omitempty"` // the reason
	StorePathsShared int64   `json:"store_paths_shared"`
	Peers            int     `json:"peers"`
	Bytes            Bytes   `json:"bytes"`       // NAR bytes sent to Nix, by source
	SavedBytes       int64   `json:"saved_bytes"` // that did not cross the uplink
	State
}

// Bytes are counts by source.
type Bytes struct {
	Store    int64 `json:"store"`
	Cache    int64 `json:"cache"`
	Peer     int64 `json:"peer"`
	Upstream int64 `json:"upstream"`
}

// State is the part of Status that the node itself tells.
type State struct {
	// Degraded says what works with less than it should, a sentence each.
	Degraded  []string   `json:"degraded"`
	Upstreams []Upstream `json:"upstreams"`
	Cache     Cache      `json:"cache"`
	Store     Store      `json:"store"`
	StateDir  string     `json:"state_dir,omitempty"`
}

// Store is this machine's own Nix store: how much of it can be shared, and why not the rest.
// Each path is counted once, but for those in quarantine.
type Store struct {
	Database string `json:"database"` // how it is read: "live", "snapshot" or "none"
	Complete bool   `json:"complete"` // all paths have been looked at
	Paths    int    `json:"paths"`

	Shared      int `json:"shared"`      // signed by a share key
	Trusted     int `json:"trusted"`     // signed by a trusted key that is no share key
	Unsigned    int `json:"unsigned"`    // built here
	Untrusted   int `json:"untrusted"`   // signed by keys that are not trusted
	Addressed   int `json:"addressed"`   // sources and fixed outputs, which nobody signed
	Unreadable  int `json:"unreadable"`  // rows without a size, or that make no sense
	Quarantined int `json:"quarantined"` // whose bytes do not match their hash; counted above, too

	Sample string `json:"sample,omitempty"` // store hash of a path that can be shared
}

// Upstream is the health of one cache.
type Upstream struct {
	URL       string    `json:"url"` // without credentials
	Up        bool      `json:"up"`
	Why       string    `json:"why,omitempty"` // why it is not asked
	Since     time.Time `json:"since,omitzero"`
	LastError string    `json:"last_error,omitempty"`
	LatencyMS float64   `json:"latency_ms"` // median of narinfo answers, 0 when unknown
	Priority  int       `json:"priority"`
	Requests  int64     `json:"requests"`
}

// Cache is the NAR cache. Limit 0 means that there is none.
type Cache struct {
	Dir     string `json:"dir,omitempty"`
	Bytes   int64  `json:"bytes"` // downloads in progress included
	Limit   int64  `json:"limit_bytes"`
	Entries int    `json:"entries"`
}

// Why is the answer at /api/v1/why/<storehash>.
type Why struct {
	StoreHash string   `json:"store_hash"`
	Answers   []Answer `json:"answers"`
}

// Result is what a source said of a path.
type Result string

// What sources say.
const (
	Has         Result = "has"
	Absent      Result = "absent"      // it says no
	Unavailable Result = "unavailable" // it could not say
	Lied        Result = "lied"        // it said something wrong
)

// Answer is what one source said.
type Answer struct {
	Source string  `json:"source"`
	Result Result  `json:"result"`
	TookMS float64 `json:"took_ms"`
	Err    string  `json:"error,omitempty"`

	// What was verified, of a path that it has.
	StorePath string   `json:"store_path,omitempty"`
	NarHash   string   `json:"nar_hash,omitempty"`
	NarSize   int64    `json:"nar_size,omitempty"`
	Signers   []string `json:"signers,omitempty"` // trusted keys whose signatures are valid
	Forms     []string `json:"forms,omitempty"`   // shapes in which its bytes are at hand
}

// Peer is one element of /api/v1/peers.
type Peer struct {
	ID            string   `json:"id"`
	Addresses     []string `json:"addresses"`
	FoundBy       string   `json:"found_by"`
	RTTMS         float64  `json:"rtt_ms"`
	Paths         int64    `json:"paths"`
	SentBytes     int64    `json:"sent_bytes"`
	ReceivedBytes int64    `json:"received_bytes"`
	Standing      string   `json:"standing"`
}

// Refusal is the body of an API answer that is not 200.
type Refusal struct {
	Error string `json:"error"`
}

// Status returns what /api/v1/status says now.
func (h *Handler) Status() Status {
	m := h.cfg.Metrics
	bytes := func(source string) int64 { return read(m.NarBytes.WithLabelValues(source)) }
	s := Status{
		Version:          h.cfg.Version,
		UptimeSeconds:    time.Since(h.cfg.Started).Round(time.Millisecond).Seconds(),
		Ready:            true,
		StorePathsShared: read(m.StorePathsShared),
		Peers:            int(read(m.Peers)),
		Bytes:            Bytes{Store: bytes("store"), Cache: bytes("cache"), Peer: bytes("peer"), Upstream: bytes("upstream")},
		SavedBytes:       read(m.SavedBytes),
		State:            h.cfg.Node.State(),
	}
	if err := h.cfg.Node.Ready(); err != nil {
		s.Ready, s.NotReady = false, err.Error()
	}
	if s.Degraded == nil {
		s.Degraded = []string{}
	}
	if s.Upstreams == nil {
		s.Upstreams = []Upstream{}
	}
	return s
}

// read returns the value of a counter or gauge.
func read(m prometheus.Metric) int64 {
	var d dto.Metric
	if err := m.Write(&d); err != nil {
		return 0
	}
	return int64(d.GetCounter().GetValue() + d.GetGauge().GetValue())
}

// formatBytes writes n for people.
func formatBytes(n int64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	x, unit := float64(n)/(1<<10), "KiB"
	for _, u := range []string{"MiB", "GiB", "TiB", "PiB"} {
		if x < 1<<10 {
			break
		}
		x, unit = x/(1<<10), u
	}
	return fmt.Sprintf("%.1f %s", x, unit)
}

// formatDuration writes seconds for people.
func formatDuration(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d days", d/(24*time.Hour))
	case d >= time.Minute:
		return d.Round(time.Minute).String()
	}
	return d.Round(time.Second).String()
}
