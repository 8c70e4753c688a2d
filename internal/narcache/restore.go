package narcache

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

// maxRestores is how many NARs are restored at once: each takes up to 20 MB and, for some time, a core.
const maxRestores = 4

// restored returns the raw NAR of a delta from byte off on. It is restored into the cache, verified as a
// whole, and goes first when room is needed. Callers at the same time share the work. The error is errDropped if the
// delta could not be used and is gone, or if somebody else has restored it.
func restored(ctx context.Context, c *Cache, e *entry, n claim, off int64) (*verify.Unverified, error) {
	if n.size != e.narSize {
		return nil, fmt.Errorf("%d bytes, has %d", n.size, e.narSize)
	}
	for {
		c.mu.Lock()
		running := c.state.proving[e]
		if running == nil {
			if e.gone || c.state.find(key{e.nar, nix.Raw}) != nil {
				c.mu.Unlock()
				return nil, errDropped
			}
			p := &proof{done: make(chan struct{})}
			c.state.proving[e] = p
			c.mu.Unlock()
			r := restore{c: c, e: e, claim: n}
			var u *verify.Unverified
			u, p.err = r.run(ctx, off)
			c.mu.Lock()
			delete(c.state.proving, e)
			c.mu.Unlock()
			close(p.done)
			return u, p.err
		}
		c.mu.Unlock()
		select {
		case <-running.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		// What cancelled the other one does not concern this one.
		if running.err != nil && !errors.Is(running.err, context.Canceled) && !errors.Is(running.err, context.DeadlineExceeded) {
			return nil, running.err
		}
	}
}

// restore makes the raw NAR of a delta.
type restore struct {
	c *Cache
	e *entry
	claim
}

func (r *restore) run(ctx context.Context, off int64) (*verify.Unverified, error) {
	select {
	case r.c.restores <- struct{}{}:
		defer func() { <-r.c.restores }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	f, err := r.c.openEntry(r.e) // and the base stays
	if err != nil {
		return nil, err
	}
	body := &entryReader{c: r.c, e: r.e, f: f}
	defer body.Close()
	base, err := r.c.tree(ctx, r.e.base, claim{nar: r.e.baseNar(), size: r.e.baseSize})
	if err != nil {
		return nil, fmt.Errorf("base: %w", err) // if it was damaged, it has gone, and r.e with it
	}
	defer base.Close()
	d, err := r.c.create(key{r.nar, nix.Raw}, r.size)
	if err != nil {
		return nil, err
	}
	d.HideFromPeers(true)
	if err := r.decode(ctx, body, base, d); err != nil {
		d.Abort(err)
		return nil, err
	}
	hold := d.ClientReader(0) // it is not evicted before it is open
	defer hold.Close()
	if err := d.Commit(); err != nil {
		return nil, err
	}
	if m := r.c.cfg.Metrics; m != nil {
		m.CacheRestored.Inc()
	}
	return r.c.serve(ctx, d.entry, r.claim, nix.Raw, off)
}

// decode writes the NAR to d and checks it. A delta that does not make it is removed.
func (r *restore) decode(ctx context.Context, body *entryReader, base *tree, d *Download) error {
	err := makes(delta.NewReader(withContext(ctx, body), base, base.Size(), r.size), d, r.claim)
	var ofBase *delta.BaseError
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case body.err != nil: // the disk: it was removed
		return errDropped
	case errors.As(err, &ofBase), errors.Is(err, ErrDegraded):
		return err
	}
	// The base is right: it was hashed.
	if source.Invalid(err) == nil {
		err = &verify.InvalidError{Reason: verify.ReasonEncoding, Err: err}
	}
	r.c.blame(r.e, r.path, err)
	return errDropped
}

// makes decodes a delta to w, which may be nil, and reports whether that is the NAR.
func makes(dec *delta.Reader, w io.Writer, n claim) error {
	defer dec.Close()
	proof := verify.NewProof(n.digest())
	dst := io.Writer(proof)
	if w != nil {
		dst = io.MultiWriter(proof, w)
	}
	if err := copyTo(dst, dec); err != nil {
		return err
	}
	return proof.Check()
}
