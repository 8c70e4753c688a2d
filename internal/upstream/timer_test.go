package upstream

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestTimer: time in which the process was stopped is not the other side's.
func TestTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int32
		begun := time.Now()
		timer := newTimer(time.Hour, func() { calls.Add(1) })
		timer.Reset(10 * time.Second)
		time.Sleep(10*time.Second - 1)
		if synctest.Wait(); calls.Load() != 0 {
			t.Error("too early")
		}
		time.Sleep(1)
		if synctest.Wait(); calls.Load() != 1 {
			t.Error("not in time")
		}
		timer.Reset(time.Second)
		timer.Stop()
		// A process that was stopped finds its timers run out long after they were due.
		timer.mu.Lock()
		timer.due = begun
		timer.mu.Unlock()
		timer.fire()
		time.Sleep(awake - 1)
		if synctest.Wait(); calls.Load() != 1 {
			t.Error("what came meanwhile could not be read")
		}
		time.Sleep(1)
		if synctest.Wait(); calls.Load() != 2 {
			t.Error("not after that")
		}
		timer.Reset(time.Second)
		timer.Stop()
		time.Sleep(time.Minute)
		if synctest.Wait(); calls.Load() != 2 {
			t.Error("although it was stopped")
		}
	})
}
