package client

import (
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nixp2p/nixp2p/internal/compress"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/runclock"
	"github.com/nixp2p/nixp2p/internal/update"
	"github.com/nixp2p/nixp2p/p2p/site"
)

const (
	// A stream fails after stallTime without a byte. One that is still coming in at the peer
	// keeps its tail back until it is verified.
	stallTime        = 5 * time.Second
	stallTimePartial = 8 * time.Second
	// It fails as well when it was slower than minRate over rateTime of waiting. How fast a
	// peer gets a NAR itself says little of the link: minRatePartial.
	rateTime       = 5 * time.Second
	minRate        = 32 << 10 // bytes a second
	minRatePartial = 4 << 10
	// deltaTime is what a delta may have been waited for beyond what its bytes of the NAR are worth at
	// minRatePartial: the peer makes up to 16 MiB of the NAR before it sends anything.
	deltaTime = 15 * time.Second
)

var (
	errStalled  = errors.New("p2p: no byte for a while")
	errTooSlow  = errors.New("p2p: hardly any bytes for a while")
	errTooLarge = errors.New("p2p: more coded bytes than the NAR is worth")
)

// offered says how it came that a peer was asked, and how it answers.
type offered struct {
	partial bool  // the peer gets it itself at the moment
	has     int64 // bytes of the form that are there by now, as the peer itself says
	named   bool  // by a coordinator
	delta   bool  // it sends what differs from a base
}

// stream is what one peer sends. Read is for one goroutine.
type stream struct {
	s    *session
	p    *site.Peer
	form nix.Form
	size int64 // of the whole form
	offered

	wire    *wireReader
	plain   io.Reader
	decoder io.Closer       // nil if not compressed
	ends    []func()        // called by Close
	gone    <-chan struct{} // closed when the reader does not want it any more

	reading sync.Mutex // held during Read
	left    int64      // bytes of the form to come

	mu     sync.Mutex
	err    error // that Read returned
	closed bool
}

// begin starts with the body of an answer.
func (st *stream) begin(body io.ReadCloser, off int64, coded bool) {
	st.left = st.size - off
	st.wire = st.s.c.newWireReader(st.p, body, st.partial)
	st.wire.crosses = !near(st.s.zone, st.p)
	st.plain = st.wire
	if coded {
		st.wire.most = mostCoded(st.left)
		if z, err := compress.NewStreamReader(nix.Zstd, st.plain); err == nil { // the coding is known
			st.plain, st.decoder = z, z
		}
	}
	st.started()
}

// beginDelta starts with the body of an answer that is a delta.
func (st *stream) beginDelta(body io.ReadCloser, base update.Base) {
	st.left = st.size
	st.wire = st.s.c.newWireReader(st.p, body, true) // the peer takes time to make it
	st.wire.crosses, st.wire.most = !near(st.s.zone, st.p), mostCoded(st.size)
	st.wire.made = func() int64 { return st.size - st.left } // the decoder reads in Read
	d := st.s.c.cfg.Bases.NewBody(st.wire, base, st.size)
	st.plain, st.decoder, st.delta = d, d, true
	st.started()
}

func (st *stream) started() {
	st.p.Meter().Asked(st.left)
	st.ends = append(st.ends, st.p.Use())
}

// wireReader counts and times what comes from a peer.
type wireReader struct {
	p       *site.Peer
	c       *Client
	body    io.ReadCloser
	partial bool
	crosses bool  // the peer is in another zone
	most    int64 // bytes that may come, 0: any number
	total   int64
	clock   *runclock.Clock
	stall   *time.Timer
	began   time.Time
	since   atomic.Int64 // when the Read that waits did, in ns after began; 0: none waits
	stalled atomic.Bool  // the timer ran out

	// Over the last rateTime of waiting; of a delta, over all of it.
	waited time.Duration
	came   int64
	made   func() int64 // bytes of the NAR that a delta has made; nil: it is none
}

// mostCoded returns how many bytes may come for n bytes that are coded: frames without content must
// not go on forever.
func mostCoded(n int64) int64 { return n + n/8 + 64<<10 }

func (c *Client) newWireReader(p *site.Peer, body io.ReadCloser, partial bool) *wireReader {
	clock := c.cfg.Clock
	w := &wireReader{p: p, c: c, body: body, partial: partial, clock: clock, began: clock.Now()}
	w.stall = time.AfterFunc(time.Hour, w.checkStall)
	w.stall.Stop()
	return w
}

// patience is how long a Read may wait.
func (w *wireReader) patience() time.Duration {
	if w.partial {
		return stallTimePartial
	}
	return stallTime
}

