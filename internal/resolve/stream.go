package resolve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
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
	backup  []NARSource // go on where sources ended, but do not begin
	// begun is called when a source's bytes begin; an error ends the stream.
	begun func(source string) error
	// prepare is called before upstream is asked: what cannot be kept is not begun there.
	prepare func() error
	// lease begins to agree with the site before upstream is asked. Nil, or a nil result:
	// there is nobody to agree with.
	lease func() Lease

	contributors []NARSource
	errs         []error
	copies       io.Writer // of the stream, for the jury; nil: it waits for none
	proven       func()
}

// pour fills the sink from the sources in order, each going on where the one before ended,
// and blames for wrong bytes: a source that sent all of them is convicted, several are
// avoided for this NAR. first is a claim of sources[0] that is open already, or nil. Who was
// served by the stream tries anew only when pour has returned: then the guilty are known.
func (p *pouring) pour(ctx context.Context, into sink, first *verify.Unverified) error {
	if j := p.r.jury(); j != nil {
		p.copies, p.proven = j.Right(p.info, p.form)
	}
	for i, s := range append(p.sources[:len(p.sources):len(p.sources)], p.backup...) {
		if i >= len(p.sources) && into.Offset() == 0 {
			break
		}
		if p.prepare != nil && s.Name() == upstreamName {
			if err := p.prepare(); err != nil {
				return p.end(into, err)
			}
		}
		var over bool
		var verdict error
		if first == nil && p.lease != nil && s.Name() == upstreamName {
			over, verdict = p.agree(ctx, into, s)
		} else {
			over, verdict = p.take(ctx, ctx, into, s, first)
		}
		if over {
			return verdict
		}
		first = nil
	}
	return into.End(missing(p.errs))
}

// agree takes the stream from upstream or from other nodes, as the site agrees.
func (p *pouring) agree(ctx context.Context, into sink, upstream NARSource) (over bool, verdict error) {
	l := p.lease()
	if l == nil {
		return p.take(ctx, ctx, into, upstream, nil)
	}
	for failed := false; ; {
		s, turn := l.Next(ctx)
		if s == nil {
			if failed {
				return false, nil // and nobody else has it
			}
			s = upstream
		}
		if over, verdict = p.take(ctx, turn, into, s, nil); over {
			return over, verdict
		}
		failed = failed || s == upstream && turn.Err() == nil
	}
}

// take fills the sink from one source for its turn, from claim if that is open. Over: the
// stream has ended, with this verdict.
func (p *pouring) take(ctx, turn context.Context, into sink, s NARSource, claim *verify.Unverified) (over bool, verdict error) {
	if claim == nil {
		var err error
		if claim, err = p.r.ask(turn, s, p.info, p.form, p.size, into.Offset()); err != nil {
			switch {
			case ctx.Err() != nil:
				return true, p.end(into, errors.Join(err, ctx.Err()))
			case errors.As(err, new(*OtherFormError)) && into.Offset() == 0:
				return true, p.end(into, err)
			}
			if !errors.Is(err, fs.ErrNotExist) {
				p.errs = append(p.errs, err)
			}
			return false, nil
		}
	}
	if err := p.begun(s.Name()); err != nil {
		_ = claim.Body.Close()
		return true, p.end(into, err)
	}
	before := into.Offset()
	var body io.Reader = claim.Body
	if p.copies != nil {
		body = io.TeeReader(body, p.copies)
	}
	err := into.Fill(body)
	_ = claim.Body.Close()
	if into.Offset() > before || isLie(err) {
		p.contributed(s)
	}
	var mine *receiverError
	var lie *verify.InvalidError
	switch {
	case errors.Is(err, verify.ErrReaderGone) || errors.As(err, &mine):
		return true, p.end(into, err)
	case errors.As(err, &lie) && lie.Reason == verify.ReasonEncoding:
		// Its own file is at fault, whoever else gave bytes; those before may be right.
		_ = p.r.blameNAR(s, p.info, p.form, err)
	case lie != nil:
		return true, p.end(into, err)
	case into.Offset() == p.size:
		// All bytes are here: how the source ended does not matter any more.
		return true, p.end(into, nil)
	case ctx.Err() != nil:
		return true, p.end(into, errors.Join(err, ctx.Err()))
	case turn.Err() != nil:
		p.r.log.Debug("left to another node", "path", p.info.StorePath().Base(), "at", into.Offset())
		return false, nil
	case err == nil:
		err = io.ErrUnexpectedEOF
	}
	err = fmt.Errorf("%s: at byte %d of %d: %w", s.Name(), into.Offset(), p.size, err)
	p.errs = append(p.errs, err)
	p.r.cfg.Metrics.Failovers.WithLabelValues(s.Name()).Inc()
	p.r.cfg.Trouble(s.Name(), "ended early, the next source goes on", p.info.StorePath().String(), err)
	p.r.log.Debug("source ended early", "source", s.Name(), "path", p.info.StorePath().Base(), "err", err)
	return false, nil
}

