package metrics

import (
	"sync/atomic"
	"time"
)

// Flow counts the bytes of one stream and knows how fast they have come lately. Counting takes
// no lock; the zero value is ready, and it is safe for concurrent use.
type Flow struct {
	total atomic.Int64
	// seconds has the last few, each as its number and its bytes in one word: a second that is
	// over is replaced by the one that takes its place.
	seconds [flowSlots]atomic.Uint64
}

const (
	flowSlots = 4
	// flowBits are for the bytes of a second: 64 GiB. The rest is for its number, which comes
	// round after eight years.
	flowBits = 36
	flowMask = 1<<flowBits - 1
	// flowWindow is how many seconds Rate looks at, the present one included.
	flowWindow = 3
)

// Add counts n bytes now.
func (f *Flow) Add(n int64) {
	if n <= 0 {
		return
	}
	f.total.Add(n)
	second := uint64(time.Now().Unix())
	slot := &f.seconds[second%flowSlots]
	head := second << flowBits
	for {
		old := slot.Load()
		sum := min(uint64(n), flowMask)
		if old&^flowMask == head {
			sum = min(old&flowMask+sum, flowMask)
		}
		if slot.CompareAndSwap(old, head|sum) {
			return
		}
	}
}

// Load returns all bytes so far.
func (f *Flow) Load() int64 { return f.total.Load() }

// Rate returns the bytes a second of the last two to three seconds, of a stream that began at
// since. A clock that was set makes it wrong for as long.
func (f *Flow) Rate(since time.Time) int64 {
	now := time.Now()
	second := uint64(now.Unix())
	var sum uint64
	for back := range uint64(flowWindow) {
		if v := f.seconds[(second-back)%flowSlots].Load(); v&^flowMask == (second-back)<<flowBits {
			sum += v & flowMask
		}
	}
	window := time.Duration(flowWindow-1)*time.Second + time.Duration(now.Nanosecond())
	// The first moments of a stream say little: a burst into buffers is no rate.
	window = max(min(window, now.Sub(since)), 100*time.Millisecond)
	return int64(float64(sum) / window.Seconds())
}
