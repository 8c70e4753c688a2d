package lease

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// desk is a Table with a clock, for tests that say who does what.
type desk struct {
	t *testing.T
	*Table
	now time.Time
	nar nix.NarHash
}

const big = 100 << 20

func newDesk(t *testing.T) *desk {
	return &desk{t: t, Table: NewTable("self"), now: time.Unix(1000, 0), nar: narOf(1)}
}

func (d *desk) pass(t time.Duration) { d.now = d.now.Add(t) }

func (d *desk) ask(node NodeID, bytes int64, failed ...NodeID) Answer {
	return d.Ask(node, Request{Verb: Ask, Nar: d.nar, Size: big, Bytes: bytes, Failed: failed}, nil, d.now)
}

func (d *desk) progress(node, from NodeID, bytes int64) Answer {
	return d.Progress(node, Request{Verb: Progress, Nar: d.nar, Size: big, Bytes: bytes, From: from}, d.now)
}

// want complains if an answer is not this: "fetch", "noted", "at node", or "follow a b c".
func (d *desk) want(a Answer, want string) {
	d.t.Helper()
	var got string
	switch a.Kind {
	case Noted:
		got = "noted"
	case Fetch:
		got = "fetch"
	case Elsewhere:
		got = "at " + string(a.Node)
	case Follow:
		got = "follow"
		for _, s := range a.Sources {
			got += " " + string(s.Node)
		}
	}
	if got != want {
		d.t.Errorf("%s, want %s", got, want)
	}
}

func TestFirstFetchesOthersFollow(t *testing.T) {
	d := newDesk(t)
	a := d.ask("a", 0)
	if d.want(a, "fetch"); a.Term != Term {
		t.Errorf("lease of %v", a.Term)
	}
	d.want(d.ask("b", 0), "follow a")
	d.pass(time.Second)
	if a = d.ask("a", 0); a.Kind != Fetch || a.Term != Term-time.Second {
		t.Errorf("asked again: %+v", a)
	}
	d.progress("a", "", 1000)
	a = d.ask("c", 0)
	d.want(a, "follow a b")
	if s := a.Sources[0]; s.Bytes != 1000 || s.Size != big || s.Whole() || !s.Form.IsRaw() {
		t.Errorf("source %+v", s)
	}
	d.progress("a", "", big)
	if a = d.ask("d", 0); !a.Sources[0].Whole() {
		t.Errorf("source %+v", a.Sources[0])
	}
}

func TestLeaseEnds(t *testing.T) {
	d := newDesk(t)
	d.want(d.ask("a", 0), "fetch")
	d.want(d.ask("b", 0), "follow a")
	for i := range 5 {
		d.pass(8 * time.Second)
		d.progress("b", "a", int64(i))
		d.want(d.progress("a", "", int64(i+1)), "fetch") // renewed by more bytes
	}
	d.pass(8 * time.Second)
	d.want(d.progress("a", "", 5), "fetch") // not by the same
	d.progress("b", "a", 5)
	d.want(d.ask("c", 0), "follow a b")
	d.pass(3 * time.Second)
	d.want(d.progress("a", "", 5), "noted")
	d.want(d.ask("b", 5), "fetch")
	d.want(d.ask("a", 5), "follow b") // not c, who follows it
	d.want(d.progress("b", "", 6), "fetch")
}

// TestTree: no more followers are sent to a node than it takes; then their followers.
func TestTree(t *testing.T) {
	d := newDesk(t)
	d.want(d.ask("root", 0), "fetch")
	d.progress("root", "", 1000)
	source := map[NodeID]NodeID{}
	for i := range 40 {
		n := NodeID(fmt.Sprintf("n%02d", i))
		a := d.ask(n, 0)
		if a.Kind != Follow || len(a.Sources) > MaxSources {
			t.Fatalf("%s: %+v", n, a)
		}
		source[n] = a.Sources[0].Node
	}
	followers := map[NodeID]int{}
	deepest := 0
	for n, s := range source {
		followers[s]++
		depth := 1
		for ; s != "root"; s = source[s] {
			depth++
		}
		if deepest = max(deepest, depth); depth > 3 {
			t.Errorf("%s is %d from the root", n, depth)
		}
	}
	for n, k := range followers {
		if k > perSource {
			t.Errorf("%d follow %s", k, n)
		}
	}
	// Who has all takes no place any more.
	for n, s := range source {
		if s == "root" {
			d.progress(n, "root", big)
		}
	}
	if s := d.ask("late", 0).Sources; s[0].Node != "root" {
		t.Errorf("late follows %+v", s)
	}
}

