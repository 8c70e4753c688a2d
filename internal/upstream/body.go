package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"slices"
	"time"

	"github.com/nixp2p/nixp2p/internal/httprange"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/update"
	"github.com/nixp2p/nixp2p/verify"
)

// A cache is given up after so many strikes: few while the caller could still ask elsewhere, more
// once bytes have left, because giving up may then cut a download. With one cache this means one
// more try at first; later five within about 3 s, or one after a stall, which has cost enough
// time unless others get their bytes meanwhile.
const (
	strikesFirst = 4
	strikesLater = 6
	strikeStall  = 3
	gaveUp       = 1 << 20 // no later failure reaches it
	// healing is how many bytes in a row show that a cache works again. Fewer must not count, or
	// one byte per connection would keep a download alive forever.
	healing = 256 << 10
	// healingSaturated is the same on a saturated line: many share it, and giving up means that
	// the same bytes are sent again over it.
	healingSaturated = 16 << 10
	// crawl is the rate in bytes/s below which another cache that has the file is tried instead:
	// no line is so slow that somebody would choose it.
	crawl = 16 << 10
)

var (
	errRange  = errors.New("not the range that was requested")
	errClosed = errors.New("upstream: body is closed")
	errWrong  = fmt.Errorf("sent it wrong before: %w", fs.ErrNotExist)
	errOther  = fmt.Errorf("has another file: %w", fs.ErrNotExist)
)

// resumableBody is one exact file that several caches may have. It continues at the same offset
// with the same cache or another one when one stops. It is not safe for concurrent use.
type resumableBody struct {
	u      *Upstreams
	info   *verify.Info
	form   nix.Form // for whom it is read
	file   fileKey
	open   func() error
	budget *budget

	offered
	fileSize
	current
	pos     int64      // next byte for the reader
	flowing bool       // bytes have left
	state   []attempts // by mirror.index
	verdict verdict
	failed  error // that ended it
}

// current is what is open.
type current struct {
	src    *reply // nil if nothing is
	from   *mirror
	since  int64         // bytes that came from there
	waited time.Duration // for them
}

// offered is what may come in place of a file.
type offered struct {
	mayDelta bool         // what differs from a base
	base     *update.Base // the file is a delta of this one, which whoever decodes it closes
}

// fileSize is what is known of the size of a file in bytes.
type fileSize struct {
	size  int64 // -1 while it is not known
	exact bool  // a narinfo said it; a file of another size is not this one
	most  int64 // bound while size is not known
}

// attempts is how it went with one cache.
type attempts struct {
	strikes int
	whole   bool // Range does not work there
	stale   bool // its location was looked up again
	slow    bool // it crawled; once is enough to continue elsewhere
	queued  bool // it stalled on a saturated line
}

func (u *Upstreams) newBody(ctx context.Context, info *verify.Info, form nix.Form, b *budget, file fileKey) *resumableBody {
	r := &resumableBody{
		u: u, info: info, form: form, file: file, budget: b, fileSize: fileSize{size: -1}, state: make([]attempts, len(u.all)),
	}
	r.open = func() error { return r.connect(ctx) }
	return r
}

// connect opens the file at pos with the best cache that is left.
func (r *resumableBody) connect(ctx context.Context) error {
	for {
		m, err := r.pick(ctx)
		if err != nil {
			return err
		}
		l, err := r.u.find(ctx, m, r.info, r.budget)
		if err == nil && l.key(m) != r.file {
			err = errOther
		}
		if err != nil {
			_ = r.giveUp(m, err)
			continue
		}
		if err = r.request(ctx, m, &l); err == nil || ctx.Err() != nil {
			return err
		}
	}
}

// lacks returns why m cannot have the file, nil if it may. known: it has.
func (r *resumableBody) lacks(m *mirror) (known bool, err error) {
	if max(r.u.untilAsked(m, r.info, r.form), r.u.untilAsked(m, r.info, nix.Raw)) > 0 {
		return false, errWrong
	}
	l, known := r.u.located(m, r.info)
	if known && l.key(m) != r.file {
		return false, errOther
	}
	return known, nil
}