// checkStall ends a Read that has waited too long. It is called when that time has passed, of
// which this process may have lost a part.
func (w *wireReader) checkStall() {
	since := w.since.Load()
	if since == 0 {
		return
	}
	if left := w.patience() - w.clock.Now().Sub(w.began.Add(time.Duration(since))); left > 0 {
		w.stall.Reset(left)
		return
	}
	w.stalled.Store(true)
	_ = w.body.Close() // a Read that waits returns
}

// Read is part of io.Reader.
func (w *wireReader) Read(b []byte) (int, error) {
	start := w.clock.Now()
	w.since.Store(max(int64(start.Sub(w.began)), 1))
	if !w.partial { // how fast the peer gets it says nothing of the link
		w.p.Meter().Waiting()
		w.c.all.Waiting()
	}
	w.stall.Reset(w.patience())
	n, err := w.body.Read(b)
	w.since.Store(0)
	w.stall.Stop()
	if !w.partial {
		w.p.Meter().Got(n)
		w.c.all.Got(n)
	}
	w.total += int64(n)
	w.p.Received.Add(int64(n))
	w.c.cfg.Metrics.PeerReceivedBytes.Add(float64(n))
	if w.crosses {
		w.c.cfg.Metrics.OtherZoneBytes.Add(float64(n))
	}
	switch {
	case err != nil && w.stalled.Load():
		err = errStalled
	case w.most > 0 && w.total > w.most:
		err = errTooLarge
	case err == nil:
		err = w.rate(n, w.clock.Now().Sub(start))
	}
	return n, err
}

// rate notes that n bytes were waited for, and returns an error if the peer is too slow.
func (w *wireReader) rate(n int, waited time.Duration) error {
	w.came += int64(n)
	w.waited += waited
	if w.made != nil {
		if worth := time.Duration(float64(w.made()) / minRatePartial * float64(time.Second)); w.waited > deltaTime+worth {
			return errTooSlow
		}
		return nil
	}
	if w.waited < rateTime {
		return nil
	}
	least := float64(minRate)
	if w.partial {
		least = minRatePartial
	}
	rate := float64(w.came) / w.waited.Seconds()
	w.came, w.waited = 0, 0
	if rate < least {
		if !w.partial {
			w.p.TooSlow()
		}
		return errTooSlow
	}
	return nil
}

// Read returns the next bytes. It fails with io.ErrUnexpectedEOF if the peer stops too early.
func (st *stream) Read(b []byte) (int, error) {
	st.reading.Lock()
	defer st.reading.Unlock()
	switch {
	case st.ended() != nil:
		return 0, st.ended()
	case st.left == 0:
		return 0, io.EOF
	}
	n, err := st.plain.Read(b[:min(int64(len(b)), st.left)])
	if n > 0 {
		st.left -= int64(n)
		st.p.Meter().Asked(-int64(n))
		st.s.received(st.p, n)
	}
	switch {
	case st.left == 0:
		return n, nil
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		st.fail(err)
	}
	return n, err
}

// fail notes why the stream ended early.
func (st *stream) fail(err error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.err != nil || st.closed {
		return
	}
	st.err = err
	select {
	case <-st.gone:
		return // nothing is held against the peer
	default:
	}
	why := "failed"
	switch {
	case errors.Is(err, errStalled):
		why = "stalled"
	case errors.Is(err, errTooSlow):
		why = "slow"
	}
	st.s.c.cfg.Metrics.PeerMoves.WithLabelValues(why).Inc()
	st.s.c.log.Debug("peer stopped in the middle", "peer", st.p.Key, "nar", st.s.want.Info.NarHash(), "left", st.left, "err", err)
	if stalled := errors.Is(err, errStalled); stalled || !st.delta && !errors.Is(err, errTooSlow) {
		st.p.TimedOut()
	}
}

// ended returns the error with which the stream ended, nil if it did not.
func (st *stream) ended() error {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.err
}

// Close ends the stream, also while a Read waits. It may be called more than once.
func (st *stream) Close() error {
	st.mu.Lock()
	closed := st.closed
	st.closed = true
	st.mu.Unlock()
	if closed {
		return os.ErrClosed
	}
	st.wire.stall.Stop()
	_ = st.wire.body.Close()
	for _, end := range st.ends {
		end()
	}
	st.reading.Lock() // a Read that waited returns
	defer st.reading.Unlock()
	if st.decoder != nil {
		_ = st.decoder.Close()
	}
	st.p.Meter().Asked(-st.left)
	return nil
}
