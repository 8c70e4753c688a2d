package server

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// TestUploads: fair parts by machine, and no more of one NAR than multiply quickly.
func TestUploads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := newUploads(nil), newPeers()
		cut := map[*upload]bool{}
		next := 0
		begin := func(n int, host byte, nar byte, k kind) *upload {
			next++
			u := &upload{to: p.on(n, host), hash: nix.NarHash{nar}, kind: k, timing: timing{began: time.Now()}}
			u.cancel = func() { cut[u] = true }
			if !s.begin(u) {
				return nil
			}
			return u
		}
		var first []*upload
		for i := range maxWhole {
			u := begin(1, 1, byte(i), whole)
			if u == nil {
				t.Fatalf("alone: refused the %dth", i)
			}
			first = append(first, u)
		}
		if begin(1, 1, 100, whole) != nil {
			t.Error("more than all slots")
		}
		if begin(2, 2, 101, whole) != nil {
			t.Error("a young upload gave way")
		}
		if begin(2, 2, 0, small) == nil || begin(2, 2, 0, partial) == nil {
			t.Error("kinds share their slots")
		}
		s.end(first[0], true)
		if begin(1, 1, 100, whole) != nil {
			t.Error("a machine refills its slots while another one waits")
		}
		if begin(2, 2, 101, whole) == nil {
			t.Error("the one that waited is refused")
		}
		time.Sleep(settleTime)
		for i := range 7 {
			if begin(3+i, 2, byte(101+i), whole) == nil {
				t.Errorf("machine 2: upload %d is refused while machine 1 has the most", i)
			}
		}
		if len(cut) != 7 {
			t.Errorf("%d uploads gave way", len(cut))
		}
		if begin(20, 2, 130, whole) != nil {
			t.Error("more than its part")
		}
		stuck := first[1]
		for _, u := range first[1:] {
			if !cut[u] {
				stuck = u
			}
		}
		stuck.writing.Store(time.Now().UnixNano())
		time.Sleep(stuckTime)
		if cut[stuck] || begin(21, 1, 131, whole) == nil || !cut[stuck] {
			t.Error("a stuck upload did not give way to a peer of the same machine")
		}
	})
}

func TestPerNAR(t *testing.T) {
	s, p := newUploads(nil), newPeers()
	for i := range 10 {
		u := &upload{to: p.on(i, byte(i)), hash: nix.NarHash{1}, kind: whole, timing: timing{began: time.Now()}, cancel: func() {}}
		if got := s.begin(u); got != (i < maxPerNAR) {
			t.Errorf("upload %d: %v", i, got)
		} else if got {
			defer s.end(u, true)
		}
	}
	u := &upload{to: p.on(50, 50), hash: nix.NarHash{1}, kind: small}
	if !s.begin(u) {
		t.Error("a small one counts")
	}
	s.end(u, true)
	if n := len(s.takers(nix.NarHash{1})); n != 0 {
		t.Errorf("%d are named before they have it", n)
	}
}

// TestTakers: peers that have a NAR now are named, the last one first.
func TestTakers(t *testing.T) {
	s, p := newUploads(nil), newPeers()
	for i := range 2 * maxTakers {
		s.end(&upload{to: p.on(i, 1), hash: nix.NarHash{1}, kind: whole}, true)
	}
	got := s.takers(nix.NarHash{1})
	if len(got) != maxTakers || got[0] != idOf(2*maxTakers-1) {
		t.Errorf("%v", got)
	}
	for i := range 2 * maxKnown {
		s.end(&upload{to: p.on(1, 1), hash: nix.NarHash{byte(i), byte(i >> 8), 1}, kind: whole}, true)
	}
	if len(s.taken) > maxKnown {
		t.Errorf("%d NARs", len(s.taken))
	}
}

func TestLimiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(1 << 20)
		began := time.Now()
		for range 40 {
			if err := l.wait(t.Context(), 256<<10); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(began); took < 9*time.Second || took > 11*time.Second {
			t.Errorf("10 MiB at 1 MiB/s took %v", took)
		}
		if newLimiter(0).wait(t.Context(), 1<<30) != nil {
			t.Error("no limit waits")
		}
	})
}

// TestTakesSlowly: bytes extend the time that a peer has for a delta only by what they are worth.
func TestTakesSlowly(t *testing.T) {
	for _, test := range []struct {
		bytes int
		pause time.Duration
		ends  bool
	}{
		{1, time.Second, true},
		{takeRate - 1, time.Second, false}, // for 10,000 s
		{takeRate / 2, time.Second, true},
		{128 << 10, 20 * time.Second, true},
		{128 << 10, time.Second, false},
	} {
		var to taken
		ended := false
		for range 100 {
			ended = ended || to.took(test.bytes, test.pause) != nil
		}
		if ended != test.ends {
			t.Errorf("%d bytes each %v: ended is %v", test.bytes, test.pause, ended)
		}
	}
}
