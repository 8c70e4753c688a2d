package update

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync/atomic"

	"github.com/nixp2p/nixp2p/internal/delta"
	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/verify"
)

// candidates are looked at for bases.
const candidates = 16

// Bases proposes versions of a NAR that are in this machine's store. Nil proposes nothing. It is safe
// for concurrent use.
type Bases struct {
	trees     source.Trees
	shareKeys []string
	metrics   *metrics.Metrics

	made, came atomic.Int64 // bytes of NARs that came as deltas, and of the deltas
}

// NewBases returns a Bases that names only what a share key signed.
func NewBases(trees source.Trees, shareKeys []string, m *metrics.Metrics) *Bases {
	return &Bases{trees: trees, shareKeys: shareKeys, metrics: m}
}

// Proposal is bases that are open while another machine is asked.
type Proposal []Base

// Base is a base that is open.
type Base struct {
	source.Base
	tree source.Tree
}

// List returns what may be proposed for a NAR and keep accepts (nil: all), the best first, at most MaxBases.
// It reads nothing. It is empty for a NAR that no share key signed, or that is too small.
func (b *Bases) List(info *verify.Info, keep func(source.Base) bool) (list []source.Base) {
	if b == nil || info.NarSize() < Least || !info.SignedByAny(b.shareKeys) {
		return nil
	}
	for _, x := range b.trees.Bases(info, candidates) {
		if keep == nil || keep(x) {
			if list = append(list, x); len(list) == MaxBases {
				break
			}
		}
	}
	return list
}

// Propose opens what List returns. The caller closes it.
func (b *Bases) Propose(ctx context.Context, info *verify.Info, keep func(source.Base) bool) (p Proposal) {
	if b == nil {
		return nil
	}
	for _, x := range b.List(info, keep) {
		if tree, err := openTree(ctx, b.trees, x); err == nil {
			p = append(p, Base{x, tree})
		}
	}
	if len(p) == 0 {
		b.metrics.Delta.WithLabelValues("no_base").Inc()
	}
	return p
}

// Expect returns about how many bytes a delta of a NAR of size bytes has, as those have had that came; 0 if none did.
func (b *Bases) Expect(size int64) int64 {
	made := b.made.Load()
	if made == 0 {
		return 0
	}
	return max(int64(float64(size)*min(float64(b.came.Load())/float64(made), 1)), 1)
}

// Declined notes that a proposal was not taken.
func (b *Bases) Declined() { b.metrics.Delta.WithLabelValues("declined").Inc() }

// openTree opens the raw NAR of a base. It is absent unless a share key signed it.
func openTree(ctx context.Context, trees source.Trees, b source.Base) (source.Tree, error) {
	public, err := trees.Public(ctx, b.Store)
	if err != nil {
		return nil, err
	}
	if public.NarHash() != b.Nar {
		return nil, fmt.Errorf("another NAR: %w", fs.ErrNotExist)
	}
	return trees.Tree(ctx, public)
}

// Close closes the base.
func (b Base) Close() error { return b.tree.Close() }

// Names returns the hashes of the bases.
func (p Proposal) Names() (list []nix.NarHash) {
	for _, o := range p {
		list = append(list, o.Nar)
	}
	return list
}

// Take closes all bases but the one with this hash, which it returns.
func (p Proposal) Take(nar nix.NarHash) (base Base, ok bool) {
	for _, o := range p {
		if o.Nar == nar && !ok {
			base, ok = o, true
		} else {
			_ = o.Close() // only read
		}
	}
	return base, ok
}

// Close closes all bases.
func (p Proposal) Close() { p.Take(nix.NarHash{}) }

// Body decodes a delta. It counts what came of it, and closes the base with itself. The errors of
// reading are those of delta.Reader.
type Body struct {
	*delta.Reader
	b    *Bases
	src  *counted
	base Base
	size int64
}

// counted counts the bytes of a delta.
type counted struct {
	io.Reader
	n int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n += int64(n)
	return n, err
}

// NewBody returns the NAR of size bytes that the delta in src makes of base, which it owns. Src stays open.
func (b *Bases) NewBody(src io.Reader, base Base, size int64) *Body {
	c := &counted{Reader: src}
	return &Body{delta.NewReader(c, base.tree, base.Size, size), b, c, base, size}
}

// Close is called when nobody reads any more.
func (d *Body) Close() error {
	result := "failed"
	if d.Done() {
		result = "used"
		d.b.made.Add(d.size)
		d.b.came.Add(d.src.n)
		d.b.metrics.DeltaSavedBytes.Add(float64(max(d.size-d.src.n, 0)))
	}
	d.b.metrics.Delta.WithLabelValues(result).Inc()
	return errors.Join(d.Reader.Close(), d.base.Close())
}

// Right hashes a base of which a wrong NAR was made, and reports whether it is right. The store puts it
// into quarantine if it is not.
func (b *Bases) Right(ctx context.Context, base source.Base) bool {
	info, err := b.trees.Public(ctx, base.Store)
	if err != nil {
		return false
	}
	claim, err := b.trees.NAR(ctx, info, nix.Raw, 0)
	if err != nil {
		return false
	}
	defer claim.Body.Close()
	proof := verify.NewProof(info.Digest(nix.Raw, claim.Size))
	if _, err = io.Copy(proof, claim.Body); err == nil {
		err = proof.Check()
	}
	if invalid := source.Invalid(err); invalid != nil {
		b.trees.Invalid(info, nix.Raw, invalid)
	}
	return err == nil
}
