package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/nixp2p/nixp2p/internal/backoff"
	"github.com/nixp2p/nixp2p/internal/delta"
	"github.com/nixp2p/nixp2p/internal/httprange"
	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/internal/source/sourcetest"
	"github.com/nixp2p/nixp2p/internal/taskgroup"
	"github.com/nixp2p/nixp2p/internal/update"
	"github.com/nixp2p/nixp2p/p2p/balance"
	"github.com/nixp2p/nixp2p/p2p/inventory"
	"github.com/nixp2p/nixp2p/p2p/reputation"
	"github.com/nixp2p/nixp2p/p2p/site"
	"github.com/nixp2p/nixp2p/p2p/wire"
)

// lonePeer is a Site with one peer, which works in no time.
type lonePeer struct {
	*site.Peer
	paths   []nixtest.Path
	offered bool                                                      // the last request named a base
	delta   func(p nixtest.Path) (base nixtest.Path, d io.ReadCloser) // what answers such a request
}

func (l *lonePeer) Any() bool { return true }

func (l *lonePeer) Holders(k inventory.Key) (list []*site.Peer) {
	for _, p := range l.paths {
		if inventory.KeyOf(p.Hash().Question()) == k {
			list = append(list, l.Peer)
		}
	}
	return list
}

func (l *lonePeer) Connect(context.Context, peer.ID, string) (*site.Peer, error) { return l.Peer, nil }

func (l *lonePeer) Learn(*site.Peer, []string) []peer.ID { return nil }

func (l *lonePeer) RoundTrip(_ *site.Peer, req *http.Request) (*http.Response, error) {
	ask, err := wire.ParseRequest(req.URL.Path)
	if err != nil {
		return nil, err
	}
	for _, p := range l.paths {
		if ask.IsInfo && p.Hash().Question() == ask.Question {
			r := respond(200, p.Signed(key).AppendText(nil))
			r.Header.Set(wire.FormsHeader, fmt.Sprintf("raw=%d", len(p.NAR)))
			return r, nil
		}
		if ask.IsInfo || p.NarHash() != ask.Nar {
			continue
		}
		off, err := httprange.ParseFrom(req.Header.Get("Range"))
		if err != nil {
			return nil, err
		}
		if l.offered = req.Header.Get(wire.BaseHeader) != ""; l.offered {
			base, d := l.delta(p)
			return asDelta(p, base, d), nil
		}
		return from(p.NAR, off, bytes.NewReader(p.NAR[off:])), nil
	}
	return respond(404, nil), nil
}

// theSite is lonePeer as a Site: the peer's own methods have some of the names.
type theSite struct{ *lonePeer }

func (s theSite) Peer(peer.ID) *site.Peer { return s.lonePeer.Peer }

