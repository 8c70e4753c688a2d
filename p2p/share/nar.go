package share

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/p2p/machine"
	"github.com/nixp2p/nixp2p/p2p/wire"
	"github.com/nixp2p/nixp2p/verify"
)

// NAR is a NAR that may be sent to a peer. The caller sends it or not, and closes it.
type NAR struct {
	wire.Present // how much of which form is there

	Info   *verify.Info
	Source source.Role // Store or Cache

	h    *Holder
	d    Download // nil: all of it is there
	file nix.Form // what a raw NAR is decoded from; raw if it need not be
}

// NAR returns what is here of a NAR in exactly this form. It opens and decodes nothing:
// that is done by Send.
func (h *Holder) NAR(ctx context.Context, nar nix.NarHash, form nix.Form) (*NAR, error) {
	r, ok := h.set.byNAR(nar)
	if !ok {
		return nil, errAbsent
	}
	info, err := h.info(ctx, r)
	if err != nil {
		return nil, err
	}
	n := &NAR{h: h, Info: info, Source: source.Cache}
	n.Form = form
	if form.IsRaw() && r.where&inStore != 0 {
		n.Source, n.Size, n.Bytes = source.Store, r.path.Size, r.path.Size
		return n, nil
	}
	if h.cfg.Cache == nil {
		return nil, errAbsent
	}
	whole := h.cfg.Cache.Sizes(nar)
	here := func(s source.Sized) bool { return s.Form == form }
	i := slices.IndexFunc(whole, here)
	if i < 0 || !h.cfg.Cache.Proven(nar, form) {
		for _, d := range h.cfg.Cache.Downloads(nar) {
			if d.Form() == form {
				n.d, n.Size, n.Bytes = d, d.Size(), min(d.Readable(), d.Size()-1)
				return n, nil
			}
		}
	}
	if i >= 0 {
		n.Size, n.Bytes = whole[i].Size, whole[i].Size
		return n, nil
	}
	if form.IsRaw() && len(whole) > 0 {
		n.file, n.Size, n.Bytes = whole[0].Form, r.path.Size, r.path.Size
		return n, nil
	}
	return nil, errAbsent
}

// Partial reports whether the NAR is still coming in.
func (n *NAR) Partial() bool { return n.d != nil }

// Decodes reports whether Send decodes a file, which not many can do at a time.
func (n *NAR) Decodes() bool { return !n.file.IsRaw() }

// Ready does the work without which the first byte cannot be sent: a file of the cache is
// decoded once, before any peer gets it that does not follow its download. ErrBusy says that other work of the kind is going on.
// M is the machine that asks. The caller calls done after Send.
func (n *NAR) Ready(ctx context.Context, m machine.ID) (done func(), err error) {
	switch {
	case n.Decodes():
		if done, ok := n.h.decode.Take(m); ok {
			return done, nil
		}
		return nil, ErrBusy
	case n.d == nil && !n.Form.IsRaw() && !n.h.cfg.Cache.Proven(n.Info.NarHash(), n.Form):
		err = n.h.prove(ctx, n.Info, n.Form)
	}
	return func() {}, err
}

// prove decodes a file, after others that are being decoded.
func (h *Holder) prove(ctx context.Context, info *verify.Info, form nix.Form) error {
	wait, cancel := context.WithTimeout(ctx, proveWait)
	defer cancel()
	if h.proofs.Acquire(wait, 1) != nil {
		return ErrBusy
	}
	defer h.proofs.Release(1)
	return h.cfg.Cache.Prove(ctx, info, form)
}

// Send writes the bytes from byte off on to w. All of the form is hashed while it is sent, and
// its tail is held back until the hash is right; a running download does the same by itself.
func (n *NAR) Send(ctx context.Context, w io.Writer, off int64) error {
	if n.d != nil {
		return n.follow(ctx, w, off)
	}
	nars := source.NARs(n.h.cfg.Cache)
	if n.Source == source.Store {
		nars = n.h.cfg.Store
	}
	claim, err := nars.NAR(ctx, n.Info, n.Form, 0)
	if err != nil {
		return err
	}
	if claim.Size != n.Size {
		_ = claim.Body.Close()
		return errAbsent
	}
	var hold verify.Holdback
	if m := hold.Memory(n.Size); n.h.memory.TryAcquire(m) {
		defer n.h.memory.Release(m)
	} else {
		hold.LowMemory = true
	}
	g := verify.NewGuard(n.Info.Digest(n.Form, n.Size), hold)
	var filled error
	var filler sync.WaitGroup
	filler.Go(func() { filled = g.End(g.Fill(claim.Body)) })
	err = g.Drain(&rest{w: w, skip: off})
	filler.Wait() // its source is a disk
	closed := claim.Body.Close()
	g.Free()
	if invalid := source.Invalid(filled); invalid != nil {
		nars.Invalid(n.Info, n.Form, invalid)
	}
	return errors.Join(err, closed)
}

// follow sends a download as it grows.
func (n *NAR) follow(ctx context.Context, w io.Writer, off int64) error {
	r := n.d.PeerReader(off)
	stop := context.AfterFunc(ctx, func() { _ = r.Close() })
	defer stop()
	defer r.Close()
	buf := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buf)
	for left := n.Size - off; left > 0; {
		k, err := r.Read(buf[:min(left, bufferSize)])
		if k > 0 {
			left -= int64(k)
			if _, err := w.Write(buf[:k]); err != nil {
				return err
			}
		}
		if err != nil && left > 0 {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

// bufferSize is what is read and written at once: smaller pieces cost up to half the speed.
const bufferSize = 256 << 10

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// rest passes on what comes after the first skip bytes.
type rest struct {
	w    io.Writer
	skip int64
}

// Write is part of io.Writer.
func (r *rest) Write(p []byte) (int, error) {
	k := min(r.skip, int64(len(p)))
	r.skip -= k
	if int(k) == len(p) {
		return len(p), nil
	}
	n, err := r.w.Write(p[k:])
	return int(k) + n, err
}
