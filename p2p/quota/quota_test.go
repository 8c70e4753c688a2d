package quota

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
)

func TestPerNAR(t *testing.T) {
	u := NewUploads()
	nar := nix.NarHash{1}
	var ends []func(bool)
	for i := range MaxPerNAR {
		end := u.Begin(string(rune('a'+i)), nar, 10<<20)
		if end == nil {
			t.Fatalf("upload %d is refused", i)
		}
		ends = append(ends, end)
	}
	if u.Begin("z", nar, 10<<20) != nil {
		t.Error("a fifth upload of one NAR")
	}
	if u.Begin("z", nix.NarHash{2}, 10<<20) == nil {
		t.Error("another NAR is refused")
	}
	ends[0](true)
	ends[1](false)
	if got := u.Takers(nar); !slices.Equal(got, []string{"a"}) {
		t.Errorf("takers %q", got)
	}
	if u.Begin("z", nar, 10<<20) == nil {
		t.Error("the slot is not free again")
	}
}

func TestSharesOfPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := NewUploads()
		var ends []func(bool)
		greedy := func() (n int) {
			for i := range 100 {
				if end := u.Begin("greedy", nix.NarHash{byte(i), byte(len(ends))}, 10<<20); end != nil {
					ends = append(ends, end)
					n++
				}
			}
			return n
		}
		if n := greedy(); n != MaxUploads {
			t.Errorf("alone it gets %d", n)
		}
		if u.Begin("late", nix.NarHash{99}, 10<<20) != nil {
			t.Error("more than all")
		}
		ends[0](true)
		ends[1](true)
		if n := greedy(); n != 0 {
			t.Errorf("the greedy one gets %d while another waits", n)
		}
		end := u.Begin("late", nix.NarHash{99}, 10<<20)
		if end == nil {
			t.Fatal("who was refused is refused again")
		}
		end(true)
		<-time.After(wantedFor + time.Second)
		if n := greedy(); n != 2 {
			t.Errorf("alone again it gets %d", n)
		}
	})
}

func TestSmall(t *testing.T) {
	u := NewUploads()
	nar := nix.NarHash{1}
	for range maxSmall {
		if u.Begin("a", nar, Small-1) == nil {
			t.Fatal("a small one is refused")
		}
	}
	end := u.Begin("a", nar, Small-1)
	if end != nil {
		t.Error("small ones have no bound")
	}
	if u.Begin("a", nar, Small) == nil {
		t.Error("small ones take the slots of large ones")
	}
	if u.Active() != maxSmall+1 {
		t.Errorf("%d active", u.Active())
	}
}

func TestTakersAreBounded(t *testing.T) {
	u := NewUploads()
	for i := range maxKnown * 2 {
		u.took(nix.NarHash{byte(i), byte(i >> 8)}, "a")
	}
	if len(u.takers) > maxKnown {
		t.Errorf("%d NARs", len(u.takers))
	}
	for i := range 2 * maxTakers {
		u.took(nix.NarHash{}, string(rune('a'+i)))
	}
	if got := u.Takers(nix.NarHash{}); len(got) != maxTakers || got[0] != string(rune('a'+2*maxTakers-1)) {
		t.Errorf("takers %q", got)
	}
}

func TestLimiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLimiter(10 << 20)
		start := time.Now()
		for range 200 {
			if err := l.Wait(t.Context(), 256<<10); err != nil {
				t.Fatal(err)
			}
		}
		if d := time.Since(start); d < 4800*time.Millisecond || d > 5100*time.Millisecond {
			t.Errorf("50 MiB took %v", d)
		}
	})
	if err := NewLimiter(0).Wait(t.Context(), 1<<30); err != nil {
		t.Error(err)
	}
}

// TestGrowing: uploads of what is on its way itself take no slots from the others, but no more
// than some of one NAR go on at a time, whatever they are.
func TestGrowing(t *testing.T) {
	u := NewUploads()
	var ends []func(bool)
	for i := range maxGrowing {
		end := u.Grow("a", nix.NarHash{byte(i)}, 10<<20)
		if end == nil {
			t.Fatalf("growing upload %d is refused", i)
		}
		ends = append(ends, end)
	}
	if u.Grow("a", nix.NarHash{255}, 10<<20) != nil {
		t.Error("more than all")
	}
	if u.Grow("a", nix.NarHash{255}, 1000) == nil {
		t.Error("a small one is refused")
	}
	for i := range MaxPerNAR - 1 {
		if u.Begin("b", nix.NarHash{1}, 10<<20) == nil {
			t.Errorf("upload %d beside a growing one is refused", i)
		}
	}
	if u.Begin("c", nix.NarHash{1}, 10<<20) != nil {
		t.Error("a fifth upload of one NAR")
	}
	ends[1](true)
	if got := u.Takers(nix.NarHash{1}); !slices.Equal(got, []string{"a"}) {
		t.Errorf("takers %q", got)
	}
	if u.Grow("c", nix.NarHash{1}, 10<<20) == nil {
		t.Error("the slot is not free again")
	}
}
