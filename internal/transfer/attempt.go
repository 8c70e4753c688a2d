package transfer

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/internal/source"
)

// attempt is one try to get a NAR: a first leg from peers and, if no peer has it or the clock
// says so, from upstream; and perhaps a second leg from upstream in parallel. The first leg
// that is whole and verified wins.
type attempt struct {
	d       *download
	session source.Session // nil: nobody to ask
	budget
	first  *leg
	cancel context.CancelCauseFunc // of the first leg
	old    *stage                  // what was followed when it began
	ticks  sync.WaitGroup          // ticks that act

	mu     sync.Mutex
	timer  *time.Timer
	second *parallel
	stop   context.CancelFunc // of what peers do now
	over   bool               // the clock is over: peers are not asked any more
	free   bool               // there is no upstream: no clock
	ended  bool
}

// budget is the clock of an attempt, and where it stands.
type budget struct {
	clock  clock
	spread time.Duration // added to it
	waited time.Duration // before the attempt began
	began  time.Time     // on the clock of the process
	before int64         // bytes that came while nobody waited: they prove nothing
	idle   bool          // nobody waits
}

// parallel is the second leg.
type parallel struct {
	leg    *leg
	cancel context.CancelFunc
	done   chan struct{}
	err    error // valid once done is closed
}

var errTooSlow = errors.New("peers took too long")

// together gets the NAR from whoever has bytes of it.
func (d *download) together(ctx context.Context) error {
	return d.attempt(ctx, d.beginSession(ctx, false), d.up, false)
}

// alone gets all of the NAR from one source, after a wrong one: from upstream, or, if that
// cannot, from one peer, and then nothing is seen before the whole is proven.
func (d *download) alone(ctx context.Context) error {
	d.noDelta = true
	err := d.attempt(ctx, nil, d.up, false)
	if err == nil || source.Invalid(err) != nil || ctx.Err() != nil || d.idle { // it is begun again another time
		return err
	}
	session := d.beginSession(ctx, true)
	if session == nil {
		return err
	}
	return d.attempt(ctx, session, nil, true)
}

// beginSession returns a session with the peers, nil if they are not to be asked.
func (d *download) beginSession(ctx context.Context, whole bool) source.Session {
	peers := d.s.cfg.Peers
	if peers == nil || d.upstreamOnly || d.s.noPeers.Has(d.info.NarHash()) && d.upstreamUsable() {
		return nil
	}
	session := peers.Begin(ctx, source.Want{
		Info: d.info, Forms: d.forms, Whole: whole, Coordinate: d.s.cfg.Coordinate && d.up != nil && !whole && !d.idle,
		Delta: !d.private && !whole, // what is kept on disk can be hidden until it is verified
	})
	d.askedPeers = d.askedPeers || session != nil
	return session
}

func (d *download) upstreamUsable() bool { return d.up != nil && !d.up.Down() }

// attempt runs the legs and returns the verdict.
func (d *download) attempt(ctx context.Context, session source.Session, up source.Upstreams, whole bool) error {
	fctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	a := &attempt{d: d, session: session, cancel: cancel, old: d.current(), free: session == nil || up == nil}
	a.clock = clock{nar: d.info.NarSize(), file: d.upstreamSize()}
	a.spread = rand.N(spreadMost)
	if session != nil { // also without an upstream: streams of peers run out of time on this clock
		defer d.s.cfg.Clock.Watch()()
	}
	a.waited, a.began, a.idle = time.Since(d.asked), d.s.cfg.Clock.Now(), d.unwanted()
	a.first = &leg{a: a, session: session, up: up, whole: whole}
	a.startClock(ctx)
	first := a.first.run(fctx)
	err := a.finish(ctx, first)
	if session != nil {
		session.End(ctx, a.outcome(first, err))
	}
	return err
}

// upstreamSize returns about how many bytes an upstream sends for the NAR.
func (d *download) upstreamSize() int64 {
	for _, f := range d.forms {
		if !f.Form.IsRaw() {
			return f.Size
		}
	}
	if size := d.info.Hints().FileSize; size > 0 && size <= d.info.NarSize() {
		return size
	}
	return max(d.info.NarSize()/usualRatio, 1)
}

// finish ends the second leg, if there is one, or waits for it if the first has failed. It
// returns the verdict on both.
func (a *attempt) finish(ctx context.Context, first error) error {
	a.mu.Lock()
	a.ended = true
	if a.timer != nil {
		a.timer.Stop()
	}
	a.mu.Unlock()
	a.ticks.Wait()
	second := a.second // nobody changes it any more
	if first == nil && !a.needed() {
		a.d.publish(a.first.stage)
		if second != nil {
			second.cancel()
		}
	}
	if second == nil {
		return first
	}
	<-second.done
	second.cancel()
	if first != nil && errors.Is(second.err, errNoRoom) && ctx.Err() == nil {
		// The cache could not take both at the same time.
		second.err = (&leg{a: a, up: a.first.up}).run(ctx)
	}
	if first == nil || second.err == nil {
		return nil
	}
	return errors.Join(first, second.err)
}

