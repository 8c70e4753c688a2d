package resolve

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync/atomic"
	"time"

	"github.com/nixp2p/nixp2p/internal/compress"
	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/verify"
)

var (
	errNoSpool     = errors.New("the NAR does not fit into the cache")
	errSpoolFailed = errors.New("the cache failed")
	errClosed      = errors.New("shutting down")
)

// downloadKey names what is fetched once for all.
type downloadKey struct {
	nar  nix.NarHash
	form nix.Form
	size int64 // of the form in bytes: that of a file is what a narinfo says
}

// download is one fetch from afar that any number of responses follow. It runs on a context
// of its own: who leaves cancels nobody, and only when all have left and none came for
// linger does it end.
type download struct {
	key    downloadKey
	info   *verify.Info
	cancel context.CancelFunc

	begun chan struct{} // closed when the first source gives bytes, or none does
	done  chan struct{} // closed when it has ended and another may begin
	spool Download      // valid once begun is closed and err is nil
	err   error         // valid once begun is closed
	giver atomic.Value  // string: who is giving

	started time.Time
	flow    metrics.Flow // into the spool

	// All under Resolver.mu.
	followers int
	left      int  // how often all have left
	given     bool // up: it was cancelled, but has not ended yet
	ended     bool
	misnamed  bool // its file hash is wrong: it goes out of the cache with the last follower
}

// begin lets the joiners go on. It is called by the filler, and the first call counts.
func (d *download) begin(err error) {
	select {
	case <-d.begun:
	default:
		d.err = err
		close(d.begun)
	}
}

// join follows the download of a form of a NAR, beginning it if nobody has. It returns when the
// first source has answered. The caller calls leave.
func (r *Resolver) join(ctx context.Context, info *verify.Info, c choice, size int64) (d *download, began bool, err error) {
	if r.cfg.Spool == nil {
		return nil, false, errNoSpool
	}
	if d, began, err = r.enlist(ctx, info, c, size); err != nil {
		return nil, false, err
	}
	select {
	case <-d.begun:
		err = d.err
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		r.leave(d, linger)
		return nil, false, err
	}
	return d, began, nil
}

// enlist is join without the wait for the first source.
func (r *Resolver) enlist(ctx context.Context, info *verify.Info, c choice, size int64) (d *download, began bool, err error) {
	key := downloadKey{info.NarHash(), c.form, size}
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		if r.closed {
			return nil, false, errClosed
		}
		d = r.downloads[key]
		if d == nil || !d.given {
			break
		}
		r.mu.Unlock()
		ended := d.endsSoon(ctx)
		r.mu.Lock()
		if !ended {
			return nil, false, errNoSpool
		}
	}
	if d == nil {
		began = true
		own, cancel := context.WithCancel(context.WithoutCancel(ctx))
		d = &download{key: key, info: info, cancel: cancel, begun: make(chan struct{}), done: make(chan struct{}), started: time.Now()}
		r.downloads[key] = d
		r.fillers.Go(func() {
			defer cancel()
			r.fill(own, d, c)
		})
	}
	d.followers++
	return d, began, nil
}

// Decoding tells whether a form of a NAR, of size bytes, is being made from what this machine
// has.
func (r *Resolver) Decoding(nar nix.NarHash, form nix.Form, size int64) bool {
	r.mu.Lock()
	d := r.downloads[downloadKey{nar, form, size}]
	r.mu.Unlock()
	if d == nil {
		return false
	}
	giver, _ := d.giver.Load().(string)
	return giver == cacheName
}

// endsSoon waits for a download that was given up: only then may the same begin anew. It tells
// whether that came about; a source that does not hear keeps nobody up.
func (d *download) endsSoon(ctx context.Context) bool {
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

// leave ends the following of d, which goes on for a time when nobody follows it any more.
func (r *Resolver) leave(d *download, stay time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	d.followers--
	switch {
	case d.followers > 0:
		return
	case d.ended:
		r.tidy(d)
		return
	}
	d.left++
	left := d.left
	time.AfterFunc(stay, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if d.followers == 0 && d.left == left {
			d.given = true
			d.cancel()
		}
	})
}

// drop takes d, which has ended, out of the list: who asks from now on finds it in the cache or
// begins anew.
func (r *Resolver) drop(d *download, misnamed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.downloads, d.key)
	d.ended, d.misnamed = true, misnamed
	if d.followers == 0 {
		r.tidy(d)
	}
	close(d.done)
}

