package client

import (
	"bytes"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/p2p/wire"
	"github.com/nixp2p/nixp2p/verify"
)

// TestUnsignedLines: what no key signed does not come through, whatever a peer adds.
func TestUnsignedLines(t *testing.T) {
	p := nixtest.NewPath("x", 1000)
	want := p.Info(t, key).Offer(nix.Raw)
	for name, line := range map[string]string{
		"CA":        "CA: fixed:r:sha256:1111111111111111111111111111111111111111111111111111\n",
		"text CA":   "CA: text:sha256:1111111111111111111111111111111111111111111111111111\n",
		"nonsense":  "CA: fixed:nonsense\n",
		"deriver":   "Deriver: 00000000000000000000000000000000-evil.drv\n",
		"signature": "Sig: evil-1:" + strings.Repeat("A", 86) + "==\n",
		"file":      "FileHash: sha256:1111111111111111111111111111111111111111111111111111\n",
		"fat":       "Sig: " + strings.Repeat("k", 900_000) + ":" + strings.Repeat("A", 86) + "==\n",
		"unknown":   "X-Evil: 1\n",
	} {
		synctest.Test(t, func(t *testing.T) {
			c, s, _ := newSite(t)
			f := s.add(p)
			f.info = func(text []byte) []byte { return append(text, line...) }
			info, err := c.Info(t.Context(), p.Hash())
			if err != nil {
				t.Errorf("%s: %v", name, err)
				return
			}
			if got := info.Offer(nix.Raw); !bytes.Equal(got, want) {
				t.Errorf("%s: passes on\n%s", name, got)
			}
			if h := info.Hints(); h != (verify.Hints{}) && h.FileHash != (nix.FileHash{}) {
				t.Errorf("%s: hints %+v", name, h)
			}
			if info.Size() > 4<<10 {
				t.Errorf("%s: takes %d bytes", name, info.Size())
			}
		})
	}
}

// TestInfoAnswers: what an answer says of the peer.
func TestInfoAnswers(t *testing.T) {
	p, other := nixtest.NewPath("x", 1000), nixtest.NewPath("other", 1000)
	for _, test := range []struct {
		name   string
		info   func([]byte) []byte
		kind   func(error) bool
		blamed time.Duration
	}{
		{"right", nil, func(err error) bool { return err == nil }, 0},
		{"another path", func([]byte) []byte { return other.Signed(key).AppendText(nil) }, isInvalid, 24 * time.Hour},
		{"no signature", func(b []byte) []byte { return b[:bytes.Index(b, []byte("Sig:"))] }, source.Absent, 0},
		{"unknown key", func([]byte) []byte { return p.Signed(nixtest.NewKey("x-1")).AppendText(nil) }, source.Absent, 0},
		{"wrong signature", func(b []byte) []byte { return bytes.Replace(b, []byte("NarSize: "), []byte("NarSize: 1"), 1) }, isInvalid, 24 * time.Hour},
		{"garbage", func([]byte) []byte { return []byte("<html>") }, isInvalid, 10 * time.Minute},
		{"endless", func(b []byte) []byte { return append(b, make([]byte, wire.MaxInfo)...) }, func(err error) bool { return err != nil && !isInvalid(err) && !source.Absent(err) }, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			c, s, events := newSite(t)
			f := s.add(p)
			f.info = test.info
			if _, err := c.Info(t.Context(), p.Hash()); !test.kind(err) {
				t.Errorf("%s: %v", test.name, err)
			}
			time.Sleep(max(test.blamed-time.Minute, 0))
			if c.blamed(f.Peer) != (test.blamed > 0) || len(*events) > 0 != (test.blamed > 0) {
				t.Errorf("%s: blamed %v, events %v", test.name, c.blamed(f.Peer), *events)
			}
			time.Sleep(2 * time.Minute)
			if c.blamed(f.Peer) {
				t.Errorf("%s: blamed for too long", test.name)
			}
		})
	}
}

func isInvalid(err error) bool { return source.Invalid(err) != nil }

// TestInfoHedge: a silent peer delays an answer by the hedge.
func TestInfoHedge(t *testing.T) {
	p := nixtest.NewPath("x", 1000)
	synctest.Test(t, func(t *testing.T) {
		c, s, _ := newSite(t)
		silent, good := s.add(p), s.add(p)
		silent.delay = time.Hour
		began := time.Now()
		if _, err := c.Info(t.Context(), p.Hash()); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > infoStart {
			t.Errorf("took %v", took)
		}
		if len(good.asked) == 0 {
			t.Error("the good peer was not asked")
		}
		good.delay = 2 * infoTime
		began = time.Now()
		if _, err := c.Info(t.Context(), p.Hash()); err == nil || source.Absent(err) || isInvalid(err) {
			t.Errorf("all silent: %v", err)
		}
		if took := time.Since(began); took > infoTime {
			t.Errorf("all silent: took %v", took)
		}
	})
}

// TestNobody: a path that no peer lists costs no question.
func TestNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s, _ := newSite(t)
		f := s.add(nixtest.NewPath("x", 10))
		absent := nixtest.NewPath("absent", 10)
		if _, err := c.Info(t.Context(), absent.Hash()); !source.Absent(err) || c.MayHave(absent.Hash()) {
			t.Errorf("%v", err)
		}
		if len(f.asked) != 0 {
			t.Errorf("%v", f.asked)
		}
	})
}

// TestFatNarinfos: memory does not grow with what peers add.
func TestFatNarinfos(t *testing.T) {
	var paths []nixtest.Path
	for i := range 40 {
		paths = append(paths, nixtest.NewPath(strings.Repeat("x", i+1), 100))
	}
	synctest.Test(t, func(t *testing.T) {
		c, s, _ := newSite(t)
		f := s.add(paths...)
		line := []byte("Sig: " + strings.Repeat("k", 1_000_000) + ":" + strings.Repeat("A", 86) + "==\n")
		f.info = func(text []byte) []byte { return append(text, line...) }
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		var kept []*verify.Info
		for _, p := range paths {
			if info, err := c.Info(t.Context(), p.Hash()); err == nil {
				kept = append(kept, info)
			}
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 10<<20 {
			t.Errorf("%d narinfos take %d bytes", len(kept), grown)
		}
		runtime.KeepAlive(kept)
	})
}

// TestOldAnswers: a peer of the last release lists no forms; it has the NAR raw or makes it so, which of
// the two it does not say.
func TestOldAnswers(t *testing.T) {
	p := nixtest.NewPath("x", 1000)
	synctest.Test(t, func(t *testing.T) {
		c, s, _ := newSite(t)
		s.add(p).forms = ""
		info, err := c.Info(t.Context(), p.Hash())
		if err != nil || c.Raw(info) {
			t.Fatalf("%v", err)
		}
		session := c.Begin(t.Context(), source.Want{Info: info, Forms: rawOf(p)})
		if got, err := pull(t.Context(), session); err != nil || !bytes.Equal(got, p.NAR) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		session.End(t.Context(), source.Correct)
		if !c.cfg.Reputation.Trusted(s.peers[0].Key) {
			t.Error("not trusted after a whole, correct NAR")
		}
	})
}
