package taskgroup

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestGroup: Close waits for all and lets none start.
func TestGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		var ended atomic.Int32
		for range 3 {
			if !g.Go(func() { time.Sleep(time.Second); ended.Add(1) }) {
				t.Error("not started")
			}
		}
		done, ok := g.Enter()
		if !ok {
			t.Fatal("not entered")
		}
		time.AfterFunc(2*time.Second, done)
		start := time.Now()
		g.Close()
		if ended.Load() != 3 || time.Since(start) != 2*time.Second {
			t.Errorf("closed after %v with %d ended", time.Since(start), ended.Load())
		}
		done() // a second call does nothing
		if _, ok := g.Enter(); ok || g.Go(func() { t.Error("started") }) {
			t.Error("a closed group starts")
		}
		g.Close()
	})
}
