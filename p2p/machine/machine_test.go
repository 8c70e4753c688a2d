package machine

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	ma "github.com/multiformats/go-multiaddr"
)

func id(i int) ID { return Of(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})) }

func TestOf(t *testing.T) {
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"10.0.0.1", "10.0.0.1", true},
		{"10.0.0.1", "10.0.0.2", false},
		{"::ffff:10.0.0.1", "10.0.0.1", true},
		{"127.0.0.1", "127.0.0.2", false},
		{"fd00:0:0:1::1", "fd00:0:0:1:ffff::2", true},
		{"fd00:0:0:1::1", "fd00:0:0:2::1", false},
		{"fe80::1%eth0", "fe80::1", true},
		{"fe80::1", "fe80::2", false},
		{"::1", "::1", true},
	} {
		if got := Of(netip.MustParseAddr(c.a)) == Of(netip.MustParseAddr(c.b)); got != c.same {
			t.Errorf("%s and %s are the same machine: %v", c.a, c.b, got)
		}
	}
	if Of(netip.Addr{}) != (ID{}) || OfMultiaddr(nil) != (ID{}) || OfMultiaddr(ma.StringCast("/dns4/a.example/tcp/1")) != (ID{}) {
		t.Error("no address is a machine")
	}
	for addr, want := range map[string]string{"/ip4/10.0.0.1/tcp/1": "10.0.0.1", "/ip6/fd00::1/tcp/1": "fd00::/64", "/ip6zone/eth0/ip6/fe80::1/tcp/1": "fe80::1"} {
		if got := OfMultiaddr(ma.StringCast(addr)).String(); got != want {
			t.Errorf("%s is on machine %s, want %s", addr, got, want)
		}
	}
}

// TestHostOf: the hosts of an IPv6 LAN are one machine where something is counted, and not where something is
// held against one of them.
func TestHostOf(t *testing.T) {
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"/ip4/10.0.0.1/tcp/1", "/ip4/10.0.0.1/tcp/2", true},
		{"/ip4/10.0.0.1/tcp/1", "/ip4/10.0.0.2/tcp/1", false},
		{"/ip6/fd00::1/tcp/1", "/ip6/fd00::1/tcp/2", true},
		{"/ip6/fd00::1/tcp/1", "/ip6/fd00::2/tcp/1", false},
		{"/ip6/::ffff:10.0.0.1/tcp/1", "/ip4/10.0.0.1/tcp/1", true},
		{"/ip6zone/eth0/ip6/fe80::1/tcp/1", "/ip6/fe80::1/tcp/1", true},
	} {
		if got := HostOf(ma.StringCast(c.a)) == HostOf(ma.StringCast(c.b)); got != c.same {
			t.Errorf("%s and %s are the same host: %v", c.a, c.b, got)
		}
	}
	if HostOf(nil) != (ID{}) || HostOf(ma.StringCast("/dns4/a.example/tcp/1")) != (ID{}) {
		t.Error("no address is a host")
	}
}

// TestFairShares: a machine that fills the table gives way to others, oldest entry first,
// and never pushes them out.
func TestFairShares(t *testing.T) {
	s := NewShares[string](Limits{Total: 10})
	for i := range 10 {
		if gone, ok := s.Put(id(1), fmt.Sprint("a", i), 1, false); !ok || gone != nil {
			t.Fatalf("a%d: %v, %v", i, gone, ok)
		}
	}
	s.Use("a0")
	for m := 2; m <= 6; m++ {
		gone, ok := s.Put(id(m), fmt.Sprint("b", m), 1, false)
		if want := []string{fmt.Sprint("a", m-1)}; !ok || !slices.Equal(gone, want) {
			t.Errorf("machine %d: %v, %v; want %v", m, gone, ok, want)
		}
	}
	// The largest machine replaces its own.
	if gone, ok := s.Put(id(1), "a10", 1, false); !ok || !slices.Equal(gone, []string{"a6"}) {
		t.Errorf("%v, %v", gone, ok)
	}
	if s.Held(id(1)) != 5 || s.Cost() != 10 || s.Len() != 10 {
		t.Errorf("%d of %d", s.Held(id(1)), s.Cost())
	}
	// Where all hold as much, a newcomer is refused and nothing changes.
	for i := range 10 {
		s.Remove(fmt.Sprint("a", i))
	}
	s.Remove("a10")
	for m := 7; m <= 11; m++ {
		if _, ok := s.Put(id(m), fmt.Sprint("b", m), 1, false); !ok {
			t.Errorf("machine %d is refused", m)
		}
	}
	if gone, ok := s.Put(id(12), "c", 1, false); ok || gone != nil || s.Has("c") || s.Len() != 10 {
		t.Errorf("%v, %v", gone, ok)
	}
	// Except for who is known from before.
	if gone, ok := s.Put(id(12), "c", 1, true); !ok || len(gone) != 1 {
		t.Errorf("%v, %v", gone, ok)
	}
}

