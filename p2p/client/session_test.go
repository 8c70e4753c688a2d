package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/p2p/lease"
	"github.com/nixp2p/nixp2p/p2p/machine"
	"github.com/nixp2p/nixp2p/p2p/site"
	"github.com/nixp2p/nixp2p/p2p/wire"
)

// TestStreams: a peer that stops, stalls or drips is followed by another one at the same byte,
// within bounds that no byte extends.
func TestStreams(t *testing.T) {
	p := nixtest.NewPath("x", 300_000)
	half := len(p.NAR) / 2
	for _, test := range []struct {
		name   string
		first  int           // bytes that come at once
		piece  int           // of the rest; 0: it never comes
		pause  time.Duration // before each piece
		end    error         // instead of the rest
		within time.Duration
	}{
		{"cut", half, 0, 0, io.EOF, 0},
		{"reset", half, 0, 0, io.ErrUnexpectedEOF, 0},
		{"silent from the start", 0, 0, time.Hour, nil, stallTime},
		{"stalls in the middle", half, 0, time.Hour, nil, stallTime},
		{"a byte now and then", 0, 1, stallTime - time.Second, nil, rateTime + stallTime},
		{"a byte each 10 ms", 0, 1, 10 * time.Millisecond, nil, rateTime + time.Second},
		{"just too slow", 0, minRate / 20, 100 * time.Millisecond, nil, rateTime + time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, s, _ := newSite(t)
				bad, good := s.add(p), s.add()
				bad.nar = func(x nixtest.Path, off int64) (*http.Response, error) {
					rest := x.NAR[test.first:]
					if test.piece == 0 {
						rest = nil
					}
					r := from(x.NAR, off, nil)
					r.Body = then{bytes.NewReader(x.NAR[off:test.first]), newSlow(rest, test.piece, test.pause, test.end)}
					return r, nil
				}
				session := c.Begin(t.Context(), source.Want{Info: p.Info(t, key), Forms: rawOf(p)})
				turn, err := session.Next(t.Context(), 0)
				if err != nil {
					t.Fatal(err)
				}
				good.paths, good.forms = bad.paths, bad.forms // now there is another one
				began := time.Now()
				got, err := io.ReadAll(turn.Stream.Body)
				_ = turn.Stream.Body.Close()
				if err == nil || time.Since(began) > test.within+100*time.Millisecond {
					t.Errorf("first: %v after %v", err, time.Since(began))
				}
				for len(got) < len(p.NAR) {
					turn, err := session.Next(t.Context(), int64(len(got)))
					if err != nil {
						t.Fatal(err)
					}
					if turn.Stream.Peer != good.Key {
						t.Error("the failed peer is asked again")
					}
					b, err := io.ReadAll(turn.Stream.Body)
					if got = append(got, b...); err != nil {
						t.Error(err)
					}
					_ = turn.Stream.Body.Close()
				}
				if !bytes.Equal(got, p.NAR) {
					t.Error("wrong bytes")
				}
				session.End(t.Context(), source.Correct)
				if c.blamed(bad.Peer) {
					t.Error("slowness is blamed")
				}
			})
		})
	}
}

// then is some bytes, and then what is slow.
type then struct {
	first *bytes.Reader
	*slow
}

func (r then) Read(p []byte) (int, error) {
	if r.first.Len() > 0 {
		return r.first.Read(p)
	}
	return r.slow.Read(p)
}

