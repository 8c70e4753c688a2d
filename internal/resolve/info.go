package resolve

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/verify"
)

// Answer is a narinfo and the form in which its NAR is offered.
type Answer struct {
	Info *verify.Info
	Form nix.Form
	text []byte
}

// Text returns the narinfo as it is offered. The caller must not change it.
func (a *Answer) Text() []byte { return a.text }

// known is an answer in memory.
type known struct {
	Answer
	source   string
	shared   bool        // others may see it
	expanded atomic.Bool // its references were looked up
}

// errRemembered is one error for all: misses are half of what is asked.
var errRemembered = fmt.Errorf("remembered miss: %w", fs.ErrNotExist)

// Info answers who has a path, within the deadline for narinfos. An error that wraps
// fs.ErrNotExist means that nobody has it.
func (r *Resolver) Info(ctx context.Context, h nix.StoreHash, reach Reach) (*Answer, error) {
	k, err := r.recall(h, reach)
	switch {
	case k != nil:
		r.count.memoryHit.Inc()
	case err != nil:
		r.count.memoryMiss.Inc()
		return nil, err
	default:
		k, err = r.find(ctx, h, reach)
		r.count.info(k, err)
		if err != nil {
			return nil, err
		}
	}
	if !reach.stays() {
		r.expand(k)
	}
	return &k.Answer, nil
}

// proof is Info for the resolver's own use: no client asked for a narinfo.
func (r *Resolver) proof(ctx context.Context, h nix.StoreHash, reach Reach) (*verify.Info, error) {
	k, err := r.recall(h, reach)
	if k == nil && err == nil {
		k, err = r.find(ctx, h, reach)
	}
	if err != nil {
		return nil, err
	}
	return k.Info, nil
}

// recall looks into the memory: an answer, a remembered miss as an error, or nothing.
func (r *Resolver) recall(h nix.StoreHash, reach Reach) (*known, error) {
	if k, ok := r.infos.Get(h); ok && (k.shared || !reach.shared()) {
		return k, nil
	}
	if r.missesFor(reach).has(h) && !r.promised(h, reach) {
		return nil, errRemembered
	}
	return nil, nil
}

// promised tells whether a peer has got the path since it was missed everywhere.
func (r *Resolver) promised(h nix.StoreHash, reach Reach) bool {
	p, ok := r.cfg.Peers.(interface{ Positive(h nix.StoreHash) bool })
	return ok && !reach.stays() && p.Positive(h)
}

// missesFor keeps the misses of those who see less apart: what is private is one of them.
func (r *Resolver) missesFor(reach Reach) *expiring[nix.StoreHash] {
	if reach.shared() {
		return r.hidden
	}
	return r.misses
}

// find asks the sources, sharing the work with others who ask the same.
func (r *Resolver) find(ctx context.Context, h nix.StoreHash, reach Reach) (*known, error) {
	limit := infoDeadline
	if r.farDown() {
		limit = downDeadline
		if r.cfg.Peers != nil {
			limit = peerDeadline
		}
	}
	ctx, cancel := r.deadline(ctx, limit)
	defer cancel()
	own := func(ctx context.Context) (context.Context, context.CancelFunc) { return r.deadline(ctx, limit) }
	return r.flights.do(ctx, question{h, reach}, own, func(ctx context.Context, fl *flight) (*known, error) {
		// Another flight may have ended between the caller's look at the memory and this one's start.
		if k, err := r.recall(h, reach); k != nil || err != nil {
			return k, err
		}
		l := &lookUp{r: r, fl: fl, question: question{h, reach}}
		if k := l.near(ctx); k != nil {
			return k, nil
		}
		if reach.stays() {
			return nil, missing(l.errs)
		}
		return l.far(ctx)
	})
}

// deadline returns a context that ends after limit, with context.DeadlineExceeded as its cause. If
// that is infoDeadline, it waits on while the line to the upstreams is crowded.
func (r *Resolver) deadline(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	began := time.Now()
	var timer *time.Timer
	timer = time.AfterFunc(crowdedDeadline, func() { // f runs after Reset only, when timer is set
		if ctx.Err() != nil {
			return
		}
		if u := r.cfg.Upstream; limit == infoDeadline && time.Since(began) < crowdedDeadline && u != nil && u.Crowded() {
			timer.Reset(crowdedTick)
			return
		}
		cancel(context.DeadlineExceeded)
	})
	timer.Reset(limit)
	return ctx, func() {
		timer.Stop()
		cancel(context.Canceled)
	}
}

