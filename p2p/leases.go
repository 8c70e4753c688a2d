package p2p

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/nixp2p/nixp2p/p2p/lease"
	"github.com/nixp2p/nixp2p/p2p/machine"
	"github.com/nixp2p/nixp2p/p2p/server"
	"github.com/nixp2p/nixp2p/p2p/site"
)

const (
	// maxLive bounds the nodes that are ranked. Nodes that rank different parts of a site have different
	// coordinators: where each ranks 512 of 1,000, a simulated site fetches copy after copy (docs/scale.md).
	maxLive = 4096
	// liveFor is short compared with the time in which a node is missed.
	liveFor = 200 * time.Millisecond
)

// coordinators is the other nodes of the site as leases see them: a lease.Asker.
type coordinators struct{ n *member }

// Self is part of lease.Asker.
func (c coordinators) Self() lease.NodeID { return lease.NodeID(c.n.site.ID()) }

// live is the nodes that are known to be up at a moment.
type live struct {
	at    time.Time
	nodes []lease.NodeID
}

// Live is part of lease.Asker. A connected node is up: one that has died is not connected for
// long. So are those that it is connected to: where each node knows only some others, they
// would otherwise not agree on coordinators.
func (c coordinators) Live() []lease.NodeID {
	n, now := c.n, time.Now()
	if l := n.live.Load(); l != nil && now.Sub(l.at) < liveFor {
		return l.nodes
	}
	l := &live{at: now}
	seen := map[peer.ID]bool{n.site.ID(): true}
	peers := n.site.Peers()
	for _, p := range peers {
		seen[p.ID] = true
		if p.Member() && p.Admitted() && n.coordinates(p.Key) && len(l.nodes) < maxLive {
			l.nodes = append(l.nodes, lease.NodeID(p.ID))
		}
	}
	for _, p := range peers {
		for _, o := range p.Neighbours() {
			if !seen[o.ID] && len(l.nodes) < maxLive && n.coordinates(o.Key) && !n.site.Unreachable(o.ID) {
				seen[o.ID] = true
				l.nodes = append(l.nodes, lease.NodeID(o.ID))
			}
		}
	}
	n.live.Store(l)
	return l.nodes
}

// zoneMates is the nodes of this node's zone that it is connected to: a lease.Asker.
type zoneMates struct{ coordinators }

// Live is part of lease.Asker.
func (z zoneMates) Live() (nodes []lease.NodeID) {
	zone := z.n.site.Zone()
	for _, p := range z.n.site.Peers() {
		if p.Zone() == zone && p.Member() && p.Admitted() && z.n.coordinates(p.Key) && len(nodes) < maxLive {
			nodes = append(nodes, lease.NodeID(p.ID))
		}
	}
	return nodes
}

// coordinates reports whether a node may be asked.
func (n *member) coordinates(key string) bool {
	_, blamed := n.reputation.Blamed(key)
	return !blamed && !n.leaseless.Has(key)
}

// Lively is part of lease.Asker.
func (c coordinators) Lively(node lease.NodeID) bool {
	p := c.n.site.Peer(peer.ID(node))
	return p != nil && p.Member() && !p.Suspect()
}

// Ask is part of lease.Asker.
func (c coordinators) Ask(ctx context.Context, node lease.NodeID, addr string, r lease.Request) (lease.Answer, error) {
	start := time.Now()
	a, err := c.ask(ctx, node, addr, r)
	c.n.log.Debug("asked coordinator", "peer", peer.ID(node), "nar", r.Nar, "verb", r.Verb, "kind", a.Kind, "sources", len(a.Sources), "took", time.Since(start), "err", err)
	return a, err
}

func (c coordinators) ask(ctx context.Context, node lease.NodeID, addr string, r lease.Request) (lease.Answer, error) {
	n := c.n
	if node == c.Self() {
		return n.coordinator.Handle(node, machine.ID{}, r, c.Live(), time.Now()), nil
	}
	id, err := peer.IDFromBytes([]byte(node))
	if err != nil {
		return lease.Answer{}, fmt.Errorf("p2p: %w", err)
	}
	p, err := n.site.Connect(ctx, id, addr)
	if err != nil {
		return lease.Answer{}, fmt.Errorf("p2p: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://peer"+server.LeasePath, bytes.NewReader(r.Append(nil)))
	if err != nil {
		return lease.Answer{}, err
	}
	resp, err := n.site.RoundTrip(p, req)
	if err != nil {
		return lease.Answer{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		if resp.StatusCode == http.StatusNotFound { // an older version, or one without leases
			n.leaseless.Add(p.Key, leaselessFor)
		}
		return lease.Answer{}, fmt.Errorf("p2p: peer %s: lease: status %d", p.Key, resp.StatusCode)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, lease.MaxMessage+1))
	if err != nil {
		return lease.Answer{}, fmt.Errorf("p2p: peer %s: lease: %w", p.Key, err)
	}
	return lease.DecodeAnswer(b)
}

// coordinate answers a peer as coordinator, and fills in where the nodes of the answer are.
func (n *member) coordinate(p *site.Peer, r lease.Request) lease.Answer {
	a := n.coordinator.Handle(lease.NodeID(p.ID), p.Machine, r, coordinators{n}.Live(), time.Now())
	where := func(node lease.NodeID) string {
		if addrs := n.site.Reachable(peer.ID(node)); len(addrs) > 0 {
			addr, _, _ := strings.Cut(addrs[0], "/p2p/")
			return addr
		}
		return ""
	}
	if a.Kind == lease.Redirect {
		a.Addr = where(a.Node)
	}
	for i := range a.Sources {
		a.Sources[i].Addr = where(a.Sources[i].Node)
	}
	return a
}
