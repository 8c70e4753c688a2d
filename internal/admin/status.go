package admin

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nixp2p/nixp2p/internal/metrics"
)

// Status is the answer at /api/v1/status. Names of fields are kept: programs read them.
type Status struct {
	Version          string    `json:"version"`
	Since            time.Time `json:"since"`
	UptimeSeconds    float64   `json:"uptime_seconds"`
	Ready            bool      `json:"ready"`
	NotReady         string    `json:"not_ready,omitempty"` // the reason
	StorePathsShared int64     `json:"store_paths_shared"`
	Peers            int       `json:"peers"`
	Bytes            Bytes     `json:"bytes"`    // sent to Nix, by source, as sent: packed or not
	Unpacked         Bytes     `json:"unpacked"` // the same NARs unpacked: comparable between sources
	// SavedBytes did not cross the uplink since the start: for each NAR and client the file that
	// an upstream would have sent. SavedEstimated is the part of it that is an estimate.
	SavedBytes     int64 `json:"saved_bytes"`
	SavedEstimated int64 `json:"saved_estimated_bytes"`
	// Deltas is what came since the start as what differs from versions of the store.
	Deltas Deltas `json:"deltas"`
	// Requests counts narinfo requests since the start by where the answer came from: memory,
	// disk, store, peer, upstream, none.
	Requests          map[string]Results `json:"requests"`
	UpstreamBytes     int64              `json:"upstream_bytes"`      // all response bodies of upstreams
	PeerReceivedBytes int64              `json:"peer_received_bytes"` // NAR bytes on the wire
	PeerSentBytes     int64              `json:"peer_sent_bytes"`     // NAR bytes on the wire
	// Degraded are the texts of those Conditions that are no notes.
	Degraded []string `json:"degraded"`
	State
}

// Condition explains how a part of the node works, as long as that lasts: what it wanted and did
// not get, or what it leaves out and why.
type Condition struct {
	Part string `json:"part"`
	Text string `json:"text"`           // a sentence without capital and full stop
	Hint string `json:"hint,omitempty"` // what to do about it
	Note bool   `json:"note,omitempty"` // nothing is wrong, it only explains
}

// Results counts answers by what they were.
type Results struct {
	Hit     int64 `json:"hit"`
	Miss    int64 `json:"miss"`
	Timeout int64 `json:"timeout"`
}

// Deltas are NARs that came as what differs from older versions of them.
type Deltas struct {
	NARs       int64 `json:"nars"`
	SavedBytes int64 `json:"saved_bytes"` // of the raw NARs, less those of the deltas
}

// Saved are bytes that did not cross the uplink, as in SavedBytes, by days of the local calendar
// and kept over restarts.
type Saved struct {
	Spans
	Estimated Spans `json:"estimated"` // the part that is an estimate
}

// Spans are bytes by time.
type Spans struct {
	Today int64 `json:"today"`
	Week  int64 `json:"week"` // the last seven days, today included
	Total int64 `json:"total"`
}

// Directions of a Transfer.
const (
	In  = "in"  // from a peer or an upstream into the NAR cache
	Out = "out" // to a peer
	Nix = "nix" // to a client of this machine's substituter
)

// maxTransfers bounds Status.Transfers.
const maxTransfers = 64

// Transfer is a NAR on its way at this moment.
type Transfer struct {
	Direction string `json:"direction"`
	StorePath string `json:"store_path"` // "" when only the NAR hash is known
	NarHash   string `json:"nar_hash"`
	ToNix     bool   `json:"to_nix,omitempty"` // of what comes in: a client of the substituter gets it as it comes
	Form      string `json:"form"`             // raw, xz, zstd: of the bytes that are counted
	Source    string `json:"source"`           // where they come from: store, cache, peer, upstream; "" when not known yet
	Peer      string `json:"peer"`             // ID of the peer on the other end, "" when there is none or several

	Bytes          int64     `json:"bytes"`            // done
	Size           int64     `json:"size"`             // of the whole
	BytesPerSecond int64     `json:"bytes_per_second"` // of the last seconds
	Started        time.Time `json:"started"`
	Readers        int       `json:"readers"` // clients that wait for it
}

