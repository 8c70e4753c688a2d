package resolve_test

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/resolve"
	"github.com/nixp2p/nixp2p/internal/resolve/sourcetest"
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
		if got := w.r.Transfers(); len(got) != 0 {
			t.Errorf("%+v before anything", got)
		}
		var group sync.WaitGroup
		for range 2 {
			group.Go(func() { w.wantWhole(nameOf(p, nix.Raw), p.NAR) })
		}
		synctest.Wait()
		got := w.r.Transfers()
		slices.SortFunc(got, func(a, b resolve.Transfer) int { return b.Readers - a.Readers })
		if len(got) != 3 {
			t.Fatalf("%d transfers: %+v", len(got), got)
		}
		if in := got[0]; !in.Inbound || in.Source != "upstream" || in.Bytes != 2*mib || in.Size != int64(len(p.NAR)) || in.Readers != 2 ||
			in.Rate == 0 || in.Info.StorePath() != p.StorePath || !in.Form.IsRaw() {
			t.Errorf("in: %+v", in)
		}
		for _, out := range got[1:] {
			// The tail of what is here is held back.
			if out.Inbound || out.Bytes <= 0 || out.Bytes > 2*mib || out.Size != int64(len(p.NAR)) || out.Source == "" {
				t.Errorf("to Nix: %+v", out)
			}
		}
		close(gate)
		group.Wait()
		if got := w.r.Transfers(); len(got) != 0 {
			t.Errorf("%+v when all is over", got)
		}
	})
}

// TestNotSentToNix: what goes to a peer is not counted as sent to Nix or saved.
func TestNotSentToNix(t *testing.T) {
	w := newWorld(t)
	p := nixtest.NewPath("hello", mib)
	w.store.Add(t, key, p)
	if _, err := w.whole(t.Context(), nameOf(p, nix.Raw), resolve.Query{Reach: resolve.ThisMachine, ForPeer: true}); err != nil {
		t.Fatal(err)
	}
	if n := w.count("nar_bytes_total") + w.count("saved_bytes_total"); n != 0 {
		t.Errorf("%v bytes are called sent to Nix", n)
	}
}

// TestTrouble: lies and sources that ended early are told, with the path; what went well is not.
func TestTrouble(t *testing.T) {
	p := nixtest.NewPath("hello", 3*mib)
	for _, c := range []struct {
		name  string
		fault sourcetest.Fault
		want  []string
	}{
		{"well", sourcetest.Fault{}, nil},
		{"dies", sourcetest.Fault{Do: sourcetest.Die, At: mib}, []string{"store ended early, the next source goes on " + p.StorePath.String()}},
		{"lies", sourcetest.Fault{Do: sourcetest.Flip, At: mib}, []string{"store gave wrong bytes, which were refused " + p.StorePath.String()}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var mu sync.Mutex
			var told []string
			w := newWorld(t, func(_ *world, cfg *resolve.Config) {
				cfg.Trouble = func(source, what, path string, err error) {
					mu.Lock()
					defer mu.Unlock()
					told = append(told, source+" "+what+" "+path)
					if err == nil {
						t.Error("no error")
					}
				}
			})
			w.store.Add(t, key, p)
			w.up.Add(t, key, p)
			w.store.SetFaults(c.fault)
			w.wantWhole(nameOf(p, nix.Raw), p.NAR)
			if !slices.Equal(told, c.want) {
				t.Errorf("told %q, want %q", told, c.want)
			}
		})
	}
}
