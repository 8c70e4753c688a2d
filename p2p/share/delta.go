package share

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/nixp2p/nixp2p/internal/delta"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/verify"
)

// Delta is a NAR that may be sent as what differs from a base that the peer has. The caller closes
// it.
type Delta struct {
	Base nix.NarHash

	h            *Holder
	info         *verify.Info
	base, target source.Tree
}

// Delta opens a NAR of the store and the first of some bases that the store has as well. A base that is
// private does not exist, as in NAR. The error wraps fs.ErrNotExist if there is none.
func (h *Holder) Delta(ctx context.Context, n *NAR, bases []nix.NarHash) (*Delta, error) {
	if h.cfg.Trees == nil || n.Source != source.Store || !n.Form.IsRaw() {
		return nil, errAbsent
	}
	for _, nar := range bases {
		base, err := h.tree(ctx, nar)
		if source.Absent(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		target, err := h.cfg.Trees.Tree(ctx, n.Info)
		if err != nil {
			return nil, errors.Join(err, base.Close())
		}
		return &Delta{Base: nar, h: h, info: n.Info, base: base, target: target}, nil
	}
	return nil, errAbsent
}

// tree opens the raw NAR of a shared path of the store.
func (h *Holder) tree(ctx context.Context, nar nix.NarHash) (source.Tree, error) {
	r, ok := h.set.byNAR(nar)
	if !ok || r.where&inStore == 0 {
		return nil, errAbsent
	}
	info, err := h.info(ctx, r)
	if err != nil {
		return nil, err
	}
	return h.cfg.Trees.Tree(ctx, info)
}

// Send writes the delta to w, and tells read how many bytes of the NAR have been read. The NAR is hashed
// meanwhile: the delta is ended only if it is right.
func (d *Delta) Send(ctx context.Context, w io.Writer, read func(n int)) (delta.Stats, error) {
	target := &hashed{Tree: d.target, proof: verify.NewProof(d.info.Digest(nix.Raw, d.target.Size())), read: read}
	stats, err := delta.Encode(ctx, w, d.base, target)
	if invalid := source.Invalid(err); invalid != nil {
		d.h.cfg.Trees.Invalid(d.info, nix.Raw, invalid)
	}
	return stats, err
}

// Close gives base and target back to the garbage collector.
func (d *Delta) Close() error { return errors.Join(d.base.Close(), d.target.Close()) }

// hashed hashes a NAR that is read from its beginning to its end, and gives its last bytes only if
// the hash is right.
type hashed struct {
	delta.Tree
	proof *verify.Proof
	at    int64
	read  func(n int)
}

// ReadAt is part of io.ReaderAt.
func (t *hashed) ReadAt(p []byte, off int64) (int, error) {
	if off != t.at {
		return 0, fmt.Errorf("share: delta reads byte %d, not %d", off, t.at)
	}
	n, err := t.Tree.ReadAt(p, off)
	t.at += int64(n)
	_, _ = t.proof.Write(p[:n]) // Check reports what it refuses
	if t.at == t.Size() {
		if wrong := t.proof.Check(); wrong != nil {
			return 0, wrong
		}
	}
	t.read(n)
	return n, err
}