// pick returns the cache with the fewest failures, among equals one that is known to have the
// file. It waits before a cache is asked once more.
func (r *resumableBody) pick(ctx context.Context) (*mirror, error) {
	may, left := r.u.order()
	r.verdict.add(left)
	usable, least := len(may), strikesFirst
	if r.flowing {
		least = strikesLater
		for _, m := range r.u.mirrors {
			if !slices.Contains(may, m) {
				may = append(may, m) // better to try those that are down than to cut
			}
		}
	}
	var best *mirror
	var bestKnown bool
	for i, m := range may {
		s := &r.state[m.index]
		if s.strikes >= gaveUp {
			continue
		}
		known, err := r.lacks(m)
		if err != nil {
			_ = r.giveUp(m, err)
			continue
		}
		known = known || m.mayHave(r.info.StorePath().Hash())
		n := s.strikes
		switch {
		case i >= usable, s.slow, r.u.wasWrong(m, r.info, r.form):
			n++
		case n == 1 && m == r.from: // what broke off once may go on
			n = 0
		}
		if n < least || n == least && best != nil && known && !bestKnown {
			best, least, bestKnown = m, n, known
		}
	}
	switch {
	case best == nil:
		return nil, r.verdict.err()
	case least > 0 && !pause(ctx, r.u.timeouts.retry<<(least-1)):
		return nil, ctx.Err()
	}
	return best, nil
}

// elsewhere reports whether another cache than from can be asked and may have the file.
func (r *resumableBody) elsewhere(from *mirror) bool {
	may, _ := r.u.order()
	return slices.ContainsFunc(may, func(m *mirror) bool {
		s := &r.state[m.index]
		_, err := r.lacks(m)
		return m != from && !s.slow && s.strikes < strikesFirst && err == nil
	})
}

// giveUp notes a failure that does not pass.
func (r *resumableBody) giveUp(m *mirror, err error) error {
	err = fmt.Errorf("%s: %w", m.name, err)
	r.verdict.add(err)
	r.state[m.index].strikes = gaveUp
	return err
}

// strike notes a failure that may pass.
func (r *resumableBody) strike(m *mirror, err error) error {
	s := &r.state[m.index]
	switch stalled := errors.Is(err, errStalled); {
	case errors.Is(err, errBudget):
		return r.giveUp(m, err)
	case stalled && m.saturated() && !r.elsewhere(m):
		s.strikes++
		s.queued = true
	case stalled:
		s.strikes += strikeStall
	case r.flowing:
		s.strikes++
	default:
		s.strikes += strikesFirst / 2
	}
	err = fmt.Errorf("%s: %w", m.name, err)
	r.verdict.add(err)
	return err
}

// request asks one cache for the rest of the file.
func (r *resumableBody) request(ctx context.Context, m *mirror, l *location) error {
	if r.exact && l.size > 0 && r.pos >= l.size {
		r.size = l.size // nothing is left to ask for
		return nil
	}
	at, err := m.locate(l.url)
	if err != nil {
		return r.giveUp(m, err)
	}
	q := &request{kind: kindNAR, at: at, from: r.pos, within: m.first, budget: r.budget}
	if r.flowing {
		q.within = m.stall
	}
	if r.state[m.index].whole {
		q.from = 0
	}
	var bases update.Proposal
	if r.mayDelta && q.from == 0 {
		bases = r.u.propose(ctx, m, r.info, q)
	}
	got, err := r.u.send(ctx, m, q)
	if err != nil {
		bases.Close()
		r.mayDelta = r.mayDelta && len(bases) == 0
	}
	switch {
	case err == nil:
	case len(bases) > 0 && errors.Is(err, errStalled):
		return err // it may have waited for an encoder: it is asked again, without
	case errors.Is(err, errStalled) && !r.flowing && (!m.saturated() || r.elsewhere(m)):
		return r.giveUp(m, err)
	default:
		return r.strike(m, err)
	}
	if is, err := r.acceptDelta(m, got, bases); is {
		if err != nil {
			got.body.finish()
		}
		return err
	}
	if err := r.accept(m, l, got, q.from); err != nil {
		got.body.finish()
		return err
	}
	return nil
}

// accept judges a response and makes it the source.
func (r *resumableBody) accept(m *mirror, l *location, got *reply, asked int64) error {
	begins, whole, err := r.extent(got)
	s := &r.state[m.index]
	switch {
	case got.absent() && !s.stale:
		s.stale = true // the narinfo may be older than what the cache has now
		r.u.found.Remove(place{m.index, r.info.StorePath().Hash()})
		return fs.ErrNotExist
	case got.absent():
		r.u.gone.Add(sentBy(m, r.info, nix.Raw), goneFor)
		return r.giveUp(m, fmt.Errorf("NAR: %w", fs.ErrNotExist))
	case got.status == http.StatusRequestedRangeNotSatisfiable || got.status == http.StatusPartialContent && err != nil:
		s.whole = s.whole || asked > 0
		return r.strike(m, fmt.Errorf("range from %d: status %d, %w", asked, got.status, errRange))
	case got.status >= http.StatusInternalServerError:
		return r.strike(m, r.u.refused(m, got))
	case err != nil && got.status != http.StatusOK:
		return r.giveUp(m, r.u.refused(m, got))
	case err != nil:
		return r.giveUp(m, err)
	}
	if err := r.measure(l, whole); err != nil {
		return r.giveUp(m, err)
	}
	if _, err := io.CopyN(io.Discard, got.body, r.pos-begins); err != nil {
		return r.strike(m, fmt.Errorf("before byte %d: %w", r.pos, err))
	}
	r.current = current{src: got, from: m}
	return nil
}

