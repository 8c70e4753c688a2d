package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/verify"
)

// A cache is given up after so many strikes: few while the caller could still ask
// elsewhere, more once bytes have left, for then giving up may cut a download. With one
// cache this means one more try at first; later five within about 3 s, or one after a
// stall, which has cost enough time unless others get their bytes meanwhile.
const (
	strikesFirst = 4
	strikesLater = 6
	strikeStall  = 3
	// healing is how many bytes in a row show that a cache works again. Fewer must not
	// count, or one byte a connection would keep a download alive for ever.
	healing = 256 << 10
	// healingCrowded is the same where the line is full: many share it, and who gives up has the
	// same bytes sent again over it.
	healingCrowded = 16 << 10
	// crawl is the rate in bytes/s below which another cache that has the file is tried instead:
	// no line is so slow that somebody would choose it.
	crawl = 16 << 10
)

// relay is one exact file that several caches may have. It goes on at the same offset with
// the same cache or another when one stops. One reader at a time; Close at any time.
type relay struct {
	u      *Upstreams
	info   *verify.Info
	form   nix.Form // for whom it is read
	want   func(m *mirror, p *place) bool
	open   func() error
	cancel func()

	strict bool  // size is what a narinfo said; a file that has another is not this one
	size   int64 // -1 while not known
	most   int64 // bound while size is not known

	mu      sync.Mutex
	pos     int64 // next byte for the reader
	skip    int64 // bytes of src before it
	src     io.ReadCloser
	reply   *reply // below src
	from    *mirror
	since   int64         // bytes since src was opened
	waited  time.Duration // for them
	flowing bool          // bytes have left
	queued  bool          // it stalled for want of room on the line
	last    bool          // not worth another try
	strikes map[*mirror]int
	whole   map[*mirror]bool // Range does not work there
	stale   map[*mirror]bool // its place was looked up anew
	slow    map[*mirror]bool // it crawled; once is enough to go on elsewhere
	verdict verdict
	err     error
}

// gaveUp are strikes that no later failure reaches.
const gaveUp = 1 << 20

func (u *Upstreams) newRelay(ctx context.Context, cancel func(), info *verify.Info, form nix.Form, want func(*mirror, *place) bool) *relay {
	r := &relay{
		u: u, info: info, form: form, want: want, cancel: cancel, size: -1,
		strikes: map[*mirror]int{}, whole: map[*mirror]bool{}, stale: map[*mirror]bool{}, slow: map[*mirror]bool{},
	}
	r.open = func() error { return r.connect(ctx) }
	return r
}

