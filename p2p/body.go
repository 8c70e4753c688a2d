package p2p

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"os"
	"slices"
	"time"

	"github.com/nixp2p/nixp2p/internal/compress"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/p2p/standing"
	"github.com/nixp2p/nixp2p/verify"
)

const (
	// stallTime without a byte is enough to go on elsewhere.
	stallTime = 5 * time.Second
	// A peer is left for another one when for slowTime it was slower than 1/slowShare of
	// the median, and for any other source below slowFloor.
	slowTime  = 3 * time.Second
	slowShare = 8
	slowFloor = 32 << 10 // bytes a second
	floorTime = 10 * time.Second
)

var (
	errStalled = errors.New("no byte for a while")
	errCrawls  = errors.New("far slower than others")
)

// source is the answer of one peer.
type source struct {
	r        *remote
	body     io.ReadCloser // as on the wire
	plain    io.Reader
	unzip    io.Closer // nil when not compressed
	end      context.CancelFunc
	idle     func() // the peer is not needed any more
	stall    *time.Timer
	n        *Node
	owed     int64 // bytes that were asked for and have not come
	marked   time.Time
	slowTo   int64         // bytes since marked
	waited   time.Duration // of the time since marked
	counted  bool          // as a contributor
	partial  bool          // it gets the bytes itself at the moment
	patience time.Duration // without a byte
	from     int64         // the first byte that it gave
	sum      maphash.Hash  // of what it gave
}

func newSource(n *Node, r *remote, body io.ReadCloser, owed int64, squeezed bool, end context.CancelFunc) *source {
	s := &source{r: r, body: body, end: end, n: n, owed: owed, marked: time.Now()}
	s.patience = stallTime
	s.stall = time.AfterFunc(s.patience, end)
	s.stall.Stop()
	s.plain = wireReader{s}
	if squeezed {
		z, err := compress.NewReader(nix.Zstd, s.plain)
		if err == nil { // the compression is known
			s.plain, s.unzip = z, z
		}
	}
	r.meter.Asked(s.owed)
	s.idle = r.use()
	return s
}

// wireReader counts and times what comes from the peer.
type wireReader struct{ s *source }

func (w wireReader) Read(b []byte) (int, error) {
	s := w.s
	start := time.Now()
	s.r.meter.Waiting()
	s.stall.Reset(s.patience)
	k, err := s.body.Read(b)
	stalled := !s.stall.Stop() && err != nil
	if !s.partial { // how fast it gets it says nothing of the link
		s.r.meter.Got(k)
	}
	s.waited += time.Since(start)
	s.slowTo += int64(k)
	s.r.received.Add(int64(k))
	s.n.cfg.Metrics.PeerReceivedBytes.Add(float64(k))
	if stalled {
		err = errStalled
	}
	return k, err
}

func (s *source) close() {
	s.stall.Stop()
	s.end()
	_ = s.body.Close()
	if s.unzip != nil {
		_ = s.unzip.Close()
	}
	s.r.meter.Asked(-s.owed)
	s.idle()
}

// crawls tells whether this peer is so slow that another one, or with no other in sight any
// other source, is better.
func (s *source) crawls(median float64, others func() bool) bool {
	since := time.Since(s.marked)
	floor, patience := float64(slowFloor), floorTime
	if s.partial { // its own source may be slow, and it may lie about that
		floor, patience, median = floor/slowShare, 3*patience, 0
	}
	if since < slowTime {
		return false
	}
	rate := float64(s.slowTo) / max(s.waited, time.Millisecond).Seconds()
	idle := s.waited < since*4/5 // the reader was the slow one
	if !idle && since >= patience && rate < floor {
		s.r.drips()
		return true
	}
	if !idle && rate < median/slowShare && others() {
		return true
	}
	if since >= patience {
		s.marked, s.slowTo, s.waited = time.Now(), 0, 0
	}
	return false
}

// body reads from one peer after the other. It is for one goroutine; the end of the context
// that NAR was called with ends a Read.
type body struct {
	f      *fetch
	reopen func() error // opens a peer at the next byte
	err    error
}

func (f *fetch) stream(ctx context.Context) *body {
	return &body{f: f, reopen: func() error { return f.begin(ctx) }}
}

// Read is part of io.ReadCloser.
func (b *body) Read(p []byte) (int, error) {
	f := b.f
	for b.err == nil {
		if f.at == f.size {
			b.leave()
			b.err = io.EOF
			break
		}
		if f.from == nil {
			if err := b.reopen(); err != nil {
				// Not absence: the beginning was there.
				b.err = fmt.Errorf("p2p: at byte %d of %d: no other peer: %v", f.at, f.size, err)
				break
			}
		}
		src := f.from
		k, err := src.plain.Read(p[:min(int64(len(p)), f.size-f.at)])
		f.took(src, p[:k])
		if err == nil && f.at < f.size && src.crawls(f.n.medianRate(src.r), f.others) {
			err = errCrawls
		}
		if err != nil && f.at < f.size {
			f.n.cfg.Metrics.PeerMoves.WithLabelValues(whyLeft(err)).Inc()
		}
		if f.only != nil && errors.Is(err, errStalled) {
			// The others that were named may wait for the same: the coordinator knows.
			f.stalled = src.r.id
			b.leave()
			b.err = err
		} else if err != nil && f.at < f.size {
			f.n.log.Debug("peer left in the middle", "peer", src.r.id, "nar", f.info.NarHash(), "at", f.at, "err", err)
			f.tried[src.r.id] = true
			if !errors.Is(err, errCrawls) {
				src.r.slow()
			}
			b.leave()
		}
		if k > 0 {
			return k, nil
		}
	}
	return 0, b.err
}

