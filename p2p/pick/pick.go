// Package pick keeps what was measured of peers, and chooses among them: by outstanding
// bytes and smoothed round trip, out of two drawn at random, so that a crowd does not fall
// on the one that looked best a moment ago. It asks nobody and knows no guilt.
package pick

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// Meter is what was measured of one peer. It is safe for concurrent use; the zero value has
// measured nothing.
type Meter struct {
	mu      sync.Mutex
	rtt     time.Duration // smoothed; 0: unknown
	pending int64         // bytes asked for and not received
	rate    float64       // bytes a second; 0: unknown

	reading int       // transfers that wait for bytes now
	since   time.Time // when the window began to count
	waited  time.Duration
	window  int64 // bytes in it
	large   int   // transfers begun, for Plain
}

const (
	// startRTT is what is assumed of a peer that has not answered yet: neither best nor worst.
	startRTT = 2 * time.Millisecond
	// assumedRate turns outstanding bytes into time where no rate is known: 1 Gbit/s.
	assumedRate = 125e6

	// A window of the rate: shorter ones measure buffers.
	windowBytes = 4 << 20
	windowTime  = 200 * time.Millisecond

	// slowRate is where zstd level 1 pays: 500 Mbit/s.
	slowRate = 500e6 / 8
	// plainEvery: one in so many transfers from a slow peer is plain, so that a link that
	// was slow only because the other side was busy compressing is seen again.
	plainEvery = 32
)

// Answered notes a round trip.
func (m *Meter) Answered(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.rtt == 0 {
		m.rtt = d
		return
	}
	m.rtt += (d - m.rtt) / 8
}

// RTT returns the smoothed round trip, 0 when unknown.
func (m *Meter) RTT() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rtt
}

// Asked notes that n more bytes were asked for, or with a negative n that they came or
// will not come.
func (m *Meter) Asked(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pending = max(m.pending+n, 0)
}

// Rate returns the measured rate of the link in bytes a second, 0 when unknown.
func (m *Meter) Rate() float64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rate
}

// Waiting notes that a transfer waits for bytes of this peer from now on. Only such time
// counts: what a slow reader does not fetch says nothing about the link.
func (m *Meter) Waiting() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.reading == 0 {
		m.since = time.Now()
	}
	m.reading++
}

// Got notes that the wait ended with n bytes, as on the wire.
func (m *Meter) Got(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	m.reading--
	m.waited += now.Sub(m.since)
	m.since = now
	m.window += int64(n)
	if m.window < windowBytes || m.waited < windowTime {
		return
	}
	rate := float64(m.window) / m.waited.Seconds()
	// The best of late counts: what is less was shared with others or waited for its source.
	m.rate = max(rate, m.rate+(rate-m.rate)/8)
	m.window, m.waited = 0, 0
}

// Compress tells whether the next transfer should be asked for compressed.
func (m *Meter) Compress() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.rate == 0 || m.rate >= slowRate {
		return false
	}
	m.large++
	return m.large%plainEvery != 0
}

// cost estimates how long an answer will take.
func (m *Meter) cost() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	rtt, rate := m.rtt, m.rate
	if rtt == 0 {
		rtt = startRTT
	}
	if rate == 0 {
		rate = assumedRate
	}
	return rtt + time.Duration(float64(m.pending)/rate*float64(time.Second))
}

// Order puts candidates into the order in which they are asked: at each place the cheaper
// of two drawn at random. It changes the slice.
func Order[T any](candidates []T, meter func(T) *Meter) {
	for i := range max(len(candidates)-1, 0) {
		n := len(candidates) - i
		a, b := i+rand.IntN(n), i+rand.IntN(n-1)
		if b >= a {
			b++
		}
		if meter(candidates[b]).cost() < meter(candidates[a]).cost() {
			a = b
		}
		candidates[i], candidates[a] = candidates[a], candidates[i]
	}
}

// Hedge says how long to wait for one peer before a second is asked as well: the 90th
// percentile of late. It is safe for concurrent use; with zero bounds it has those for short
// questions.
type Hedge struct {
	// Start is the wait while little was seen, Least and Most bound it. 0: 15, 3 and 50 ms.
	Start, Least, Most time.Duration

	mu      sync.Mutex
	samples [128]time.Duration
	n       int
	after   time.Duration
}

const (
	startHedge = 15 * time.Millisecond
	minHedge   = 3 * time.Millisecond
	maxHedge   = 50 * time.Millisecond
)

// Note adds how long an answer took, or was waited for in vain: without those a second peer
// would be asked ever more often.
func (h *Hedge) Note(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.samples[h.n%len(h.samples)] = d
	h.n++
	if h.n < 10 || h.n%8 != 0 {
		return
	}
	sorted := slices.Clone(h.samples[:min(h.n, len(h.samples))])
	slices.Sort(sorted)
	h.after = min(max(sorted[len(sorted)*9/10], cmp.Or(h.Least, minHedge)), cmp.Or(h.Most, maxHedge))
}

// After returns the time to wait.
func (h *Hedge) After() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return cmp.Or(h.after, h.Start, startHedge)
}
