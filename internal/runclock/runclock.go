// Package runclock tells how much time this process was able to use. Where the cores are busy
// with other work, bytes and answers that came in time are read late; that is not the fault of
// whoever sent them.
package runclock

import (
	"context"
	"sync"
	"time"
)

// Clock is a clock that runs slower while the process is kept from running: while its threads
// wait for a core, as the kernel counts it, or while it does not run at all. It is measured only
// while somebody watches; otherwise, and where the kernel does not tell, it is the ordinary
// clock. It never goes back. A nil Clock is the ordinary one. It is safe for concurrent use.
type Clock struct {
	wake  chan struct{} // somebody watches
	usage func() usage

	mu       sync.Mutex
	watchers int
	sampling bool
	lost     time.Duration // before last
	last     time.Time     // the sampler looked
	usedThen usage         // at last
	share    float64       // of the time since last that counts: of the interval before it
}

// usage is what the threads of this process had of the cores since it began.
type usage struct {
	ran, waited time.Duration
}

const (
	// every is how often the sampler looks. One look takes 0.2 ms.
	every = 100 * time.Millisecond
	// slowest is how many times slower than the ordinary clock a Clock runs at most: whoever
	// keeps this machine busy from outside holds nothing up for longer.
	slowest = 8
)

// New returns a Clock. Without Run it is the ordinary clock.
func New() *Clock { return &Clock{wake: make(chan struct{}, 1), usage: threads} }

// Run measures, while somebody watches, until ctx ends.
func (c *Clock) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.wake:
		}
		for c.sample(time.Now(), ctx.Err() != nil) {
			select {
			case <-time.After(every):
			case <-ctx.Done():
			}
		}
	}
}

// sample notes what the process was able to use, and reports whether the sampler goes on.
func (c *Clock) sample(now time.Time, stop bool) bool {
	u := c.usage()
	c.mu.Lock()
	defer c.mu.Unlock()
	share := 1.0
	if c.sampling {
		passed := now.Sub(c.last)
		c.lost += passed - used(passed, c.share)
		share = u.share(c.usedThen, passed)
	}
	c.last, c.usedThen, c.share = now, u, share
	c.sampling = c.watchers > 0 && !stop
	return c.sampling
}

// share returns the part of the time since before, which has passed, that the process was able
// to use. Threads that wait at the same time cannot lose more than that time; threads that wait
// for each other's turn have lost what they would have had with a core each.
func (u usage) share(before usage, passed time.Duration) float64 {
	ran, waited := float64(u.ran-before.ran), float64(u.waited-before.waited)
	if waited <= 0 || passed <= 0 {
		return 1
	}
	return 1 - min(waited/float64(passed), waited/(max(ran, 0)+waited))
}

// used returns how much counts of the time that has passed since the sampler looked. If it does
// not look for so long, the process does not run at all.
func used(passed time.Duration, share float64) time.Duration {
	return time.Duration(float64(min(passed, stopped)) * max(share, 1.0/slowest))
}

// Now returns the time on this clock.
func (c *Clock) Now() time.Time {
	if c == nil {
		return time.Now()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if c.sampling {
		return c.last.Add(used(now.Sub(c.last), c.share) - c.lost)
	}
	return now.Add(-c.lost)
}

// Watch has the clock measured until end is called.
func (c *Clock) Watch() (end func()) {
	if c == nil {
		return func() {}
	}
	c.mu.Lock()
	c.watchers++
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
	return sync.OnceFunc(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.watchers--
	})
}

// AfterFunc calls f in a goroutine of its own once now, which may run slower than the ordinary
// clock, has reached t. It reports by stop whether that was prevented.
func AfterFunc(now func() time.Time, t time.Time, f func()) (stop func() bool) {
	var (
		mu    sync.Mutex
		timer *time.Timer
		over  bool // f was called, or is not to be
	)
	end := func() bool { // the caller holds mu
		first := !over
		over = true
		return first
	}
	look := func() {
		mu.Lock()
		left := t.Sub(now())
		if left > 0 && !over {
			timer.Reset(left)
		}
		call := left <= 0 && end()
		mu.Unlock()
		if call {
			f()
		}
	}
	mu.Lock()
	defer mu.Unlock()
	timer = time.AfterFunc(max(t.Sub(now()), 0), look)
	return func() bool {
		mu.Lock()
		defer mu.Unlock()
		timer.Stop()
		return end()
	}
}
