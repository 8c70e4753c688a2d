// Package balance keeps what was measured of peers and chooses among them: by outstanding
// bytes and smoothed round trip, the cheaper of two drawn at random ("power of two choices"),
// so that not everybody asks the one that looked best a moment ago.
package balance

import (
	"math/rand/v2"
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
	large   int   // transfers begun, for plainEvery
}

const (
	// startRTT is what is assumed of a peer that has not answered yet: neither best nor worst.
	startRTT = 2 * time.Millisecond
	// assumedRate turns outstanding bytes into time where no rate is known: 1 Gbit/s.
	assumedRate = 125e6

	// A window of the rate: shorter ones measure buffers.
	windowBytes = 1 << 20
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

// Compress reports whether the next transfer should be asked for compressed.
func (m *Meter) Compress() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.rate == 0 || m.rate >= slowRate {
		return false
	}
	m.large++
	return m.large%plainEvery != 0
}

// Slower reports whether the link is known to be slower than rate, in bytes a second.
func (m *Meter) Slower(rate float64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rate > 0 && m.rate < rate
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