// needed reports whether responses follow the second leg that cannot go on with the first.
func (a *attempt) needed() bool {
	st := a.d.current()
	return st != nil && st != a.old && st != a.first.stage && st.form != a.first.stage.form
}

// outcome is what the session is told: first is the verdict on the first leg, whole that on
// the NAR.
func (a *attempt) outcome(first, whole error) source.Outcome {
	peers, upstream := a.first.fromPeers.Load(), a.first.fromUpstream.Load()
	switch {
	case !peers && whole == nil, first == nil && !a.first.misnamed():
		return source.Correct
	case !peers || source.Invalid(first) == nil:
		return source.GaveUp
	case upstream:
		return source.Mixed
	}
	return source.Wrong
}

// startClock begins to watch the time that the peers take.
func (a *attempt) startClock(ctx context.Context) {
	if a.free {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.timer = time.AfterFunc(max(a.left(), 0), func() { a.tick(ctx) })
}

// left returns what is left of the budget. Time in which this process was kept from running is
// not the fault of peers, and upstream would not have been read in it either. The budget begins when somebody
// waits.
func (a *attempt) left() time.Duration {
	l := a.first
	if a.d.unwanted() {
		return copyTick
	}
	if a.idle {
		a.idle, a.waited, a.began, a.before = false, 0, a.d.s.cfg.Clock.Now(), l.got.Load()
	}
	p := progress{got: l.got.Load() - a.before, size: l.size.Load(), trusted: l.trusted(), sharers: a.session.Sharers()}
	return a.spread + a.clock.left(a.waited+a.d.s.cfg.Clock.Now().Sub(a.began), l.up.Pace(), p)
}

// spreadMost is the most by which budgets differ: those who follow the same node would
// otherwise all open upstream at the same moment.
const spreadMost = 400 * time.Millisecond

// downTick is how often it is looked whether upstreams that are down have come back.
const downTick = time.Second

// copyTick is how often it is looked whether somebody waits for what nobody did.
const copyTick = 100 * time.Millisecond

// tick opens upstream if the budget is used up.
func (a *attempt) tick(ctx context.Context) {
	l := a.first
	down, left, got := l.up.Down(), a.left(), l.got.Load()
	prefix := got > 0 && l.trusted() || l.delta.Load() // of what upstream sends, or has begun to
	a.mu.Lock()
	if a.ended || a.free || a.over || a.second != nil {
		a.mu.Unlock()
		return
	}
	if down {
		left = downTick
	}
	if left > 0 {
		a.timer.Reset(left)
		a.mu.Unlock()
		return
	}
	a.ticks.Add(1)
	defer a.ticks.Done()
	var second *parallel
	stop := a.stop
	switch {
	case prefix || a.d.private && got == 0:
		a.over = true
	case !a.d.private:
		second = &parallel{leg: &leg{a: a, up: l.up}, done: make(chan struct{})}
		ctx, second.cancel = context.WithCancel(ctx)
		a.second = second
	}
	over := a.over
	a.mu.Unlock()
	a.session.FetchAnyway()
	switch {
	case over && stop != nil:
		stop() // the first leg goes on from upstream
	case over:
	case second != nil:
		a.runSecond(ctx, second)
	default:
		a.cancel(errTooSlow) // what is in the guard cannot be replaced
	}
}

// runSecond runs the second leg. If it wins it ends the first; if the cache cannot take both,
// the first has to go.
func (a *attempt) runSecond(ctx context.Context, p *parallel) {
	started := a.d.s.tasks.Go(func() {
		defer close(p.done)
		p.err = p.leg.run(ctx)
		if p.err == nil {
			a.cancel(errSuperseded)
		} else if errors.Is(p.err, errNoRoom) {
			a.cancel(errTooSlow)
		}
	})
	if !started {
		p.err = errClosed
		close(p.done)
	}
}

// secondForms returns the forms in which the second leg is of use: that of the responses that
// have begun, if there are any.
func (a *attempt) secondForms() []source.Sized {
	if st := a.d.current(); st != nil {
		return []source.Sized{{Form: st.form, Size: st.size}}
	}
	return a.d.forms
}

// inParallel reports whether there is a second leg.
func (a *attempt) inParallel() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.second != nil
}

// peersOver reports whether the clock is over for the peers.
func (a *attempt) peersOver() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.over
}

// peersContext returns a context for what peers do, which ends when the clock is over.
func (a *attempt) peersContext(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stop = cancel; a.over {
		cancel()
	}
	return ctx, cancel
}

// resumePeers lets the peers go on without a clock: upstream has failed.
func (a *attempt) resumePeers() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.over, a.free = false, true
}

// watchTurn ends a supply when the site wants another node to supply. done is closed when the
// supply ends.
func (a *attempt) watchTurn(over, done <-chan struct{}, end context.CancelFunc) {
	a.d.s.tasks.Go(func() {
		select {
		case <-over:
			if !a.peersOver() {
				end()
			}
		case <-done:
		}
	})
}

// turnOver reports whether watchTurn ended the supply.
func (a *attempt) turnOver(over <-chan struct{}) bool {
	select {
	case <-over:
		return !a.peersOver()
	default:
		return false
	}
}
