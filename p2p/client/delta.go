package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/internal/delta"
	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/p2p/inventory"
	"github.com/nixp2p/nixp2p/p2p/site"
	"github.com/nixp2p/nixp2p/p2p/wire"
	"github.com/nixp2p/nixp2p/verify"
)

const (
	// deltaRate is the measured rate of a link, in bytes a second, from which a NAR arrives sooner
	// without a delta: 200 Mbit/s.
	deltaRate = 200e6 / 8
	// leastDelta is the size of a NAR in bytes from which a delta pays: below it the time for one
	// round trip counts, not that for the bytes.
	leastDelta = 64 << 10
	// candidates are looked up in the inventory of a peer.
	candidates = 16
	// noDeltaFor is how long a peer that sent a wrong delta is not asked for another, and
	// wrongDeltaFor how long it is remembered: the second one is held against it.
	noDeltaFor    = time.Hour
	wrongDeltaFor = 24 * time.Hour
)

// proposal is bases that are open while a peer is asked.
type proposal []opened

// opened is a base.
type opened struct {
	source.Base
	tree source.Tree
}

// names returns the hashes of the bases.
func (b proposal) names() (list []nix.NarHash) {
	for _, o := range b {
		list = append(list, o.Nar)
	}
	return list
}

// take closes all bases but the one with this hash, which it returns.
func (b proposal) take(nar nix.NarHash) (base opened, ok bool) {
	for _, o := range b {
		if o.Nar == nar && !ok {
			base, ok = o, true
		} else {
			_ = o.tree.Close() // only read
		}
	}
	return base, ok
}

func (b proposal) close() { b.take(nix.NarHash{}) }

// propose opens the bases that a peer is told of with a request for the raw NAR: versions of it that are
// here, that a share key signed, and that the peer's inventory lists as well. None if a delta would
// not arrive sooner. The caller closes them.
func (c *Client) propose(ctx context.Context, p *site.Peer, info *verify.Info) (b proposal) {
	if c.cfg.Bases == nil || info.NarSize() < leastDelta || !p.Meter().Slower(deltaRate) || c.noDelta.Has(p.ID) {
		return nil
	}
	for _, x := range c.candidates(info, p) {
		public, err := c.cfg.Bases.Public(ctx, x.Store)
		if err != nil || public.NarHash() != x.Nar {
			continue
		}
		tree, err := c.cfg.Bases.Tree(ctx, public)
		if err != nil {
			continue
		}
		if b = append(b, opened{x, tree}); len(b) == wire.MaxBases {
			break
		}
	}
	if len(b) == 0 {
		c.cfg.Metrics.Delta.WithLabelValues("no_base").Inc()
	}
	return b
}

// candidates returns the bases for a NAR that a peer lists.
func (c *Client) candidates(info *verify.Info, p *site.Peer) []source.Base {
	return slices.DeleteFunc(c.cfg.Bases.Bases(info, candidates), func(b source.Base) bool {
		return !slices.Contains(c.cfg.Site.Holders(inventory.KeyOf(b.Store.Question())), p)
	})
}

// DeltaBases returns the bases that would be proposed to a connected peer for a NAR, if the link to it
// is slow enough.
func (c *Client) DeltaBases(info *verify.Info) []source.Base {
	if c.cfg.Bases == nil || info.NarSize() < leastDelta || !info.SignedByAny(c.cfg.ShareKeys) {
		return nil
	}
	for _, p := range c.cfg.Site.Holders(keyOf(info)) {
		if list := c.candidates(info, p); len(list) > 0 {
			return list[:min(len(list), wire.MaxBases)]
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

// deltaBody decodes a delta, and closes the base with itself.
type deltaBody struct {
	*delta.Reader
	wire    *wireReader
	base    opened
	size    int64
	metrics *metrics.Metrics
}

func newDeltaBody(w *wireReader, base opened, size int64, m *metrics.Metrics) *deltaBody {
	return &deltaBody{delta.NewReader(w, base.tree, base.Size, size), w, base, size, m}
}

// Close is called when nobody reads any more.
func (d *deltaBody) Close() error {
	result := "failed"
	if d.Done() {
		result = "used"
		d.metrics.DeltaSavedBytes.Add(float64(max(d.size-d.wire.total, 0)))
	}
	d.metrics.Delta.WithLabelValues(result).Inc()
	return errors.Join(d.Reader.Close(), d.base.tree.Close())
}

var _ io.ReadCloser = (*deltaBody)(nil)

// deltasWereWrong is called when a NAR that came as a delta, or a part of which did, is wrong. Nobody is
// to blame yet: the base may be damaged, here or there. Alone is whether all bytes came as one delta.
func (c *Client) deltasWereWrong(ctx context.Context, info *verify.Info, used []usedDelta, alone bool) {
	ctx = context.WithoutCancel(ctx)
	for _, u := range used {
		c.noDelta.Add(u.peer.ID, noDeltaFor)
	}
	c.group.Go(func() {
		for _, u := range used {
			if !c.baseIsRight(ctx, u.base) {
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

// baseIsRight hashes a base, which the store puts into quarantine if it is wrong.
func (c *Client) baseIsRight(ctx context.Context, b source.Base) bool {
	info, err := c.cfg.Bases.Public(ctx, b.Store)
	if err != nil {
		return false
	}
	claim, err := c.cfg.Bases.NAR(ctx, info, nix.Raw, 0)
	if err != nil {
		return false
	}
	defer claim.Body.Close()
	proof := verify.NewProof(info.Digest(nix.Raw, claim.Size))
	if _, err = io.Copy(proof, claim.Body); err == nil {
		err = proof.Check()
	}
	if invalid := source.Invalid(err); invalid != nil {
		c.cfg.Bases.Invalid(info, nix.Raw, invalid)
	}
	return err == nil
}

// deltaHead reads the head of an answer that is a delta: against which base, and how long the NAR is.
func deltaHead(resp *http.Response, b proposal) (nix.NarHash, error) {
	base, err := nix.ParseNarHash32(resp.Header.Get(wire.BaseHeader))
	if err != nil || !slices.Contains(b.names(), base) {
		return nix.NarHash{}, errCoding
	}
	return base, nil
}
