package p2p

import (
	"context"
	"errors"
	"fmt"
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
	r       *remote
	body    io.ReadCloser // as on the wire
	plain   io.Reader
	unzip   io.Closer // nil when not compressed
	end     context.CancelFunc
	stall   *time.Timer
	n       *Node
	owed    int64 // bytes that were asked for and have not come
	marked  time.Time
	slowTo  int64         // bytes since marked
	waited  time.Duration // of the time since marked
	counted bool          // as a contributor
}

func newSource(f *fetch, r *remote, body io.ReadCloser, squeezed bool, end context.CancelFunc) *source {
	s := &source{r: r, body: body, end: end, n: f.n, owed: f.size - f.at, marked: time.Now()}
	s.stall = time.AfterFunc(stallTime, end)
	s.stall.Stop()
	s.plain = wireReader{s}
	if squeezed {
		z, err := compress.NewReader(nix.Zstd, s.plain)
		if err == nil { // the compression is known
			s.plain, s.unzip = z, z
		}
	}
	r.meter.Asked(s.owed)
	r.busy.Add(1)
	return s
}

// wireReader counts and times what comes from the peer.
type wireReader struct{ s *source }

func (w wireReader) Read(b []byte) (int, error) {
	s := w.s
	start := time.Now()
	s.r.meter.Waiting()
	s.stall.Reset(stallTime)
	k, err := s.body.Read(b)
	stalled := !s.stall.Stop() && err != nil
	s.r.meter.Got(k)
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
	s.r.busy.Add(-1)
}

// crawls tells whether this peer is so slow that another one, or with no other in sight any
// other source, is better.
func (s *source) crawls(median float64, others func() bool) bool {
	since := time.Since(s.marked)
	if since < slowTime {
		return false
	}
	rate := float64(s.slowTo) / max(s.waited, time.Millisecond).Seconds()
	idle := s.waited < since*4/5 // the reader was the slow one
	if !idle && (rate < median/slowShare && others() || since >= floorTime && rate < slowFloor) {
		return true
	}
	if since >= floorTime {
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
		f.took(src, k)
		if err == nil && f.at < f.size && src.crawls(f.n.medianRate(src.r), f.others) {
			err = errCrawls
		}
		if err != nil && f.at < f.size {
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

// took notes that k bytes of the NAR came from a peer.
func (f *fetch) took(src *source, k int) {
	if k == 0 {
		return
	}
	if !src.counted {
		src.counted = true
		f.n.trails.Contributed(f.name(), src.r.key)
	}
	f.at += int64(k)
	src.owed -= int64(k)
	src.r.meter.Asked(-int64(k))
}

// leave closes the peer that is open.
func (b *body) leave() {
	if b.f.from != nil {
		b.f.from.close()
		b.f.from = nil
	}
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
	var lie *verify.LieError
	if !errors.As(err, &lie) {
		return
	}
	for _, p := range peers {
		if alone {
			n.convict(p, lie)
		} else {
			n.standing.Avoid(p, info.NarHash())
		}
	}
}
