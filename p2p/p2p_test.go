package p2p

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/internal/source/sourcetest"
	"github.com/nixp2p/nixp2p/p2p/share"
	"github.com/nixp2p/nixp2p/verify"
)

// TestConformance holds a node, with another one that has the paths, against the contract of
// sources.
func TestConformance(t *testing.T) {
	sourcetest.Run(t, func(t *testing.T, f *sourcetest.Fixture) sourcetest.Subject {
		s := newStore(f.Key.Name).add(t, f.Key, f.Paths...)
		s.Add(t, f.Home, f.Secret)
		with := func(c *Config) { c.Keys, c.ShareKeys = f.Keys, []string{f.Key.Name} }
		a := start(t, holderOf(s, f.Key.Name), with)
		b := start(t, nil, with, a)
		await(t, "the inventory", func() bool { return b.MayHave(f.Paths[0].Hash()) })
		return sourcetest.Subject{Infos: b, Peers: b}
	})
}

// pull reads a NAR from peers to its end.
func pull(ctx context.Context, n *Node, want source.Want) ([]byte, source.Session, error) {
	s := n.Begin(ctx, want)
	if s == nil {
		return nil, nil, errors.New("no session")
	}
	var got []byte
	for {
		turn, err := s.Next(ctx, int64(len(got)))
		if err != nil {
			return got, s, err
		}
		b, err := io.ReadAll(turn.Stream.Body)
		_ = turn.Stream.Body.Close()
		if got = append(got, b...); err == nil {
			return got, s, nil
		}
	}
}

func raw(info *verify.Info) []source.Sized {
	return []source.Sized{{Form: nix.Raw, Size: info.NarSize()}}
}

// TestWrongNAR: a peer that alone sent a wrong NAR is blamed, and not asked again.
func TestWrongNAR(t *testing.T) {
	p := nixtest.NewPath("wrong", 100_000)
	s := newStore(key.Name).add(t, key, p)
	a := start(t, holderOf(s, key.Name), nil)
	var events []source.Event
	b := start(t, nil, func(c *Config) { c.Events = func(e source.Event) { events = append(events, e) } }, a)
	await(t, "the inventory", func() bool { return b.MayHave(p.Hash()) })
	info, err := b.Info(t.Context(), p.Hash())
	if err != nil {
		t.Fatal(err)
	}
	got, session, err := pull(t.Context(), b, source.Want{Info: info, Forms: raw(info)})
	if err != nil || !bytes.Equal(got, p.NAR) || session.Trusted() {
		t.Fatalf("%d bytes, %v, trusted %v", len(got), err, session.Trusted())
	}
	// As if the last byte had been another one.
	session.End(t.Context(), source.Wrong)
	if _, blamed := b.book.Blamed(a.ID()); !blamed {
		t.Error("the only one that sent it is not blamed")
	}
	if len(events) != 1 || events[0].Kind != source.WrongBytes || events[0].Peer != a.ID() {
		t.Errorf("%v", events)
	}
	if _, _, err := pull(t.Context(), b, source.Want{Info: info, Forms: raw(info)}); err == nil || source.Absent(err) {
		t.Errorf("a blamed peer was asked: %v", err)
	}
	if st := b.Peers(); len(st) != 1 || st[0].Standing[:4] != "liar" {
		t.Errorf("%+v", st)
	}
}

// TestAlone: a machine without peers asks nobody, not even a coordinator.
func TestAlone(t *testing.T) {
	n := start(t, nil, nil)
	info := nixtest.NewPath("alone", 10).Info(t, key)
	if s := n.Begin(t.Context(), source.Want{Info: info, Forms: raw(info), Coordinate: true}); s != nil {
		t.Error("a session without peers")
	}
	if _, err := n.Info(t.Context(), info.StorePath().Hash()); !source.Absent(err) {
		t.Errorf("%v", err)
	}
}