// tidy is for holders of mu, when nobody follows d any more and nobody will.
func (r *Resolver) tidy(d *download) {
	if d.misnamed && r.cfg.Cache != nil {
		r.cfg.Cache.Convict(d.info, d.key.form, nil)
	}
}

// closeDownloads ends all downloads and lets none begin.
func (r *Resolver) closeDownloads() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for _, d := range r.downloads {
		d.cancel()
	}
}

// fill fetches d and takes it out of the list when it has ended.
func (r *Resolver) fill(ctx context.Context, d *download, c choice) {
	into := &spoolSink{
		r: r, info: d.info, form: d.key.form, proof: verify.NewBlockSums(d.info.Want(d.key.form, d.key.size)),
	}
	p := &pouring{
		r: r, info: d.info, form: d.key.form, size: d.key.size, sources: c.far, backup: c.backup,
		begun: func(source string) error {
			if err := r.openSpool(d, into); err != nil {
				return err
			}
			d.giver.Store(source)
			into.peers = into.peers || source == peerName
			d.begin(nil)
			return nil
		},
		prepare: func() error { return r.openSpool(d, into) },
	}
	if r.cfg.Leases != nil && !c.alone && !r.avoided.has(avoidKey{peerName, d.key.nar}) {
		p.lease = func() Lease {
			into.lease = r.cfg.Leases.Lease(ctx, d.info, d.key.form, d.key.size)
			into.moved()
			return into.lease
		}
	}
	buf, release := r.buffer()
	defer release()
	into.buf = buf
	err := p.pour(ctx, into, nil)
	if err == nil && !into.misnamed {
		r.prints.Add(printKey{d.key.nar, d.key.form}, into.proof)
		// Only of this stream: peers that failed in an earlier one are vouched for by nobody.
		if v, ok := r.cfg.Peers.(vouching); ok && slices.ContainsFunc(p.contributors, func(s NARSource) bool { return s.Name() == peerName }) {
			v.Proven(d.info, d.key.form)
		}
	}
	r.drop(d, into.misnamed)
	d.begin(err)
	if into.lease != nil {
		into.lease.End(ctx, err == nil)
	}
}

// openSpool makes the file for d unless there is one. It is not made sooner: most NARs no peer
// has, and each way to ask them is a download of its own.
func (r *Resolver) openSpool(d *download, into *spoolSink) error {
	if into.Download != nil {
		return nil
	}
	spool, err := r.cfg.Spool(d.key.nar, d.key.form, d.key.size)
	if err != nil {
		return errors.Join(errNoSpool, err)
	}
	d.spool, into.Download = spool, metered{spool, &d.flow}
	if r.cfg.Fetching != nil {
		r.cfg.Fetching(d.info)
	}
	return nil
}

// endedError is how a download ends for its followers when its sources failed. What else a
// follower is told, the cache says for itself.
type endedError struct{ err error }

func (e *endedError) Error() string { return e.err.Error() }
func (e *endedError) Unwrap() error { return e.err }

// follow sends a download as it grows.
func (n *NAR) follow(ctx context.Context, w io.Writer) error {
	n.awaitProof(ctx)
	rd := &followed{Reader: n.d.spool.Reader(0)}
	defer rd.Close()
	stop := context.AfterFunc(ctx, func() { _ = rd.Close() })
	defer stop()
	buf, release := n.r.buffer()
	defer release()
	_, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{rd}, buf)
	if rd.failed {
		// Who tries anew must not find this one under way.
		select {
		case <-n.d.done:
		case <-ctx.Done():
		}
	}
	return err
}

// vouching is a source of peers that knows which of them have given right bytes before.
type vouching interface {
	// Proven says that all bytes of this form were right.
	Proven(info *verify.Info, form nix.Form)
	// Vouched tells whether all who gave of this form so far have given right bytes before.
	Vouched(info *verify.Info, form nix.Form) bool
}

const (
	// vouchedWait is peerWait for peers that have given right bytes before, strangerWait for
	// those who have not: a liar's first lie reaches nobody, and its second one is not asked for.
	vouchedWait  = time.Second
	strangerWait = time.Minute
)

// awaitProof gives a download from a peer some time to be proven whole before its first byte
// leaves: then a peer that lies is not felt.
func (n *NAR) awaitProof(ctx context.Context) {
	if giver, _ := n.d.giver.Load().(string); giver != peerName {
		return
	}
	wait := peerWait
	if v, ok := n.r.cfg.Peers.(vouching); ok {
		if !n.awaitEnd(ctx, vouchedWait) || v.Vouched(n.info, n.form) {
			return
		}
		wait = strangerWait
	}
	n.awaitEnd(ctx, wait)
}

