package lease

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/p2p/machine"
)

// desk is a Coordinator with a clock, for tests that say who does what.
type desk struct {
	t *testing.T
	*Coordinator
	now time.Time
	nar nix.NarHash
}

// on returns the machine of a node: each has its own.
func on(node NodeID) machine.ID {
	var a [4]byte
	copy(a[:], node[max(len(node)-4, 0):])
	return machine.Of(netip.AddrFrom4(a))
}

func newDesk(t *testing.T) *desk {
	return &desk{t: t, Coordinator: NewCoordinator("self"), now: time.Unix(1000, 0), nar: narOf(1)}
}

func (d *desk) pass(t time.Duration) { d.now = d.now.Add(t) }

func (d *desk) ask(node NodeID, bytes int64, failed ...NodeID) Answer {
	return d.Handle(node, on(node), Request{Verb: Ask, Nar: d.nar, Size: big, Bytes: bytes, Failed: failed}, nil, d.now)
}

func (d *desk) progress(node, from NodeID, bytes int64) Answer {
	return d.Handle(node, on(node), Request{Verb: Progress, Nar: d.nar, Size: big, Bytes: bytes, From: from}, nil, d.now)
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
	case Redirect:
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
		d.progress("b", "a", int64(i)<<16)
		d.want(d.progress("a", "", int64(i+1)<<16), "fetch") // renewed by more bytes
	}
	d.pass(8 * time.Second)
	d.want(d.progress("a", "", 5<<16), "fetch") // not by the same
	d.progress("b", "a", 5<<16)
	d.want(d.ask("c", 0), "follow a b")
	d.pass(3 * time.Second)
	d.want(d.progress("a", "", 5<<16), "noted")
	d.want(d.ask("b", 5<<16), "fetch")
	d.want(d.ask("a", 5<<16), "follow b") // not c, who follows it
	d.want(d.progress("b", "", 6<<16), "fetch")
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
	r := Request{Verb: Ask, Nar: d.nar, Size: smallNAR - 1}
	d.want(d.Handle("root", on("root"), r, nil, d.now), "fetch")
	for i := range perSourceSmall {
		if a := d.Handle(nodes(20)[i], on(nodes(20)[i]), r, nil, d.now); a.Sources[0].Node != "root" {
			t.Errorf("follower %d is sent to %q", i, a.Sources[0].Node)
		}
	}
	if a := d.Handle("one more", on("one more"), r, nil, d.now); a.Sources[0].Node == "root" {
		t.Error("too many for one")
	}
}

