// Package runclock tells how much time this process was able to use. Where the cores are busy
// with other work, bytes and answers that came in time are read late; that is not the fault of
// whoever sent them.
package runclock

import (
	"context"
	"sync"
	"time"
)

// Clock is a clock that runs slower while the process is kept from running. It measures how
// late a goroutine wakes up that sleeps, and only while somebody watches: otherwise it is the
// ordinary clock. It never goes back. A nil Clock is the ordinary one. It is safe for concurrent
// use.
type Clock struct {
	wake chan struct{} // somebody watches

	mu       sync.Mutex
	watchers int
	sampling bool
	lost     time.Duration // before last
	last     time.Time     // the sampler woke up
}

const (
	// every is how long the sampler sleeps, usual how late it may wake up on an idle machine.
	every = 5 * time.Millisecond
	usual = 3 * time.Millisecond
	// slowest is how many times slower than the ordinary clock a Clock runs at most: whoever
	// keeps this machine busy from outside holds nothing up for longer.
	slowest = 4
)

// New returns a Clock. Without Run it is the ordinary clock.
func New() *Clock { return &Clock{wake: make(chan struct{}, 1)} }

// Run measures, while somebody watches, until ctx ends.
func (c *Clock) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.wake:
		}
		for c.sample(time.Now(), ctx.Err() != nil) {
			time.Sleep(every)
		}
	}
}

// sample notes that the sampler woke up, and reports whether it goes on.
func (c *Clock) sample(now time.Time, stop bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sampling {
		passed := now.Sub(c.last)
		c.lost += passed - used(passed)
	}
	c.last = now
	c.sampling = c.watchers > 0 && !stop
	return c.sampling
}

// used returns how much the process was able to use of the time that has passed since the
// sampler went to sleep. After stopped, it cannot run at all.
func used(passed time.Duration) time.Duration {
	return max(min(passed, every+usual), min(passed, stopped)/slowest)
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
		return c.last.Add(used(now.Sub(c.last)) - c.lost)
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
