package resolve_test

import (
	"context"
	"errors"
	"io/fs"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/verify"
)

// after is a source that answers after d with what the fake has.
func after(d time.Duration, info *verify.Info, err error) func(context.Context, nix.StoreHash) (*verify.Info, error) {
	return func(ctx context.Context, _ nix.StoreHash) (*verify.Info, error) {
		select {
		case <-time.After(d):
			return info, err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// A peer that is silent costs the head start, one that answers in it saves the upstream a request.
func TestPeerHeadStart(t *testing.T) {
	p := nixtest.NewPath("hello", 100)
	absent := fs.ErrNotExist
	for _, c := range []struct {
		name         string
		peers, up    time.Duration // 0: never
		peerHas, has bool
		want         time.Duration
		source       string
		asked        int // the upstream
	}{
		{"quick peer", 5 * time.Millisecond, 10 * time.Millisecond, true, true, 5 * time.Millisecond, "peer", 0},
		{"quick no", 5 * time.Millisecond, 10 * time.Millisecond, false, true, 15 * time.Millisecond, "upstream", 1},
		{"silent peer", time.Hour, 10 * time.Millisecond, true, true, 30 * time.Millisecond, "upstream", 1},
		{"slow peer, slower upstream", 50 * time.Millisecond, time.Second, true, true, 50 * time.Millisecond, "peer", 1},
		{"slow peer, upstream has not", 50 * time.Millisecond, 10 * time.Millisecond, true, false, 50 * time.Millisecond, "peer", 1},
		{"slow peer, nobody has", 50 * time.Millisecond, 10 * time.Millisecond, false, false, 50 * time.Millisecond, "", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, withPeers)
				answer := func(d time.Duration, has bool) func(context.Context, nix.StoreHash) (*verify.Info, error) {
					if has {
						return after(d, p.Info(t, key), nil)
					}
					return after(d, nil, absent)
				}
				w.peers.OnInfo = answer(c.peers, c.peerHas)
				w.peers.Positive.Store(true)
				w.peer.AddBytes(p.NarHash(), nix.Raw, p.NAR)
				w.up.OnInfo(answer(c.up, c.has))
				start := time.Now()
				_, err := w.r.Info(t.Context(), p.Hash(), source.All)
				if took := time.Since(start); took != c.want {
					t.Errorf("answered after %v, want %v", took, c.want)
				}
				if c.source == "" {
					if !errors.Is(err, fs.ErrNotExist) {
						t.Errorf("%v, want absence", err)
					}
				} else if err != nil || w.count("narinfo_requests_total", "source", c.source, "result", "hit") != 1 {
					t.Errorf("%v, not answered by %s", err, c.source)
				}
				if n := w.up.Asked(p.Hash()); n != c.asked {
					t.Errorf("upstream asked %d times, want %d", n, c.asked)
				}
			})
		})
	}
}

// A miss is remembered only until a peer's inventory says otherwise.
func TestMissEndsWithInventory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := nixtest.NewPath("hello", 100)
		w := newWorld(t, withPeers)
		for range 2 {
			if _, err := w.r.Info(t.Context(), p.Hash(), source.All); !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("%v, want absence", err)
			}
		}
		if n := w.up.Asked(p.Hash()); n != 1 {
			t.Errorf("upstream asked %d times: the miss is not remembered", n)
		}
		w.peer.Add(t, key, p)
		if _, err := w.r.Info(t.Context(), p.Hash(), source.All); err != nil {
			t.Errorf("a peer has it by now: %v", err)
		}
	})
}

// TestPeersHaveOnlyTheFile: what peers would have to decode is offered as upstream's file while
// there is an upstream that knows it, and as their raw NAR else.
func TestPeersHaveOnlyTheFile(t *testing.T) {
	p := nixtest.NewPath("hello", 3<<20)
	for _, c := range []struct {
		name string
		up   func(*world)
		raw  bool
		took time.Duration
	}{
		{"upstream has it", func(w *world) { w.up.AddFile(t, key, p, nix.Zstd, nil) }, false, 0},
		{"upstream is down", func(w *world) { w.up.SetDown(true) }, true, 0},
		{"upstream has it not", func(*world) {}, true, 0},
		{"upstream is silent", func(w *world) { w.up.OnInfo(hanging) }, true, 3 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, withPeers)
				w.peer.AddInfo(p.Info(t, key)) // and no raw NAR
				c.up(w)
				start := time.Now()
				for range 2 {
					a, err := w.r.Info(t.Context(), p.Hash(), source.All)
					if err != nil || a.Form.IsRaw() != c.raw {
						t.Fatalf("%+v, %v", a, err)
					}
				}
				if took := time.Since(start); took != c.took {
					t.Errorf("after %v", took)
				}
			})
		})
	}
}
