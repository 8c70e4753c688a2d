package backoff

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestSet: keys expire, the first one gives way, and a key that was removed and added again
// counts from then on.
func TestSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewSet[string](2)
		s.Add("a", time.Minute)
		s.Add("b", time.Hour)
		if until, ok := s.Until("b"); !ok || time.Until(until) != time.Hour {
			t.Errorf("b until %v, %v", until, ok)
		}
		time.Sleep(time.Minute)
		if s.Has("a") || !s.Has("b") || s.Len() != 1 {
			t.Error("a has not expired, or b has")
		}
		s.Remove("b")
		s.Add("c", time.Hour)
		s.Add("b", time.Hour)
		s.Add("d", time.Hour) // c was put in before b
		if s.Has("c") || !s.Has("b") || !s.Has("d") {
			t.Errorf("c %v, b %v, d %v", s.Has("c"), s.Has("b"), s.Has("d"))
		}
		for i := range 1000 {
			s.Remove("b")
			s.Add("b", time.Duration(i+1)*time.Hour)
		}
		if len(s.order) > 100 || !s.Has("b") {
			t.Errorf("%d places for two keys", len(s.order))
		}
	})
}

// TestGrow: a key that comes again after it expired stays longer, one that is dropped or removed
// begins anew.
func TestGrow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewSet[string](2)
		stays := func(want time.Duration) {
			t.Helper()
			s.Grow("a", time.Minute, 5*time.Minute)
			s.Grow("a", time.Minute, 5*time.Minute) // by another who found the same
			if until, ok := s.Until("a"); !ok || time.Until(until) != want {
				t.Errorf("stays for %v, %v, want %v", time.Until(until), ok, want)
			}
			time.Sleep(want)
			if s.Has("a") {
				t.Error("has not expired")
			}
		}
		for _, want := range []time.Duration{1, 2, 4, 5, 5} {
			stays(want * time.Minute)
		}
		s.Remove("a")
		stays(time.Minute)
		s.Add("b", time.Hour)
		s.Add("c", time.Hour) // a gives way
		s.Remove("c")
		stays(time.Minute)
	})
}

// TestDelay: each failure doubles the time, up to the most; a success ends it.
func TestDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := Delay{First: time.Second, Most: 5 * time.Second}
		if !d.Ready() {
			t.Error("not ready at first")
		}
		for _, want := range []time.Duration{1, 2, 4, 5, 5} {
			if got := d.Fail(); got != want*time.Second || d.Ready() {
				t.Errorf("left alone for %v, want %v s", got, int64(want))
			}
			time.Sleep(want*time.Second - 1)
			if d.Ready() {
				t.Error("ready too early")
			}
			time.Sleep(1)
			if !d.Ready() {
				t.Error("not ready in time")
			}
		}
		if d.Failures() != 5 {
			t.Errorf("%d failures", d.Failures())
		}
		d.Pause(time.Hour)
		d.Succeed()
		if !d.Ready() || d.Failures() != 0 {
			t.Error("a success does not end it")
		}
	})
}
