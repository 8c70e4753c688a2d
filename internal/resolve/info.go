package resolve

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/internal/hedge"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/runclock"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/verify"
)

// errRemembered is one error for all: half of all questions are misses.
var errRemembered = fmt.Errorf("remembered miss: %w", fs.ErrNotExist)

// Info returns the narinfo of a path within the deadline for narinfos. The error wraps
// fs.ErrNotExist if no source has the path, else ErrUnavailable or the context's error.
func (r *Resolver) Info(ctx context.Context, h nix.StoreHash, scope source.Scope) (*Answer, error) {
	k, err := r.recall(h, scope)
	switch {
	case k != nil:
		r.count.memoryHit.Inc()
	case err != nil:
		r.count.memoryMiss.Inc()
		return nil, err
	default:
		k, err = r.find(ctx, question{h, scope}, r.memory.add)
		countAnswer(r.count.requests, k, err)
		if err != nil {
			return nil, err
		}
	}
	if scope == source.All { // others cause no request of this machine's own
		r.prefetchReferences(k)
	}
	return &k.Answer, nil
}

// Ahead is Info for what no client has asked for: what a followed list has, or peers share. It is counted apart,
// and takes the place of nothing in memory.
func (r *Resolver) Ahead(ctx context.Context, h nix.StoreHash) (*Answer, error) {
	k, err := r.recall(h, source.All)
	if k == nil && err == nil {
		k, err = r.find(ctx, question{h, source.All}, func(nix.StoreHash, *cached) {})
		countAnswer(r.count.ahead, k, err)
	}
	if err != nil {
		return nil, err
	}
	return &k.Answer, nil
}

// recall looks into the memory: an answer, a remembered miss as an error, or neither.
func (r *Resolver) recall(h nix.StoreHash, scope source.Scope) (*cached, error) {
	if k, ok := r.memory.get(h); ok && (k.public || !scope.Public()) {
		return k, nil
	}
	if r.missesOf(scope).Has(h) && (scope.Local() || r.cfg.Peers == nil || !r.cfg.Peers.MayHave(h)) {
		return nil, errRemembered
	}
	return nil, nil
}

// missesOf keeps the misses of those apart to whom private paths do not exist.
func (r *Resolver) missesOf(scope source.Scope) interface {
	Has(nix.StoreHash) bool
	Grow(k nix.StoreHash, first, most time.Duration)
} {
	if scope.Public() {
		return r.publicMisses
	}
	return r.misses
}

// find asks the sources, and shares the work with others who ask the same. The answer is remembered by
// remember, that of whoever asked first.
func (r *Resolver) find(ctx context.Context, q question, remember func(nix.StoreHash, *cached)) (*cached, error) {
	h, scope := q.hash, q.scope
	limit := infoDeadline
	if !scope.Local() && r.down(scope) || r.cfg.Upstream == nil {
		limit = downDeadline
		if r.cfg.Peers != nil && r.cfg.Peers.MayHave(h) {
			limit = peerDeadline
		}
	}
	own := func(ctx context.Context) (context.Context, context.CancelFunc) { return r.deadline(ctx, limit) }
	ctx, cancel := own(ctx)
	defer cancel()
	return r.flights.do(ctx, q, own, func(ctx context.Context, fl *flight) (*cached, error) {
		// Another flight may have ended between the caller's look at the memory and this one's start.
		if k, err := r.recall(h, scope); k != nil || err != nil {
			return k, err
		}
		l := &lookup{r: r, fl: fl, question: q, keep: remember}
		if k := l.local(ctx); k != nil {
			return k, nil
		}
		if scope.Local() {
			return nil, missing(l.errs)
		}
		return l.remote(ctx)
	})
}