// Failure is something that went wrong and that people may want to know of.
type Failure struct {
	At        time.Time `json:"at"`    // when last
	Times     int       `json:"times"` // how often in a row
	What      string    `json:"what"`  // one short sentence
	Source    string    `json:"source"`
	StorePath string    `json:"store_path"`
	Error     string    `json:"error"`
}

// String is one line for people.
func (f Failure) String() string {
	text := f.Source + ": " + f.What
	if f.Source == "upstream" && strings.Contains(f.What, "://") {
		text = f.What // it contains the URL
	}
	if f.StorePath != "" {
		text += ", " + f.StorePath
	}
	if f.Times > 1 {
		text += fmt.Sprintf(" (%d times)", f.Times)
	}
	if f.Error != "" {
		text += ": " + f.Error
	}
	return text
}

// History is the answer at /api/v1/history: what was sent to Nix by hour and by day of the
// local calendar, the oldest first, without gaps, kept over restarts.
type History struct {
	Hours []Bucket `json:"hours"` // 24
	Days  []Bucket `json:"days"`  // 30
}

// Bucket is an hour or a day: the NARs sent to Nix by source, in bytes as they are unpacked, and
// the bytes that did not cross the uplink, with the part of them that is an estimate.
type Bucket struct {
	Start time.Time `json:"start"`
	Bytes
	Saved     int64 `json:"saved"`
	Estimated int64 `json:"estimated"`
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
	Machine    string      `json:"machine,omitempty"` // its host name
	Nix        NixUse      `json:"nix"`
	Conditions []Condition `json:"conditions"`
	Upstreams  []Upstream  `json:"upstreams"`
	Cache      Cache       `json:"cache"`
	Follow     []Followed  `json:"follow"`
	Replicate  *Replicated `json:"replicate,omitempty"` // nil if nothing is copied from peers
	Bucket     *Written    `json:"bucket,omitempty"`    // nil if there is none; its reading is among Upstreams
	Store      Store       `json:"store"`
	StateDir   string      `json:"state_dir,omitempty"`
	Saved      Saved       `json:"saved"`
	// Transfers are those on their way now, the largest first. The node gives all of them, each
	// response to a client too; the API joins responses with the download that they follow, and
	// cuts the list.
	Transfers      []Transfer `json:"transfers"`
	TransfersTotal int        `json:"transfers_total"`
	Failures       []Failure  `json:"failures"` // the last ones, the newest first
}

// NixUse says whether this machine's Nix uses the node.
type NixUse struct {
	URL    string    `json:"url,omitempty"` // at which Nix can ask, "" if it cannot
	Conf   string    `json:"conf,omitempty"`
	Listed bool      `json:"listed"`         // Conf names the URL
	Asked  time.Time `json:"asked,omitzero"` // when a Nix asked last, since the start
}

// Used reports whether Nix asks the node, or would.
func (n NixUse) Used() bool { return n.Listed || !n.Asked.IsZero() }

// Text says it in a sentence, as seen at now.
func (n NixUse) Text(now time.Time) string {
	switch {
	case !n.Asked.IsZero():
		return "Nix last asked this node at " + FormatClock(n.Asked, now)
	case n.URL == "":
		return "Nix cannot ask a node that does not listen on an address"
	case n.Listed:
		return n.Conf + " lists this node; Nix has not asked it since the start"
	}
	return "Nix does not use this node: " + n.Conf + " does not list " + n.URL + ", and no Nix has asked since the start. `nixp2p setup` shows what to change"
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
	Addressed   int `json:"addressed"`   // sources and fixed outputs, which have no signature
	Unreadable  int `json:"unreadable"`  // rows without a size, or that make no sense
	Quarantined int `json:"quarantined"` // whose bytes do not match their hash; counted above, too

	Sample string `json:"sample,omitempty"` // store hash of a path that can be shared
}

