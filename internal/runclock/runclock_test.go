package runclock

import (
	"context"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestUsed: what counts of the time since the sampler looked.
func TestUsed(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		passed time.Duration
		usage  usage // in it
		want   time.Duration
	}{
		{100 * ms, usage{}, 100 * ms},
		{100 * ms, usage{ran: 100 * ms}, 100 * ms},
		// A process that does little has not lost much, however long its turns had to wait.
		{100 * ms, usage{ran: ms / 10, waited: 5 * ms}, 95 * ms},
		{100 * ms, usage{ran: 50 * ms, waited: 50 * ms}, 50 * ms},
		{100 * ms, usage{ran: 100 * ms, waited: 100 * ms}, 50 * ms},
		{100 * ms, usage{ran: 150 * ms, waited: 50 * ms}, 75 * ms},
		{100 * ms, usage{ran: 15 * ms, waited: 400 * ms}, 100 * ms / slowest},
		// Threads that have ended are not counted any more.
		{100 * ms, usage{ran: -50 * ms, waited: -50 * ms}, 100 * ms},
		{100 * ms, usage{ran: -50 * ms, waited: 20 * ms}, 80 * ms},
		// A process that was stopped.
		{5 * time.Second, usage{}, time.Second},
		{time.Hour, usage{}, time.Second},
	} {
		if got := used(c.passed, c.usage.share(usage{}, c.passed)); got.Round(ms) != c.want.Round(ms) {
			t.Errorf("%v, %+v: %v, want %v", c.passed, c.usage, got, c.want)
		}
	}
}

// TestSlow: where threads wait for a core the clock is slow, and never goes back.
func TestSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var u usage
		c := New()
		c.usage = func() usage { return u }
		begun := c.Now()
		defer c.Watch()()
		c.sample(time.Now(), false)
		before := c.Now()
		for i := range 1000 {
			passed := time.Duration(i%150) * time.Millisecond
			time.Sleep(passed)
			u.ran, u.waited = u.ran+passed/10, u.waited+passed*time.Duration(i%3)
			for range 2 {
				if now := c.Now(); now.Before(before) {
					t.Fatalf("the clock went back by %v", before.Sub(now))
				} else {
					before = now
				}
			}
			c.sample(time.Now(), false)
		}
		all, slow := time.Since(begun), c.Now().Sub(begun)
		if slow < all/slowest || slow > all*2/3 {
			t.Errorf("%v of %v", slow, all)
		}
	})
}

// TestThreads: the kernel tells what this process uses.
func TestThreads(t *testing.T) {
	if _, err := os.Stat("/proc/self/task"); err != nil {
		t.Skip("this system does not tell: the clock is the ordinary one")
	}
	before := threads()
	x := 0
	for range 50_000_000 {
		x++
	}
	if now := threads(); now.ran <= before.ran || now.waited < before.waited {
		t.Errorf("%+v, then %+v after %d additions", before, now, x)
	}
}

// TestIdle: where everything wakes up in time, and where nobody watches, it is the ordinary clock.
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		c := New()
		c.usage = func() usage { return usage{} }
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