// connect opens the file at pos with the best cache that is left.
func (r *relay) connect(ctx context.Context) error {
	for {
		m, err := r.pick(ctx)
		if err != nil {
			return err
		}
		p, err := r.u.find(ctx, m, r.info, r.stale[m])
		switch {
		case err != nil:
			r.giveUp(m, err)
			continue
		case !r.want(m, &p):
			r.giveUp(m, r.another(m))
			continue
		}
		if err = r.ask(ctx, m, &p); err == nil {
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
func (r *relay) pick(ctx context.Context) (*mirror, error) {
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
		if r.strikes[m] >= gaveUp {
			continue
		}
		if r.u.memory.convicted(m, r.info, r.form) {
			r.giveUp(m, fmt.Errorf("%s: sent it wrong before: %w", m.name, fs.ErrNotExist))
			continue
		}
		p, known := r.u.memory.place(m, r.info)
		if known && !r.want(m, &p) {
			r.giveUp(m, r.another(m))
			continue
		}
		n := r.strikes[m]
		switch {
		case i >= usable, r.slow[m]:
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
	if least > 0 && !pause(ctx, r.u.times.backOff<<(least-1)) {
		return nil, ctx.Err()
	}
	return best, nil
}

func (r *relay) another(m *mirror) error {
	return fmt.Errorf("%s: has another file: %w", m.name, fs.ErrNotExist)
}

func (r *relay) giveUp(m *mirror, err error) {
	r.verdict.add(err)
	r.strikes[m] = gaveUp
}

// strike notes a failure that may pass.
func (r *relay) strike(m *mirror, err error) error {
	r.verdict.add(err)
	switch stalled := errors.Is(err, errStalled); {
	case stalled && m.crowded() && !r.elsewhere(m):
		r.strikes[m]++
		r.queued = true
	case stalled:
		r.strikes[m] += strikeStall
	case r.flowing:
		r.strikes[m]++
	default:
		r.strikes[m] += strikesFirst / 2
	}
	return err
}

// ask requests the rest of the file from one cache.
func (r *relay) ask(ctx context.Context, m *mirror, p *place) error {
	if r.strict && p.size > 0 && r.pos >= p.size {
		r.size = p.size // nothing is left to ask for
		return nil
	}
	at, err := m.locate(p.text())
	if err != nil {
		r.giveUp(m, fmt.Errorf("%s: %w", m.name, err))
		return err
	}
	q := request{kind: kindNAR, at: at, from: r.pos, within: r.u.times.first}
	if r.flowing {
		q.within = r.u.times.stall
	}
	if r.whole[m] {
		q.from = 0
	}
	got, err := m.fetch(ctx, r.u, q)
	if err != nil {
		err = fmt.Errorf("%s: %w", m.name, err)
		if errors.Is(err, errStalled) && !r.flowing && (!m.crowded() || r.elsewhere(m)) {
			r.giveUp(m, err)
			return err
		}
		return r.strike(m, err)
	}
	if err := r.accept(m, p, got, q.from); err != nil {
		got.body.finish()
		return err
	}
	return nil
}

// accept judges a response and makes it the source.
func (r *relay) accept(m *mirror, p *place, got *reply, asked int64) error {
	begins, whole, err := r.extent(got)
	switch {
	case got.status == http.StatusNotFound, got.status == http.StatusGone, got.status == http.StatusForbidden:
		if !r.stale[m] {
			// The narinfo may be older than what the cache has now.
			r.stale[m] = true
			r.u.memory.forget(m, r.info.StorePath().Hash())
			return fs.ErrNotExist
		}
		err = fmt.Errorf("%s: NAR: %w", m.name, fs.ErrNotExist)
		r.giveUp(m, err)
		return err
	case got.status == http.StatusRequestedRangeNotSatisfiable || got.status == http.StatusPartialContent && err != nil:
		if asked > 0 {
			r.whole[m] = true
		}
		return r.strike(m, fmt.Errorf("%s: range from %d: status %d, %w", m.name, asked, got.status, errRange))
	case got.status >= http.StatusInternalServerError:
		return r.strike(m, fmt.Errorf("%s: %w", m.name, r.u.refused(m, got)))
	case err != nil:
		err = fmt.Errorf("%s: %w", m.name, r.u.refused(m, got))
		r.giveUp(m, err)
		return err
	}
	if err := r.measure(m, p, whole); err != nil {
		return err
	}
	src, err := got.content()
	if err != nil {
		r.giveUp(m, fmt.Errorf("%s: %w", m.name, err))
		return err
	}
	r.src, r.reply, r.from, r.skip, r.since = src, got, m, r.pos-begins, 0
	r.waited = 0
	return nil
}

var errRange = errors.New("not the range that was asked for")

// extent returns where a body begins in the file and how long the file is, -1 when the
// response does not say.
func (r *relay) extent(got *reply) (begins, whole int64, err error) {
	switch {
	case got.status == http.StatusOK && got.encoded():
		return 0, -1, nil
	case got.status == http.StatusOK:
		return 0, got.length, nil
	case got.status != http.StatusPartialContent || got.encoded():
		return 0, 0, errRange
	}
	begins, whole, ok := parseContentRange(got.header.Get("Content-Range"))
	if !ok || begins != r.pos {
		return 0, 0, errRange
	}
	return begins, whole, nil
}

// parseContentRange reads "bytes 0-499/1234" (RFC 9110, 14.4). The length is -1 for *, which
// says that it is not known.
func parseContentRange(s string) (first, whole int64, ok bool) {
	s, ok = strings.CutPrefix(s, "bytes ")
	span, total, ok2 := strings.Cut(s, "/")
	from, to, ok3 := strings.Cut(span, "-")
	n, err := strconv.ParseUint(from, 10, 63)
	last, err2 := strconv.ParseUint(to, 10, 63)
	if !ok || !ok2 || !ok3 || err != nil || err2 != nil || last < n {
		return 0, 0, false
	}
	if total == "*" {
		return int64(n), -1, true
	}
	size, err := strconv.ParseUint(total, 10, 63)
	return int64(n), int64(size), err == nil && last < size
}

// measure compares the length of the file with what is known of it.
func (r *relay) measure(m *mirror, p *place, whole int64) error {
	if r.size < 0 {
		r.size = whole
		if r.strict && p.size > 0 {
			r.size = p.size
		}
		if !r.strict && whole < 0 && p.size > 0 {
			r.size = p.size
		}
	}
	switch {
	case !r.strict && r.size > r.most:
		err := &verify.InvalidError{Reason: verify.ReasonSize, Err: fmt.Errorf("file of %d bytes for a NAR of %d", r.size, r.info.NarSize())}
		r.giveUp(m, fmt.Errorf("%s: %w", m.name, err))
		r.size = -1
		return err
	case whole < 0 || whole == r.size:
		return nil
	case whole > r.size:
		err := &verify.InvalidError{Reason: verify.ReasonSize, Err: fmt.Errorf("%d bytes instead of %d", whole, r.size)}
		r.giveUp(m, fmt.Errorf("%s: %w", m.name, err))
		return err
	}
	err := fmt.Errorf("%s: %d bytes instead of %d", m.name, whole, r.size)
	r.giveUp(m, err)
	return err
}

func (r *relay) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return 0, r.err
	}
	n, err := r.read(p)
	r.err = err
	return n, err
}

func (r *relay) read(p []byte) (int, error) {
	for len(p) > 0 {
		if r.pos == r.size {
			return 0, r.end()
		}
		if r.src == nil {
			if r.last {
				return 0, io.ErrUnexpectedEOF
			}
			if err := r.open(); err != nil {
				return 0, err
			}
			continue
		}
		began := time.Now()
		n, err := r.src.Read(r.room(p))
		r.waited += time.Since(began)
		if n > 0 {
			r.flow(int64(n))
		}
		if r.skip > 0 {
			r.skip -= int64(n)
			n = 0
		}
		r.pos += int64(n)
		switch {
		case r.size < 0 && r.pos > r.most:
			return 0, &verify.InvalidError{Reason: verify.ReasonSize, Err: fmt.Errorf("file of more than %d bytes", r.most)}
		case errors.Is(err, io.EOF) && r.size < 0 && r.skip == 0:
			r.size = r.pos
		case err != nil && r.pos != r.size:
			r.stopped(err)
		case r.crawls():
			r.slow[r.from] = true
			r.u.log.Debug("upstream crawls, another goes on", "upstream", r.from.name, "store_hash", r.info.StorePath().Hash().String())
			r.drop()
		}
		if n > 0 {
			r.flowing = true
			return n, nil
		}
	}
	return 0, nil
}

// crawls tells that the source gives next to nothing and another cache may have the file. Only
// the time counts in which bytes were waited for, so the reader may be as slow as it likes.
func (r *relay) crawls() bool {
	if r.waited < r.u.times.crawl || r.slow[r.from] || float64(r.since) >= crawl*r.waited.Seconds() {
		return false
	}
	return r.elsewhere(r.from)
}

// elsewhere tells whether another cache than from can be asked and may have the file.
func (r *relay) elsewhere(from *mirror) bool {
	may, _ := r.u.order()
	for _, m := range may {
		if m == from || r.slow[m] || r.strikes[m] >= strikesFirst || r.u.memory.convicted(m, r.info, r.form) {
			continue
		}
		if p, known := r.u.memory.place(m, r.info); !known || r.want(m, &p) {
			return true
		}
	}
	return false
}

// room is the part of p that may be filled.
func (r *relay) room(p []byte) []byte {
	switch {
	case r.skip > 0:
		return p[:min(int64(len(p)), r.skip)]
	case r.size >= 0:
		return p[:min(int64(len(p)), r.size-r.pos)]
	}
	return p
}

// flow notes bytes that came.
func (r *relay) flow(n int64) {
	if r.since == 0 {
		r.u.memory.sending(r.from, r.info, r.form)
	}
	r.since += n
	if (r.since >= healing || r.since >= healingCrowded && r.queued) && r.skip == 0 {
		delete(r.strikes, r.from)
	}
}

// stopped ends the source because of an error, or an end before the end.
func (r *relay) stopped(err error) {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	_ = r.strike(r.from, fmt.Errorf("%s: at byte %d: %w", r.from.name, r.pos, err))
	if !errors.Is(err, context.Canceled) {
		r.u.log.Debug("transfer from upstream stopped", "upstream", r.from.name, "store_hash", r.info.StorePath().Hash().String(), "err", err)
		r.from.failed(troubleOther, err)
	}
	r.drop()
}

// end looks whether the body goes on after the last byte of the file. A body whose length
// was announced cannot.
func (r *relay) end() error {
	if r.src == nil || r.reply.length >= 0 && !r.reply.encoded() {
		return io.EOF
	}
	var one [1]byte
	for range 16 {
		n, err := r.src.Read(one[:])
		switch {
		case n > 0:
			return &verify.InvalidError{Reason: verify.ReasonSize, Err: fmt.Errorf("%s: more than %d bytes", r.from.name, r.size)}
		case err != nil:
			return io.EOF
		}
	}
	return io.EOF
}

func (r *relay) drop() {
	if r.src != nil {
		_ = r.src.Close()
		_ = r.reply.body.Close()
	}
	r.src, r.reply = nil, nil
}

// Close ends a Read that waits.
func (r *relay) Close() error {
	r.cancel()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.drop()
	r.err = errClosed
	return nil
}
