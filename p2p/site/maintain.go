package site

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
)

const (
	// maintainEvery is how often what events may have missed is put right.
	maintainEvery = 5 * time.Second
	saveEvery     = 5 * time.Minute
	// maxSaved is how many peers are kept for the next run.
	maxSaved = 64
	// extraPeerIdle is how long a peer stays that is connected beyond the number of peers and
	// is not needed.
	extraPeerIdle = time.Minute
)

// maintenance puts right what events may have missed, prunes extra peers, and saves members.
type maintenance struct {
	*sessions
	saved Saved
}

func (m *maintenance) run(ctx context.Context, h host.Host) {
	last := time.Now()
	for pause(ctx, maintainEvery) {
		all := m.table.all()
		for _, p := range all {
			switch {
			case time.Since(p.Since) <= maintainEvery:
			case h.Network().Connectedness(p.ID) != network.Connected:
				m.lost(p)
			case !p.Admitted() && time.Since(p.Since) > 2*handshakeTime:
				m.ban(p.ID, unadmittedBan) // it never proved that it belongs here
			}
		}
		m.prune(all)
		if time.Since(last) > saveEvery {
			last = time.Now()
			m.save()
		}
	}
}

// prune disconnects peers beyond the number of peers that were not needed for a while: sooner
// when there are many. A peer that asks, is asked, or has a transfer, is needed.
func (m *maintenance) prune(all []*Peer) {
	if len(all) <= m.maxPeers {
		return
	}
	var extra []*Peer
	for _, p := range all {
		if !p.Member() && p.unused() > 0 {
			extra = append(extra, p)
		}
	}
	slices.SortFunc(extra, func(a, b *Peer) int { return cmp.Compare(b.unused(), a.unused()) })
	for i, p := range extra {
		stay := extraPeerIdle
		if len(extra)-i > m.maxPeers {
			stay = maintainEvery
		}
		if p.unused() > stay {
			m.book.Postpone(p.Key, time.Now(), fullAfter)
			m.disconnect(p.ID)
		}
	}
}

// save keeps members for the next run: those that gave most, then the oldest.
func (m *maintenance) save() {
	if m.saved == nil {
		return
	}
	all := slices.Clone(m.table.all())
	slices.SortFunc(all, func(a, b *Peer) int {
		return cmp.Or(cmp.Compare(b.Received.Load(), a.Received.Load()), a.Since.Compare(b.Since))
	})
	var list []string
	for _, p := range all {
		if addrs := m.reachable(p); p.told.inventory.Load().Loaded() && len(addrs) > 0 && len(list) < maxSaved {
			list = append(list, addrs[0]+"/p2p/"+p.Key)
		}
	}
	if len(list) > 0 { // a machine that was alone remembers whom it knew before
		m.saved.Save(list)
	}
}