// deadline returns a context that ends after limit, with context.DeadlineExceeded as its cause. Time in
// which this process was stopped does not count: the answer may have come meanwhile.
// If limit is infoDeadline, it goes on while the line to the upstreams is saturated.
func (r *Resolver) deadline(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	u := r.cfg.Upstream
	if limit != infoDeadline || u == nil {
		return runclock.WithTimeout(ctx, limit)
	}
	ctx, stop := runclock.WithTimeout(ctx, saturatedDeadline)
	ctx, cancel := context.WithCancelCause(ctx)
	timer := runclock.NewTimer(limit, func() {
		for u.Saturated() {
			select {
			case <-time.After(saturatedTick):
			case <-ctx.Done():
				return
			}
		}
		cancel(context.DeadlineExceeded)
	})
	return ctx, func() {
		timer.Stop()
		cancel(context.Canceled)
		stop()
	}
}

// lookup is one flight's way through the sources.
type lookup struct {
	r  *Resolver
	fl *flight
	question
	keep func(nix.StoreHash, *cached) // remembers the answer in memory

	mu       sync.Mutex
	errs     []error      // of sources that could not answer or answered wrong
	unsure   bool         // the store could not answer
	absent   bool         // every upstream said that it does not have the path
	fileOnly *verify.Info // the peers' answer, if they would have to decode a file
}

// local asks what needs no network.
func (l *lookup) local(ctx context.Context) *cached {
	if s := l.r.cfg.Store; s != nil {
		info, err := l.ask(ctx, source.Store, ofScope(l.scope, s))
		if err == nil {
			return l.accept(source.Store, info)
		}
		l.unsure = !source.Absent(err)
	}
	if s := l.r.cfg.Disk; s != nil {
		if info, err := l.ask(ctx, source.Disk, ofScope(l.scope, s)); err == nil {
			return l.accept(source.Disk, info)
		}
	}
	return nil
}

type askFunc func(ctx context.Context, h nix.StoreHash) (*verify.Info, error)

// ofScope returns how a source on this machine is asked.
func ofScope(scope source.Scope, s interface {
	source.Infos
	Public(ctx context.Context, h nix.StoreHash) (*verify.Info, error)
}) askFunc {
	if scope.Public() {
		return s.Public
	}
	return s.Info
}

// remote asks peers, and the upstreams when those do not have the path or are slow.
func (l *lookup) remote(ctx context.Context) (*cached, error) {
	asks := make([]func(context.Context) (found, error), 0, 2)
	if l.r.cfg.Peers != nil && l.r.cfg.Peers.MayHave(l.hash) {
		asks = append(asks, l.askPeers)
	}
	switch u := l.r.Upstreams(l.scope); {
	case u == nil:
	case u.Down():
		l.fail(errDown)
	default:
		asks = append(asks, l.askUpstreams)
	}
	f, err := l.first(ctx, asks)
	switch {
	case err == nil && f.info != nil:
		return l.accept(f.role, f.info), nil
	case l.fileOnly != nil:
		return l.accept(source.Peer, l.fileOnly), nil
	case l.absent && !l.unsure:
		// Absence cannot be signed: it is remembered only if every upstream itself said so.
		l.fl.remember(func() { l.r.missesOf(l.scope).Grow(l.hash, missFirst, missMost) })
		return nil, missing(nil)
	}
	if ctx.Err() != nil {
		return nil, errors.Join(context.Cause(ctx), missing(l.errs))
	}
	return nil, missing(l.errs)
}

// first returns the first good answer: the second source is asked when the first has failed or
// is slow.
func (l *lookup) first(ctx context.Context, asks []func(context.Context) (found, error)) (found, error) {
	switch len(asks) {
	case 0:
		return found{}, nil
	case 1:
		return asks[0](ctx)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	headStart := func() time.Duration { return peerHeadStart }
	// fileWait is measured on the clock of the process: where all are busy, holders that decode files for
	// others make it worse.
	defer l.r.cfg.Clock.Watch()()
	stopLate := func() bool { return false } // written by the first attempt, read when all have ended
	res, release, wait := hedge.Do(ctx, len(asks), 2, headStart, func(ctx context.Context, i int) (found, error) {
		f, err := asks[i](ctx)
		if errors.Is(err, errFileOnly) {
			stopLate = runclock.AfterFunc(l.r.cfg.Clock.Now, l.r.cfg.Clock.Now().Add(fileWait), cancel)
		}
		return f, err
	}, nil, func(found) {})
	release()
	cancel()
	wait()
	stopLate()
	return res.Value, res.Err
}

// found is a narinfo and who answered it.
type found struct {
	role source.Role
	info *verify.Info
}

var (
	errDown     = errors.New("upstreams are down")
	errFileOnly = errors.New("the peers have only a file")
)

// askPeers asks peers. If they would have to decode a file, an upstream's narinfo is better:
// it names the file, which all can use.
func (l *lookup) askPeers(ctx context.Context) (found, error) {
	info, err := l.ask(ctx, source.Peer, l.r.cfg.Peers.Info)
	if err == nil && !l.r.down(l.scope) && !l.r.cfg.Peers.Raw(info) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.fileOnly = info
		return found{}, errFileOnly
	}
	return found{source.Peer, info}, err
}