// TestCoordinate: what no peer has is fetched by one node, and the other one is told.
func TestCoordinate(t *testing.T) {
	a := start(t, nil, nil)
	b := start(t, nil, nil, a)
	await(t, "the peer", func() bool {
		return len(coordinators{a.member.Load()}.Live()) > 0 && len(coordinators{b.member.Load()}.Live()) > 0
	})
	info := nixtest.NewPath("cold", 5<<20).Info(t, key)
	s := a.Begin(t.Context(), source.Want{Info: info, Forms: raw(info), Coordinate: true})
	if s == nil {
		t.Fatal("no session")
	}
	if turn, err := s.Next(t.Context(), 0); !errors.Is(err, source.ErrFetch) || turn.Stream != nil {
		t.Errorf("%v, %v", turn, err)
	}
	s.End(t.Context(), source.GaveUp)
}

// TestRunTwice: a second Run is an error.
func TestRunTwice(t *testing.T) {
	n := start(t, nil, nil)
	if err := n.Run(t.Context()); err == nil {
		t.Error("no error")
	}
}

// TestDrain: a node that leaves takes back its inventory.
func TestDrain(t *testing.T) {
	p := nixtest.NewPath("drain", 1000)
	a := start(t, holderOf(newStore(key.Name).add(t, key, p), key.Name), nil)
	b := start(t, nil, nil, a)
	await(t, "the inventory", func() bool { return b.MayHave(p.Hash()) })
	a.Drain(t.Context())
	await(t, "the withdrawal", func() bool { return !b.MayHave(p.Hash()) })
}