// contributed notes that s gave some of the bytes. Other nodes are one source, however they
// were found: among themselves the peers sort out who it was.
func (p *pouring) contributed(s NARSource) {
	if !slices.ContainsFunc(p.contributors, func(o NARSource) bool { return o.Name() == s.Name() }) {
		p.contributors = append(p.contributors, s)
	}
}

// end has the stream judged and the guilty blamed.
func (p *pouring) end(into sink, err error) error {
	err = into.End(err)
	p.blame(p.contributors, err)
	if spooled, ok := into.(*spoolSink); err == nil && p.proven != nil && !(ok && spooled.misnamed) {
		p.proven()
		p.r.avoided.remove(avoidKey{peerName, p.info.NarHash()})
	}
	return err
}

func isLie(err error) bool {
	var lie *verify.InvalidError
	return errors.As(err, &lie)
}

// ask opens a form of a NAR at one source. size is the form's size in bytes, 0 when only the
// source knows it. A lie is blamed on the source.
func (r *Resolver) ask(ctx context.Context, s NARSource, info *verify.Info, form nix.Form, size, off int64) (*verify.Unverified, error) {
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
		err = r.blameNAR(s, info, form, &verify.InvalidError{Reason: verify.ReasonSize, Err: err})
	case s.Name() == upstreamName:
		// Nobody signed the size of a file.
		r.disbelieve(info, form)
	}
	return nil, err
}

// jury is what the peers are when bytes of several of them were wrong: it keeps what each gave,
// and finds the guilty by the right ones.
type jury interface {
	// Suspect says that bytes were wrong to which peers, and others, contributed.
	Suspect(info *verify.Info, form nix.Form)
	// Right returns where the right bytes are to be written to and what is called when they
	// are proven, both nil where nobody is suspected.
	Right(info *verify.Info, form nix.Form) (copies io.Writer, proven func())
}

func (r *Resolver) jury() jury {
	j, _ := r.cfg.Peers.(jury)
	return j
}

// blame names the guilty of a lie. Only a source that sent all bytes can be convicted. Of
// several all are avoided; but where peers were among them they alone are: the others, asked
// for everything, show who it was.
func (p *pouring) blame(contributors []NARSource, err error) {
	if !isLie(err) {
		return
	}
	peers := avoidKey{peerName, p.info.NarHash()}
	if len(contributors) == 1 {
		_ = p.r.blameNAR(contributors[0], p.info, p.form, err)
		if contributors[0].Name() == peerName {
			// The next one may have it from the same liar, and the client does not wait for ever.
			if p.r.lied.has(peers) {
				p.r.avoided.add(peers, avoidPeersFor)
			}
			p.r.lied.add(peers, avoidPeersFor)
		}
		return
	}
	if j := p.r.jury(); j != nil && slices.ContainsFunc(contributors, func(s NARSource) bool { return s.Name() == peerName }) {
		j.Suspect(p.info, p.form)
		p.r.avoided.add(peers, avoidFor)
	} else {
		for _, s := range contributors {
			p.r.avoided.add(avoidKey{s.Name(), p.info.NarHash()}, avoidFor)
		}
	}
	p.r.cfg.Trouble("several", "together gave wrong bytes, which were refused", p.info.StorePath().String(), err)
	p.r.log.Warn("sources together gave wrong bytes", "path", p.info.StorePath().Base(), "err", err)
}

