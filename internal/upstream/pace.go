package upstream

import (
	"cmp"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nixp2p/nixp2p/internal/source"
)

// pace measures how fast NARs come: bytes, over the time in which transfers waited for them.
// Two that share the line wait twice as long for as many bytes, and one that stalls waits for
// none. It is safe for concurrent use.
type pace struct {
	mu      sync.Mutex
	bytes   float64
	seconds float64 // that transfers waited
	waiting int     // transfers that wait now
	at      time.Time
	latency time.Duration
}

const (
	paceMemory = 5 * time.Second // what is older counts a third
	paceValid  = 5 * time.Minute // without a transfer: the machine may be in another network
	paceGap    = 20 * time.Millisecond
)

// advance counts the time since the last call. The caller holds mu.
func (p *pace) advance() {
	now := time.Now()
	if p.waiting > 0 {
		d := now.Sub(p.at)
		keep := math.Exp(-d.Seconds() / paceMemory.Seconds())
		p.bytes *= keep
		p.seconds = p.seconds*keep + float64(p.waiting)*d.Seconds()
	}
	p.at = now
}

// begin notes that a transfer waits for bytes, gap after the last came: the reader's own work is
// part of how fast it goes, unless it pauses.
func (p *pace) begin(gap time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.advance()
	p.waiting++
	p.seconds += min(gap, paceGap).Seconds()
}

// end notes that the wait has ended with n bytes.
func (p *pace) end(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.advance()
	p.waiting--
	p.bytes += float64(n)
}

// began notes how long the headers of a NAR took.
func (p *pace) began(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.latency = cmp.Or(p.latency, d)
	p.latency += (d - p.latency) / 4
}

func (p *pace) now() source.Pace {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waiting == 0 && time.Since(p.at) > paceValid {
		return source.Pace{}
	}
	if p.waiting > 0 {
		p.advance()
	}
	r := source.Pace{Latency: p.latency}
	if p.seconds > 0 {
		r.Rate = max(p.bytes/p.seconds, 1)
	}
	return r
}

// latency is the usual time of an answer: a mean that one slow answer hardly moves.
type latency struct{ v atomic.Int64 }

func (l *latency) add(d time.Duration) {
	old := cmp.Or(l.get(), d)
	l.v.Store(int64(max(old+(min(d, 4*old)-old)/8, 1)))
}

func (l *latency) get() time.Duration { return time.Duration(l.v.Load()) }