func (l *lookup) askUpstreams(ctx context.Context) (found, error) {
	info, err := l.ask(ctx, source.Upstream, l.r.Upstreams(l.scope).Info)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.absent = source.Absent(err)
	return found{source.Upstream, info}, err
}

// ask asks one source and notes how it failed. An answer that is not for the client counts as
// absent.
func (l *lookup) ask(ctx context.Context, role source.Role, ask askFunc) (*verify.Info, error) {
	info, err := ask(ctx, l.hash)
	switch {
	case err == nil && l.scope.Public() && !info.SignedByAny(l.r.cfg.Share):
		return nil, fmt.Errorf("not public: %w", fs.ErrNotExist)
	case err != nil && !source.Absent(err):
		l.fail(l.r.reportWrongInfo(role, l.hash, err))
	}
	return info, err
}

func (l *lookup) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.errs = append(l.errs, err)
}

// accept remembers an answer.
func (l *lookup) accept(role source.Role, info *verify.Info) *cached {
	k := l.r.newCached(role, info)
	l.fl.remember(func() {
		// What this machine's own clients are given may be better than what is public.
		if !l.scope.Public() || !l.r.memory.has(l.hash) {
			l.keep(l.hash, k)
		}
		if role == source.Upstream && l.r.cfg.Disk != nil {
			l.r.cfg.Disk.Put(info)
		}
	})
	if l.r.cfg.OnInfo != nil && (role == source.Upstream || role == source.Peer) {
		l.r.cfg.OnInfo(info)
	}
	return k
}

// newCached makes an answer, in the form in which the NAR is best offered now: raw where the
// raw NAR is on this machine or at a peer, else the upstream's file as it is. Decoding it here
// would cost more than the client's own decoder.
func (r *Resolver) newCached(role source.Role, info *verify.Info) *cached {
	k := &cached{Answer: Answer{Info: info, Form: nix.Raw}, role: role, public: info.SignedByAny(r.cfg.Share)}
	form, ok := info.FileForm()
	if ok && k.fromUpstream() && !r.Distrusted(form) &&
		(r.cfg.Cache == nil || !slices.Contains(r.cfg.Cache.Forms(info.NarHash()), nix.Raw)) {
		k.Form = form
	}
	k.text = info.Offer(k.Form)
	return k
}

// reportWrongInfo reports an invalid narinfo and passes the error on. Upstreams and peers report
// their own.
func (r *Resolver) reportWrongInfo(role source.Role, h nix.StoreHash, err error) error {
	if invalid := source.Invalid(err); invalid != nil && role != source.Upstream && role != source.Peer {
		r.cfg.Metrics.VerifyFailures.WithLabelValues(role.String(), string(invalid.Reason)).Inc()
		r.cfg.Events.Send(source.Event{Kind: source.WrongInfo, Source: role, Err: err})
		r.log.Warn("wrong narinfo refused", "source", role.String(), "store_hash", h, "err", err)
	}
	return err
}

// missing is the error if no source has a path: absence if none failed.
func missing(errs []error) error {
	if len(errs) == 0 {
		return fmt.Errorf("no source has it: %w", fs.ErrNotExist)
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, errors.Join(errs...))
}