// awaitEnd waits for the download to end, and tells whether it goes on.
func (n *NAR) awaitEnd(ctx context.Context, limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-n.d.done:
	case <-ctx.Done():
	case <-timer.C:
		return true
	}
	return false
}

// followed marks the errors of the cache.
type followed struct {
	Reader
	failed bool
}

func (f *followed) Read(p []byte) (int, error) {
	n, err := f.Reader.Read(p)
	var ended *endedError
	switch {
	case err == nil || errors.Is(err, io.EOF) && !errors.As(err, &ended):
		return n, err
	case !errors.As(err, &ended):
		err = errors.Join(errSpoolFailed, err)
	}
	f.failed = true
	return n, err
}

// spoolSink writes a stream into the cache's file and judges it.
type spoolSink struct {
	Download // nil until there are bytes
	r        *Resolver
	info     *verify.Info
	form     nix.Form
	proof    *verify.BlockSums
	buf      []byte
	lease    Lease // nil when there is none
	peers    bool  // some bytes came from peers
	doubted  bool  // other machines see nothing from doubt on
	doubt    int64 // byte
	// misnamed: it was committed although its file hash is wrong.
	misnamed bool
}

func (s *spoolSink) Offset() int64 { return s.proof.Offset() }

func (s *spoolSink) Fill(src io.Reader) error {
	for empty := 0; empty < maxEmptyReads; empty++ {
		n, err := src.Read(s.buf)
		if n > 0 {
			empty = 0
			s.judge()
			if _, err := s.proof.Write(s.buf[:n]); err != nil {
				return err
			}
			if _, err := s.Write(s.buf[:n]); err != nil {
				return &receiverError{errors.Join(errSpoolFailed, err)}
			}
			s.moved()
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}

// judge keeps the bytes of a stranger from other machines. Passed on, a lie would go round among
// those who do not lie: each would begin anew with somebody who has it from another one. So a peer
// is passed on when it has given right bytes before, and a liar is left alone with its lies.
func (s *spoolSink) judge() {
	if !s.peers {
		return
	}
	v, ok := s.r.cfg.Peers.(vouching)
	doubted := ok && !v.Vouched(s.info, s.form)
	if doubted != s.doubted {
		s.doubted, s.doubt = doubted, s.Offset()
		s.Doubt(doubted)
	}
}

// moved tells the site how far this download is. Those who follow it see all but the tail, and
// what is doubted.
func (s *spoolSink) moved() {
	if s.lease == nil {
		return
	}
	seen := s.Offset() - verify.TailSize
	if s.doubted {
		seen = min(seen, s.doubt)
	}
	s.lease.Moved(max(seen, 0), s.Offset())
}

// maxEmptyReads bounds reads that give neither bytes nor an error, which io.Reader allows.
const maxEmptyReads = 100

// End commits proven bytes, and aborts all others. A file whose hash is wrong may still hold
// the right NAR: nobody signed the file hash. Then the response is completed, but the file
// hash is not used again.
func (s *spoolSink) End(err error) error {
	if s.Download == nil {
		return err // nobody gave anything, and nobody follows
	}
	if err == nil {
		err = s.proof.Check()
		if isLie(err) && !s.form.IsRaw() && s.holdsNAR() {
			s.r.log.Warn("file hash of an upstream is wrong, its NAR is right", "path", s.info.StorePath().Base(), "form", s.form.String())
			s.r.disbelieve(s.info, s.form)
			s.misnamed = true
			err = nil
		}
	}
	if err != nil {
		s.Abort(&endedError{err})
		return err
	}
	if err := s.Commit(); err != nil {
		s.Abort(err)
		return &receiverError{errors.Join(errSpoolFailed, err)}
	}
	return nil
}

// holdsNAR decodes what was written and tells whether it is the signed NAR.
func (s *spoolSink) holdsNAR() bool {
	file := s.Filled()
	defer file.Close()
	dec, err := compress.NewReader(s.form.Compression, file)
	if err != nil {
		return false
	}
	defer dec.Close()
	proof := verify.NewProof(s.info.Want(nix.Raw, 0))
	if _, err := io.CopyBuffer(struct{ io.Writer }{proof}, struct{ io.Reader }{dec}, s.buf); err != nil {
		return false
	}
	return proof.Check() == nil
}
