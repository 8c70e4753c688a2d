package resolve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/verify"
)

// avoidKey names a source that had a part in wrong bytes of a NAR.
type avoidKey struct {
	source string
	nar    nix.NarHash
}

// sink takes a stream that several sources may contribute to, and judges it as a whole.
type sink interface {
	Fill(src io.Reader) error
	Offset() int64
	// End judges the stream, or ends it with err, and returns the verdict.
	End(err error) error
}

// receiverError is an error of the receiving side: no other source helps.
type receiverError struct{ err error }

func (e *receiverError) Error() string { return e.err.Error() }
func (e *receiverError) Unwrap() error { return e.err }

// pouring is one stream of a NAR in one form from the sources into a sink.
type pouring struct {
	r       *Resolver
	info    *verify.Info
	form    nix.Form
	size    int64
	sources []NARSource
	backup  []NARSource         // go on where sources ended, but do not begin
	begun   func(source string) // called when a source's bytes begin
}

// pour fills the sink from the sources in order, each going on where the one before ended,
// and blames for wrong bytes: a source that sent all of them is convicted, several are
// avoided for this NAR. first is a claim of sources[0] that is open already, or nil. Who was
// served by the stream tries anew only when pour has returned: then the guilty are known.
func (p *pouring) pour(ctx context.Context, into sink, first *verify.Claim) error {
	var contributors []NARSource
	var errs []error
	end := func(err error) error {
		err = into.End(err)
		p.blame(contributors, err)
		return err
	}
	for i, s := range append(p.sources[:len(p.sources):len(p.sources)], p.backup...) {
		claim := first
		first = nil
		if i >= len(p.sources) && into.Offset() == 0 {
			break
		}
		if claim == nil {
			var err error
			if claim, err = p.r.ask(ctx, s, p.info, p.form, p.size, into.Offset()); err != nil {
				if ctx.Err() != nil {
					return end(errors.Join(err, ctx.Err()))
				}
				if !errors.Is(err, fs.ErrNotExist) {
					errs = append(errs, err)
				}
				continue
			}
		}
		p.begun(s.Name())
		before := into.Offset()
		err := into.Fill(claim.Body)
		_ = claim.Body.Close()
		if into.Offset() > before || isLie(err) {
			contributors = append(contributors, s)
		}
		var mine *receiverError
		var lie *verify.LieError
		switch {
		case errors.Is(err, verify.ErrReaderGone) || errors.As(err, &mine):
			return end(err)
		case errors.As(err, &lie) && lie.Reason == verify.ReasonEncoding:
			// Its own file is at fault, whoever else gave bytes; those before may be right.
			_ = p.r.blameNAR(s, p.info, p.form, err)
		case lie != nil:
			return end(err)
		case into.Offset() == p.size:
			// All bytes are here: how the source ended does not matter any more.
			return end(nil)
		case ctx.Err() != nil:
			return end(errors.Join(err, ctx.Err()))
		case err == nil:
			err = io.ErrUnexpectedEOF
		}
		errs = append(errs, fmt.Errorf("%s: at byte %d of %d: %w", s.Name(), into.Offset(), p.size, err))
		p.r.cfg.Metrics.Failovers.WithLabelValues(s.Name()).Inc()
		p.r.log.Debug("source ended early", "source", s.Name(), "path", p.info.StorePath().Base(), "err", err)
	}
	return into.End(missing(errs))
}

func isLie(err error) bool {
	var lie *verify.LieError
	return errors.As(err, &lie)
}

// ask opens a form of a NAR at one source. size is the form's size in bytes, 0 when only the
// source knows it. A lie is blamed on the source.
func (r *Resolver) ask(ctx context.Context, s NARSource, info *verify.Info, form nix.Form, size, off int64) (*verify.Claim, error) {
	claim, err := s.NAR(ctx, info, form, off)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.Name(), r.blameNAR(s, info, form, err))
	}
	if size > 0 && claim.Size == size || size == 0 && claim.Size > 0 {
		return claim, nil
	}
	_ = claim.Body.Close()
	err = fmt.Errorf("%s: %s of %d bytes, not %d", s.Name(), form, claim.Size, size)
	switch {
	case form.IsRaw():
		err = r.blameNAR(s, info, form, &verify.LieError{Reason: verify.ReasonSize, Err: err})
	case s.Name() == upstreamName:
		// Nobody signed the size of a file.
		r.disbelieve(info, form)
	}
	return nil, err
}