// NotShared says why the rest of the store is not shared.
func (s Store) NotShared() string {
	var out []string
	for _, r := range []struct {
		n    int
		text string
	}{
		{s.Trusted, "signed by a trusted key that is not a share key"}, {s.Unsigned, "built here"}, {s.Addressed, "sources and fixed outputs"},
		{s.Untrusted, "signed by keys that are not trusted"}, {s.Unreadable, "unreadable"},
	} {
		if r.n > 0 {
			out = append(out, formatCount(r.n)+" "+r.text)
		}
	}
	return strings.Join(out, ", ")
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

// Followed is a list that is followed. The figures are of its newest generation.
type Followed struct {
	List         string       `json:"list"`
	Checked      time.Time    `json:"checked,omitzero"`
	Error        string       `json:"error,omitempty"` // why it could not be read or fetched the last time
	MissingPaths int          `json:"missing_paths"`
	MissingBytes int64        `json:"missing_bytes"`
	LeftOutPaths int          `json:"left_out_paths"` // for which the cache has no room
	LeftOutBytes int64        `json:"left_out_bytes"`
	Absent       int          `json:"absent_paths"` // that no source has
	Generations  []Generation `json:"generations"`  // the newest first
}

// Replicated is how copying what peers share goes.
type Replicated struct {
	Peers        int   `json:"peers"`  // that said what they share, the last time
	Copied       int   `json:"copied"` // NARs since the start
	CopiedBytes  int64 `json:"copied_bytes"`
	MissingPaths int   `json:"missing_paths"` // of what is being worked off
	MissingBytes int64 `json:"missing_bytes"`
	Full         bool  `json:"full"` // only what is new and on one machine alone is copied: the cache has no room for more
}

// Generation is a list as it was at one time.
type Generation struct {
	Found    time.Time `json:"found"`
	From     string    `json:"from"`
	Paths    int       `json:"paths"` // with those that they refer to
	Bytes    int64     `json:"bytes"`
	Kept     int       `json:"kept_paths"` // that the cache evicts last
	Complete bool      `json:"complete"`   // all that can be had and has room is or was here
}

// Written is how writing to the bucket goes.
type Written struct {
	URL       string `json:"url"`
	Waiting   int    `json:"waiting_paths"`
	LastError string `json:"last_error,omitempty"`
	Read      int64  `json:"read_bytes"`
	Sent      int64  `json:"written_bytes"`
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
	Invalid     Result = "invalid"     // it said something wrong
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
	Forms     []string `json:"forms,omitempty"`   // forms in which its bytes are available here
	// DeltaBases are paths of this machine's store that a peer is told of, on a slow link, so that it
	// sends what differs from one of them.
	DeltaBases []string `json:"delta_bases,omitempty"`
	// DeltaBytes is an estimate of what would be transferred: for a NAR of this size, as the deltas since the start.
	// 0 before the first one.
	DeltaBytes int64 `json:"delta_bytes,omitempty"`
}

// Peer is one element of /api/v1/peers.
type Peer struct {
	ID            string   `json:"id"`
	Name          string   `json:"name,omitempty"` // of the machine, if it tells
	Addresses     []string `json:"addresses"`
	FoundBy       string   `json:"found_by"`
	Zone          string   `json:"zone,omitempty"` // that it says it is in
	RTTMS         float64  `json:"rtt_ms"`
	Paths         int64    `json:"paths"`
	SentBytes     int64    `json:"sent_bytes"`
	ReceivedBytes int64    `json:"received_bytes"`
	Standing      string   `json:"standing"`

	ReceivingBytesPerSecond int64 `json:"receiving_bytes_per_second"` // of the last seconds
	SendingBytesPerSecond   int64 `json:"sending_bytes_per_second"`
}

// Label is how people know the peer: its name, else its address, else the end of its ID.
func (p Peer) Label() string {
	switch {
	case p.Name != "":
		return p.Name
	case len(p.Addresses) > 0:
		return host(p.Addresses[0])
	}
	return ShortID(p.ID)
}

// Refusal is the body of an API answer that is not 200.
type Refusal struct {
	Error string `json:"error"`
}

// Status returns what /api/v1/status says now.
func (h *Handler) Status() Status {
	m := h.cfg.Metrics
	s := Status{
		Version:          h.cfg.Version,
		Since:            h.cfg.Started.Round(0),
		UptimeSeconds:    time.Since(h.cfg.Started).Round(time.Millisecond).Seconds(),
		Ready:            true,
		StorePathsShared: metrics.Value(m.StorePathsShared),
		Peers:            int(metrics.Value(m.Peers)),
		Bytes:            bySource(m.NarBytes), Unpacked: bySource(m.NarUnpacked),
		SavedBytes: metrics.Value(m.SavedBytes), SavedEstimated: metrics.Value(m.SavedEstimated),
		Deltas:        Deltas{NARs: metrics.Value(m.Delta.WithLabelValues("used")), SavedBytes: metrics.Value(m.DeltaSavedBytes)},
		Requests:      requests(m),
		UpstreamBytes: metrics.Value(m.UpstreamBytes), PeerReceivedBytes: metrics.Value(m.PeerReceivedBytes), PeerSentBytes: metrics.Value(m.PeerSentBytes),
		State: h.cfg.Node.State(),
	}
	if err := h.cfg.Node.Ready(); err != nil {
		s.Ready, s.NotReady = false, err.Error()
	}
	s.Degraded = []string{}
	for _, c := range s.Conditions {
		if !c.Note {
			s.Degraded = append(s.Degraded, c.Text)
		}
	}
	s.Conditions, s.Upstreams, s.Failures = list(s.Conditions), list(s.Upstreams), list(s.Failures)
	s.Transfers = joined(s.Transfers)
	s.Follow = list(s.Follow)
	slices.SortStableFunc(s.Transfers, func(a, b Transfer) int { return cmp.Compare(b.Size, a.Size) })
	s.TransfersTotal = len(s.Transfers)
	s.Transfers = list(s.Transfers[:min(len(s.Transfers), maxTransfers)])
	return s
}

// joined makes one of a download and the responses that follow it.
func joined(list []Transfer) []Transfer {
	list = slices.Clone(list)
	in := map[string]int{}
	for i, t := range list {
		if t.Direction == In {
			in[t.NarHash] = i
		}
	}
	return slices.DeleteFunc(list, func(t Transfer) bool {
		i, follows := in[t.NarHash]
		if follows = follows && t.Direction == Nix; follows {
			list[i].ToNix = true
		}
		return follows
	})
}

// bySource reads a counter.
func bySource(c *prometheus.CounterVec) Bytes {
	of := func(source string) int64 { return metrics.Value(c.WithLabelValues(source)) }
	return Bytes{Store: of("store"), Cache: of("cache"), Peer: of("peer"), Upstream: of("upstream")}
}

// list is never null in JSON.
func list[T any](all []T) []T {
	if all == nil {
		return []T{}
	}
	return all
}

// requests reads the counter of narinfo requests, with a zero for what did not occur.
func requests(m *metrics.Metrics) map[string]Results {
	all := make(map[string]Results)
	for _, source := range []string{"memory", "disk", "store", "peer", "upstream", "none"} {
		n := func(result string) int64 { return metrics.Value(m.NarinfoRequests.WithLabelValues(source, result)) }
		all[source] = Results{Hit: n("hit"), Miss: n("miss"), Timeout: n("timeout")}
	}
	return all
}
