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
	"github.com/nixp2p/nixp2p/verify"
)

// A cache is given up after so many strikes: few while the caller could still ask
// elsewhere, more once bytes have left, because giving up may then cut a download. With one
// cache this means one more try at first; later five within about 3 s, or one after a
// stall, which has cost enough time unless others get their bytes meanwhile.
const (
	strikesFirst = 4
	strikesLater = 6
	strikeStall  = 3
	gaveUp       = 1 << 20 // no later failure reaches it
	// healing is how many bytes in a row show that a cache works again. Fewer must not
	// count, or one byte per connection would keep a download alive forever.
	healing = 256 << 10
	// healingSaturated is the same on a saturated line: many share it, and giving up means
	// that the same bytes are sent again over it.
	healingSaturated = 16 << 10
	// crawl is the rate in bytes/s below which another cache that has the file is tried
	// instead: no line is so slow that somebody would choose it.
	crawl = 16 << 10
)

var (
	errRange  = errors.New("not the range that was requested")
	errClosed = errors.New("upstream: body is closed")
)

// resumableBody is one exact file that several caches may have. It continues at the same offset
// with the same cache or another one when one stops. It is not safe for concurrent use.
type resumableBody struct {
	u      *Upstreams
	info   *verify.Info
	form   nix.Form // for whom it is read
	wanted func(m *mirror, l *location) bool
	open   func() error
	budget *budget

	fileSize
	pos     int64 // next byte for the reader
	src     *reply
	from    *mirror
	since   int64         // bytes since src was opened
	waited  time.Duration // for them
	flowing bool          // bytes have left
	state   map[*mirror]*attempts
	verdict verdict
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

func (u *Upstreams) newBody(ctx context.Context, info *verify.Info, form nix.Form, b *budget, wanted func(*mirror, *location) bool) *resumableBody {
	r := &resumableBody{
		u: u, info: info, form: form, wanted: wanted, budget: b, fileSize: fileSize{size: -1},
		state: map[*mirror]*attempts{},
	}
	for _, m := range u.mirrors {
		r.state[m] = &attempts{}
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
		l, err := r.u.find(ctx, m, r.info, r.state[m].stale, r.budget)
		switch {
		case err != nil:
			r.giveUp(m, err)
			continue
		case !r.wanted(m, &l):
			r.giveUp(m, fmt.Errorf("%s: has another file: %w", m.name, fs.ErrNotExist))
			continue
		}
		if err = r.request(ctx, m, &l); err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// pick returns the cache with the fewest failures, among equals one that is known to have
// the file; the one that was read from goes first after a single failure. It waits
// before a cache is asked once more.
func (r *resumableBody) pick(ctx context.Context) (*mirror, error) {
	limit := strikesFirst
	may, left := r.u.order()
	if left != nil {
		r.verdict.add(left)
	}
	usable := len(may)
	if r.flowing {
		limit = strikesLater
		for _, m := range r.u.mirrors {
			if !slices.Contains(may, m) {
				may = append(may, m) // better to try those that are down than to cut
			}
		}
	}
	var best *mirror
	var unasked bool
	least := limit
	for i, m := range may {
		s := r.state[m]
		if s.strikes >= gaveUp {
			continue
		}
		if r.u.wrong.has(m, r.info, r.form) {
			r.giveUp(m, fmt.Errorf("%s: sent it wrong before: %w", m.name, fs.ErrNotExist))
			continue
		}
		l, known := r.u.found.get(m, r.info)
		if known && !r.wanted(m, &l) {
			r.giveUp(m, fmt.Errorf("%s: has another file: %w", m.name, fs.ErrNotExist))
			continue
		}
		n := s.strikes
		switch {
		case i >= usable, s.slow:
			n++
		case n == 1 && m == r.from:
			n = 0
		}
		if n < least || n == least && best != nil && unasked && known {
			best, least, unasked = m, n, !known
		}
	}
	if best == nil {
		return nil, r.verdict.err()
	}
	if least > 0 && !pause(ctx, r.u.timeouts.retry<<(least-1)) {
		return nil, ctx.Err()
	}
	return best, nil
}

func (r *resumableBody) giveUp(m *mirror, err error) {
	r.verdict.add(err)
	r.state[m].strikes = gaveUp
}

// strike notes a failure that may pass.
func (r *resumableBody) strike(m *mirror, err error) error {
	r.verdict.add(err)
	s := r.state[m]
	switch stalled := errors.Is(err, errStalled); {
	case errors.Is(err, errBudget):
		s.strikes = gaveUp
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
		r.giveUp(m, fmt.Errorf("%s: %w", m.name, err))
		return err
	}
	q := request{kind: kindNAR, at: at, from: r.pos, within: r.u.timeouts.first, budget: r.budget}
	if r.flowing {
		q.within = r.u.timeouts.stall
	}
	if r.state[m].whole {
		q.from = 0
	}
	got, err := r.u.send(ctx, m, q)
	if err != nil {
		err = fmt.Errorf("%s: %w", m.name, err)
		if errors.Is(err, errStalled) && !r.flowing && (!m.saturated() || r.elsewhere(m)) {
			r.giveUp(m, err)
			return err
		}
		return r.strike(m, err)
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
	s := r.state[m]
	switch {
	case got.status == http.StatusNotFound, got.status == http.StatusGone, got.status == http.StatusForbidden:
		if !s.stale {
			// The narinfo may be older than what the cache has now.
			s.stale = true
			r.u.found.forget(m, r.info.StorePath().Hash())
			return fs.ErrNotExist
		}
		err = fmt.Errorf("%s: NAR: %w", m.name, fs.ErrNotExist)
		r.giveUp(m, err)
		return err
	case got.status == http.StatusRequestedRangeNotSatisfiable || got.status == http.StatusPartialContent && err != nil:
		if asked > 0 {
			s.whole = true
		}
		return r.strike(m, fmt.Errorf("%s: range from %d: status %d, %w", m.name, asked, got.status, errRange))
	case got.status >= http.StatusInternalServerError:
		return r.strike(m, fmt.Errorf("%s: %w", m.name, r.u.refused(m, got)))
	case err != nil:
		if got.status != http.StatusOK {
			err = r.u.refused(m, got)
		}
		err = fmt.Errorf("%s: %w", m.name, err)
		r.giveUp(m, err)
		return err
	}
	if err := r.measure(l, whole); err != nil {
		err = fmt.Errorf("%s: %w", m.name, err)
		r.giveUp(m, err)
		return err
	}
	if _, err := io.CopyN(io.Discard, got.body, r.pos-begins); err != nil {
		return r.strike(m, fmt.Errorf("%s: before byte %d: %w", m.name, r.pos, err))
	}
	r.src, r.from, r.since, r.waited = got, m, 0, 0
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
		return &verify.InvalidError{Reason: verify.ReasonSize, Err: fmt.Errorf("file of %d bytes for a NAR of at most %d", size, f.most)}
	case whole > size:
		return &verify.InvalidError{Reason: verify.ReasonSize, Err: fmt.Errorf("%d bytes instead of %d", whole, size)}
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
			if err := r.open(); err != nil {
				return 0, err
			}
			continue
		}
		began := time.Now()
		room := p
		if r.size >= 0 {
			room = p[:min(int64(len(p)), r.size-r.pos)]
		}
		n, err := r.src.body.Read(room)
		r.waited += time.Since(began)
		r.flow(int64(n))
		r.pos += int64(n)
		switch {
		case r.size < 0 && r.pos > r.most:
			return 0, r.measure(&location{}, r.pos)
		case errors.Is(err, io.EOF) && r.size < 0:
			r.size = r.pos
		case err != nil && r.pos != r.size:
			r.stopped(err)
		case r.crawls():
			r.state[r.from].slow = true
			r.u.log.Debug("upstream crawls, another one continues", "upstream", r.from.name, "store_hash", r.info.StorePath().Hash().String())
			r.drop()
		}
		if n > 0 {
			r.flowing = true
			return n, nil
		}
	}
	return 0, nil
}

// crawls reports whether the source gives next to nothing and another cache may have the file.
// Only the time counts in which bytes were waited for, so the reader may be as slow as it likes.
func (r *resumableBody) crawls() bool {
	if r.waited < r.u.timeouts.crawl || r.state[r.from].slow || float64(r.since) >= crawl*r.waited.Seconds() {
		return false
	}
	return r.elsewhere(r.from)
}

// elsewhere reports whether another cache than from can be asked and may have the file.
func (r *resumableBody) elsewhere(from *mirror) bool {
	may, _ := r.u.order()
	for _, m := range may {
		s := r.state[m]
		if m == from || s.slow || s.strikes >= strikesFirst || r.u.wrong.has(m, r.info, r.form) {
			continue
		}
		if l, known := r.u.found.get(m, r.info); !known || r.wanted(m, &l) {
			return true
		}
	}
	return false
}

// flow notes bytes that came.
func (r *resumableBody) flow(n int64) {
	if n <= 0 {
		return
	}
	if r.since == 0 {
		r.u.wrong.sending(r.from, r.info, r.form)
	}
	r.since += n
	s := r.state[r.from]
	if r.since >= healing || r.since >= healingSaturated && s.queued {
		s.strikes = 0
	}
}

// stopped ends the source because of an error, or an end before the end.
func (r *resumableBody) stopped(err error) {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	_ = r.strike(r.from, fmt.Errorf("%s: at byte %d: %w", r.from.name, r.pos, err))
	if !errors.Is(err, context.Canceled) {
		r.u.log.Debug("transfer from upstream stopped", "upstream", r.from.name, "store_hash", r.info.StorePath().Hash().String(), "err", err)
		r.u.failed(r.from, failedOther, err)
	}
	r.drop()
}

// end checks whether the body goes on after the last byte of the file. A body whose length
// was announced cannot.
func (r *resumableBody) end() error {
	if r.src == nil || r.src.length >= 0 {
		return io.EOF
	}
	var one [1]byte
	for range 16 {
		n, err := r.src.body.Read(one[:])
		switch {
		case n > 0:
			return &verify.InvalidError{Reason: verify.ReasonSize, Err: fmt.Errorf("%s: more than %d bytes", r.from.name, r.size)}
		case err != nil:
			return io.EOF
		}
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