// TestNextEnds: peers that do not begin, refuse or lie about sizes do not hold a transfer up.
func TestNextEnds(t *testing.T) {
	p := nixtest.NewPath("x", 100_000)
	answer := func(edit func(*http.Response)) func(nixtest.Path, int64) (*http.Response, error) {
		return func(x nixtest.Path, off int64) (*http.Response, error) {
			r := from(x.NAR, off, bytes.NewReader(x.NAR[off:]))
			edit(r)
			return r, nil
		}
	}
	for _, test := range []struct {
		name   string
		edit   func(f *fakePeer)
		within time.Duration
		blamed bool
	}{
		{"silent", func(f *fakePeer) { f.delay = time.Hour }, formsTime + 2*openTime, false},
		{"gone", func(f *fakePeer) { f.nar = answer(func(r *http.Response) { r.StatusCode = 404 }) }, 0, false},
		{"error", func(f *fakePeer) { f.nar = answer(func(r *http.Response) { r.StatusCode = 500 }) }, 0, false},
		{"busy", func(f *fakePeer) {
			f.nar = func(nixtest.Path, int64) (*http.Response, error) { return respond(503, nil), nil }
		}, busyTime, false},
		{"no length", func(f *fakePeer) { f.nar = answer(func(r *http.Response) { r.ContentLength = -1 }) }, 0, false},
		{"another size", func(f *fakePeer) { f.nar = answer(func(r *http.Response) { r.ContentLength++ }) }, 0, true},
		{"another range", func(f *fakePeer) {
			f.nar = answer(func(r *http.Response) {
				r.StatusCode = 206
				r.Header.Set("Content-Range", fmt.Sprintf("bytes 5-%d/%d", len(p.NAR)-1, len(p.NAR)))
			})
		}, 0, false},
		{"unasked coding", func(f *fakePeer) {
			f.nar = answer(func(r *http.Response) { r.Header.Set("Content-Encoding", "zstd") })
		}, 0, false},
		{"wrong forms", func(f *fakePeer) { f.forms = "raw=5" }, 0, false},
		{"no forms", func(f *fakePeer) { f.forms = "x" }, formsTime, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, s, _ := newSite(t)
				f := s.add(p)
				test.edit(f)
				began := time.Now()
				session := c.Begin(t.Context(), source.Want{Info: p.Info(t, key), Forms: rawOf(p)})
				if turn, err := session.Next(t.Context(), 0); err == nil {
					t.Errorf("a stream: %v", turn)
				}
				if took := time.Since(began); took > test.within+time.Millisecond {
					t.Errorf("took %v", took)
				}
				if c.blamed(f.Peer) != test.blamed {
					t.Errorf("blamed: %v", !test.blamed)
				}
				session.End(t.Context(), source.GaveUp)
			})
		})
	}
}

// TestChoose: the form is chosen once, by what the peers have.
func TestChoose(t *testing.T) {
	p := nixtest.NewPath("x", 1000)
	xz := nix.Form{Compression: nix.XZ, File: nix.FileHash{1}}
	other := nix.Form{Compression: nix.XZ, File: nix.FileHash{2}}
	size := int64(len(p.NAR))
	raw, file := source.Sized{Form: nix.Raw, Size: size}, source.Sized{Form: xz, Size: 500}
	has := func(form nix.Form, bytes, size int64) string {
		return wire.FormatForms([]wire.Present{{Form: form, Bytes: bytes, Size: size}})
	}
	for _, test := range []struct {
		name  string
		want  []source.Sized
		peers []string
		off   int64
		form  nix.Form
		peer  int // index; -1: none
	}{
		{"raw only", []source.Sized{file, raw}, []string{has(nix.Raw, size, size)}, 0, nix.Raw, 0},
		{"the preferred one", []source.Sized{file, raw}, []string{has(nix.Raw, size, size), has(xz, 500, 500)}, 0, xz, 1},
		{"whole before growing", []source.Sized{file, raw}, []string{has(xz, 400, 500), has(nix.Raw, size, size)}, 0, nix.Raw, 1},
		{"growing before decoding", []source.Sized{raw}, []string{has(other, 500, 500), has(nix.Raw, 100, size)}, 0, nix.Raw, 1},
		{"decoded", []source.Sized{raw}, []string{has(other, 500, 500)}, 0, nix.Raw, 0},
		{"growing, not as far as here", []source.Sized{raw}, []string{has(nix.Raw, 100, size)}, 100, nix.Raw, -1},
		{"growing, nothing yet", []source.Sized{raw}, []string{has(nix.Raw, 0, size)}, 0, nix.Raw, -1},
		{"a file of another hash", []source.Sized{file}, []string{has(other, 500, 500)}, 0, nix.Raw, -1},
		{"a file of another size", []source.Sized{file}, []string{has(xz, 501, 501)}, 0, nix.Raw, -1},
		{"an older version", []source.Sized{file, raw}, []string{""}, 0, nix.Raw, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			c, s, _ := newSite(t)
			for _, forms := range test.peers {
				s.add(p).forms = forms
			}
			session := c.Begin(t.Context(), source.Want{Info: p.Info(t, key), Forms: test.want}).(*session)
			peers := session.order(session.holders(t.Context(), ""))
			form, ok := session.choose(t.Context(), peers, test.off)
			if ok != (test.peer >= 0) || ok && (form != test.form || peers[0] != s.peers[test.peer].Peer) {
				t.Errorf("%s: %v, %v", test.name, form, ok)
			}
			session.End(t.Context(), source.GaveUp)
		})
	}
}

