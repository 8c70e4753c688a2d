package update

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

// TestSlots: a machine has two encoders at a time, and a minute of CPU in ten.
func TestSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := netip.MustParsePrefix("10.0.0.1/32"), netip.MustParsePrefix("10.0.0.2/32")
		s := newSlots()
		s.free = 3
		one, ok1 := s.take(a)
		two, ok2 := s.take(a)
		if !ok1 || !ok2 {
			t.Fatal("no encoder")
		}
		if _, ok := s.take(a); ok {
			t.Error("a third one for the same machine")
		}
		three, ok := s.take(b)
		if !ok {
			t.Error("none for another machine")
		}
		one(timeEach / 2)
		if _, ok := s.take(b); !ok {
			t.Error("what was released is not free")
		}
		two(timeEach / 2)
		three(0)
		if _, ok := s.take(a); ok {
			t.Error("more than its time")
		}
		time.Sleep(window)
		if _, ok := s.take(a); !ok {
			t.Error("nothing in the next window")
		}
	})
}
