package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/verify"
)

// leg is one stream of a NAR from byte 0 into one sink. Its sources follow one another: each
// goes on at the byte where the one before ended.
type leg struct {
	a       *attempt
	session source.Session // nil: no peers
	up      source.Upstreams

	whole bool // one peer sends all of it, and nothing is seen before the end

	out   sink // nil until somebody supplies
	stage *stage
	errs  []error // of sources that could not supply
	flags
	tally
}

type flags struct {
	peersOut, upstreamOut bool // have failed
	peersAgain            bool // were asked once more after upstream had failed
	hidden                bool // what comes is shown to nobody yet
	published             bool
}

// tally is what others may read while a leg runs.
type tally struct {
	got, size    atomic.Int64 // bytes
	fromPeers    atomic.Bool
	fromUpstream atomic.Bool
	delta        atomic.Bool // upstream sends, or has sent, what differs from a NAR of this machine
}

// supply is who sends the next bytes.
type supply struct {
	role  source.Role
	body  io.ReadCloser
	first []byte // of body, read already
	peer  string // ID
	form  nix.Form
	size  int64
	over  <-chan struct{} // the site wants another node to supply; nil: never
	done  <-chan struct{} // of the context that body is bound to
	end   context.CancelFunc
}

// run takes the stream from one supply after another and returns the verdict on the whole.
func (l *leg) run(ctx context.Context) error {
	for {
		s, err := l.next(ctx)
		if err != nil {
			return l.end(err)
		}
		over, err := l.take(ctx, s)
		if over {
			return l.end(err)
		}
	}
}

// next returns who supplies the bytes from here on: peers, or this machine from upstream if the
// site says so, if the clock says so, or if no peer can.
func (l *leg) next(ctx context.Context) (*supply, error) {
	for {
		switch {
		case ctx.Err() != nil:
			return nil, errors.Join(context.Cause(ctx), missing(l.errs))
		case l.session != nil && !l.peersOut && !l.a.peersOver():
			if s := l.nextPeer(ctx); s != nil {
				return s, nil
			}
		case !l.upstreamOut:
			if s := l.openUpstream(ctx, nil); s != nil {
				return s, nil
			}
		case l.session != nil && !l.peersAgain && !l.a.d.idle:
			l.peersAgain, l.peersOut = true, false
			l.a.resumePeers() // without a budget: there is nothing else
		default:
			return nil, missing(l.errs)
		}
	}
}

// nextPeer asks the session. It returns nil if next has to decide again.
func (l *leg) nextPeer(ctx context.Context) *supply {
	pctx, stop := l.a.peersContext(ctx)
	turn, err := l.session.Next(pctx, l.got.Load())
	switch {
	case errors.Is(err, source.ErrFetch):
		stop()
		l.peersOut = l.upstreamOut // it says so again although upstream has failed
		if l.upstreamOut {
			return nil
		}
		return l.openUpstream(ctx, turn.Over)
	case err != nil:
		if pctx.Err() == nil { // else the clock is over, or the client has left
			l.peersOut = true
			l.note(source.Peer, err)
		}
		stop()
		return nil
	}
	s := &supply{
		role: source.Peer, peer: turn.Stream.Peer, body: turn.Stream.Body, form: turn.Stream.Form, size: turn.Stream.Size, over: turn.Over, done: pctx.Done(), end: stop,
	}
	if err := l.readFirst(s); err != nil {
		if pctx.Err() == nil {
			l.failed(s.role, err)
		}
		_ = s.body.Close()
		stop()
		return nil
	}
	return s
}

