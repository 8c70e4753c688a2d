package runclock

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// stop has a timer find that d has passed since it looked, in which the process did not run.
func (t *Timer) stop(d time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.since = t.since.Add(-d)
}

// TestTimer: time in which the process was stopped is not the other side's.
func TestTimer(t *testing.T) {
	const limit = 10 * time.Second
	for name, c := range map[string]struct {
		at, stopped time.Duration // when the process is stopped, and for how long
		want        time.Duration // until it runs out, without the time that it was stopped
	}{
		"never":                  {want: limit},
		"busy":                   {at: time.Second, stopped: stopped - step, want: limit - stopped + step},
		"early, for long":        {at: 100 * time.Millisecond, stopped: time.Hour, want: limit},
		"in the middle, shorter": {at: 5 * time.Second, stopped: 4 * time.Second, want: limit},
		"at the end":             {at: limit - step/2, stopped: time.Minute, want: limit + awake},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var calls atomic.Int32
				timer := NewTimer(time.Hour, func() { calls.Add(1) })
				timer.Reset(limit)
				time.Sleep(c.at)
				synctest.Wait()
				timer.stop(c.stopped)
				if got := timer.Interrupted(); got != (c.stopped > stopped) {
					t.Errorf("interrupted: %v", got)
				}
				time.Sleep(c.want - c.at - 1)
				if synctest.Wait(); calls.Load() != 0 {
					t.Error("too early")
				}
				time.Sleep(step + 1) // what it counts in the step of the stop
				if synctest.Wait(); calls.Load() != 1 {
					t.Error("not in time")
				}
				timer.Reset(time.Second)
				if timer.Interrupted() {
					t.Error("interrupted after Reset")
				}
				timer.Stop()
				time.Sleep(time.Minute)
				if synctest.Wait(); calls.Load() != 1 {
					t.Error("although it was stopped")
				}
			})
		})
	}
}

func TestWithTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		ctx, cancel := WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		<-ctx.Done()
		if took := time.Since(start); took != 10*time.Second || !errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
			t.Errorf("%v after %v", context.Cause(ctx), took)
		}
		ctx, cancel = WithTimeout(t.Context(), -1)
		defer cancel()
		<-ctx.Done()
		ctx, cancel = WithTimeout(t.Context(), time.Second)
		cancel()
		if !errors.Is(context.Cause(ctx), context.Canceled) {
			t.Error(context.Cause(ctx))
		}
	})
}
