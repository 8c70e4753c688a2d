package p2p

import (
	"context"
	"errors"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/p2p/inventory"
	"github.com/nixp2p/nixp2p/p2p/site"
)

// admitted is the peers that may be asked and answered: on a closed site, those that have
// proved that they belong to it.
type admitted struct{ *site.Site }

var errNotAdmitted = errors.New("p2p: the peer is not admitted")

// Any reports whether there is a peer.
func (a admitted) Any() bool { return slices.ContainsFunc(a.Peers(), (*site.Peer).Admitted) }

// Peer returns a connected peer, or nil.
func (a admitted) Peer(id peer.ID) *site.Peer {
	if p := a.Site.Peer(id); p != nil && p.Admitted() {
		return p
	}
	return nil
}

// Holders returns the peers whose inventory says that they may share what k stands for.
func (a admitted) Holders(k inventory.Key) (list []*site.Peer) {
	for _, p := range a.Peers() {
		if p.Has(k) && p.Admitted() {
			list = append(list, p)
		}
	}
	return list
}

// RoundTrip sends a request to a peer.
func (a admitted) RoundTrip(p *site.Peer, req *http.Request) (*http.Response, error) {
	if !p.Admitted() {
		return nil, errNotAdmitted
	}
	return a.Site.RoundTrip(p, req)
}

// PeerStatus is what is known of one connected peer, for status pages.
type PeerStatus struct {
	ID            string   `json:"id"`
	Name          string   `json:"name,omitempty"` // of its machine, if it tells
	Addresses     []string `json:"addresses"`
	FoundBy       string   `json:"found_by"`
	Zone          string   `json:"zone,omitempty"` // "": none
	RTT           float64  `json:"rtt_ms"`
	Paths         int      `json:"paths"`
	SentBytes     int64    `json:"sent_bytes"`
	ReceivedBytes int64    `json:"received_bytes"`
	// Standing is "good", "silent", "muted" (its inventory promised what it did not have),
	// "guest" (connected without inventories), or "liar: " and why it is blamed.
	Standing string `json:"standing"`
	// Bytes a second of the last seconds.
	Sending   int64 `json:"sending_bytes_per_second"`
	Receiving int64 `json:"receiving_bytes_per_second"`
}

// status is Node.Peers.
func (n *member) status() []PeerStatus {
	list := []PeerStatus{}
	seen := map[string]bool{}
	for _, p := range n.site.Peers() {
		seen[p.Key] = true
		list = append(list, PeerStatus{
			ID: p.Key, Name: p.Name(), Addresses: n.addresses(p), FoundBy: n.site.FoundBy(p.ID), Zone: p.Zone(), Paths: p.Paths(),
			RTT:       math.Round(float64(p.Meter().RTT())/float64(time.Microsecond)) / 1000,
			SentBytes: p.Sent.Load(), ReceivedBytes: p.Received.Load(), Standing: n.standing(p),
			Sending: p.Sent.Rate(p.Since), Receiving: p.Received.Rate(p.Since),
		})
	}
	for _, b := range n.reputation.All() {
		if !seen[b.Peer] {
			list = append(list, PeerStatus{ID: b.Peer, Addresses: []string{}, Standing: standingBlamed + ": " + b.Reason})
		}
	}
	slices.SortFunc(list, func(a, b PeerStatus) int { return strings.Compare(a.ID, b.ID) })
	return list
}

// addresses returns where others can reach a peer, else the other ends of its connections.
func (n *member) addresses(p *site.Peer) []string {
	list := n.site.Reachable(p.ID)
	for i, a := range list {
		list[i] = strings.TrimSuffix(a, "/p2p/"+p.Key)
	}
	if len(list) == 0 {
		return n.site.RemoteAddrs(p.ID)
	}
	return list
}

// The standings of peers, which are labels of a metric.
const (
	standingGood    = "good"
	standingSilent  = "silent"
	standingMuted   = "muted"
	standingExtra   = "guest"
	standingBlamed  = "liar"
	standingDivider = ": "
)

func (n *member) standing(p *site.Peer) string {
	if reason, blamed := n.reputation.Blamed(p.Key); blamed {
		return standingBlamed + standingDivider + reason
	}
	switch {
	case p.Muted():
		return standingMuted
	case !p.Member():
		return standingExtra
	case !p.Usable():
		return standingSilent
	}
	return standingGood
}

// countStandings brings the metric up to date.
func (n *member) countStandings() {
	counts := map[string]int{standingGood: 0, standingSilent: 0, standingMuted: 0, standingExtra: 0, standingBlamed: len(n.reputation.All())}
	for _, p := range n.site.Peers() {
		if s := n.standing(p); !strings.HasPrefix(s, standingBlamed) {
			counts[s]++
		}
	}
	for s, k := range counts {
		n.cfg.Metrics.PeersByStanding.WithLabelValues(s).Set(float64(k))
	}
}

// providers is Node.Providers.
func (n *member) providers(ctx context.Context, nar nix.NarHash) []string {
	ids := []string{}
	if d := n.directory.Load(); d != nil {
		for _, id := range d.finder.Providers(ctx, nar) {
			ids = append(ids, id.String())
		}
	}
	return ids
}
