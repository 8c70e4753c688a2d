package metrics

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestFlow: a steady stream has its rate, one that stalled has none, and all bytes count.
func TestFlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f Flow
		since := time.Now()
		for range 50 { // 5 s
			f.Add(100)
			f.Add(0)
			f.Add(-5)
			time.Sleep(100 * time.Millisecond)
		}
		if got := f.Rate(since); got < 900 || got > 1100 {
			t.Errorf("1000 bytes a second are called %d", got)
		}
		time.Sleep(10 * time.Second)
		if got := f.Rate(since); got != 0 {
			t.Errorf("stalled, and the rate is %d", got)
		}
		if f.Load() != 5000 {
			t.Errorf("%d bytes", f.Load())
		}
		// A stream that began a moment ago is measured over its own time.
		var young Flow
		since = time.Now()
		time.Sleep(500 * time.Millisecond)
		young.Add(1000)
		if got := young.Rate(since); got != 2000 {
			t.Errorf("1000 bytes in half a second are called %d", got)
		}
		// More than a word has bits for does not spill into the number of the second.
		var huge Flow
		huge.Add(1 << 40)
		huge.Add(1 << 40)
		if got := huge.Rate(time.Now().Add(-time.Hour)); got <= 0 || got > flowMask {
			t.Errorf("rate %d", got)
		}
		if huge.Load() != 2<<40 {
			t.Errorf("%d bytes", huge.Load())
		}
	})
}

func TestFlowConcurrent(t *testing.T) {
	var f Flow
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 1000 {
				f.Add(3)
				f.Rate(time.Now())
			}
		})
	}
	all.Wait()
	if f.Load() != 24000 {
		t.Errorf("%d bytes", f.Load())
	}
}

func BenchmarkFlow(b *testing.B) {
	var f Flow
	for b.Loop() {
		f.Add(1)
	}
}