// TestBlame: exactly one peer that sent everything is blamed, and several are unverified.
func TestBlame(t *testing.T) {
	p := nixtest.NewPath("x", 100_000)
	half := int64(len(p.NAR)) / 2
	for _, test := range []struct {
		name    string
		two     bool  // the first stops in the middle
		off     int64 // where the peers begin
		outcome source.Outcome
		blamed  bool
		trusted bool
	}{
		{"one, right", false, 0, source.Correct, false, true},
		{"two, right", true, 0, source.Correct, false, true},
		{"a part, right", false, half, source.Correct, false, false},
		{"one, wrong", false, 0, source.Wrong, true, false},
		{"two, wrong", true, 0, source.Wrong, false, false},
		{"a part, wrong", false, half, source.Wrong, false, false},
		{"mixed", false, 0, source.Mixed, false, false},
		{"given up", false, 0, source.GaveUp, false, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			c, s, events := newSite(t)
			first := s.add(p)
			if test.two {
				first.nar = func(x nixtest.Path, off int64) (*http.Response, error) {
					return from(x.NAR, off, bytes.NewReader(x.NAR[off:half])), nil
				}
			}
			session := c.Begin(t.Context(), source.Want{Info: p.Info(t, key), Forms: rawOf(p)})
			if !session.Trusted() || session.Peers() != 0 {
				t.Errorf("%s: before the first byte", test.name)
			}
			for off := test.off; off < int64(len(p.NAR)); {
				turn, err := session.Next(t.Context(), off)
				if err != nil {
					t.Fatalf("%s: %v", test.name, err)
				}
				if session.Trusted() {
					t.Errorf("%s: an unverified peer is trusted", test.name)
				}
				n, _ := io.Copy(io.Discard, turn.Stream.Body)
				_ = turn.Stream.Body.Close()
				off += n
				if test.two && len(s.peers) == 1 {
					s.add(p)
				}
			}
			session.End(t.Context(), test.outcome)
			for _, f := range s.peers {
				if c.blamed(f.Peer) != test.blamed || c.cfg.Reputation.Trusted(f.Key) != test.trusted {
					t.Errorf("%s: blamed %v, trusted %v", test.name, c.blamed(f.Peer), c.cfg.Reputation.Trusted(f.Key))
				}
			}
			wantEvent := test.outcome == source.Wrong || test.outcome == source.Mixed
			if len(*events) > 0 != wantEvent || len(*events) > 1 {
				t.Errorf("%s: %v", test.name, *events)
			}
			want := int64(0)
			if test.outcome == source.Wrong {
				want = 1
			}
			if n := metrics.Value(c.cfg.Metrics.VerifyFailures.WithLabelValues("peer", "hash")); n != want {
				t.Errorf("%s: %v wrong NARs counted, want %v", test.name, n, want)
			}
			// After a mixture, one peer alone may still be asked for all of it.
			if wantEvent && !test.blamed {
				again := c.Begin(t.Context(), source.Want{Info: p.Info(t, key), Forms: rawOf(p)})
				if _, err := again.Next(t.Context(), 0); err == nil {
					t.Errorf("%s: those that took part are asked together again", test.name)
				}
				again.End(t.Context(), source.GaveUp)
				whole := c.Begin(t.Context(), source.Want{Info: p.Info(t, key), Forms: rawOf(p), Whole: true})
				turn, err := whole.Next(t.Context(), 0)
				if err != nil {
					t.Errorf("%s: alone: %v", test.name, err)
				} else {
					_ = turn.Stream.Body.Close()
				}
				whole.End(t.Context(), source.GaveUp)
			}
		})
	}
}

