package resolve

import (
	"context"
	"fmt"
	"io"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/verify"
)

// Prefetched says how a path stands after Prefetch.
type Prefetched struct {
	Info   *verify.Info
	Size   int64  // bytes of the form in which it is fetched
	AtHand string // the source on this machine that had it before: store, cache or ""
}

// Prefetch brings a path's NAR into the cache unless this machine has it already; with dry it
// only says what it would do. An error that wraps fs.ErrNotExist means that nobody has the
// path.
func (r *Resolver) Prefetch(ctx context.Context, h nix.StoreHash, dry bool) (Prefetched, error) {
	a, err := r.Info(ctx, h, Anywhere)
	if err != nil {
		return Prefetched{}, err
	}
	n := &NAR{r: r, info: a.Info, form: a.Form}
	p := Prefetched{Info: a.Info, Size: n.sizeOf(a.Form), AtHand: r.atHand(ctx, a.Info)}
	if dry || p.AtHand != "" {
		return p, nil
	}
	var far []NARSource
	if r.cfg.Peers != nil {
		far = append(far, n.usable(r.cfg.Peers)...)
	}
	if r.cfg.Upstream != nil {
		far = append(far, n.usable(r.cfg.Upstream)...)
	}
	d, _, err := r.join(ctx, a.Info, choice{form: a.Form, far: far}, p.Size)
	if err != nil {
		return p, fmt.Errorf("prefetch %s: %w", a.Info.StorePath().Base(), err)
	}
	defer r.leave(d, linger)
	rd := d.spool.Reader(0)
	defer rd.Close()
	stop := context.AfterFunc(ctx, func() { _ = rd.Close() })
	defer stop()
	if _, err := io.Copy(io.Discard, struct{ io.Reader }{rd}); err != nil {
		return p, fmt.Errorf("prefetch %s: %w", a.Info.StorePath().Base(), err)
	}
	return p, nil
}

// atHand returns the source on this machine that has info's NAR, or "".
func (r *Resolver) atHand(ctx context.Context, info *verify.Info) string {
	if s := r.cfg.Store; s != nil {
		if claim, err := s.NAR(ctx, info, nix.Raw, 0); err == nil {
			_ = claim.Body.Close()
			return s.Name()
		}
	}
	if c := r.cfg.Cache; c != nil {
		if raw, files := c.Held(info.NarHash()); raw || len(files) > 0 {
			return c.Name()
		}
	}
	return ""
}
