package narcache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/nixp2p/nixp2p/internal/compress"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/verify"
)

// proof is the check of one entry, which all who need it share.
type proof struct {
	done   chan struct{} // closed at the end
	decode bool
	err    error // set before done is closed
}

// Proven reports whether a form is here as a whole and is known to be the signed NAR.
func (c *Cache) Proven(nar nix.NarHash, form nix.Form) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.state.find(key{nar, form})
	return e != nil && e.proven()
}

// Prove checks that a form that is here as a whole is the signed NAR: a file is decoded, once,
// for its FileHash is only a name. Callers at the same time share the work, and what is proven
// costs nothing; after a restart it is hashed again. A form that is not the NAR is removed, and
// the error is a *verify.InvalidError; one that the disk damaged is removed, and the error wraps
// fs.ErrNotExist, as for one that is not here.
func (c *Cache) Prove(ctx context.Context, info *verify.Info, form nix.Form) error {
	c.mu.Lock()
	e := c.state.find(key{info.NarHash(), form})
	c.mu.Unlock()
	err := errDropped
	if e != nil {
		err = c.ensure(ctx, e, claimOf(info), true)
	}
	if errors.Is(err, errDropped) {
		return fmt.Errorf("narcache: %s: %w", info.NarHash(), fs.ErrNotExist)
	}
	return err
}

// ensure checks e, unless that was done: that its bytes are those that its form names, and with
// decode that they are the NAR.
func (c *Cache) ensure(ctx context.Context, e *entry, n claim, decode bool) error {
	decode = decode && !e.form.IsRaw()
	for {
		c.mu.Lock()
		running, intact := c.state.proving[e], e.intact
		switch {
		case e.gone && running == nil:
			c.mu.Unlock()
			return errDropped
		case running == nil && intact && (e.decoded || !decode):
			c.mu.Unlock()
			return nil
		case running == nil:
			p := &proof{done: make(chan struct{}), decode: decode && !e.decoded}
			c.state.proving[e] = p
			c.mu.Unlock()
			return c.runProof(ctx, p, e, n, intact)
		}
		c.mu.Unlock()
		select {
		case <-running.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		if source.Invalid(running.err) != nil {
			return running.err
		}
	}
}

// runProof checks e for all who wait for p.
func (c *Cache) runProof(ctx context.Context, p *proof, e *entry, n claim, intact bool) error {
	p.err = c.check(ctx, e, n, p.decode, intact)
	if source.Invalid(p.err) != nil {
		c.blame(e, n.path, p.err)
	}
	c.mu.Lock()
	delete(c.state.proving, e)
	if p.err == nil {
		e.intact = true
		e.decoded = e.decoded || p.decode
		e.followed(time.Now()) // is over then
	}
	c.mu.Unlock()
	close(p.done)
	if p.err == nil && p.decode {
		if err := c.rename(e, false); err != nil {
			_ = c.health.failed("rename", err) // it is decoded again after a restart
		}
	}
	return p.err
}

// moreDecodes than there are cores are decoded at once to be proven: what is decoded for peers (two), or while nothing
// else is to do (one), must not have this machine's own clients wait. A decoder of xz takes 8 MiB as a rule, and Nix asks
// for 25 files at a time.
const moreDecodes = 3

// check reads e once: it hashes the file unless it is intact, and decodes it if asked to. The
// error is a *verify.InvalidError if a file that is intact does not decode to the NAR; errDropped
// if it is damaged; else nothing is known.
func (c *Cache) check(ctx context.Context, e *entry, n claim, decode, intact bool) error {
	if decode {
		select {
		case c.decodes <- struct{}{}:
			defer func() { <-c.decodes }()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	f, err := c.openEntry(e)
	if err != nil {
		return err
	}
	body := &entryReader{c: c, e: e, f: f}
	defer body.Close()
	want := verify.Digest{Size: e.size, Hash: e.form.File}
	if e.form.IsRaw() {
		want.Hash = e.nar
	}
	file := verify.NewProof(want)
	src := withContext(ctx, body)
	if !intact {
		src = io.TeeReader(src, file)
	}
	var wrong error
	if decode {
		wrong = decodes(src, e, n)
	}
	if !intact {
		_ = copyTo(io.Discard, src) // what decoding left
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case body.err != nil:
		return errDropped
	case intact:
		return wrong
	}
	if err := file.Check(); err != nil { // the disk changed it, whatever it decodes to
		c.blame(e, n.path, err)
		return errDropped
	}
	return wrong
}

// decodes returns why a file is not the NAR, a *verify.InvalidError.
func decodes(src io.Reader, e *entry, n claim) error {
	nar := verify.NewProof(n.digest())
	dec, err := compress.NewReader(e.form.Compression, src)
	if err == nil {
		err = cmp.Or(copyTo(nar, dec), dec.Close())
	}
	if err == nil {
		err = nar.Check()
	}
	if err != nil && source.Invalid(err) == nil {
		err = &verify.InvalidError{Reason: verify.ReasonEncoding, Err: err}
	}
	return err
}

func copyTo(dst io.Writer, src io.Reader) error {
	_, err := io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, make([]byte, readSize))
	return err
}

// withContext returns r until ctx ends.
func withContext(ctx context.Context, r io.Reader) io.Reader {
	return readerFunc(func(p []byte) (int, error) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		return r.Read(p)
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