// TestFetcherLost: when the fetcher is lost, the next one that asks fetches, from the byte on
// that it has.
func TestFetcherLost(t *testing.T) {
	for _, lost := range []string{"lost", "released", "silent", "failed"} {
		d := newDesk(t)
		d.want(d.ask("a", 0), "fetch")
		d.ask("b", 0)
		d.ask("c", 0)
		d.progress("a", "", 9000)
		d.pass(9 * time.Second)
		d.progress("b", "a", 4000)
		d.progress("c", "a", 5000)
		var failed []NodeID
		switch lost {
		case "lost":
			d.Lost("a")
		case "released":
			d.Handle("a", on("a"), Request{Verb: Release, Nar: d.nar, Size: big}, nil, d.now)
		case "silent":
			d.pass(time.Second)
		case "failed":
			failed = []NodeID{"a"}
		}
		d.want(d.ask("b", 4000, failed...), "fetch")
		d.want(d.ask("c", 5000, failed...), "follow b")
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
	d.want(d.Handle(order[1], on(order[1]), unreachable, nil, d.now), "fetch")
}

// TestFailedSources: what failed a node is not named to it, nor what follows that; others are
// not concerned.
func TestFailedSources(t *testing.T) {
	d := newDesk(t)
	d.want(d.ask("a", 0), "fetch")
	d.want(d.ask("b", 0), "follow a")
	d.want(d.ask("c", 0), "follow a b")
	d.want(d.ask("b", 0, "a"), "fetch")
	d.want(d.ask("c", 0, "a"), "follow b")
	d.want(d.ask("d", 0), "follow a b c")
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

func TestRedirect(t *testing.T) {
	d := newDesk(t)
	order := Rank(d.nar, append(nodes(9), d.self))
	at := slices.Index(order, d.self)
	if at < 2 {
		t.Fatalf("choose another NAR: rank %d", at)
	}
	ask := Request{Verb: Ask, Nar: d.nar, Size: big}
	d.want(d.Handle("a", on("a"), ask, order, d.now), "at "+string(order[0]))
	ask.Tried = order[:1]
	d.want(d.Handle("a", on("a"), ask, order, d.now), "at "+string(order[1]))
	ask.Tried = nil
	d.want(d.Handle(order[0], on(order[0]), ask, order[:1], d.now), "fetch") // it asks itself first
	d.Handle(order[0], on(order[0]), Request{Verb: Release, Nar: d.nar, Size: big}, nil, d.now)
	if n, m := d.Len(); n != 0 || m != 0 {
		t.Errorf("%d NARs, %d members", n, m)
	}
	ask.Hops = MaxHops
	d.want(d.Handle("a", on("a"), ask, order, d.now), "fetch")
	ask.Hops = 0
	d.want(d.Handle("b", on("b"), ask, order, d.now), "follow a") // known here: no need to look elsewhere
}

// TestAlone: who keeps nothing neither fetches nor gives for others.
func TestAlone(t *testing.T) {
	d := newDesk(t)
	alone := Request{Verb: Ask, Nar: d.nar, Size: big, Alone: true}
	d.want(d.Handle("a", on("a"), alone, nil, d.now), "fetch")
	d.want(d.ask("b", 0), "fetch")
	d.want(d.Handle("a", on("a"), alone, nil, d.now), "follow b")
	d.want(d.ask("c", 0), "follow b")
	alone.Verb = Progress
	d.want(d.Handle("a", on("a"), alone, nil, d.now), "noted")
	if _, m := d.Len(); m != 2 {
		t.Errorf("%d members", m)
	}
}

// TestForms: bytes of one file are nothing of another, but parts can be compared.
func TestForms(t *testing.T) {
	d := newDesk(t)
	xz := Request{Verb: Ask, Nar: d.nar, Form: xzForm, Size: big / 4}
	d.want(d.Handle("a", on("a"), xz, nil, d.now), "fetch")
	d.progress("b", "a", 1<<20)
	xz.Verb, xz.Bytes = Progress, 10<<20
	d.Handle("a", on("a"), xz, nil, d.now)
	xz.Verb = Ask
	if s := d.ask("c", 50<<20).Sources; len(s) != 2 || s[0].Node != "b" || !s[0].Form.IsRaw() || s[1].Form != xzForm || s[1].Size != big/4 {
		t.Errorf("sources %+v", s)
	}
	xz.Bytes = 3 << 20
	if s := d.Handle("d", on("d"), xz, nil, d.now).Sources; s[0].Node != "a" {
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
	d.Handle("nobody", on("nobody"), Request{Verb: Release, Nar: d.nar, Size: big}, nil, d.now)
	d.Handle("nobody", on("nobody"), Request{Verb: Release, Nar: narOf(2), Size: big}, nil, d.now)
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
	if n, m := d.Len(); n != 0 || m != 0 {
		t.Errorf("%d NARs, %d members", n, m)
	}
}

// TestFull: when the table is full, the machine that takes most of it gives way, a newcomer is
// not refused, and what makes progress stays.
func TestFull(t *testing.T) {
	for name, attackers := range map[string]int{"one identity": 1, "many identities": 500} {
		d := newDesk(t)
		evil := on("evil")
		for i := range 1000 { // of honest nodes, before
			d.nar = narOf(uint64(i))
			d.want(d.ask(nodes(10)[i%10], 0), "fetch")
		}
		for i := range 2 * maxMembers {
			var nar nix.NarHash
			nar[0], nar[1], nar[2], nar[3] = byte(i), byte(i>>8), byte(i>>16), 1
			r := Request{Verb: Ask, Nar: nar, Size: 1 << 40, Hops: MaxHops}
			d.Handle(NodeID(fmt.Sprint("evil", i%attackers)), evil, r, nil, d.now)
		}
		if n, m := d.Len(); n > maxMembers || m != maxMembers {
			t.Errorf("%s: %d NARs, %d members", name, n, m)
		}
		for i := range 1000 {
			d.nar = narOf(uint64(i))
			if a := d.ask("other", 0); a.Kind != Follow {
				t.Fatalf("%s: the lease of NAR %d is gone: %+v", name, i, a)
			}
		}
		for i := range 1000 { // after
			d.nar = narOf(uint64(5000 + i))
			d.want(d.ask("a", 0), "fetch")
			d.want(d.ask("b", 0), "follow a")
		}
	}
}

// TestFullNAR: the members of one NAR are bounded, and its fetcher stays.
func TestFullNAR(t *testing.T) {
	d := newDesk(t)
	d.perNAR = 100
	d.want(d.ask("root", 0), "fetch")
	for _, node := range nodes(2 * d.perNAR) {
		d.pass(time.Millisecond)
		d.ask(node, 0)
	}
	if _, m := d.Len(); m != d.perNAR {
		t.Errorf("%d members", m)
	}
	if d.entries[d.nar].member("root") == nil {
		t.Error("the fetcher gave way")
	}
}

// TestFullNARIsShared: of a NAR that one machine fills, a newcomer on another one becomes a member. One that
// finds only others like itself does not, and is sent to each of them in turn.
func TestFullNARIsShared(t *testing.T) {
	d := newDesk(t)
	d.perNAR = 9
	ask := func(node NodeID, m machine.ID) Answer {
		return d.Handle(node, m, Request{Verb: Ask, Nar: d.nar, Size: big}, nil, d.now)
	}
	d.want(d.ask("root", 0), "fetch")
	crowd := machine.Of(netip.AddrFrom4([4]byte{10, 0, 0, 1}))
	for i := range 2 * d.perNAR {
		ask(NodeID(fmt.Sprint("same-", i)), crowd)
	}
	for i := range d.perNAR {
		d.progress(NodeID(fmt.Sprint("b", i)), "root", 2<<20)
	}
	of := map[machine.ID]int{}
	for _, m := range d.entries[d.nar].members {
		of[m.machine]++
	}
	if of[crowd] > 2 || len(d.entries[d.nar].members) != d.perNAR {
		t.Errorf("of %d members %d are on one machine", len(d.entries[d.nar].members), of[crowd])
	}
	first := map[NodeID]int{}
	for i := range 4 * perSource {
		a := d.ask(NodeID(fmt.Sprint("c", i)), 0)
		if a.Kind != Follow {
			t.Fatalf("%+v", a)
		}
		first[a.Sources[0].Node]++
	}
	if len(first) < 4 {
		t.Errorf("those without room are all sent to %v", first)
	}
}

// TestCircle: members that say that they follow each other lead nowhere, and cost no more than others.
func TestCircle(t *testing.T) {
	d := newDesk(t)
	d.want(d.ask("root", 0), "fetch")
	d.progress("a", "b", 1<<20)
	d.progress("b", "a", 1<<20)
	for _, node := range nodes(3 * maxDepth) {
		d.progress(node, "a", 2<<20)
	}
	d.want(d.ask("c", 0), "follow root")
	e := d.entries[d.nar]
	by := map[NodeID]*member{}
	for _, m := range e.members {
		by[m.node] = m
	}
	if root, depth := by["a"].root(by, d.now); root != nil || depth > maxDepth+1 {
		t.Errorf("%v after %d", root, depth)
	}
}

// TestLeaseRate: single bytes do not keep a lease.
func TestLeaseRate(t *testing.T) {
	for _, c := range []struct {
		rate int64
		kept bool
	}{{1, false}, {leaseRate / 2, false}, {leaseRate, true}, {100 * leaseRate, true}} {
		d := newDesk(t)
		d.want(d.ask("a", 0), "fetch")
		for i := range 30 {
			d.pass(ReportEvery)
			d.progress("a", "", int64(i+1)*c.rate*2)
		}
		d.want(d.ask("b", 0), map[bool]string{true: "follow a", false: "fetch"}[c.kept])
	}
}

// TestSpread: one machine does not fill the list of sources.
func TestSpread(t *testing.T) {
	d := newDesk(t)
	for i := range 20 {
		n := NodeID(fmt.Sprint("evil", i))
		d.Handle(n, on("evil"), Request{Verb: Progress, Nar: d.nar, Size: big, Bytes: big}, nil, d.now)
	}
	d.progress("a", "", 1000)
	d.progress("b", "a", 1000)
	var evil int
	list := d.ask("c", 0).Sources
	for _, s := range list {
		if s.Bytes == big {
			evil++
		}
	}
	if len(list) != MaxSources || evil != MaxSources-2 {
		t.Errorf("%d of %d sources are of one machine", evil, len(list))
	}
}

// TestOtherSize: a node that claims another size of the same form is not named.
func TestOtherSize(t *testing.T) {
	d := newDesk(t)
	d.Handle("evil", on("evil"), Request{Verb: Progress, Nar: d.nar, Size: 64 << 20, Bytes: 64 << 20}, nil, d.now)
	d.want(d.ask("a", 0), "fetch")
}

// TestConcurrent is for the race detector, and counts what is left.
func TestConcurrent(t *testing.T) {
	c := NewCoordinator("self")
	now := time.Unix(1000, 0)
	var all sync.WaitGroup
	for i, node := range nodes(8) {
		all.Go(func() {
			for j := range 300 {
				at := now.Add(time.Duration(j) * 10 * time.Millisecond)
				r := Request{Verb: Verb(1 + (i+j)%3), Nar: narOf(uint64(j % 20)), Size: big}
				if r.Verb == Progress {
					r.Bytes = int64(j)
				}
				c.Handle(node, on(node), r, nil, at)
				if j%7 == 0 {
					c.Expire(at)
				}
			}
			c.Lost(node)
		})
	}
	all.Wait()
	if n, m := c.Len(); n != 0 || m != 0 {
		t.Errorf("%d NARs, %d members", n, m)
	}
}

func BenchmarkAsk64(b *testing.B) {
	c, all, now := NewCoordinator("self"), nodes(64), time.Unix(1000, 0)
	nar := narOf(1)
	for i := 0; b.Loop(); i++ {
		c.Handle(all[i%64], on(all[i%64]), Request{Verb: Ask, Nar: nar, Size: big, Hops: MaxHops}, all, now)
	}
}
