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
		take := func(m netip.Prefix, size int64) (func(time.Duration), bool) { return s.wait(t.Context(), m, size, 0) }
		one, ok1 := take(a, 1000)
		two, ok2 := take(a, 1000)
		if !ok1 || !ok2 {
			t.Fatal("no encoder")
		}
		if _, ok := take(a, 1000); ok {
			t.Error("a third one for the same machine")
		}
		three, ok := take(b, 1000)
		if !ok {
			t.Error("none for another machine")
		}
		one(timeEach / 2)
		if _, ok := take(b, 1000); !ok {
			t.Error("what was released is not free")
		}
		two(timeEach / 2)
		three(0)
		if _, ok := take(a, 1000); ok {
			t.Error("more than its time")
		}
		time.Sleep(window)
		if _, ok := take(a, 1000); !ok {
			t.Error("nothing in the next window")
		}
	})
}

// TestSlotsMemory: however many cores there are, the memory of all encoders is bounded.
func TestSlotsMemory(t *testing.T) {
	s := newSlots()
	s.free, s.memory = 64, mostMemory
	take := func(m netip.Prefix, size int64) (func(time.Duration), bool) { return s.wait(t.Context(), m, size, 0) }
	large, ok := take(netip.MustParsePrefix("10.0.0.1/32"), 1<<40)
	if !ok {
		t.Fatal("no encoder")
	}
	if _, ok := take(netip.MustParsePrefix("10.0.0.2/32"), 1<<20); ok {
		t.Error("more memory than there is")
	}
	large(0)
	for i := range 3 {
		if _, ok := take(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 32), 1<<20); !ok {
			t.Errorf("small NAR %d has no encoder", i)
		}
	}
	if s.memory < 0 {
		t.Error("below 0")
	}
}

// TestSlotsWait: who waits gets the encoder that another gives back, and nobody waits longer than he said.
func TestSlotsWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := netip.MustParsePrefix("10.0.0.1/32"), netip.MustParsePrefix("10.0.0.2/32")
		s := newSlots()
		s.free = 1
		release, ok := s.wait(t.Context(), a, 1000, 0)
		if !ok {
			t.Fatal("no encoder")
		}
		start := time.Now()
		if _, ok := s.wait(t.Context(), b, 1000, time.Second); ok || time.Since(start) != time.Second {
			t.Errorf("after %v: %v", time.Since(start), ok)
		}
		time.AfterFunc(time.Second, func() { release(timeEach) })
		if release, ok = s.wait(t.Context(), b, 1000, time.Minute); !ok || time.Since(start) != 2*time.Second {
			t.Errorf("after %v: %v", time.Since(start), ok)
		}
		if _, ok := s.wait(t.Context(), a, 1000, time.Minute); ok || time.Since(start) != 2*time.Second {
			t.Error("waits although its time is over")
		}
		release(0)
	})
}
