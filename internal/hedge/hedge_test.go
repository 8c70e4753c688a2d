package hedge

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestDo: the next one is asked when one fails or is slow, the first success wins, and the
// others are ended and discarded.
func TestDo(t *testing.T) {
	no := errors.New("no")
	type answer struct {
		after time.Duration
		err   error
	}
	after := func() time.Duration { return 100 * time.Millisecond }
	for _, c := range []struct {
		name     string
		answers  []answer
		parallel int
		stop     bool
		winner   int // -1: none
		late     bool
		took     time.Duration
	}{
		{"the first", []answer{{10 * time.Millisecond, nil}, {0, nil}}, 2, false, 0, false, 10 * time.Millisecond},
		{"the first says no", []answer{{10 * time.Millisecond, no}, {20 * time.Millisecond, nil}}, 2, false, 1, false, 30 * time.Millisecond},
		{"the first is slow", []answer{{time.Hour, nil}, {20 * time.Millisecond, nil}}, 2, false, 1, true, 120 * time.Millisecond},
		{"slow, but one at a time", []answer{{time.Second, nil}, {0, nil}}, 1, false, 0, false, time.Second},
		{"slow, still the first to answer", []answer{{150 * time.Millisecond, nil}, {time.Hour, nil}}, 2, false, 0, false, 150 * time.Millisecond},
		{"nobody", []answer{{10 * time.Millisecond, no}, {10 * time.Millisecond, no}}, 2, false, -1, false, 20 * time.Millisecond},
		{"a failure ends it", []answer{{10 * time.Millisecond, no}, {0, nil}}, 2, true, -1, false, 10 * time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			discarded := 0
			r, release, wait := Do(t.Context(), len(c.answers), c.parallel, after, func(ctx context.Context, i int) (int, error) {
				select {
				case <-time.After(c.answers[i].after):
					return i, c.answers[i].err
				case <-ctx.Done():
					return i, ctx.Err()
				}
			}, func(error) bool { return c.stop }, func(int) { discarded++ })
			took := time.Since(start)
			release()
			wait()
			won := r.Err == nil
			if won != (c.winner >= 0) || won && (r.Index != c.winner || r.Value != c.winner || r.Late != c.late) || took != c.took || discarded != 0 {
				t.Errorf("%s: %+v after %v, %d discarded", c.name, r, took, discarded)
			}
		})
	}
}

// TestDiscard: a loser that succeeds all the same is discarded, and the winner's context goes on
// until it is released.
func TestDiscard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		discarded := 0
		var winner context.Context
		r, release, wait := Do(t.Context(), 2, 2, func() time.Duration { return time.Millisecond }, func(ctx context.Context, i int) (int, error) {
			if i == 1 {
				winner = ctx
				return i, nil
			}
			time.Sleep(time.Second) // it does not listen to ctx
			return i, nil
		}, nil, func(int) { discarded++ })
		wait()
		if r.Index != 1 || discarded != 1 || winner.Err() != nil {
			t.Errorf("%+v, %d discarded, %v", r, discarded, winner.Err())
		}
		if release(); winner.Err() == nil {
			t.Error("the context goes on")
		}
	})
}

// TestTimer: Start until enough is known, then what nine of ten needed, within the bounds.
func TestTimer(t *testing.T) {
	h := Timer{Start: 50, Least: 20, Most: 100}
	for range enough {
		if h.After() != 50 {
			t.Errorf("%v at first", h.After())
		}
		h.Observe(1)
	}
	if h.After() != 20 {
		t.Errorf("%v for quick answers", h.After())
	}
	for i := range 2 * window {
		h.Observe(time.Duration(i))
	}
	if got := h.After(); got != 100 {
		t.Errorf("%v for slow ones", got)
	}
}