func TestSmallHasNoTree(t *testing.T) {
	d := newDesk(t)
	r := Request{Verb: Ask, Nar: d.nar, Size: small - 1}
	d.want(d.Ask("root", r, nil, d.now), "fetch")
	for i := range perSourceSmall {
		if a := d.Ask(nodes(20)[i], r, nil, d.now); a.Sources[0].Node != "root" {
			t.Errorf("follower %d is sent to %q", i, a.Sources[0].Node)
		}
	}
	if a := d.Ask("one more", r, nil, d.now); a.Sources[0].Node == "root" {
		t.Error("too many for one")
	}
}

// TestMostGoesOn: when the fetcher is lost, the follower that has most fetches, and is waited
// for a little.
func TestMostGoesOn(t *testing.T) {
	for _, lost := range []string{"lost", "released", "silent"} {
		d := newDesk(t)
		d.want(d.ask("a", 0), "fetch")
		d.ask("b", 0)
		d.ask("c", 0)
		d.progress("a", "", 9000)
		d.pass(9 * time.Second)
		d.progress("b", "a", 4000)
		d.progress("c", "a", 5000)
		switch lost {
		case "lost":
			d.Lost("a")
		case "released":
			d.Handle("a", Request{Verb: Release, Nar: d.nar, Size: big}, nil, d.now)
		case "silent":
			d.pass(time.Second)
		}
		d.want(d.ask("b", 4000), "follow c")
		d.want(d.ask("c", 5000), "fetch")
		d.want(d.ask("b", 4000), "follow c")

		d.Lost("c")
		d.progress("d", "x", 6000)
		d.want(d.ask("b", 4500), "follow d") // which never comes
		d.pass(heirWait)
		d.want(d.ask("b", 4500), "fetch")
	}
}

// TestAheadOfFetcher: who has more than any fetcher goes on himself, and the others give way.
func TestAheadOfFetcher(t *testing.T) {
	d := newDesk(t)
	d.want(d.ask("a", 0), "fetch")
	d.progress("a", "", 1<<20)
	d.want(d.ask("b", 1<<20), "follow a")
	d.want(d.ask("b", 3<<20), "fetch")
	d.want(d.progress("a", "", 2<<20), "follow b")
	d.want(d.ask("c", 0), "follow b a")
	d.want(d.progress("b", "", 4<<20), "fetch")
}

// TestTwoFetchers: of two that are as far the one that comes first in rank goes on.
func TestTwoFetchers(t *testing.T) {
	d := newDesk(t)
	order := Rank(d.nar, []NodeID{"a", "b"})
	d.want(d.progress(order[0], "", 1000), "fetch")
	d.want(d.progress(order[1], "", 1000), "follow "+string(order[0]))
	d.want(d.progress(order[0], "", 1001), "fetch")

	d = newDesk(t)
	d.want(d.progress(order[1], "", 1000), "fetch")
	d.want(d.progress(order[0], "", 2000), "fetch")
	d.want(d.progress(order[1], "", 2000), "follow "+string(order[0]))

	d = newDesk(t)
	d.progress(order[0], "", big-1000)
	d.want(d.progress(order[1], "", big-2000), "fetch") // as good as done

	d = newDesk(t)
	d.progress(order[0], "", 1000)
	unreachable := Request{Verb: Progress, Nar: d.nar, Size: big, Bytes: 1000, Failed: order[:1]}
	d.want(d.Progress(order[1], unreachable, d.now), "fetch")
}