// whyLeft is why a peer was left in the middle, for the metric.
func whyLeft(err error) string {
	switch {
	case errors.Is(err, errStalled):
		return "stalled"
	case errors.Is(err, errCrawls):
		return "slow"
	}
	return "failed"
}

// took notes that these bytes of the NAR came from a peer.
func (f *fetch) took(src *source, p []byte) {
	k := len(p)
	if k == 0 {
		return
	}
	if !src.counted {
		src.counted, src.from, src.sum = true, f.at, f.n.evidence.Hash()
		f.n.trails.Contributed(f.name(), src.r.key)
	}
	_, _ = src.sum.Write(p)
	f.at += int64(k)
	src.owed -= int64(k)
	src.r.meter.Asked(-int64(k))
}

// leave closes the peer that is open.
func (b *body) leave() {
	f := b.f
	if f.from == nil {
		return
	}
	if src := f.from; src.counted {
		f.n.trails.Gave(f.name(), standing.Given{
			Peer: src.r.key, From: src.from, To: f.at, Sum: src.sum.Sum64(),
			// It gives the tail of what it is getting only when it has proven it.
			Relayed: src.partial && f.at < f.size,
		})
	}
	f.from.close()
	f.from = nil
}

// Close is part of io.ReadCloser.
func (b *body) Close() error {
	b.leave()
	if b.f != nil && !errors.Is(b.err, os.ErrClosed) {
		b.f.n.trails.Ended(b.f.name())
	}
	b.err = os.ErrClosed
	return nil
}

// others tells whether there is another peer to go on with.
func (f *fetch) others() bool {
	for _, r := range f.n.holders(nil, f.key()) {
		if r != f.from.r && f.usable(r) {
			return true
		}
	}
	return false
}

// medianRate returns the rate in bytes a second that is usual for the peers except one, 0 when
// too few were measured.
func (n *Node) medianRate(except *remote) float64 {
	var rates []float64
	for _, r := range n.table.all() {
		if rate := r.meter.Rate(); r != except && rate > 0 {
			rates = append(rates, rate)
		}
	}
	if len(rates) == 0 {
		return 0
	}
	slices.Sort(rates)
	return rates[len(rates)/2]
}

// Convict says that all bytes of this form came from peers and were wrong. One who sent all
// of them lied; of several each is avoided for this NAR, for one of them is innocent.
func (n *Node) Convict(info *verify.Info, form nix.Form, err error) {
	peers, alone := n.trails.Guilty(standing.Stream{Nar: info.NarHash(), Form: form})
	var lie *verify.InvalidError
	switch {
	case !errors.As(err, &lie):
	case alone:
		n.convict(peers[0], lie)
	default:
		n.Suspect(info, form)
	}
}

// Suspect says that bytes of this form, of which a part came from peers, were wrong. Those who
// gave it are avoided for this NAR, until Right knows better.
func (n *Node) Suspect(info *verify.Info, form nix.Form) {
	k := standing.Stream{Nar: info.NarHash(), Form: form}
	peers, _ := n.trails.Guilty(k)
	for _, p := range peers {
		n.standing.Avoid(p, info.NarHash())
	}
	n.evidence.Keep(k, n.trails.Given(k))
}

// Right returns where bytes of this form are to be written to, from the first one on, and what
// is to be called when they are there as a whole and proven: who of those suspected gave other
// bytes lied, the others are asked again. Both are nil where nobody is suspected.
func (n *Node) Right(info *verify.Info, form nix.Form) (bytes io.Writer, proven func()) {
	c := n.evidence.Compare(standing.Stream{Nar: info.NarHash(), Form: form})
	if c == nil {
		return nil, nil
	}
	return c, func() {
		guilty, misled, innocent := c.Verdict()
		for _, p := range misled {
			n.vouched.Delete(p)
			n.standing.Clear(p, info.NarHash())
			n.log.Debug("peer passed on what it was given wrong", "peer", p, "nar", info.NarHash())
		}
		for _, p := range guilty {
			n.convict(p, &verify.InvalidError{Reason: verify.ReasonHash, Err: fmt.Errorf("its part of NAR %s is not the right one", info.NarHash())})
		}
		for _, p := range innocent {
			n.standing.Clear(p, info.NarHash())
			n.log.Debug("peer is cleared", "peer", p, "nar", info.NarHash())
		}
	}
}

// Proven says that all bytes of this form were right, those that came from peers as well.
func (n *Node) Proven(info *verify.Info, form nix.Form) {
	for _, p := range n.trails.Last(standing.Stream{Nar: info.NarHash(), Form: form}) {
		n.vouched.Store(p, true)
	}
}

// Vouched tells whether all peers that gave of this form so far have given right bytes before.
func (n *Node) Vouched(info *verify.Info, form nix.Form) bool {
	peers, _ := n.trails.Guilty(standing.Stream{Nar: info.NarHash(), Form: form})
	for _, p := range peers {
		if _, ok := n.vouched.Load(p); !ok {
			return false
		}
	}
	return len(peers) > 0
}
