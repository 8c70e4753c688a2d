package server

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nixp2p/nixp2p/p2p/machine"
)

// TestDeltaSlots: a machine has two encoders at a time, and a minute of CPU in ten.
func TestDeltaSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := machine.Of(netip.MustParseAddr("10.0.0.1")), machine.Of(netip.MustParseAddr("10.0.0.2"))
		s := newDeltaSlots()
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
		one(deltaTime / 2)
		if _, ok := s.take(b); !ok {
			t.Error("what was released is not free")
		}
		two(deltaTime / 2)
		three(0)
		if _, ok := s.take(a); ok {
			t.Error("more than its time")
		}
		time.Sleep(deltaWindow)
		if _, ok := s.take(a); !ok {
			t.Error("nothing in the next window")
		}
	})
}