// TestReserved: entries that are reserved stay however many come.
func TestReserved(t *testing.T) {
	s := NewShares[int](Limits{Total: 8})
	s.Put(id(1), -1, 1, true)
	for i := range 1000 {
		s.Put(id(1), i, 1, false)
	}
	if !s.Has(-1) || s.Len() != 8 {
		t.Error("the reserved entry gave way")
	}
}

// TestCosts: what grows counts, and the bound holds whatever is put.
func TestCosts(t *testing.T) {
	s := NewShares[int](Limits{Total: 100, Each: 60})
	if _, ok := s.Put(id(1), 1, 61, false); ok {
		t.Error("more than one machine may hold")
	}
	s.Put(id(1), 1, 20, false)
	s.Put(id(1), 2, 20, false)
	if gone, ok := s.Put(id(1), 2, 50, false); !ok || !slices.Equal(gone, []int{1}) || s.Held(id(1)) != 50 {
		t.Errorf("%v, %v", gone, ok)
	}
	s.Put(id(2), 3, 50, false)
	if gone, ok := s.Put(id(3), 4, 10, false); !ok || len(gone) != 1 || s.Cost() > 100 {
		t.Errorf("%v, %v, %d", gone, ok, s.Cost())
	}
}

// TestSettle: what has just begun is safe from others of its own machine.
func TestSettle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewShares[int](Limits{Total: 8, Each: 2, Settle: time.Second})
		s.Put(id(1), 1, 1, false)
		s.Put(id(1), 2, 1, false)
		if _, ok := s.Put(id(1), 3, 1, false); ok {
			t.Error("one that has just begun gave way")
		}
		time.Sleep(time.Second)
		if gone, ok := s.Put(id(1), 3, 1, false); !ok || !slices.Equal(gone, []int{1}) {
			t.Errorf("%v, %v", gone, ok)
		}
	})
}

func TestSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewSlots(8)
		var release []func()
		for range 8 {
			if r, ok := s.Take(id(1)); ok {
				release = append(release, r)
			}
		}
		if s.Taken() != 6 {
			t.Errorf("a machine alone has %d of 8", s.Taken())
		}
		if _, ok := s.Take(id(2)); !ok {
			t.Error("no room for a second machine")
		}
		for _, r := range release[:4] {
			r()
			r() // once
		}
		if s.Taken() != 3 {
			t.Errorf("%d are taken", s.Taken())
		}
		n := 2
		for range 8 {
			if _, ok := s.Take(id(1)); ok {
				n++
			}
		}
		if n != 4 {
			t.Errorf("one of two machines has %d of 8", n)
		}
	})
}

func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := Rate[ID]{Every: time.Second, Burst: 3}
		n := 0
		for range 10 {
			if r.Allow(id(1)) {
				n++
			}
		}
		if n != 3 || r.Ready(id(1)) || !r.Ready(id(2)) {
			t.Errorf("%d at once", n)
		}
		r.Return(id(1))
		if !r.Allow(id(1)) || r.Allow(id(1)) {
			t.Error("what was given back cannot be used, or twice")
		}
		time.Sleep(time.Second)
		if !r.Allow(id(1)) || r.Allow(id(1)) {
			t.Error("not one in each second")
		}
		for i := range 2 * maxRates {
			r.Allow(id(i))
		}
		if len(r.spent) > maxRates+1 {
			t.Errorf("%d are remembered", len(r.spent))
		}
	})
}
