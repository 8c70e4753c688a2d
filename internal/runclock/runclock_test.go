package runclock

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestUsed: what counts of the time between two wake-ups.
func TestUsed(t *testing.T) {
	for passed, want := range map[time.Duration]time.Duration{
		0:                      0,
		every:                  every,
		every + usual:          every + usual,
		every + 2*usual:        every + usual,
		100 * time.Millisecond: 25 * time.Millisecond,
		time.Second:            250 * time.Millisecond,
		time.Hour:              250 * time.Millisecond, // it was stopped
	} {
		if got := used(passed); got != want {
			t.Errorf("%v: %v, want %v", passed, got, want)
		}
	}
}

// TestLate: a sampler that wakes up late slows the clock, which never goes back.
func TestLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New()
		begun := c.Now()
		defer c.Watch()()
		c.sample(time.Now(), false)
		before := c.Now()
		for late := time.Duration(0); late < time.Second; late += 7 * time.Millisecond {
			time.Sleep(late)
			for range 2 {
				if now := c.Now(); now.Before(before) {
					t.Fatalf("the clock went back by %v", before.Sub(now))
				} else {
					before = now
				}
				c.sample(time.Now(), false)
			}
		}
		all, slow := time.Since(begun), c.Now().Sub(begun)
		if slow < all/slowest || slow > all/slowest+time.Second/10 {
			t.Errorf("%v of %v", slow, all)
		}
	})
}

// TestIdle: where everything wakes up in time, and where nobody watches, it is the ordinary clock.
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		c := New()
		var run sync.WaitGroup
		run.Go(func() { _ = c.Run(ctx) })
		defer run.Wait()
		defer cancel()
		for range 3 {
			time.Sleep(time.Second)
			end := c.Watch()
			time.Sleep(time.Second)
			if d := time.Since(c.Now()); d != 0 {
				t.Errorf("behind by %v", d)
			}
			end()
			end()
			synctest.Wait()
		}
		if d := time.Since((*Clock)(nil).Now()); d != 0 {
			t.Errorf("nil is behind by %v", d)
		}
		(*Clock)(nil).Watch()()
	})
}

// TestAfterFunc: f is called when the slower clock says so, once, unless it is stopped.
func TestAfterFunc(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		var called atomic.Int32
		half := func() time.Time { return begun.Add(time.Since(begun) / 2) }
		stop := AfterFunc(half, begun.Add(time.Second), func() { called.Add(1) })
		time.Sleep(2*time.Second - 1)
		if synctest.Wait(); called.Load() != 0 {
			t.Error("called too early")
		}
		time.Sleep(1)
		if synctest.Wait(); called.Load() != 1 {
			t.Error("not called")
		}
		if stop() {
			t.Error("stopped what had been called")
		}
		stop = AfterFunc(half, half().Add(time.Second), func() { t.Error("called") })
		time.Sleep(time.Second)
		if !stop() || stop() {
			t.Error("not stopped once")
		}
		time.Sleep(time.Minute)
	})
}