// TestTrustedFirst: a large NAR is taken from a trusted peer if there is one.
func TestTrustedFirst(t *testing.T) {
	p := nixtest.NewPath("x", largeNAR)
	synctest.Test(t, func(t *testing.T) {
		c, s, _ := newSite(t)
		for range 8 {
			s.add(p)
		}
		c.cfg.Reputation.Trust(s.peers[5].Key)
		for range 5 {
			session := c.Begin(t.Context(), source.Want{Info: p.Info(t, key), Forms: rawOf(p)})
			turn, err := session.Next(t.Context(), 0)
			if err != nil {
				t.Fatal(err)
			}
			if turn.Stream.Peer != s.peers[5].Key || !session.Trusted() {
				t.Error("not from the trusted peer")
			}
			_ = turn.Stream.Body.Close()
			session.End(t.Context(), source.GaveUp)
		}
	})
}

// TestOpenHedge: a peer that is slow to begin delays a NAR by the hedge.
func TestOpenHedge(t *testing.T) {
	p := nixtest.NewPath("x", 1000)
	synctest.Test(t, func(t *testing.T) {
		c, s, _ := newSite(t)
		for range 2 {
			s.add(p).nar = func(x nixtest.Path, off int64) (*http.Response, error) {
				time.Sleep(500 * time.Millisecond)
				return from(x.NAR, off, bytes.NewReader(x.NAR)), nil
			}
		}
		s.peers[1].nar = nil
		for range 4 {
			began := time.Now()
			session := c.Begin(t.Context(), source.Want{Info: p.Info(t, key), Forms: rawOf(p)})
			got, err := pull(t.Context(), session)
			if err != nil || !bytes.Equal(got, p.NAR) || time.Since(began) > openStart {
				t.Errorf("%d bytes, %v, after %v", len(got), err, time.Since(began))
			}
			session.End(t.Context(), source.Correct)
		}
		time.Sleep(time.Second)
	})
}

// TestBusy: a busy peer names others, and is asked again.
func TestBusy(t *testing.T) {
	p := nixtest.NewPath("x", 1000)
	synctest.Test(t, func(t *testing.T) {
		c, s, _ := newSite(t)
		busy := s.add(p)
		hinted := s.add()
		hinted.paths, hinted.forms = nil, busy.forms
		began := time.Now()
		busy.nar = func(x nixtest.Path, off int64) (*http.Response, error) {
			if time.Since(began) > time.Second {
				return from(x.NAR, off, bytes.NewReader(x.NAR[off:])), nil
			}
			return respond(503, wire.AppendPeers(nil, []string{hinted.Key})), nil
		}
		session := c.Begin(t.Context(), source.Want{Info: p.Info(t, key), Forms: rawOf(p)})
		got, err := pull(t.Context(), session)
		if err != nil || !bytes.Equal(got, p.NAR) || time.Since(began) > 3*time.Second {
			t.Errorf("%d bytes, %v, after %v", len(got), err, time.Since(began))
		}
		if len(s.named) == 0 || len(hinted.asked) == 0 {
			t.Errorf("%v, %v", s.named, hinted.asked)
		}
		session.End(t.Context(), source.Correct)
	})
}