func TestFailedSources(t *testing.T) {
	d := newDesk(t)
	d.want(d.ask("a", 0), "fetch")
	d.want(d.ask("b", 0), "follow a")
	d.want(d.ask("c", 0), "follow a b")
	d.progress("e", "a", 0)
	d.want(d.ask("c", 0, "a"), "follow b e") // which may reach it
	d.want(d.ask("b", 0, "a"), "fetch")      // two say so
	d.want(d.ask("c", 0, "a"), "follow b")
	d.want(d.ask("d", 0), "follow b c e a") // what failed others comes last

	// It was alive after all.
	d.progress("a", "", 1000)
	d.want(d.ask("c", 0, "b"), "follow e d a")
	d.pass(doubtFor + 1)
	d.progress("a", "", 2000)
	d.want(d.ask("f", 0), "follow a")
}

// TestNobodyFollowsItself: who follows the asker is no source for it.
func TestNobodyFollowsItself(t *testing.T) {
	d := newDesk(t)
	d.want(d.ask("a", 0), "fetch")
	d.progress("b", "a", 100)
	d.progress("c", "b", 50)
	d.want(d.ask("b", 100), "follow a")
	d.progress("a", "b", 10) // nonsense, from a liar
	d.want(d.ask("b", 100), "fetch")
	d.progress("self", "self", 10)
	d.want(d.ask("c", 100), "follow b a")
}

func TestElsewhere(t *testing.T) {
	d := newDesk(t)
	order := Rank(d.nar, append(nodes(9), d.self))
	at := slices.Index(order, d.self)
	if at < 2 {
		t.Fatalf("choose another NAR: rank %d", at)
	}
	ask := Request{Verb: Ask, Nar: d.nar, Size: big}
	d.want(d.Ask("a", ask, order, d.now), "at "+string(order[0]))
	ask.Tried = order[:1]
	d.want(d.Ask("a", ask, order, d.now), "at "+string(order[1]))
	ask.Tried = nil
	d.want(d.Ask(order[0], ask, order[:1], d.now), "fetch") // it asks itself first
	d.Release(order[0], d.nar)
	if n, m := d.Len(); n != 0 || m != 0 {
		t.Errorf("%d NARs, %d members", n, m)
	}
	ask.Hops = MaxHops
	d.want(d.Ask("a", ask, order, d.now), "fetch")
	ask.Hops = 0
	d.want(d.Ask("b", ask, order, d.now), "follow a") // known here: no need to look elsewhere
}

// TestAlone: who keeps nothing neither fetches nor gives for others.
func TestAlone(t *testing.T) {
	d := newDesk(t)
	alone := Request{Verb: Ask, Nar: d.nar, Size: big, Alone: true}
	d.want(d.Ask("a", alone, nil, d.now), "fetch")
	d.want(d.ask("b", 0), "fetch")
	d.want(d.Ask("a", alone, nil, d.now), "follow b")
	d.want(d.ask("c", 0), "follow b")
	alone.Verb = Progress
	d.want(d.Progress("a", alone, d.now), "noted")
	if _, m := d.Len(); m != 2 {
		t.Errorf("%d members", m)
	}
}

// TestForms: bytes of one file are nothing of another, but parts can be compared.
func TestForms(t *testing.T) {
	d := newDesk(t)
	xz := Request{Verb: Ask, Nar: d.nar, Form: xzForm, Size: big / 4}
	d.want(d.Ask("a", xz, nil, d.now), "fetch")
	d.progress("b", "a", 1<<20)
	xz.Verb, xz.Bytes = Progress, 10<<20
	d.Progress("a", xz, d.now)
	xz.Verb = Ask
	if s := d.ask("c", 50<<20).Sources; len(s) != 2 || s[0].Node != "b" || !s[0].Form.IsRaw() || s[1].Form != xzForm || s[1].Size != big/4 {
		t.Errorf("sources %+v", s)
	}
	xz.Bytes = 3 << 20
	if s := d.Ask("d", xz, nil, d.now).Sources; s[0].Node != "a" {
		t.Errorf("sources %+v", s)
	}
}

func TestOldMessages(t *testing.T) {
	d := newDesk(t)
	d.want(d.ask("a", 0), "fetch")
	d.progress("a", "", 5000)
	d.pass(9 * time.Second)
	d.want(d.progress("a", "", 3000), "noted")
	d.pass(2 * time.Second)
	d.want(d.ask("b", 0), "fetch") // the old one renewed nothing

	// Started anew, with nothing.
	d.progress("b", "", 5000)
	d.ask("b", 0)
	if s := d.ask("c", 0).Sources; s[0].Node != "b" || s[0].Bytes != 0 {
		t.Errorf("sources %+v", s)
	}
	d.Release("nobody", d.nar)
	d.Release("nobody", narOf(2))
	d.Lost("nobody")
}