// readFirst reads the first bytes: whether a peer is trusted is known when it has sent some.
func (l *leg) readFirst(s *supply) error {
	if want := l.a.d.sizeOf(s.form); want <= 0 || s.size != want {
		return fmt.Errorf("%s of %d bytes, not %d", s.form, s.size, want)
	}
	if l.got.Load() > 0 && s.form != l.stage.form {
		return fmt.Errorf("%s, not %s", s.form, l.stage.form)
	}
	buf := make([]byte, 4<<10)
	for range maxEmptyReads {
		n, err := s.body.Read(buf)
		if s.first = buf[:n]; n > 0 {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}

// openUpstream opens the form that has begun, or else the best one that an upstream has. It
// returns nil if there is none.
func (l *leg) openUpstream(ctx context.Context, over <-chan struct{}) *supply {
	l.upstreamOut = true // unless it works
	if l.up == nil || l.a.d.unwanted() {
		return nil
	}
	if l.up.Down() {
		l.errs = append(l.errs, errors.New("upstreams are down"))
		return nil
	}
	forms := l.a.d.forms
	if l != l.a.first {
		forms = l.a.secondForms()
	}
	if l.out != nil && l.got.Load() > 0 {
		forms = []source.Sized{{Form: l.stage.form, Size: l.stage.size}}
	}
	for _, f := range forms {
		if err := l.prepare(f); err != nil {
			l.errs = append(l.errs, err)
			return nil
		}
		uctx, stop := context.WithCancel(ctx)
		u, delta, err := l.fetch(uctx, f.Form, forms)
		if delta {
			f = source.Sized{Form: nix.Raw, Size: l.a.d.info.NarSize()}
		}
		if err == nil && u.Size != f.Size {
			_ = u.Body.Close()
			err = l.wrongSize(f, u.Size)
		}
		if err == nil {
			l.upstreamOut = false
			return &supply{role: source.Upstream, body: u.Body, form: f.Form, size: f.Size, over: over, done: uctx.Done(), end: stop}
		}
		stop()
		if source.Invalid(err) != nil {
			l.a.d.s.reportUpstream(l.a.d.info, f.Form, l.up, err)
		}
		l.note(source.Upstream, err)
	}
	return nil
}

// fetch opens a form at an upstream. What nobody sees before all of it is verified may come as a delta, if the raw
// NAR is of use as well.
func (l *leg) fetch(ctx context.Context, form nix.Form, of []source.Sized) (u *verify.Unverified, delta bool, err error) {
	d := l.a.d
	isRaw := func(s source.Sized) bool { return s.Form.IsRaw() }
	if l.got.Load() > 0 || d.private || d.noDelta || !slices.ContainsFunc(of, isRaw) {
		u, err = l.up.NAR(ctx, d.info, form, l.got.Load())
		return u, false, err
	}
	u, delta, err = l.up.Update(ctx, d.info, form)
	l.delta.Store(delta)
	return u, delta, err
}

// prepare makes the sink before upstream is asked: what cannot be kept is not begun there.
func (l *leg) prepare(f source.Sized) error {
	if l.out != nil && l.stage.form == f.Form {
		return nil
	}
	return l.begin(source.Upstream, f.Form, f.Size)
}

// wrongSize: nobody signed the size of a file, but that of the raw NAR.
func (l *leg) wrongSize(f source.Sized, size int64) error {
	err := fmt.Errorf("%s of %d bytes, not %d", f.Form, size, f.Size)
	if f.Form.IsRaw() {
		return &verify.InvalidError{Reason: verify.ReasonSize, Err: err}
	}
	l.a.d.s.cfg.Resolver.Distrust(l.a.d.info, f.Form)
	return err
}

// begin makes the sink. Nothing of it is seen by anybody before publish.
func (l *leg) begin(role source.Role, form nix.Form, size int64) error {
	if l.out != nil { // of a form that upstream turned out not to have
		_ = l.out.End(errSuperseded)
		l.out = nil
	}
	out, st, err := l.a.d.newSink(form, size, role, l.trusted())
	if err != nil {
		return err
	}
	l.out, l.stage = out, st
	l.size.Store(size)
	return nil
}

var (
	errSuperseded = errors.New("another stream is used")
	errTurnOver   = errors.New("left to another node")
)

// take fills the sink from one supply. Over: the stream has ended, with this error or none.
func (l *leg) take(ctx context.Context, s *supply) (over bool, err error) {
	defer s.end()
	defer s.body.Close()
	if s.over != nil {
		l.a.watchTurn(s.over, s.done, s.end)
	}
	if l.out == nil || l.got.Load() == 0 && l.stage.form != s.form {
		if err := l.begin(s.role, s.form, s.size); err != nil {
			return true, err
		}
	}
	l.stage.role.Store(uint32(s.role))
	l.stage.peer.Store(s.peer)
	l.a.d.latest.Store(&supplier{s.role, s.peer})
	err = l.out.Fill(&feed{l: l, s: s})
	l.tell()
	var mine *sinkError
	invalid := source.Invalid(err)
	switch {
	case errors.Is(err, verify.ErrReaderGone) || errors.As(err, &mine):
		return true, err
	case invalid != nil && invalid.Reason == verify.ReasonEncoding && s.role == source.Upstream:
		// Its own file cannot be decoded, whoever else sent bytes; those before may be right.
		l.a.d.s.reportUpstream(l.a.d.info, s.form, l.up, err)
		l.upstreamOut = true
		l.note(s.role, err)
		return false, nil
	case invalid != nil:
		return true, err
	case l.out.Offset() == l.stage.size:
		return true, nil // how the source ended does not matter any more
	case ctx.Err() != nil:
		return true, errors.Join(context.Cause(ctx), err)
	case l.a.turnOver(s.over):
		return false, nil
	case err == nil:
		err = io.ErrUnexpectedEOF
	}
	l.failed(s.role, fmt.Errorf("at byte %d of %d: %w", l.out.Offset(), l.stage.size, err))
	return false, nil
}

// feed reads from a supply, and does what has to be done before its bytes are written.
type feed struct {
	l *leg
	s *supply
}

func (f *feed) Read(p []byte) (n int, err error) {
	l, s := f.l, f.s
	l.tell()
	if len(s.first) > 0 {
		n = copy(p, s.first)
		s.first = s.first[n:]
	} else if n, err = s.body.Read(p); n <= 0 {
		return n, err
	}
	if s.role == source.Peer {
		l.fromPeers.Store(true)
	} else {
		l.fromUpstream.Store(true)
	}
	if hide := !l.trusted(); hide != l.hidden {
		if err := l.hide(hide); err != nil {
			return 0, err
		}
	}
	l.got.Add(int64(n))
	l.publish()
	return n, err
}

// trusted reports whether what has come may be seen before the whole is proven.
func (l *leg) trusted() bool {
	return !l.delta.Load() && (l.session == nil || !l.whole && l.session.Trusted())
}

// misnamed reports whether the NAR came as a file with a wrong FileHash.
func (l *leg) misnamed() bool {
	sp, ok := l.out.(*spool)
	return ok && sp.misnamed
}

// hide keeps what is written from now on from everybody, or shows it again.
func (l *leg) hide(hide bool) error {
	l.hidden = hide
	if sp, ok := l.out.(*spool); ok {
		sp.HideFromPeers(hide)
		return nil
	}
	if l.got.Load() > 0 {
		return &sinkError{errUnverified} // a guard cannot hold back what follows
	}
	return nil
}

var errUnverified = errors.New("an unverified peer in the middle of a stream that is not kept")

// publish shows the stage to the followers, unless nothing of it may be seen.
func (l *leg) publish() {
	if l.published || l.hidden && l.stage.guard == nil || l == l.a.first && l.a.inParallel() {
		return
	}
	l.published = true
	l.a.d.publish(l.stage)
}

// tell tells the site how far this leg is.
func (l *leg) tell() {
	if s := l.a.session; s != nil && l.out != nil && l.a.d.current() == l.stage {
		readable := int64(0)
		if l.stage.spool != nil {
			readable = l.stage.spool.Readable()
		}
		s.Progress(readable, l.got.Load())
	}
}

// note keeps an error of a source that could not supply.
func (l *leg) note(role source.Role, err error) {
	if !source.Absent(err) {
		l.errs = append(l.errs, fmt.Errorf("%s: %w", role, err))
	}
}

// failed notes that a source ended in the middle.
func (l *leg) failed(role source.Role, err error) {
	l.upstreamOut = l.upstreamOut || role == source.Upstream
	l.note(role, err)
	l.a.d.s.endedEarly(role, l.a.d.info, err)
}

// end has the stream checked. Who sent all bytes of a wrong one is blamed for it; peers are
// told by the session.
func (l *leg) end(err error) error {
	if l.out == nil {
		return err
	}
	err = l.out.End(err)
	d := l.a.d
	if source.Invalid(err) == nil {
		if sp, ok := l.out.(*spool); ok && err == nil {
			d.committed(sp, l.fromUpstream.Load())
		}
		return err
	}
	switch {
	case !l.fromPeers.Load():
		if l.delta.Load() {
			err = fmt.Errorf("it was made of a delta: %w", err)
		}
		d.s.reportUpstream(d.info, l.stage.form, l.up, err)
	default: // the session reports it
		d.s.log.Warn("wrong bytes refused", "source", source.Peer, "upstream_too", l.fromUpstream.Load(), "path", d.info.StorePath().Base(), "form", l.stage.form, "err", err)
		d.s.peersWereWrong(d.info)
	}
	return err
}