// deltaSite is a site with one peer, slow enough, that has two versions of a path, of which the client
// has the older one.
func deltaSite(t *testing.T) (c *Client, f *lonePeer, trees *sourcetest.Trees, now nixtest.Path, encoded []byte) {
	t.Helper()
	old := nixtest.NewPath("app-1.0", 300_000)
	now = nixtest.NewPath("app-1.1", 1000)
	now.NAR = bytes.Clone(old.NAR)
	for i := 2000; i < len(now.NAR); i += 1000 { // some bytes in each part of the delta
		now.NAR[i] += byte(i / 1000)
	}
	trees = &sourcetest.Trees{Fake: sourcetest.NewFake(source.Store).Share(key.Name)}
	trees.Add(t, key, old)
	id, m := idOf(1), metrics.New()
	f = &lonePeer{Peer: &site.Peer{ID: id, Key: id.String()}, paths: []nixtest.Path{now, old}}
	c = New(Config{
		Site: theSite{f}, Keys: nixtest.Keys(t, key), ShareKeys: []string{key.Name}, Reputation: reputation.New(nil),
		Bases: update.NewBases(trees, []string{key.Name}, m), Metrics: m,
	})
	t.Cleanup(func() { c.Close() })
	measure(t, f.Meter(), 5<<20)
	var out bytes.Buffer
	base, err := delta.Scan(bytes.NewReader(old.NAR), int64(len(old.NAR)))
	if err != nil {
		t.Fatal(err)
	}
	target, err := delta.Scan(bytes.NewReader(now.NAR), int64(len(now.NAR)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := delta.Encode(t.Context(), &out, base, target); err != nil {
		t.Fatal(err)
	}
	f.delta = func(nixtest.Path) (nixtest.Path, io.ReadCloser) {
		return old, io.NopCloser(bytes.NewReader(out.Bytes()))
	}
	return c, f, trees, now, out.Bytes()
}

// measure has a peer send n bytes in a second. Tests that decode zstd use it outside a bubble: the
// decoders are kept for other tests.
func measure(t *testing.T, m *balance.Meter, n int) {
	t.Helper()
	synctest.Test(t, func(*testing.T) {
		m.Waiting()
		time.Sleep(time.Second)
		m.Got(n)
	})
}

func asDelta(p, base nixtest.Path, body io.ReadCloser) *http.Response {
	r := respond(200, nil)
	r.ContentLength, r.Body = -1, body
	r.Header.Set("Content-Encoding", delta.Coding)
	r.Header.Set(wire.BaseHeader, base.NarHash().Nix32())
	r.Header.Set(wire.SizeHeader, strconv.Itoa(len(p.NAR)))
	return r
}

// TestDeltaFails: whatever happens to a delta, the same peer gives the rest without one.
func TestDeltaFails(t *testing.T) {
	for name, body := range map[string]func(d []byte) io.ReadCloser{
		"cut":             func(d []byte) io.ReadCloser { return io.NopCloser(bytes.NewReader(d[:len(d)/2])) },
		"cut at once":     func([]byte) io.ReadCloser { return io.NopCloser(bytes.NewReader(nil)) },
		"not a delta":     func(d []byte) io.ReadCloser { return io.NopCloser(bytes.NewReader(bytes.Repeat([]byte("x"), 1000))) },
		"reset":           func(d []byte) io.ReadCloser { return io.NopCloser(io.MultiReader(bytes.NewReader(d[:99]), broken{})) },
		"longer than due": func(d []byte) io.ReadCloser { return io.NopCloser(bytes.NewReader(append(bytes.Clone(d), d...))) },
	} {
		t.Run(name, func(t *testing.T) {
			c, f, trees, now, encoded := deltaSite(t)
			old := f.paths[1]
			f.delta = func(nixtest.Path) (nixtest.Path, io.ReadCloser) { return old, body(encoded) }
			s := c.Begin(t.Context(), source.Want{Info: now.Info(t, key), Forms: rawOf(now), Delta: true})
			got, err := pull(t.Context(), s)
			if err != nil || !bytes.Equal(got, now.NAR) {
				t.Errorf("got %d bytes of %d: %v", len(got), len(now.NAR), err)
			}
			if s.Trusted() {
				t.Error("shown before it is verified")
			}
			s.End(t.Context(), source.Correct)
			if trees.Open.Load() != 0 {
				t.Error("a base is open")
			}
			if c.blamed(f.Peer) {
				t.Error("blamed")
			}
		})
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("reset") }

// TestSecondWrongDelta: a base that is right and two wrong NARs are the peer's fault.
func TestSecondWrongDelta(t *testing.T) {
	c, f, trees, now, _ := deltaSite(t)
	for round, blamed := range []bool{false, true} {
		s := c.Begin(t.Context(), source.Want{Info: now.Info(t, key), Forms: rawOf(now), Delta: true})
		if _, err := pull(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		s.End(t.Context(), source.Wrong)
		c.group.Close() // waits until the base is hashed
		c.group = taskgroup.Group{}
		if c.blamed(f.Peer) != blamed {
			t.Errorf("round %d: blamed is %v", round, !blamed)
		}
		if len(trees.Reports()) > 0 {
			t.Error("the base is taken for damaged")
		}
		if !c.noDelta.Has(f.ID) {
			t.Error("the next one may be a delta, too")
		}
		c.noDelta = backoff.NewSet[peer.ID](1) // later
	}
	if n := metrics.Value(c.cfg.Metrics.VerifyFailures.WithLabelValues("peer", "hash")); n != 2 {
		t.Errorf("%d wrong NARs counted", n)
	}
	if n := metrics.Value(c.cfg.Metrics.Delta.WithLabelValues("used")); n != 2 {
		t.Errorf("%d deltas", n)
	}
}

// TestNoDelta: nothing is proposed where a delta does not pay.
func TestNoDelta(t *testing.T) {
	for name, edit := range map[string]func(t *testing.T, c *Client, f *lonePeer, trees *sourcetest.Trees, w *source.Want){
		"fast link": func(t *testing.T, _ *Client, f *lonePeer, _ *sourcetest.Trees, _ *source.Want) {
			t.Helper()
			measure(t, f.Meter(), 50e6)
		},
		"switched off": func(_ *testing.T, c *Client, _ *lonePeer, _ *sourcetest.Trees, _ *source.Want) { c.cfg.Bases = nil },
		"cannot be hidden": func(_ *testing.T, _ *Client, _ *lonePeer, _ *sourcetest.Trees, w *source.Want) {
			w.Delta = false
		},
		"base not listed": func(_ *testing.T, _ *Client, f *lonePeer, _ *sourcetest.Trees, _ *source.Want) {
			f.paths = f.paths[:1]
		},
		"private base": func(_ *testing.T, _ *Client, _ *lonePeer, trees *sourcetest.Trees, _ *source.Want) {
			trees.Share("other-1")
		},
		"a wrong delta": func(_ *testing.T, c *Client, f *lonePeer, _ *sourcetest.Trees, _ *source.Want) {
			c.noDelta.Add(f.ID, noDeltaFor)
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, f, trees, now, _ := deltaSite(t)
			w := source.Want{Info: now.Info(t, key), Forms: rawOf(now), Delta: true}
			edit(t, c, f, trees, &w)
			s := c.Begin(t.Context(), w)
			if got, err := pull(t.Context(), s); err != nil || !bytes.Equal(got, now.NAR) {
				t.Errorf("got %d bytes: %v", len(got), err)
			}
			if f.offered {
				t.Error("a base was named")
			}
			s.End(t.Context(), source.Correct)
		})
	}
}