// TestFollow: of two nodes that want what no peer has, one fetches and the other one follows it
// while the bytes come in.
func TestFollow(t *testing.T) {
	p := nixtest.NewPath("cold", 3<<20)
	info := p.Info(t, key)
	c := newCache()
	ha := share.New(share.Config{Store: newStore(key.Name), Cache: share.CacheOf(c), ShareKeys: []string{key.Name}})
	a := start(t, ha, nil)
	b := start(t, nil, nil, a)
	await(t, "the peer", func() bool {
		return len(coordinators{a.member.Load()}.Live()) > 0 && len(coordinators{b.member.Load()}.Live()) > 0
	})
	want := source.Want{Info: info, Forms: raw(info), Coordinate: true}
	fetcher := a.Begin(t.Context(), want)
	defer fetcher.End(t.Context(), source.GaveUp)
	if _, err := fetcher.Next(t.Context(), 0); !errors.Is(err, source.ErrFetch) {
		t.Fatalf("%v", err)
	}
	d := c.begin(p)
	ha.Downloading(info)
	d.add(p.NAR[:1<<20])
	fetcher.Progress(1<<20, 1<<20)
	follower := b.Begin(t.Context(), want)
	defer follower.End(t.Context(), source.Correct)
	turn, err := follower.Next(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if turn.Stream.Peer != a.ID() {
		t.Errorf("follows %s", turn.Stream.Peer)
	}
	got := make([]byte, 1<<20)
	if _, err := io.ReadFull(turn.Stream.Body, got); err != nil {
		t.Fatal(err)
	}
	d.add(p.NAR[1<<20:])
	rest, err := io.ReadAll(turn.Stream.Body)
	if err != nil || !bytes.Equal(append(got, rest...), p.NAR) {
		t.Errorf("%d more bytes, %v", len(rest), err)
	}
	_ = turn.Stream.Body.Close()
}

// TestClosedSite: who cannot prove to belong to a closed site gets nothing, and is not asked.
func TestClosedSite(t *testing.T) {
	p := nixtest.NewPath("closed", 1000)
	secret := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(secret, []byte(NewSwarmKey()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	closed := func(c *Config) { c.SwarmKeyFile = secret }
	a := start(t, holderOf(newStore(key.Name).add(t, key, p), key.Name), closed)
	b := start(t, nil, closed, a)
	outsider := start(t, nil, nil, a)
	await(t, "the inventory", func() bool { return b.MayHave(p.Hash()) })
	if _, err := b.Info(t.Context(), p.Hash()); err != nil {
		t.Error(err)
	}
	if outsider.MayHave(p.Hash()) {
		t.Error("the inventory was told to an outsider")
	}
	for _, peer := range a.member.Load().site.Peers() {
		if peer.Key == outsider.ID() && (admitted{a.member.Load().site}).Peer(peer.ID) != nil {
			t.Error("an outsider may be asked")
		}
	}
}

// TestZones: what another zone has, or is getting, one node of a zone takes from there, and the
// others of the zone take it from that node.
func TestZones(t *testing.T) {
	for _, cold := range []bool{false, true} {
		t.Run(fmt.Sprintf("cold %v", cold), func(t *testing.T) {
			p := nixtest.NewPath("zones", 3<<20)
			info := p.Info(t, key)
			in := func(zone string) func(*Config) { return func(c *Config) { c.Zone = zone } }
			far := newStore(key.Name)
			if !cold {
				far.add(t, key, p)
			}
			farCache, nearCache := newCache(), newCache()
			hFar := share.New(share.Config{Store: far, Cache: share.CacheOf(farCache), ShareKeys: []string{key.Name}})
			hNear := share.New(share.Config{Store: newStore(key.Name), Cache: share.CacheOf(nearCache), ShareKeys: []string{key.Name}})
			a := start(t, hFar, in("a"))
			b1 := start(t, hNear, in("b"), a)
			b2 := start(t, nil, in("b"), a, b1)
			await(t, "the zones", func() bool {
				for _, n := range []*Node{a, b1, b2} { // those that know only some have other coordinators
					if len(coordinators{n.member.Load()}.Live()) != 2 {
						return false
					}
				}
				return len(zoneMates{coordinators{b1.member.Load()}}.Live()) == 1 && len(zoneMates{coordinators{b2.member.Load()}}.Live()) == 1
			})
			want := source.Want{Info: info, Forms: raw(info), Coordinate: true}
			if cold {
				s := a.Begin(t.Context(), want)
				defer s.End(t.Context(), source.GaveUp)
				if _, err := s.Next(t.Context(), 0); !errors.Is(err, source.ErrFetch) {
					t.Fatalf("in zone a: %v", err)
				}
				d := farCache.begin(p)
				hFar.Downloading(info)
				d.add(p.NAR)
				s.Progress(1<<20, 1<<20)
			} else {
				await(t, "the inventory", func() bool { return b1.MayHave(p.Hash()) && b2.MayHave(p.Hash()) })
			}
			first := b1.Begin(t.Context(), want)
			defer first.End(t.Context(), source.Correct)
			turn, err := first.Next(t.Context(), 0)
			if err != nil {
				t.Fatal(err)
			}
			defer turn.Stream.Body.Close()
			if turn.Stream.Peer != a.ID() || turn.Over == nil {
				t.Errorf("the first node of the zone takes it from %s", turn.Stream.Peer)
			}
			d := nearCache.begin(p)
			hNear.Downloading(info)
			d.add(p.NAR[:1<<20])
			first.Progress(1<<20, 1<<20)
			second := b2.Begin(t.Context(), want)
			defer second.End(t.Context(), source.Correct)
			next, err := second.Next(t.Context(), 0)
			if err != nil {
				t.Fatal(err)
			}
			defer next.Stream.Body.Close()
			if next.Stream.Peer != b1.ID() {
				t.Errorf("the second node of the zone takes it from %s, not %s", next.Stream.Peer, b1.ID())
			}
			if got := zoneOf(b2, b1); got != "b" {
				t.Errorf("the peer is in zone %q", got)
			}
		})
	}
}

// zoneOf returns the zone of a peer as a node shows it.
func zoneOf(n, other *Node) string {
	for _, p := range n.Peers() {
		if p.ID == other.ID() {
			return p.Zone
		}
	}
	return ""
}

// TestList: a peer lists what it shares. One that asks too often is told so, which is
// something else than a peer that has no list.
func TestList(t *testing.T) {
	public := nixtest.NewPath("public", 1000)
	a := start(t, holderOf(newStore(key.Name).add(t, key, public), key.Name), nil)
	b := start(t, nil, nil, a)
	await(t, "the inventory", func() bool { return b.MayHave(public.Hash()) })
	page, err := b.Page(t.Context(), a.ID(), 0)
	if err != nil || len(page.Paths) != 1 || page.Paths[0].Store != public.Hash() || page.Paths[0].Nar != public.NarHash() || page.Next != 0 {
		t.Errorf("%+v, %v", page, err)
	}
	for range 10_000 {
		if _, err = b.Page(t.Context(), a.ID(), 0); err != nil {
			break
		}
	}
	if err == nil || source.Absent(err) || !strings.Contains(err.Error(), "429") {
		t.Errorf("who asks without end is told %v", err)
	}
}
