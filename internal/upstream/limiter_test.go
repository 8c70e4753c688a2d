package upstream

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestLimiter: late answers lower the limit, others raise it again, and whoever leaves while
// waiting takes nobody's place.
func TestLimiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l limiter
		var most, now atomic.Int32
		burst := func(n int, takes time.Duration) (took time.Duration, together int32) {
			most.Store(0)
			start := time.Now()
			var all sync.WaitGroup
			for range n {
				all.Go(func() {
					if err := l.acquire(t.Context()); err != nil {
						t.Error(err)
						return
					}
					began := time.Now()
					for k := now.Add(1); k > most.Load(); k = now.Load() {
						most.Store(k)
					}
					<-time.After(takes)
					now.Add(-1)
					l.release(time.Since(began), true)
				})
			}
			all.Wait()
			return time.Since(start), most.Load()
		}
		if took, n := burst(10*limitMost, 10*time.Millisecond); n != limitMost || took != 100*time.Millisecond {
			t.Errorf("free line: %d at a time, %v", n, took)
		}
		l.release(0, false) // called off at once: that is not how soon an answer can come
		l.out++
		if l.least != 10*time.Millisecond {
			t.Errorf("least %v", l.least)
		}
		burst(640, 2*time.Second)
		if _, n := burst(60, 2*time.Second); n != limitLeast {
			t.Errorf("full line: %d at a time", n)
		}
		left, leave := context.WithCancel(t.Context())
		var all sync.WaitGroup
		for range limitLeast {
			_ = l.acquire(t.Context())
		}
		for range 3 {
			all.Go(func() {
				if err := l.acquire(left); err == nil {
					t.Error("a place too many")
				}
			})
		}
		synctest.Wait()
		leave()
		all.Wait()
		for range limitLeast {
			l.release(time.Millisecond, true)
		}
		if l.out != 0 || len(l.queue) != 0 {
			t.Errorf("%d places taken, %d wait", l.out, len(l.queue))
		}
		burst(40_000, 10*time.Millisecond)
		if _, n := burst(4*limitMost, 10*time.Millisecond); n < limitMost/2 {
			t.Errorf("free again: %d at a time", n)
		}

		l.size, l.least = 0, 0 // a cache that is slow by nature
		if took, n := burst(4*limitMost, 2*time.Second); n != limitMost || took != 8*time.Second {
			t.Errorf("slow cache: %d at a time, %v", n, took)
		}
	})
}