// blameNAR convicts s of a lie about a NAR and passes the error on.
func (r *Resolver) blameNAR(s NARSource, info *verify.Info, form nix.Form, err error) error {
	var lie *verify.InvalidError
	if errors.As(err, &lie) {
		if s.Name() != cacheName { // which counts what it drops
			r.count.lie(s.Name(), lie)
		}
		r.cfg.Trouble(s.Name(), "gave wrong bytes, which were refused", info.StorePath().String(), err)
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
func (n *NAR) direct(ctx context.Context, w io.Writer, claim *verify.Unverified) error {
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
		begun:   func(source string) error { n.giver.Store(source); return nil },
	}
	// Where all is proven before it leaves, nobody will have to show that it was the same.
	n.out.sure = hold.Known != nil || n.formSize <= hold.Ahead && hold.AheadFor == 0
	g := verify.NewGuard(n.info.Want(n.form, n.formSize), hold)
	var filler sync.WaitGroup
	filler.Go(func() { _ = p.pour(ctx, g, claim) })
	err = g.Drain(w)
	cancel()
	filler.Wait()
	g.Free()
	return err
}

// hold says how much is proven before it leaves, by where the bytes come from, and takes the
// memory for that.
func (n *NAR) hold(ctx context.Context) (h verify.Holdback, release func(), err error) {
	near := n.choice.near[0]
	if n.r.cfg.Cache != nil && near == NARSource(n.r.cfg.Cache) {
		h.Known, _ = n.r.prints.Get(printKey{n.info.NarHash(), n.form})
	}
	switch {
	case h.Known != nil:
		return h, func() {}, nil
	case n.formSize > storeAhead:
	case n.r.cfg.Store != nil && near == NARSource(n.r.cfg.Store):
		h = verify.Holdback{Ahead: storeAhead}
		if release, ok := n.r.mayHold(h.Memory(n.formSize)); ok {
			return h, release, nil
		}
		// Too much is held in memory already: read twice instead.
		h = verify.Holdback{}
		h.Known, err = n.prove(ctx, near)
		return h, func() {}, err
	case near.Name() == peerName:
		h = verify.Holdback{Ahead: peerAhead, AheadFor: peerWait}
		if release, ok := n.r.mayHold(h.Memory(n.formSize)); ok {
			return h, release, nil
		}
	}
	h = verify.Holdback{}
	release, ok := n.r.mayHold(h.Memory(n.formSize))
	h.Narrow = !ok
	return h, release, nil
}

// mayHold tells whether a response may hold so many bytes in memory; those who may not make do with
// a small part of it.
func (r *Resolver) mayHold(bytes int64) (release func(), ok bool) {
	if !r.held.TryAcquire(bytes) {
		return func() {}, false
	}
	return func() { r.held.Release(bytes) }, true
}

// prove hashes what s has, without keeping it.
func (n *NAR) prove(ctx context.Context, s NARSource) (*verify.BlockSums, error) {
	claim, err := n.r.ask(ctx, s, n.info, n.form, n.formSize, 0)
	if err != nil {
		return nil, err
	}
	defer claim.Body.Close()
	proof := verify.NewBlockSums(n.info.Want(n.form, n.formSize))
	buf, release := n.r.buffer()
	defer release()
	_, err = io.CopyBuffer(struct{ io.Writer }{proof}, struct{ io.Reader }{claim.Body}, buf)
	if err == nil {
		err = proof.Check()
	}
	return proof, n.r.blameNAR(s, n.info, n.form, err)
}

// copyBuffer is a good size for one read or write: larger ones leave the CPU's cache.
const copyBuffer = 256 << 10

// narrowBuffer does where memory is short.
const narrowBuffer = 32 << 10

// buffer returns room for copying, and what gives it back: a new one for each NAR would have to be
// zeroed each time.
func (r *Resolver) buffer() (buf []byte, release func()) {
	yield, ok := r.mayHold(copyBuffer)
	if !ok {
		return make([]byte, narrowBuffer), yield
	}
	b, ok := r.buffers.Get().(*[copyBuffer]byte)
	if !ok {
		b = new([copyBuffer]byte)
	}
	return b[:], func() {
		r.buffers.Put(b)
		yield()
	}
}