// lookUp is one flight's way through the sources.
type lookUp struct {
	r  *Resolver
	fl *flight
	question
	errs   []error      // of sources that could not say or lied
	unsure bool         // the own store is among them
	later  *verify.Info // what peers have that an upstream may tell better
}

// ask asks one source. An answer that is not for the asker's eyes counts as none.
func (l *lookUp) ask(ctx context.Context, s InfoSource) (*known, error) {
	info, err := s.Info(ctx, l.hash)
	return l.take(s, info, err)
}

// take judges what a source said.
func (l *lookUp) take(s InfoSource, info *verify.Info, err error) (*known, error) {
	if err != nil {
		if later, _ := anyway(nil, err); later != nil {
			l.later = later
			return nil, err
		}
		if !errors.Is(err, fs.ErrNotExist) {
			l.errs = append(l.errs, l.r.blame(s.Name(), l.hash, err))
		}
		return nil, err
	}
	k := l.r.newKnown(info, s.Name())
	if l.reach.shared() {
		if !k.shared {
			return nil, fmt.Errorf("not shared: %w", fs.ErrNotExist)
		}
		// What this machine's own clients are given may be better than what is shared.
		l.fl.keep(func() { l.r.infos.ContainsOrAdd(l.hash, k) })
		return k, nil
	}
	l.fl.keep(func() { l.r.infos.Add(l.hash, k) })
	return k, nil
}

// anyway makes an answer of an error that says what to go by where nobody knows more.
func anyway(info *verify.Info, err error) (*verify.Info, error) {
	var later interface {
		error
		Instead() *verify.Info
	}
	if errors.As(err, &later) {
		return later.Instead(), nil
	}
	return info, err
}

// near asks what needs no network.
func (l *lookUp) near(ctx context.Context) *known {
	store := sourceOrNil(l.r.cfg.Store)
	if l.reach.shared() && l.r.cfg.Shared != nil {
		store = l.r.cfg.Shared
	}
	for _, s := range []InfoSource{store, memoryOrNil(l.r.cfg.Disk)} {
		if s == nil {
			continue
		}
		k, err := l.ask(ctx, s)
		if err == nil {
			return k
		}
		l.unsure = l.unsure || s == store && !errors.Is(err, fs.ErrNotExist)
	}
	return nil
}

// peerHeadStart is how long peers are waited for before the upstreams are asked as well: one
// that is silent must not be felt, one that answers saves the upstream a request.
const peerHeadStart = 20 * time.Millisecond

// said is what a source answered.
type said struct {
	info *verify.Info
	err  error
}

// far asks peers, and the upstreams when those have it not or are slow. What peers would have to
// decode is taken from them only if no upstream soon says that it has it.
func (l *lookUp) far(ctx context.Context) (*known, error) {
	if l.r.cfg.Peers == nil {
		return l.upstreams(ctx)
	}
	k, err := l.peersFirst(ctx)
	if err != nil && l.later != nil {
		return l.take(l.r.cfg.Peers, l.later, nil)
	}
	return k, err
}

func (l *lookUp) peersFirst(ctx context.Context) (*known, error) {
	ctx, cancel := context.WithCancel(ctx)
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel()
	ask := func(s InfoSource) <-chan said {
		c := make(chan said, 1)
		asking.Go(func() {
			info, err := s.Info(ctx, l.hash)
			c <- said{info, err}
		})
		return c
	}
	peers := ask(l.r.cfg.Peers)
	wait := time.NewTimer(peerHeadStart)
	defer wait.Stop()
	select {
	case a := <-peers:
		if k, err := l.take(l.r.cfg.Peers, a.info, a.err); err == nil {
			return k, nil
		}
		if l.later != nil {
			soon, stop := context.WithTimeout(ctx, laterDeadline)
			defer stop()
			return l.upstreams(soon)
		}
		return l.upstreams(ctx)
	case <-wait.C:
	}
	var upstreams <-chan said
	if !l.r.farDown() {
		upstreams = ask(l.r.cfg.Upstream)
	}
	k, err := (*known)(nil), missing(nil)
	for peers != nil || upstreams != nil {
		var a said
		select {
		case a = <-peers:
			peers = nil
			if k, err = l.take(l.r.cfg.Peers, a.info, a.err); l.later != nil {
				stop := time.AfterFunc(laterDeadline, cancel)
				defer stop.Stop()
			}
		case a = <-upstreams:
			upstreams = nil
			k, err = l.taken(l.take(l.r.cfg.Upstream, a.info, a.err))
		}
		if err == nil {
			return k, nil
		}
	}
	if len(l.errs) > 0 {
		err = missing(l.errs)
	}
	return nil, err
}

