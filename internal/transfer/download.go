package transfer

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/narcache"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/runclock"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/verify"
)

// order is what a download is to get, and from whom.
type order struct {
	info  *verify.Info
	forms []source.Sized // that are of use, the best one first
	up    source.Upstreams
	asked time.Time
	idle  bool // nobody waits: only peers are asked until somebody does
	options
}

// sizeOf returns the size of a form in bytes, 0 if it is of no use.
func (o *order) sizeOf(form nix.Form) int64 {
	for _, f := range o.forms {
		if f.Form == form {
			return f.Size
		}
	}
	return 0
}

// download is one NAR on its way to this machine. Any number of responses follow it. It runs on
// a context of its own: a client that leaves cancels nobody, and only when all have left and
// none has come for linger does it end.
type download struct {
	order
	s      *Server
	cancel context.CancelFunc
	flow   metrics.Flow

	begun     chan struct{} // closed with the first stage, or at the end
	done      chan struct{} // closed at the end, when another may begin
	beginOnce sync.Once

	askedPeers bool // used by run alone
	noDelta    bool // something wrong came; the same

	mu       sync.Mutex
	stage    *stage // what is followed now
	err      error  // valid once done is closed
	changed  chan struct{}
	misnamed nix.Form // committed under a wrong FileHash: to be removed with the last follower

	following // under downloads.mu
}

type following struct {
	followers int
	left      int  // how often all have left
	cancelled bool // but has not ended yet
	ended     bool
	// Both are read without the lock.
	wanted atomic.Bool              // though it began idle, somebody waits
	latest atomic.Pointer[supplier] // nil if nobody supplied anything
}

// supplier is who supplies, for status pages.
type supplier struct {
	role source.Role
	peer string // its ID if it is a single peer
}

// stage is one stream of a download that is followed.
type stage struct {
	form  nix.Form
	size  int64
	spool *narcache.Download // nil if guard is not
	guard *verify.Guard
	free  func()        // gives the guard's memory back
	role  atomic.Uint32 // source.Role of who supplies
	peer  atomic.Value  // string: its ID if it is a single peer

	readers map[*narcache.Reader]struct{} // under download.mu
}

// current returns what is followed now, nil if nothing yet.
func (d *download) current() *stage {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stage
}

// unwanted reports whether nobody waits for it.
func (d *download) unwanted() bool { return d.idle && !d.wanted.Load() }

// publish makes st the stage that is followed. Those who follow another one of the same form go
// on with it.
func (d *download) publish(st *stage) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stage == st {
		return
	}
	if old := d.stage; old != nil && old.form == st.form {
		for r := range old.readers {
			_ = r.Close()
		}
	}
	d.stage = st
	close(d.changed)
	d.changed = make(chan struct{})
	d.beginOnce.Do(func() { close(d.begun) })
}