// named is an Asker whose coordinator names these nodes to everybody.
type named struct {
	sources []lease.Source
	by      lease.NodeID // the only one that does; "": all do
	asked   int
}

func (n *named) Lively(lease.NodeID) bool { return false }

func (n *named) Self() lease.NodeID { return "self" }
func (n *named) Live() []lease.NodeID {
	if n.by != "" {
		return []lease.NodeID{n.by}
	}
	return []lease.NodeID{"a", "b", "c"}
}
func (n *named) Ask(_ context.Context, node lease.NodeID, _ string, r lease.Request) (lease.Answer, error) {
	if r.Verb != lease.Ask || n.by != "" && node != n.by {
		return lease.Answer{Kind: lease.Noted}, nil
	}
	n.asked++
	return lease.Answer{Kind: lease.Follow, Sources: n.sources}, nil
}

// TestNamedPeers: what is held against a peer counts also when a coordinator names it, and
// hostile coordinators cost a bounded time before this node is to fetch.
func TestNamedPeers(t *testing.T) {
	p := nixtest.NewPath("x", 200_000)
	size := int64(len(p.NAR))
	for _, test := range []struct {
		name   string
		edit   func(c *Client, f *fakePeer)
		drips  bool
		asked  bool
		within time.Duration
	}{
		{"blamed", func(c *Client, f *fakePeer) { c.cfg.Reputation.Blame(f.Key, "x", time.Hour) }, false, false, time.Second},
		{"avoided", func(c *Client, f *fakePeer) { c.avoid.Add(asked{f.ID, p.NarHash()}, time.Hour) }, false, false, time.Second},
		{"silent lately", func(_ *Client, f *fakePeer) { f.TooSlow() }, false, false, time.Second},
		{"trickles", func(*Client, *fakePeer) {}, true, true, 3 * (rateTime + stallTimePartial)},
		{"does not begin", func(_ *Client, f *fakePeer) { f.delay = time.Hour }, false, true, 3*namedTime + time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, s, _ := newSite(t)
				asker := &named{}
				for range 3 {
					f := s.add()
					f.paths = []nixtest.Path{p}
					test.edit(c, f)
					if test.drips {
						f.nar = func(x nixtest.Path, off int64) (*http.Response, error) {
							return from(x.NAR, off, newSlow(x.NAR[off:], 1, 6*time.Second, nil)), nil
						}
					}
					asker.sources = append(asker.sources, lease.Source{Node: lease.NodeID(f.ID), Form: nix.Raw, Size: size, Bytes: size - 1, Got: size - 1})
					f.forms = "raw=0/" + fmt.Sprint(size) // it lists the path, and has nothing
				}
				c.cfg.Leases = lease.NewClient(asker, time.Now)
				defer c.cfg.Leases.Close()
				session := c.Begin(t.Context(), source.Want{Info: p.Info(t, key), Forms: rawOf(p), Coordinate: true})
				began := time.Now()
				got, err := pull(t.Context(), session)
				if !errors.Is(err, source.ErrFetch) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
				if took := time.Since(began); took > test.within {
					t.Errorf("took %v", took)
				}
				nars := 0
				for _, f := range s.peers {
					for _, path := range f.asked {
						if path == (wire.Request{Nar: p.NarHash()}).Path() {
							nars++
						}
					}
				}
				if (nars > 0) != test.asked {
					t.Errorf("asked for the NAR %d times", nars)
				}
				session.End(t.Context(), source.GaveUp)
			})
		})
	}
}