func TestExpire(t *testing.T) {
	d := newDesk(t)
	d.ask("a", 0)
	d.ask("b", 0)
	d.progress("c", "", big)
	d.pass(silence + time.Millisecond)
	d.Expire(d.now)
	if n, m := d.Len(); n != 1 || m != 1 {
		t.Errorf("%d NARs, %d members", n, m)
	}
	d.want(d.ask("d", 0), "follow c")
	d.pass(wholeFor)
	d.Expire(d.now)
	if n, m := d.Len(); n != 0 || m != 0 || d.order.Len() != 0 || len(d.perNode) != 0 {
		t.Errorf("%d NARs, %d members", n, m)
	}
}

// TestTableBounds: whoever asks for whatever, the table is bounded, and no lease ends by it.
func TestTableBounds(t *testing.T) {
	d := newDesk(t)
	d.limits = limits{entries: 10, members: 30, perEntry: 5, perNode: 6}
	d.want(d.ask("a", 0), "fetch")
	mine := d.nar
	for i := range 100 {
		d.nar = narOf(uint64(100 + i))
		d.want(d.ask("greedy", 0), "fetch")
	}
	if n, m := d.Len(); n != 7 || m != 7 {
		t.Errorf("%d NARs, %d members", n, m)
	}
	for i := range 100 {
		d.nar = narOf(uint64(1000 + i))
		d.progress(nodes(100)[i], "", big) // holders, who can go
	}
	for i := range 100 {
		d.nar = narOf(uint64(2000 + i%8))
		d.ask(nodes(100)[i], 0)
	}
	n, m := d.Len()
	if n > 10 || m > 30 {
		t.Errorf("%d NARs, %d members", n, m)
	}
	d.nar = mine
	for i := range 10 {
		if a := d.ask(nodes(10)[i], 0); a.Kind != Follow || a.Sources[0].Node != "a" && i == 0 {
			t.Errorf("follower %d: %+v", i, a)
		}
	}
	d.Lost("a")
	d.limits.perEntry = len(d.entries[mine].members)
	d.entries[mine].heirUntil = d.now.Add(time.Second)
	if d.want(d.ask("no room", 5), "fetch"); d.entries[mine].heirUntil.IsZero() {
		t.Error("who is not noted ended the wait for an heir")
	}
	if len(d.entries[mine].members) > 5 {
		t.Errorf("%d members of one", len(d.entries[mine].members))
	}
}

// TestConcurrent is for the race detector, and counts what is left.
func TestConcurrent(t *testing.T) {
	table := NewTable("self")
	now := time.Unix(1000, 0)
	var all sync.WaitGroup
	for i, node := range nodes(8) {
		all.Go(func() {
			for j := range 300 {
				nar := narOf(uint64(j % 20))
				at := now.Add(time.Duration(j) * 10 * time.Millisecond)
				switch (i + j) % 5 {
				case 0, 1:
					table.Ask(node, Request{Verb: Ask, Nar: nar, Size: big}, nil, at)
				case 2:
					table.Progress(node, Request{Verb: Progress, Nar: nar, Size: big, Bytes: int64(j)}, at)
				case 3:
					table.Release(node, nar)
				default:
					table.Expire(at)
				}
			}
			table.Lost(node)
		})
	}
	all.Wait()
	if n, m := table.Len(); n != 0 || m != 0 || table.order.Len() != 0 || len(table.perNode) != 0 {
		t.Errorf("%d NARs, %d members", n, m)
	}
}

func BenchmarkAsk64(b *testing.B) {
	table, all, now := NewTable("self"), nodes(64), time.Unix(1000, 0)
	nar := narOf(1)
	for i := 0; b.Loop(); i++ {
		table.Ask(all[i%64], Request{Verb: Ask, Nar: nar, Size: big, Hops: MaxHops}, all, now)
	}
}
