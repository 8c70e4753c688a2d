package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/internal/update"
	"github.com/nixp2p/nixp2p/p2p/balance"
	"github.com/nixp2p/nixp2p/p2p/inventory"
	"github.com/nixp2p/nixp2p/p2p/site"
	"github.com/nixp2p/nixp2p/p2p/wire"
	"github.com/nixp2p/nixp2p/verify"
)

const (
	// noDeltaFor is how long a peer that sent a wrong delta is not asked for another, and
	// wrongDeltaFor how long it is remembered: the second one is held against it.
	noDeltaFor    = time.Hour
	wrongDeltaFor = 24 * time.Hour
)

// propose opens the bases that a peer is told of with a request for the raw NAR: those that the peer's
// inventory lists as well. None if a delta would not arrive sooner, or there is no memory to decode
// one. The caller closes them, and calls free, once, when no delta is decoded any more.
func (c *Client) propose(ctx context.Context, p *site.Peer, info *verify.Info) (bases update.Proposal, free func()) {
	none := func() {}
	if c.cfg.Bases == nil || info.NarSize() < update.Least || !c.meter(p).Slower(update.MaxRate) || c.noDelta.Has(p.ID) {
		return nil, none
	}
	if !c.decoders.TryAcquire(deltaDecoders) {
		return nil, none
	}
	free = func() { c.decoders.Release(deltaDecoders) }
	if bases = c.cfg.Bases.Propose(ctx, info, c.listedBy(p)); len(bases) == 0 {
		free()
		return nil, none
	}
	return bases, free
}

// meter returns what is known of the link to a peer: before anything was measured of it, what came from all peers
// together, which the link of this machine is no faster than.
func (c *Client) meter(p *site.Peer) *balance.Meter {
	if m := p.Meter(); m.Rate() > 0 {
		return m
	}
	return &c.all
}

// listedBy returns whether a peer's inventory lists a base.
func (c *Client) listedBy(p *site.Peer) func(source.Base) bool {
	return func(b source.Base) bool {
		return slices.Contains(c.cfg.Site.Holders(inventory.KeyOf(b.Store.Question())), p)
	}
}

// DeltaBases returns the bases that would be proposed to a connected peer for a NAR, if the link to it
// is slow enough.
func (c *Client) DeltaBases(info *verify.Info) []source.Base {
	for _, p := range c.cfg.Site.Holders(keyOf(info)) {
		if list := c.cfg.Bases.List(info, c.listedBy(p)); len(list) > 0 {
			return list
		}
	}
	return nil
}

// deltas is what a session knows of its deltas.
type deltas struct {
	mu     sync.Mutex
	used   []usedDelta // from which bytes came
	failed bool
}

// usedDelta is a delta of a peer.
type usedDelta struct {
	peer *site.Peer
	base source.Base
}

// begins notes that bytes will come as a delta.
func (d *deltas) begins(p *site.Peer, base source.Base) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.used = append(d.used, usedDelta{p, base})
}

// fail has the rest of the NAR asked for as usual.
func (d *deltas) fail() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failed = true
}

// allowed reports whether none has failed.
func (d *deltas) allowed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.failed
}

// list returns those from which bytes came.
func (d *deltas) list() []usedDelta {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.used)
}

var errWrongDelta = errors.New("made of a delta, or of a base that is damaged")

// deltasWereWrong is called when a NAR that came as a delta, or a part of which did, is wrong. Nobody is
// to blame yet: the base may be damaged, here or there. Alone is whether all bytes came as one delta.
func (c *Client) deltasWereWrong(ctx context.Context, info *verify.Info, used []usedDelta, alone bool) {
	ctx = context.WithoutCancel(ctx)
	c.cfg.Events.Send(source.Event{Kind: source.WrongBytes, Source: source.Peer, StorePath: info.StorePath().String(), Err: errWrongDelta})
	for _, u := range used {
		c.noDelta.Add(u.peer.ID, noDeltaFor)
	}
	c.group.Go(func() {
		for _, u := range used {
			if !c.cfg.Bases.Right(ctx, u.base) {
				continue
			}
			if c.wrongDeltas.Has(u.peer.ID) && alone {
				c.blame(u.peer.Key, source.WrongBytes, info.StorePath().String(), &verify.InvalidError{
					Reason: verify.ReasonHash, Err: fmt.Errorf("a second delta of this peer made a wrong NAR of a correct base: %s", info.NarHash()),
				})
			}
			c.wrongDeltas.Add(u.peer.ID, wrongDeltaFor)
		}
	})
}

// deltaHead reads the head of an answer that is a delta: against which base, and how long the NAR is.
func deltaHead(resp *http.Response, b update.Proposal) (nix.NarHash, error) {
	base, err := nix.ParseNarHash32(resp.Header.Get(wire.BaseHeader))
	if err != nil || !slices.Contains(b.Names(), base) {
		return nix.NarHash{}, errCoding
	}
	return base, nil
}