// TestLiarsMachine: identities cost nothing. Of a machine on which one lied, none is trusted for
// delivering a correct NAR: what it sends is shown to nobody before the whole is verified.
func TestLiarsMachine(t *testing.T) {
	p := nixtest.NewPath("x", 100_000)
	synctest.Test(t, func(t *testing.T) {
		c, s, _ := newSite(t)
		here, elsewhere := machine.Of(netip.MustParseAddr("10.0.0.1")), machine.Of(netip.MustParseAddr("10.0.0.2"))
		for i, test := range []struct {
			on      machine.ID
			outcome source.Outcome
			trusted bool // although the peer has delivered a correct NAR
		}{
			{here, source.Correct, true},
			{here, source.Wrong, true},
			{here, source.Correct, false}, // another identity
			{elsewhere, source.Correct, true},
		} {
			s.peers = make([]*fakePeer, i) // so that each has an ID of its own
			f := s.add(p)
			s.peers = s.peers[i:]
			f.Host = test.on
			c.cfg.Reputation.Trust(f.Key)
			session := c.Begin(t.Context(), source.Want{Info: p.Info(t, key), Forms: rawOf(p)})
			if _, err := pull(t.Context(), session); err != nil {
				t.Fatal(err)
			}
			if session.Trusted() != test.trusted {
				t.Errorf("peer %d: trusted is %v", i, !test.trusted)
			}
			session.End(t.Context(), test.outcome)
		}
	})
}

// TestRests: a machine with an unverified peer that did not deliver what it said it has is asked for
// nothing for a while, by any identity, but peers that are trusted are.
func TestRests(t *testing.T) {
	here, elsewhere := machine.Of(netip.MustParseAddr("10.0.0.1")), machine.Of(netip.MustParseAddr("10.0.0.2"))
	for _, test := range []struct {
		name   string
		status int    // 0: 40 KiB/s come
		lists  string // bytes that it lists; "": all
		have   string // of HaveHeader
		late   bool   // its time is over before all has come
		rests  bool
	}{
		{"does not have it", 404, "", "", false, true},
		{"slow", 0, "", "", true, true},
		{"slow, in time", 0, "", "", false, false},
		{"still gets it", 0, "1", "1", true, false},
		{"has more of it by now", 0, "1", "50000", true, true},
		{"listed more than it has", 0, "", "1", true, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := nixtest.NewPath("x", 100_000)
			synctest.Test(t, func(t *testing.T) {
				c, s, _ := newSite(t)
				var peers []*fakePeer
				for range 3 {
					peers = append(peers, s.add(p))
				}
				first, second, trusted := peers[0], peers[1], peers[2]
				first.Host, second.Host, trusted.Host = here, here, here
				other := idOf(99)
				if test.lists != "" {
					first.forms = fmt.Sprintf("raw=%s/%d", test.lists, len(p.NAR))
				}
				first.nar = func(p nixtest.Path, off int64) (*http.Response, error) {
					if test.status != 0 {
						return respond(test.status, nil), nil
					}
					resp := from(p.NAR, off, newSlow(p.NAR[off:], 4<<10, 100*time.Millisecond, nil))
					if test.have != "" {
						resp.Header.Set(wire.HaveHeader, test.have)
					}
					return resp, nil
				}
				s.peers = peers[:1]
				session := c.Begin(t.Context(), source.Want{Info: p.Info(t, key), Forms: rawOf(p)})
				turn, err := session.Next(t.Context(), 0)
				if err == nil {
					if test.late {
						_, _ = io.ReadFull(turn.Stream.Body, make([]byte, 8<<10))
						session.FetchAnyway()
					}
					_ = turn.Stream.Body.Close()
				}
				session.End(t.Context(), source.GaveUp)
				c.cfg.Reputation.Trust(trusted.Key)
				for _, at := range []struct {
					p    *site.Peer
					want bool
				}{
					{second.Peer, test.rests},
					{trusted.Peer, false},
					{&site.Peer{ID: other, Key: other.String(), Place: site.Place{Host: elsewhere}}, false},
				} {
					if c.rests(at.p) != at.want {
						t.Errorf("peer at %v: rests is %v", at.p.Host, !at.want)
					}
				}
				s.peers = []*fakePeer{second}
				if _, err := c.Info(t.Context(), p.Hash()); (err != nil) != test.rests {
					t.Errorf("asked for a narinfo: %v", err)
				}
				time.Sleep(restFirst + time.Second)
				if _, err := c.Info(t.Context(), p.Hash()); err != nil {
					t.Errorf("after the rest: %v", err)
				}
			})
		})
	}
}

