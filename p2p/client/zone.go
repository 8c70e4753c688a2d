package client

import (
	"context"
	"crypto/sha256"
	"errors"
	"slices"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/internal/taskgroup"
	"github.com/nixp2p/nixp2p/p2p/lease"
	"github.com/nixp2p/nixp2p/p2p/site"
)

// nearFirst puts the peers of a zone first and leaves their order as it is.
func nearFirst(zone string, peers []*site.Peer) {
	slices.SortStableFunc(peers, func(a, b *site.Peer) int {
		switch x, y := near(zone, a), near(zone, b); {
		case x == y:
			return 0
		case x:
			return -1
		}
		return 1
	})
}

// zoneKey stands for a NAR where the nodes of one zone agree who gets it for all of them: a
// coordinator that is asked by two zones must not mix them up.
func zoneKey(zone string, nar nix.NarHash) nix.NarHash {
	return sha256.Sum256(append([]byte("nixp2p-zone\x00"+zone+"\x00"), nar[:]...))
}

// askZone follows what the zone agrees on. It returns a turn if another node gets the NAR for
// the zone, and none if this one is to.
func (s *session) askZone(ctx context.Context, off int64, o lease.Outcome) (turn source.Turn, follow bool, err error) {
	if s.zoneOver != nil {
		select {
		case <-s.zoneOver: // another node was preferred
			o = lease.Outcome{}
		default:
			return source.Turn{}, false, nil
		}
	}
	want := lease.Want{Nar: zoneKey(s.zone, s.want.Info.NarHash()), Fixed: true}
	turn, err = s.agree(ctx, s.c.cfg.Zone.Leases, &s.inZone, want, off, o)
	if errors.Is(err, source.ErrFetch) {
		s.zoneOver = turn.Over
		return source.Turn{}, false, nil
	}
	if err == nil {
		s.zoneOver, s.lastInZone = nil, true
	}
	return turn, err == nil, err
}

// fetchForZone returns the turn of a node that gets the NAR for its zone, which ends as well when
// the zone prefers another one. form is that of the stream, nil if it goes upstream.
func (a *agreed) fetchForZone(tasks *taskgroup.Group, turn source.Turn, form *nix.Form) source.Turn {
	l := a.inZone.Load()
	if l == nil || a.zoneOver == nil {
		return turn
	}
	if form != nil {
		l.From("", *form)
	}
	zone, siteOver, over := a.zoneOver, turn.Over, make(chan struct{})
	tasks.Go(func() {
		select {
		case <-zone:
		case <-siteOver: // nil: never
		case <-a.ended:
			return
		}
		close(over)
	})
	turn.Over = over
	return turn
}
