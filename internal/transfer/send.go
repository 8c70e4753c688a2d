package transfer

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/internal/compress"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/verify"
)

var (
	// errMoved: another stage of the same form has to be followed.
	errMoved = errors.New("the download goes on in another stream")
	// errOtherForm: what can be had now is not what the response began with.
	errOtherForm = errors.New("the NAR is there in another form only")
)

// Send writes count bytes from byte from on, verified as a part of the whole. If it returns an
// error and nothing was written to w, the request may still be refused; else the response has
// to be cut.
func (n *NAR) Send(ctx context.Context, w io.Writer, from, count int64) error {
	counted, end := n.s.responses.begin(n, w, count)
	defer end()
	out := newSection(counted, from, count, n.Size())
	n.out = out
	wrong := false
	for attempt := 1; ; attempt++ {
		err := n.once(ctx, out)
		if err == nil {
			err = out.finish()
		}
		if err == nil {
			n.Close()
			return nil
		}
		if ctx.Err() != nil || out.failed != nil {
			n.Close()
			return errors.Join(err, ctx.Err())
		}
		if !errors.Is(err, errMoved) {
			wrong = wrong || out.began() && source.Invalid(err) != nil
			if again := n.again(ctx, out, err, attempt); again != nil {
				if wrong || errors.Is(again, errDiverged) {
					n.s.cut.Add(n.name, cutFor)
				}
				return again
			}
		}
		out.rewind()
	}
}

// again plans anew after err if that is of use: a source on this machine or the cache failed, or
// a stream that is not kept was wrong or has not begun. A download that others can follow makes
// all attempts by itself. It returns why there is nothing.
func (n *NAR) again(ctx context.Context, out *section, err error, attempt int) error {
	private := n.d != nil && n.d.private
	copied := n.d != nil && n.d.idle // from peers alone
	useful := n.local != nil || copied || errors.Is(err, errSinkFailed) || private && (!out.began() || source.Invalid(err) != nil)
	n.upstreamOnly = n.upstreamOnly || errors.Is(err, errTooSlow) || errors.Is(err, errUnverified)
	n.alone = n.alone || private && source.Invalid(err) != nil
	n.fixed = true
	n.Close()
	if !useful || attempt >= maxAttempts {
		return err
	}
	form, wrap, size := n.form, n.wrap, n.size
	again := n.plan(ctx)
	if again == nil && (n.form != form || n.wrap != wrap || n.size != size) {
		n.Close()
		again = errOtherForm
	}
	if again != nil {
		return errors.Join(err, again)
	}
	return nil
}

// once sends what is open, through the container if there is one.
func (n *NAR) once(ctx context.Context, out *section) error {
	if n.wrap == "" {
		return n.stream(ctx, out)
	}
	stored, err := compress.NewStored(n.wrap, out, n.info.NarSize())
	if err != nil {
		return err
	}
	err = n.stream(ctx, stored)
	if closing := stored.Close(); err == nil {
		err = closing
	}
	return err
}

func (n *NAR) stream(ctx context.Context, w io.Writer) error {
	switch {
	case n.local != nil:
		return n.direct(ctx, w)
	case n.stage.guard != nil:
		err := n.stage.guard.Drain(w)
		n.d.cancel()
		<-n.d.done
		return err
	}
	return n.follow(ctx, w)
}

// direct streams from a source on this machine through a Guard.
func (n *NAR) direct(ctx context.Context, w io.Writer) error {
	l := n.local
	body := l.body.Body
	defer body.Close()
	hold, release, err := n.localHoldback(ctx, l)
	if err != nil {
		n.failed = append(n.failed, l.candidate)
		return err
	}
	defer release()
	// Where all is proven before it leaves, it is never compared with another stream.
	n.out.sure = hold.Previous != nil || n.size <= hold.VerifyFirst && hold.VerifyFor == 0
	g := verify.NewGuard(n.info.Digest(n.form, n.size), hold)
	var filler sync.WaitGroup
	filler.Go(func() {
		err := g.Fill(body)
		if source.Invalid(err) == nil && g.Offset() == n.size {
			err = nil // all bytes are here: how the source ended does not matter
		}
		_ = g.End(err)
	})
	err = g.Drain(w)
	_ = body.Close()
	filler.Wait()
	g.Free()
	if err != nil && n.out.failed == nil && ctx.Err() == nil && !errors.Is(err, errDiverged) {
		n.failed = append(n.failed, l.candidate)
		if source.Invalid(err) != nil {
			return n.s.reportLocal(l.src, l.role, n.info, n.form, err)
		}
		n.s.endedEarly(l.role, n.info, err)
	}
	return err
}