// TestNotFramed: what a coordinator says of a peer has it rest only if both are on one host.
func TestNotFramed(t *testing.T) {
	p := nixtest.NewPath("x", 100_000)
	size := int64(len(p.NAR))
	here, there := machine.Of(netip.MustParseAddr("10.0.0.1")), machine.Of(netip.MustParseAddr("10.0.0.2"))
	for name, on := range map[string]machine.ID{"another host": there, "the same host": here} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, s, _ := newSite(t)
				f, coordinator := s.add(), s.add()
				f.paths, f.Host, coordinator.Host = []nixtest.Path{p}, here, on
				f.forms = fmt.Sprintf("raw=1000/%d", size)
				f.nar = func(p nixtest.Path, off int64) (*http.Response, error) {
					resp := from(p.NAR, off, newSlow(p.NAR[off:], 1000, 100*time.Millisecond, nil))
					resp.Header.Set(wire.HaveHeader, "1000")
					return resp, nil
				}
				asker := &named{by: lease.NodeID(coordinator.ID), sources: []lease.Source{{
					Node: lease.NodeID(f.ID), Form: nix.Raw, Size: size, Bytes: size / 2, Got: size / 2,
				}}}
				c.cfg.Leases = lease.NewClient(asker, time.Now)
				defer c.cfg.Leases.Close()
				want := source.Want{Info: p.Info(t, key), Forms: rawOf(p), Coordinate: true}
				following := c.Begin(t.Context(), want).(*session)
				following.direct, following.far = true, true // no inventory lists it
				turn, err := following.Next(t.Context(), 0)
				if err != nil {
					t.Fatal(err)
				}
				_, _ = io.ReadFull(turn.Stream.Body, make([]byte, 2000))
				following.FetchAnyway()
				if rests := c.rests(f.Peer); rests != (on == here) {
					t.Errorf("rests is %v", rests)
				}
				_ = turn.Stream.Body.Close()
				following.End(t.Context(), source.GaveUp)
			})
		})
	}
}

// TestSlowDelta: the bytes of a delta extend the wait only by what they make of the NAR.
func TestSlowDelta(t *testing.T) {
	for _, test := range []struct {
		name   string
		pause  time.Duration // before each byte
		made   int64         // bytes of the NAR, by each
		within time.Duration // 0: it goes on
	}{
		{"a byte now and then", stallTimePartial - time.Second, 0, deltaTime + stallTimePartial},
		{"a byte each 10 ms", 10 * time.Millisecond, 0, deltaTime + time.Second},
		{"nothing for a while, and then a segment", stallTimePartial - time.Second, 16 << 20, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				body := newSlow(make([]byte, 100_000), 1, test.pause, nil)
				w := (&Client{cfg: Config{Metrics: metrics.New()}}).newWireReader(&site.Peer{}, body, true)
				made, began := int64(0), time.Now()
				w.made = func() int64 { return made }
				for test.within > 0 || time.Since(began) < time.Hour {
					_, err := w.Read(make([]byte, 10))
					if made += test.made; err == nil {
						continue
					}
					if !errors.Is(err, errTooSlow) || test.within == 0 || time.Since(began) > test.within {
						t.Errorf("%v after %v", err, time.Since(began))
					}
					break
				}
				_ = body.Close()
			})
		})
	}
}
