package transfer_test

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/internal/source/sourcetest"
	"github.com/nixp2p/nixp2p/internal/transfer"
)

// TestTransfers: a download and the responses that follow it are seen with what they have, and
// nothing is seen when all is over.
func TestTransfers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := nixtest.NewPath("hello", 3*mib)
		w.up.Add(t, key, p)
		gate := make(chan struct{})
		w.up.SetFaults(sourcetest.Fault{Do: sourcetest.Wait, At: 2 * mib, Until: gate})
		if got := w.s.Transfers(); len(got) != 0 {
			t.Errorf("%+v before anything", got)
		}
		var group sync.WaitGroup
		for range 2 {
			group.Go(func() { w.wantWhole(nameOf(p, nix.Raw), p.NAR) })
		}
		synctest.Wait()
		got := w.s.Transfers()
		slices.SortFunc(got, func(a, b transfer.Transfer) int { return b.Readers - a.Readers })
		if len(got) != 3 {
			t.Fatalf("%d transfers: %+v", len(got), got)
		}
		if in := got[0]; !in.Inbound || in.Source != source.Upstream || in.Bytes != 2*mib || in.Size != int64(len(p.NAR)) || in.Readers != 2 ||
			in.Rate == 0 || in.Info.StorePath() != p.StorePath || !in.Form.IsRaw() {
			t.Errorf("in: %+v", in)
		}
		for _, out := range got[1:] {
			// The tail of what is here is held back.
			if out.Inbound || out.Bytes <= 0 || out.Bytes > 2*mib || out.Size != int64(len(p.NAR)) || out.Source == source.None {
				t.Errorf("to Nix: %+v", out)
			}
		}
		close(gate)
		group.Wait()
		if got := w.s.Transfers(); len(got) != 0 {
			t.Errorf("%+v when all is over", got)
		}
	})
}

// TestTransferUnverified: bytes that nobody gets before all of them are verified have a supplier, too.
func TestTransferUnverified(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, withPeers)
		p := nixtest.NewPath("hello", 3*mib)
		w.peer.Add(t, key, p)
		gate := make(chan struct{})
		w.peer.SetFaults(sourcetest.Fault{Do: sourcetest.Wait, At: 2 * mib, Until: gate})
		var group sync.WaitGroup
		group.Go(func() { w.wantWhole(nameOf(p, nix.Raw), p.NAR) })
		synctest.Wait()
		if got := w.s.Transfers(); len(got) != 1 || got[0].Source != source.Peer || got[0].Bytes != 2*mib {
			t.Errorf("%+v", got)
		}
		close(gate)
		group.Wait()
	})
}

// TestEvents: wrong bytes and sources that ended early are reported, with the path; what went
// well is not.
func TestEvents(t *testing.T) {
	p := nixtest.NewPath("hello", 3*mib)
	for _, c := range []struct {
		name  string
		fault sourcetest.Fault
		want  []source.EventKind
	}{
		{"well", sourcetest.Fault{}, nil},
		{"dies", sourcetest.Fault{Do: sourcetest.Die, At: mib}, []source.EventKind{source.EndedEarly}},
		{"wrong", sourcetest.Fault{Do: sourcetest.Flip, At: mib}, []source.EventKind{source.WrongBytes}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var mu sync.Mutex
			var kinds []source.EventKind
			w := newWorld(t, func(w *world) {
				w.tc.Events = func(e source.Event) {
					mu.Lock()
					defer mu.Unlock()
					kinds = append(kinds, e.Kind)
					if e.Err == nil || e.Source != source.Store || e.StorePath != p.StorePath.String() {
						t.Errorf("%+v", e)
					}
				}
			})
			w.store.Add(t, key, p)
			w.up.Add(t, key, p)
			w.store.SetFaults(c.fault)
			w.wantWhole(nameOf(p, nix.Raw), p.NAR)
			if !slices.Equal(kinds, c.want) {
				t.Errorf("reported %v, want %v", kinds, c.want)
			}
		})
	}
}

// TestPrefetch: a NAR comes into the cache, and counts as sent to nobody.
func TestPrefetch(t *testing.T) {
	w := newWorld(t)
	p := nixtest.NewPath("hello", mib)
	w.up.Add(t, key, p)
	for i, want := range []source.Role{source.None, source.None, source.Cache} {
		got, err := w.s.Prefetch(t.Context(), p.Hash(), i == 0)
		if err != nil || got.Local != want || got.Size != int64(len(p.NAR)) {
			t.Errorf("%d: %+v, %v", i, got, err)
		}
	}
	if len(w.cache.Forms(p.NarHash())) != 1 || w.up.Opened(nix.Raw) != 1 || w.count("nar_bytes_total") != 0 {
		t.Errorf("%v, opened %d times, %v bytes", w.cache.Forms(p.NarHash()), w.up.Opened(nix.Raw), w.count("nar_bytes_total"))
	}
}