// extent returns where a body begins in the file and how long the file is, -1 if the
// response does not say.
func (r *resumableBody) extent(got *reply) (begins, whole int64, err error) {
	if _, err := got.coding(); err != nil {
		return 0, 0, err
	}
	switch got.status {
	case http.StatusOK:
		return 0, got.length, nil
	case http.StatusPartialContent:
		begins, _, whole, err = httprange.ParseContentRange(got.header.Get("Content-Range"))
		if err == nil && begins == r.pos {
			return begins, whole, nil
		}
	}
	return 0, 0, errRange
}

func wrongSize(format string, args ...any) error {
	return &verify.InvalidError{Reason: verify.ReasonSize, Err: fmt.Errorf(format, args...)}
}

// measure compares the size that a response says, -1 for none, with what is known.
func (f *fileSize) measure(l *location, whole int64) error {
	size := f.size
	if size < 0 {
		size = whole
		if l.size > 0 && (f.exact || whole < 0) {
			size = l.size
		}
	}
	switch {
	case !f.exact && size > f.most:
		return wrongSize("file of %d bytes for a NAR of at most %d", size, f.most)
	case whole > size:
		return wrongSize("%d bytes instead of %d", whole, size)
	case whole >= 0 && whole < size:
		return fmt.Errorf("%d bytes instead of %d", whole, size)
	}
	f.size = size
	return nil
}

func (r *resumableBody) Read(p []byte) (int, error) {
	for len(p) > 0 {
		if r.pos == r.size {
			return 0, r.end()
		}
		if r.src == nil {
			if r.failed = r.open(); r.failed != nil {
				return 0, r.failed
			}
			continue
		}
		room := p
		if r.size >= 0 {
			room = p[:min(int64(len(p)), r.size-r.pos)]
		}
		began := time.Now()
		n, err := r.src.body.Read(room)
		r.came(int64(n), time.Since(began))
		switch s := &r.state[r.from.index]; {
		case r.size < 0 && r.pos > r.most:
			r.failed = r.measure(&location{}, r.pos)
			return 0, r.failed
		case errors.Is(err, io.EOF) && r.size < 0:
			r.size = r.pos
		case err != nil && r.pos != r.size:
			r.stopped(err)
		// Only the time counts in which bytes were waited for: the reader may be slow.
		case r.waited >= r.from.crawl && !s.slow && float64(r.since) < r.from.least*r.waited.Seconds() && r.elsewhere(r.from):
			s.slow = true
			r.drop()
		}
		if n > 0 {
			return n, nil
		}
	}
	return 0, nil
}

// came notes n bytes and how long they were waited for.
func (r *resumableBody) came(n int64, waited time.Duration) {
	r.waited += waited
	if n <= 0 {
		return
	}
	if r.since == 0 {
		r.u.senders.Add(sentBy(r.from, r.info, r.form), 6*time.Hour)
	}
	r.flowing = true
	r.pos += n
	r.since += n
	if s := &r.state[r.from.index]; r.since >= healing || r.since >= healingSaturated && s.queued {
		s.strikes = 0
	}
}

// stopped ends the source because of an error, or an end before the end.
func (r *resumableBody) stopped(err error) {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	err = r.strike(r.from, fmt.Errorf("at byte %d: %w", r.pos, err))
	if !errors.Is(err, context.Canceled) {
		r.u.log.Debug("transfer from upstream stopped", "store_hash", r.info.StorePath().Hash().String(), "err", err)
		r.u.failed(r.from, failedOther, time.Time{}, err)
	}
	r.drop()
}

// end checks whether the body goes on after the last byte of the file. A body whose length
// was announced cannot.
func (r *resumableBody) end() error {
	if r.src == nil || r.src.length >= 0 {
		return io.EOF
	}
	if n, _ := io.ReadFull(r.src.body, make([]byte, 1)); n > 0 {
		r.failed = wrongSize("%s: more than %d bytes", r.from.name, r.size)
		return r.failed
	}
	return io.EOF
}

// drop closes what is open.
func (r *resumableBody) drop() {
	if r.src != nil {
		_ = r.src.body.Close()
	}
	r.src = nil
}