// upstreams asks them if that is any use.
func (l *lookUp) upstreams(ctx context.Context) (*known, error) {
	s := l.r.cfg.Upstream
	if s == nil {
		return nil, missing(l.errs)
	}
	if s.Down() {
		return nil, missing(append(l.errs, errDown))
	}
	k, err := l.taken(l.ask(ctx, s))
	if err != nil && (!errors.Is(err, fs.ErrNotExist) || l.unsure) {
		return nil, missing(l.errs)
	}
	return k, err
}

// taken remembers what the upstreams said. Only when every upstream itself said no is the miss
// remembered: absence cannot be signed. Nor is it remembered when the own store could not say.
func (l *lookUp) taken(k *known, err error) (*known, error) {
	switch {
	case err == nil:
		if l.r.cfg.Disk != nil {
			l.r.cfg.Disk.Put(k.Info)
		}
	case errors.Is(err, fs.ErrNotExist) && !l.unsure:
		l.fl.keep(func() { l.r.missesFor(l.reach).add(l.hash, missLifetime) })
	}
	return k, err
}

var errDown = errors.New("upstream: down")

// newKnown makes an answer of a proof, in the form in which the NAR is best offered now.
func (r *Resolver) newKnown(info *verify.Info, source string) *known {
	form := r.bestForm(info)
	return &known{Answer: Answer{info, form, info.Offer(form)}, source: source, shared: info.SignedByAny(r.cfg.Share)}
}

// bestForm is raw where the raw NAR is at hand, or the upstream's file as it is: decoding it
// here for the client would cost more than the client's own decoder.
func (r *Resolver) bestForm(info *verify.Info) nix.Form {
	form, ok := info.FileForm()
	if !ok || r.badFiles.has(form.File) {
		return nix.Raw
	}
	if r.cfg.Cache != nil {
		if raw, _ := r.cfg.Cache.Held(info.NarHash()); raw {
			return nix.Raw
		}
	}
	return form
}

// blame counts and logs a lie; it passes the error on. Sources that look at several answers
// count those that they pass over themselves.
func (r *Resolver) blame(source string, h nix.StoreHash, err error) error {
	var lie *verify.InvalidError
	if errors.As(err, &lie) && source != upstreamName {
		r.count.lie(source, lie)
		r.cfg.Trouble(source, "gave a wrong narinfo, which was refused", "", err)
		r.log.Warn("wrong narinfo refused", "source", source, "store_hash", h, "err", err)
	}
	return err
}

func (r *Resolver) farDown() bool { return r.cfg.Upstream == nil || r.cfg.Upstream.Down() }

// missing is the error when nobody has a path: absence if nobody failed.
func missing(errs []error) error {
	if len(errs) == 0 {
		return fmt.Errorf("no source has it: %w", fs.ErrNotExist)
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, errors.Join(errs...))
}

func sourceOrNil(s Source) InfoSource {
	if s == nil {
		return nil
	}
	return s
}

func memoryOrNil(m Memory) InfoSource {
	if m == nil {
		return nil
	}
	return m
}

// Finding is what one source says of a path.
type Finding struct {
	Source string        `json:"source"`
	Took   time.Duration `json:"took"`
	Info   *verify.Info  `json:"-"` // nil when it has not
	Err    error         `json:"-"`
	Forms  []nix.Form    `json:"-"` // the forms that the cache holds, for source "cache"
}

// Why asks every source for a path, past all memory, and says what each answered.
func (r *Resolver) Why(ctx context.Context, h nix.StoreHash) []Finding {
	var found []Finding
	var info *verify.Info
	for _, s := range []InfoSource{sourceOrNil(r.cfg.Store), memoryOrNil(r.cfg.Disk), sourceOrNil(r.cfg.Peers), r.upstream()} {
		if s == nil {
			continue
		}
		start := time.Now()
		got, err := anyway(s.Info(ctx, h))
		found = append(found, Finding{Source: s.Name(), Took: time.Since(start), Info: got, Err: err})
		if info == nil {
			info = got
		}
	}
	if c := r.cfg.Cache; c != nil && info != nil {
		start := time.Now()
		raw, files := c.Held(info.NarHash())
		f := Finding{Source: c.Name(), Forms: files, Info: info}
		if raw {
			f.Forms = append(f.Forms, nix.Raw)
		}
		if len(f.Forms) == 0 {
			f.Info, f.Err = nil, fs.ErrNotExist
		}
		f.Took = time.Since(start)
		found = append(found, f)
	}
	return found
}

func (r *Resolver) upstream() InfoSource {
	if r.cfg.Upstream == nil {
		return nil
	}
	return r.cfg.Upstream
}