// localHoldback says how much of a local source is verified before it leaves, and takes the
// memory for that. This machine's own Nix asks for what is in its store to repair it: none of a
// wrong NAR may reach it.
func (n *NAR) localHoldback(ctx context.Context, l *local) (h verify.Holdback, release func(), err error) {
	if l.role == source.Cache {
		h.Previous, _ = n.s.sums.Get(sumsKey{n.info.NarHash(), n.form})
	}
	if h.Previous != nil {
		return h, func() {}, nil
	}
	if l.role == source.Store && n.size <= storeFirst && !n.q.Scope.Public() {
		h.VerifyFirst = storeFirst
		if release, ok := n.s.hold(h.Memory(n.size)); ok {
			return h, release, nil
		}
		// Too much is held in memory already: read it twice instead.
		h = verify.Holdback{}
		h.Previous, err = n.readOnce(ctx, l)
		return h, func() {}, err
	}
	release, ok := n.s.hold(h.Memory(n.size))
	h.LowMemory = !ok
	return h, release, nil
}

// readOnce hashes what a source has, without keeping it.
func (n *NAR) readOnce(ctx context.Context, l *local) (*verify.BlockSums, error) {
	u, err := l.src.NAR(ctx, n.info, n.form, 0)
	if err != nil {
		return nil, n.s.reportLocal(l.src, l.role, n.info, n.form, err)
	}
	defer u.Body.Close()
	sums := verify.NewBlockSums(n.info.Digest(n.form, n.size))
	buf, release := n.s.buffer()
	defer release()
	if _, err = io.CopyBuffer(struct{ io.Writer }{sums}, struct{ io.Reader }{u.Body}, buf); err == nil {
		err = sums.Check()
	}
	return sums, n.s.reportLocal(l.src, l.role, n.info, n.form, err)
}

// follow sends a download as it grows. It sees what other machines see: nothing of an
// unverified peer before the whole is proven.
func (n *NAR) follow(ctx context.Context, w io.Writer) error {
	d, st := n.d, n.stage
	r := st.spool.ClientReader(0)
	d.awaitWhole(ctx, st)
	if !d.follow(st, r) {
		_ = r.Close()
		n.stage = d.current()
		return errMoved
	}
	defer d.unfollow(st, r)
	stop := context.AfterFunc(ctx, func() { _ = r.Close() })
	defer stop()
	buf, release := n.s.buffer()
	defer release()
	_, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, buf)
	if err == nil || ctx.Err() != nil || n.out.failed != nil || errors.Is(err, errDiverged) {
		return err
	}
	next, why := d.await(ctx, st)
	switch {
	case next == nil && why == nil:
		return errors.Join(errSinkFailed, err) // it is in the cache, but could not be read
	case next == nil:
		return why
	case next.form != st.form:
		return errors.Join(errOtherForm, err)
	}
	n.stage = next
	return errMoved
}

// awaitWhole gives peers a moment to send all of a NAR before its first byte leaves: a wrong
// one is then not noticed.
func (d *download) awaitWhole(ctx context.Context, st *stage) {
	if source.Role(st.role.Load()) != source.Peer {
		return
	}
	timer := time.NewTimer(trustedFirst)
	defer timer.Stop()
	select {
	case <-d.done:
	case <-ctx.Done():
	case <-timer.C:
	}
}
