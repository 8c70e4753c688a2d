package p2p

import (
	"bytes"
	"io"
	"testing"

	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/internal/source/sourcetest"
	"github.com/nixp2p/nixp2p/internal/update"
	"github.com/nixp2p/nixp2p/p2p/share"
	"github.com/nixp2p/nixp2p/p2p/site"
)

// versions returns two versions of a path, which differ in a few bytes.
func versions() (old, now nixtest.Path) {
	old, now = nixtest.NewPath("app-1.0", 300_000), nixtest.NewPath("app-1.1", 1000)
	now.NAR = bytes.Clone(old.NAR)
	copy(now.NAR[150_000:], "another version")
	return old, now
}

// deltaNode starts a node whose store has some paths and gives deltas.
func deltaNode(t *testing.T, edit func(*Config), others []*Node, paths ...nixtest.Path) (*Node, *store, *sourcetest.Trees, *metrics.Metrics) {
	t.Helper()
	s := newStore(key.Name).add(t, key, paths...)
	trees := &sourcetest.Trees{Fake: s.Fake}
	m := metrics.New()
	n := start(t, share.New(share.Config{Store: s, ShareKeys: []string{key.Name}}), func(c *Config) {
		c.Bases, c.Encoder, c.Metrics = update.NewBases(trees, []string{key.Name}, m), update.NewEncoder(trees, nil, m, nil), m
		if edit != nil {
			edit(c)
		}
	}, others...)
	return n, s, trees, m
}

// slowLink makes the link from n to each holder of a path look slow: 64 KiB at a tick of await.
func slowLink(t *testing.T, n *Node, p nixtest.Path) {
	t.Helper()
	waiting := map[*site.Peer]bool{}
	await(t, "a slow link", func() bool {
		slow := len(n.member.Load().client.Holders(p.Hash())) > 0
		for _, x := range n.member.Load().site.Peers() {
			if waiting[x] {
				x.Meter().Got(64 << 10)
			}
			waiting[x] = true
			x.Meter().Waiting()
			slow = slow && x.Meter().Slower(200e6/8)
		}
		return slow
	})
}

// read reads a NAR of one turn.
func read(t *testing.T, s source.Session, off int64) []byte {
	t.Helper()
	turn, err := s.Next(t.Context(), off)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(turn.Stream.Body)
	_ = turn.Stream.Body.Close()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func want(t *testing.T, p nixtest.Path, delta bool) source.Want {
	return source.Want{Info: p.Info(t, key), Forms: []source.Sized{{Form: nix.Raw, Size: int64(len(p.NAR))}}, Delta: delta}
}

func count(m *metrics.Metrics, result string) int64 {
	return metrics.Value(m.Delta.WithLabelValues(result))
}

func TestDelta(t *testing.T) {
	old, now := versions()
	for name, tt := range map[string]struct {
		giver, taker []nixtest.Path
		off          func(*Config) // of the giver
		delta        bool
		result, sent string
	}{
		"used":                {[]nixtest.Path{old, now}, []nixtest.Path{old}, nil, true, "used", "sent"},
		"no base here":        {[]nixtest.Path{old, now}, nil, nil, true, "no_base", ""},
		"no base there":       {[]nixtest.Path{now}, []nixtest.Path{old}, nil, true, "no_base", ""},
		"switched off there":  {[]nixtest.Path{old, now}, []nixtest.Path{old}, func(c *Config) { c.Encoder = nil }, true, "declined", ""},
		"of no use to reader": {[]nixtest.Path{old, now}, []nixtest.Path{old}, nil, false, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			giver, _, gave, gm := deltaNode(t, tt.off, nil, tt.giver...)
			taker, _, took, tm := deltaNode(t, nil, []*Node{giver}, tt.taker...)
			slowLink(t, taker, now)
			s := taker.Begin(t.Context(), want(t, now, tt.delta))
			if got := read(t, s, 0); !bytes.Equal(got, now.NAR) {
				t.Errorf("got %d bytes, wrong", len(got))
			}
			if tt.result == "used" && s.Trusted() {
				t.Error("a delta may be shown before it is verified")
			}
			s.End(t.Context(), source.Correct)
			await(t, "the end of the upload", func() bool { return gave.Open.Load() == 0 })
			if n := took.Open.Load(); n != 0 {
				t.Errorf("%d bases are open", n)
			}
			wire := metrics.Value(tm.PeerReceivedBytes)
			if used := tt.result == "used"; used != (wire < 5000) {
				t.Errorf("%v bytes came", wire)
			}
			if tt.result != "" && count(tm, tt.result) != 1 {
				t.Errorf("result %s is not counted", tt.result)
			}
			if tt.sent != "" && (count(gm, tt.sent) != 1 || metrics.Value(tm.DeltaSavedBytes) < 200_000) {
				t.Errorf("%s is not counted", tt.sent)
			}
		})
	}
}

// TestWrongDelta: a wrong NAR is nobody's fault at first. A base that is damaged is told to the store; a
// peer whose second delta is wrong, of a base that is right, is blamed.
func TestWrongDelta(t *testing.T) {
	old, now := versions()
	damaged := bytes.Clone(old.NAR)
	damaged[1000] ^= 1
	for name, at := range map[string]string{"damaged here": "taker", "damaged there": "giver"} {
		t.Run(name, func(t *testing.T) {
			giver, gs, _, _ := deltaNode(t, nil, nil, old, now)
			taker, ts, _, _ := deltaNode(t, nil, []*Node{giver}, old)
			slowLink(t, taker, now)
			map[string]*store{"taker": ts, "giver": gs}[at].AddBytes(old.NarHash(), nix.Raw, damaged)
			s := taker.Begin(t.Context(), want(t, now, true))
			if bytes.Equal(read(t, s, 0), now.NAR) {
				t.Fatal("right by chance")
			}
			s.End(t.Context(), source.Wrong)
			peer := giver.ID()
			if at == "taker" {
				await(t, "the base is told to the store", func() bool { return len(ts.Reports()) == 1 })
			}
			// The next transfer from this peer is none.
			await(t, "no more deltas", func() bool {
				s := taker.Begin(t.Context(), want(t, now, true))
				defer s.End(t.Context(), source.Correct)
				return bytes.Equal(read(t, s, 0), now.NAR)
			})
			if _, blamed := taker.member.Load().reputation.Blamed(peer); blamed {
				t.Error("blamed for the first one")
			}
		})
	}
}
