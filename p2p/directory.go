package p2p

import (
	"context"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/p2p/dht"
	"github.com/nixp2p/nixp2p/p2p/machine"
	"github.com/nixp2p/nixp2p/p2p/site"
)

// directory is this node's part of the DHT.
type directory struct {
	dht    *dht.DHT
	finder *dht.Finder
}

// openDHT joins the DHT. Without it the node works as well.
func (n *member) openDHT() {
	h := n.site.Host()
	if h == nil {
		return
	}
	machineOf := func(id peer.ID) machine.ID {
		if p := n.site.Peer(id); p != nil {
			return p.Machine
		}
		return machine.ID{}
	}
	d, err := dht.Open(dht.Config{Host: h, Machine: machineOf, Wanted: n.untold, Log: n.log})
	if err != nil {
		n.log.Error("no DHT", "err", err)
		return
	}
	f := &dht.Finder{DHT: d, Metrics: n.cfg.Metrics, Connect: func(ctx context.Context, p peer.AddrInfo) bool {
		for _, a := range addrsOf(p) {
			if _, err := n.site.Connect(ctx, p.ID, a); err == nil {
				return true
			}
		}
		return false
	}}
	n.announcer.DHT = d
	n.directory.Store(&directory{d, f})
}

// addrsOf returns a few of the addresses that a record names, "" if there are none.
func addrsOf(p peer.AddrInfo) (list []string) {
	if len(p.Addrs) == 0 {
		return []string{""}
	}
	for _, a := range p.Addrs[:min(len(p.Addrs), 3)] {
		list = append(list, a.String())
	}
	return list
}

// Where all nodes exchange inventories, the DHT knows nothing that they do not, and costs each
// of them CPU time that a busy site lacks: it is for nodes beyond.

// untold reports whether there may be a node that does not get this one's inventory.
func (n *member) untold() bool { return n.anyBeyond((*site.Peer).Told) }

// unheard reports whether there may be a node whose inventory is not known here.
func (n *member) unheard() bool {
	return n.anyBeyond(func(p *site.Peer) bool { return p.Member() && !p.Muted() })
}

// anyBeyond reports whether a node is known that is not near: connected, or named by one that
// is.
func (n *member) anyBeyond(near func(*site.Peer) bool) bool {
	in := map[peer.ID]bool{n.site.ID(): true}
	peers := n.site.Peers()
	for _, p := range peers {
		if !near(p) {
			return true
		}
		in[p.ID] = true
	}
	for _, p := range peers {
		for _, o := range p.Neighbours() {
			if !in[o.ID] {
				return true
			}
		}
	}
	return false
}

// beyond is the DHT as the client asks it.
type beyond struct{ n *member }

// Providers is part of client.DHT.
func (b beyond) Providers(ctx context.Context, nar nix.NarHash) []peer.ID {
	d := b.n.directory.Load()
	if d == nil || !b.n.unheard() {
		return nil
	}
	return d.finder.Providers(ctx, nar)
}
