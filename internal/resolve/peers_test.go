package resolve_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/resolve"
	"github.com/nixp2p/nixp2p/internal/resolve/sourcetest"
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
				w.peers.OnInfo(answer(c.peers, c.peerHas))
				w.up.OnInfo(answer(c.up, c.has))
				start := time.Now()
				_, err := w.r.Info(t.Context(), p.Hash(), resolve.Anywhere)
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

// hopeful is a peer source whose inventory can be asked.
type hopeful struct {
	*sourcetest.Fake
	positive atomic.Bool
}

func (h *hopeful) Positive(nix.StoreHash) bool { return h.positive.Load() }

// A miss is remembered only until a peer's inventory says otherwise.
func TestMissEndsWithInventory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := nixtest.NewPath("hello", 100)
		var peers *hopeful
		w := newWorld(t, func(w *world, cfg *resolve.Config) {
			peers = &hopeful{Fake: w.peers}
			cfg.Peers = peers
		})
		for range 2 {
			if _, err := w.r.Info(t.Context(), p.Hash(), resolve.Anywhere); !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("%v, want absence", err)
			}
		}
		if n := w.up.Asked(p.Hash()); n != 1 {
			t.Errorf("upstream asked %d times: the miss is not remembered", n)
		}
		w.peers.Add(t, key, p)
		peers.positive.Store(true)
		if _, err := w.r.Info(t.Context(), p.Hash(), resolve.Anywhere); err != nil {
			t.Errorf("a peer has it by now: %v", err)
		}
	})
}

// searcher finds who has a NAR only after a while.
type searcher struct {
	*sourcetest.Fake
	takes time.Duration
	find  func() bool
	asked int
}

func (s *searcher) Find(ctx context.Context, _ *verify.Info) bool {
	s.asked++
	select {
	case <-time.After(s.takes):
		return s.find()
	case <-ctx.Done():
		return false
	}
}

// TestLastChance: before a NAR is refused, peers that are only being looked for are waited for,
// not for long, and not where peers must not be asked.
func TestLastChance(t *testing.T) {
	p := nixtest.NewPath("hello", 3*mib)
	home := nixtest.NewPath("home", 3*mib)
	for _, c := range []struct {
		name  string
		takes time.Duration
		found bool
		path  nixtest.Path
		key   nixtest.Key
		reach resolve.Reach
		want  time.Duration
		asked int
	}{
		{"found", time.Second, true, p, key, resolve.Anywhere, time.Second, 1},
		{"nobody", time.Second, false, p, key, resolve.Anywhere, time.Second, 1},
		{"too late", time.Minute, true, p, key, resolve.Anywhere, 1500 * time.Millisecond, 1},
		{"private", time.Second, true, home, homeKey, resolve.Anywhere, 0, 0},
		{"from this machine only", time.Second, true, p, key, resolve.ThisMachine, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var s *searcher
				w := newWorld(t, func(w *world, cfg *resolve.Config) {
					s = &searcher{Fake: w.peers, takes: c.takes}
					cfg.Peers = s
				})
				s.find = func() bool {
					if c.found {
						w.peers.Add(t, c.key, c.path)
					}
					return c.found
				}
				info := c.path.Info(t, c.key)
				w.disk.OnInfo(func(context.Context, nix.StoreHash) (*verify.Info, error) { return info, nil })
				start := time.Now()
				got, err := w.whole(t.Context(), nameOf(c.path, nix.Raw), resolve.Query{Reach: c.reach})
				served := c.found && c.want == time.Second
				if (err == nil) != served || !served && !errors.Is(err, fs.ErrNotExist) || served && !bytes.Equal(got, c.path.NAR) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
				if took := time.Since(start); took != c.want || s.asked != c.asked {
					t.Errorf("after %v, %d searches", took, s.asked)
				}
			})
		})
	}
}