// await waits for another stage than st, or for the end: then it returns nil and the error.
func (d *download) await(ctx context.Context, st *stage) (*stage, error) {
	for {
		d.mu.Lock()
		now, changed := d.stage, d.changed
		d.mu.Unlock()
		if now != st {
			return now, nil
		}
		select {
		case <-changed:
		case <-d.done:
			if now = d.current(); now != st {
				return now, nil
			}
			return nil, d.err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// follow notes a reader of st, unless another stage of this form has to be followed by now.
func (d *download) follow(st *stage, r *narcache.Reader) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stage != st && d.stage.form == st.form {
		return false
	}
	st.readers[r] = struct{}{}
	return true
}

func (d *download) unfollow(st *stage, r *narcache.Reader) {
	_ = r.Close()
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(st.readers, r)
}

// drop gives up a stage in memory: whoever fills it is refused.
func (st *stage) drop() {
	if st.guard != nil {
		_ = st.guard.Drain(refuse{})
	}
}

// refuse is a client that takes nothing.
type refuse struct{}

func (refuse) Write([]byte) (int, error) { return 0, verify.ErrReaderGone }

// newSink makes the sink of a leg, and the stage that shows it.
func (d *download) newSink(form nix.Form, size int64, role source.Role, trusted bool) (sink, *stage, error) {
	st := &stage{form: form, size: size, readers: make(map[*narcache.Reader]struct{})}
	if d.private {
		hold, free, err := d.s.holdback(role, size, trusted)
		if err != nil {
			return nil, nil, err
		}
		st.guard, st.free = verify.NewGuard(d.info.Digest(form, size), hold), free
		return st.guard, st, nil
	}
	file, err := d.s.cfg.Cache.Create(d.info, form, size)
	if err != nil {
		return nil, nil, errors.Join(errNoRoom, err)
	}
	st.spool = file
	if d.s.cfg.OnDownload != nil && !d.idle {
		d.s.cfg.OnDownload(d.info)
	}
	sp := &spool{Download: file, d: d, sums: verify.NewBlockSums(d.info.Digest(form, size))}
	sp.buf, sp.free = d.s.buffer()
	return sp, st, nil
}

// holdback says how much of a stream that is not kept is verified before it leaves.
func (s *Server) holdback(role source.Role, size int64, trusted bool) (h verify.Holdback, free func(), err error) {
	if role == source.Peer && size <= peerFirst {
		h.VerifyFirst = peerFirst
		if trusted {
			h.VerifyFor = trustedFirst
		}
		if free, ok := s.hold(h.Memory(size)); ok {
			return h, free, nil
		}
	}
	if role == source.Peer && !trusted {
		return h, nil, errUnverified
	}
	h = verify.Holdback{}
	free, ok := s.hold(h.Memory(size))
	h.LowMemory = !ok
	return h, free, nil
}

// committed notes what is known of a file that came into the cache.
func (d *download) committed(sp *spool, fromUpstream bool) {
	form := sp.Form()
	if sp.misnamed {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.misnamed = form
		return
	}
	d.s.sums.Add(sumsKey{d.info.NarHash(), form}, sp.sums)
	if !form.IsRaw() {
		d.s.prover.add(d.info, form)
	}
	if tell := d.s.cfg.OnFetched; tell != nil && fromUpstream {
		tell(d.info, form)
	}
}

// downloads are those that run, at most one for each NAR.
type downloads struct {
	mu      sync.Mutex
	running map[nix.NarHash]*download
	closed  bool
}

// join follows the download of a NAR, and starts it if there is none, or if it is a private one.
// The caller calls leave.
func (s *Server) join(ctx context.Context, o order) (d *download, began bool, err error) {
	nar := o.info.NarHash()
	if o.private {
		if d = s.newDownload(ctx, o); d == nil {
			return nil, false, errClosed
		}
		return d, true, nil
	}
	s.downloads.mu.Lock()
	defer s.downloads.mu.Unlock()
	for {
		if s.downloads.closed {
			return nil, false, errClosed
		}
		d = s.downloads.running[nar]
		if d == nil || !d.cancelled && !d.wrong() {
			break
		}
		ended := s.awaitEnd(ctx, d)
		if !ended {
			return nil, false, errNoRoom
		}
	}
	if d == nil {
		began = true
		if d = s.newDownload(ctx, o); d == nil {
			return nil, false, errClosed
		}
		s.downloads.running[nar] = d
	}
	d.followers++
	if !o.idle {
		d.wanted.Store(true)
	}
	return d, began, nil
}

// wrong reports whether what came turned out not to be the NAR: whoever asks now needs another one.
func (d *download) wrong() bool {
	st := d.current()
	return st != nil && d.s.cfg.Resolver.Distrusted(st.form)
}

// awaitEnd gives the lock up while it waits for a download that was cancelled, or is wrong: only then may
// the same begin again. It reports whether the download has ended; a source that ignores its
// context holds nobody up.
func (s *Server) awaitEnd(ctx context.Context, d *download) bool {
	s.downloads.mu.Unlock()
	defer s.downloads.mu.Lock()
	timer := time.NewTimer(giveUp)
	defer timer.Stop()
	select {
	case <-d.done:
		return true
	case <-ctx.Done():
	case <-timer.C:
	}
	return false
}

// newDownload starts a download. It returns nil when the server is closed.
func (s *Server) newDownload(ctx context.Context, o order) *download {
	if !o.private {
		ctx = context.WithoutCancel(ctx)
	}
	ctx, cancel := context.WithCancel(ctx)
	d := &download{
		order: o, s: s, cancel: cancel,
		begun: make(chan struct{}), done: make(chan struct{}), changed: make(chan struct{}),
	}
	if !s.tasks.Go(func() { d.run(ctx) }) {
		cancel()
		return nil
	}
	return d
}

// leave ends the following of d, which goes on for stay when nobody follows it any more.
func (s *Server) leave(d *download, stay time.Duration) {
	if d.private {
		d.cancel()
		if st := d.current(); st != nil {
			st.drop()
		}
		<-d.done
		if st := d.current(); st != nil {
			st.guard.Free()
			st.free()
		}
		return
	}
	s.downloads.mu.Lock()
	defer s.downloads.mu.Unlock()
	if d.followers--; d.followers > 0 {
		return
	}
	if d.ended {
		d.tidy()
		return
	}
	d.left++
	left := d.left
	time.AfterFunc(stay, func() {
		s.downloads.mu.Lock()
		defer s.downloads.mu.Unlock()
		if d.followers == 0 && d.left == left {
			d.cancelled = true
			d.cancel()
		}
	})
}

// tidy removes a file under a wrong name, when nobody follows it any more.
func (d *download) tidy() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.misnamed.IsRaw() {
		d.s.cfg.Cache.Invalid(d.info, d.misnamed, errors.New("its FileHash is wrong"))
	}
}

// end takes d out of the list: whoever asks from now on finds it in the cache or begins again.
func (d *download) end(err error) {
	d.cancel()
	d.s.responses.touch()
	all := &d.s.downloads
	all.mu.Lock()
	defer all.mu.Unlock()
	if all.running[d.info.NarHash()] == d {
		delete(all.running, d.info.NarHash())
	}
	d.ended = true
	if d.followers == 0 && !d.private {
		d.tidy()
	}
	d.err = err
	close(d.done)
	d.beginOnce.Do(func() { close(d.begun) })
}

// active reports whether there are any that somebody waits for.
func (all *downloads) active() bool {
	all.mu.Lock()
	defer all.mu.Unlock()
	for _, d := range all.running {
		if !d.unwanted() {
			return true
		}
	}
	return false
}

// close ends all downloads and lets none begin.
func (all *downloads) close() {
	all.mu.Lock()
	defer all.mu.Unlock()
	all.closed = true
	for _, d := range all.running {
		d.cancel()
	}
}

// run gets the NAR. After a wrong one it is taken from one source that delivers all of it. What
// is nowhere is searched for beyond the connected peers, once.
func (d *download) run(ctx context.Context) {
	err := d.begin(ctx)
	wrong := source.Invalid(err) != nil
	for n := 1; n < maxAttempts && wrong && err != nil && !d.private && ctx.Err() == nil; n++ {
		err = d.alone(ctx)
	}
	if err != nil && d.search(ctx, err) {
		err = d.together(ctx)
	}
	d.end(err)
}

// begin makes the first attempt. Nothing wrong has come yet, unless a stream that is not kept is
// begun again.
func (d *download) begin(ctx context.Context) error {
	if d.options.alone {
		return d.alone(ctx)
	}
	return d.together(ctx)
}

// maxAttempts bounds how often a NAR is begun.
const maxAttempts = 3

// search looks for holders beyond the connected peers, if nobody had the NAR, and reports
// whether there are any.
func (d *download) search(ctx context.Context, err error) bool {
	if !d.askedPeers || ctx.Err() != nil || d.current() != nil || source.Invalid(err) != nil || errors.Is(err, errNoRoom) {
		return false
	}
	ctx, cancel := runclock.WithTimeout(ctx, searchTime)
	defer cancel()
	return d.s.cfg.Peers.Search(ctx, d.info)
}
