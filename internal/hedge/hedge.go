// Package hedge asks a second one when the first is slower than usual, and takes the first
// good answer.
package hedge

import (
	"context"
	"slices"
	"sync"
	"time"
)

// Timer says after how long a second one is asked: the time in which nine of ten answered
// lately, between Least and Most, and Start until enough answers were seen. It is safe for
// concurrent use.
type Timer struct {
	Start, Least, Most time.Duration

	mu    sync.Mutex
	last  [window]time.Duration
	count int
}

const (
	window = 64 // answers that are remembered
	enough = 8  // before that, Start
)

// Observe notes how long an answer took, or how long it was waited for in vain.
func (t *Timer) Observe(d time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last[t.count%window] = d
	t.count++
}

// After returns the time to wait before a second one is asked.
func (t *Timer) After() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.count < enough {
		return t.Start
	}
	seen := slices.Clone(t.last[:min(t.count, window)])
	slices.Sort(seen)
	return max(t.Least, min(t.Most, seen[len(seen)*9/10]))
}

// Result is how one attempt ended.
type Result[T any] struct {
	Value T
	Err   error
	Index int  // of the attempt, from 0
	Late  bool // it was started because an earlier one was slow
}

// Do runs attempts 0, 1, … of n until one succeeds: the next one when the last has failed, or
// when none has answered for after(). At most parallel run at a time. It returns the first
// success, else the last failure; stop, if not nil, reports that a failure ends the search.
//
// The context of an attempt ends when the attempt has failed or has lost. That of the winner
// goes on until its release is called: the value may be a stream. Losers that succeed late
// are passed to discard. Do returns when it knows the result; wait, which the caller calls,
// returns when all attempts have.
func Do[T any](ctx context.Context, n, parallel int, after func() time.Duration,
	attempt func(ctx context.Context, i int) (T, error), stop func(error) bool, discard func(T),
) (r Result[T], release context.CancelFunc, wait func()) {
	results := make(chan Result[T])
	over := make(chan struct{})
	cancels := map[int]context.CancelFunc{}
	var all sync.WaitGroup
	next := 0
	start := func(late bool) {
		if next == n || len(cancels) == parallel {
			return
		}
		i := next
		next++
		actx, cancel := context.WithCancel(ctx)
		cancels[i] = cancel
		all.Go(func() {
			v, err := attempt(actx, i)
			select {
			case results <- Result[T]{v, err, i, late}:
			case <-over:
				if err == nil {
					discard(v)
				}
				cancel()
			}
		})
	}
	finish := func(r Result[T], keep int) (Result[T], context.CancelFunc, func()) {
		release := func() {}
		for i, cancel := range cancels {
			if i == keep {
				release = cancel
			} else {
				cancel()
			}
		}
		close(over)
		return r, release, all.Wait
	}
	start(false)
	timer := time.NewTimer(after())
	defer timer.Stop()
	for len(cancels) > 0 {
		select {
		case <-timer.C:
			start(true)
			timer.Reset(after())
		case <-ctx.Done():
			return finish(Result[T]{Err: ctx.Err(), Index: -1}, -1)
		case r = <-results:
			if r.Err == nil {
				return finish(r, r.Index)
			}
			cancels[r.Index]()
			delete(cancels, r.Index)
			if stop != nil && stop(r.Err) {
				return finish(r, -1)
			}
			start(false)
			timer.Reset(after())
		}
	}
	return finish(r, -1)
}