// blame names the guilty of a lie. Only a source that sent all bytes can be convicted.
func (p *pouring) blame(contributors []NARSource, err error) {
	if !isLie(err) {
		return
	}
	if len(contributors) == 1 {
		_ = p.r.blameNAR(contributors[0], p.info, p.form, err)
		return
	}
	for _, s := range contributors {
		p.r.avoided.add(avoidKey{s.Name(), p.info.NarHash()}, avoidFor)
	}
	p.r.log.Warn("sources together gave wrong bytes", "path", p.info.StorePath().Base(), "err", err)
}

// blameNAR convicts s of a lie about a NAR and passes the error on.
func (r *Resolver) blameNAR(s NARSource, info *verify.Info, form nix.Form, err error) error {
	var lie *verify.LieError
	if errors.As(err, &lie) {
		if s.Name() != cacheName { // which counts what it drops
			r.count.lie(s.Name(), lie)
		}
		r.log.Warn("wrong bytes refused", "source", s.Name(), "path", info.StorePath().Base(), "form", form.String(), "err", err)
		s.Convict(info, form, lie)
		if !form.IsRaw() && s.Name() == upstreamName {
			r.badFiles.add(form.File, badFileFor)
		}
		r.Forget(info.StorePath().Hash())
	}
	return err
}

// disbelieve makes narinfos offer raw instead of a file whose hash or size was wrong: its
// NAR may be right.
func (r *Resolver) disbelieve(info *verify.Info, form nix.Form) {
	r.badFiles.add(form.File, badFileFor)
	r.Forget(info.StorePath().Hash())
}

// badFileFor is how long a file hash that was wrong is not believed.
const badFileFor = 24 * time.Hour

// direct streams from the opened near source, and those after it, through a Guard.
func (n *NAR) direct(ctx context.Context, w io.Writer, claim *verify.Claim) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	hold, release, err := n.hold(ctx)
	if err != nil {
		_ = claim.Body.Close()
		return err
	}
	defer release()

	n.giver.Store(n.choice.near[0].Name())
	p := &pouring{
		r: n.r, info: n.info, form: n.form, size: n.formSize,
		sources: append(n.choice.near[:len(n.choice.near):len(n.choice.near)], n.choice.far...),
		backup:  n.choice.backup,
		begun:   func(source string) { n.giver.Store(source) },
	}
	g := verify.NewGuard(n.info.Want(n.form, n.formSize), hold)
	var filler sync.WaitGroup
	filler.Go(func() { _ = p.pour(ctx, g, claim) })
	err = g.Drain(w)
	cancel()
	filler.Wait()
	g.Free()
	return err
}

// hold says how much is proven before it leaves, by where the bytes come from.
func (n *NAR) hold(ctx context.Context) (h verify.Hold, release func(), err error) {
	nothing := func() {}
	switch s := n.choice.near[0]; {
	case n.r.cfg.Store != nil && s == NARSource(n.r.cfg.Store) && n.formSize <= storeAhead:
		if n.r.ahead.TryAcquire(n.formSize) {
			return verify.Hold{Ahead: storeAhead}, func() { n.r.ahead.Release(n.formSize) }, nil
		}
		// Too much is held in memory already: read twice instead.
		return verify.Hold{}, nothing, n.prove(ctx, s)
	case n.r.cfg.Peers != nil && s == NARSource(n.r.cfg.Peers) && n.formSize <= peerAhead:
		if n.r.ahead.TryAcquire(n.formSize) {
			return verify.Hold{Ahead: peerAhead, AheadFor: peerWait}, func() { n.r.ahead.Release(n.formSize) }, nil
		}
	}
	return verify.Hold{}, nothing, nil
}

// prove hashes what s has, without keeping it.
func (n *NAR) prove(ctx context.Context, s NARSource) error {
	claim, err := n.r.ask(ctx, s, n.info, n.form, n.formSize, 0)
	if err != nil {
		return err
	}
	defer claim.Body.Close()
	proof := verify.NewProof(n.info.Want(n.form, n.formSize))
	_, err = io.CopyBuffer(struct{ io.Writer }{proof}, claim.Body, make([]byte, copyBuffer))
	if err == nil {
		err = proof.Check()
	}
	return n.r.blameNAR(s, n.info, n.form, err)
}

// copyBuffer is a good size for one read or write: larger ones leave the CPU's cache.
const copyBuffer = 256 << 10

// counted counts what goes to the client by the source that is giving at the moment.
type counted struct {
	io.Writer
	n *NAR
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	c.n.r.count.sent(c.n.source(), int64(n))
	return n, err
}
