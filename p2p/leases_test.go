package p2p

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/p2p/lease"
	"github.com/nixp2p/nixp2p/verify"
)

func withLeases(c *Config) { c.Leases = true }

// leaseMesh starts nodes with leases that all know each other.
func leaseMesh(t *testing.T, n int, holders ...Holder) (list []*testNode) {
	t.Helper()
	for i := range n {
		var h Holder = newHolder(t)
		if i < len(holders) {
			h = holders[i]
		}
		list = append(list, join(t, h, withLeases, list...))
	}
	for _, x := range list {
		wait(t, "all know each other", func() bool { return x.table.members() == n-1 })
	}
	return list
}

func (n *testNode) lease(t *testing.T, info *verify.Info) *Lease {
	t.Helper()
	l := n.Lease(t.Context(), info, nix.Raw, info.NarSize())
	if l == nil {
		t.Fatal("no lease")
	}
	t.Cleanup(func() { l.End(context.Background(), true) })
	return l
}

// TestLeases: of several nodes one goes upstream, and the others get the bytes from it, also
// those that no inventory tells of.
func TestLeases(t *testing.T) {
	path := nixtest.NewPath("wanted", 3<<20)
	info := path.Info(t, shareKey)
	holders := make([]Holder, 4)
	for i := range holders {
		holders[i] = newHolder(t)
	}
	nodes := leaseMesh(t, 4, holders...)
	upstream := 0
	for i, n := range nodes {
		l := n.lease(t, info)
		from, turn := l.Next(t.Context())
		if from == nil {
			upstream++
			holders[i].(*holder).put(t, path) // it is there, and nobody is told
			continue
		}
		if n.Positive(path.Hash()) {
			t.Error("an inventory tells of it")
		}
		claim, err := from.NAR(turn, info, nix.Raw, 1000)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(claim.Body)
		if err != nil || !bytes.Equal(got, path.NAR[1000:]) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		_ = claim.Body.Close()
	}
	if upstream != 1 {
		t.Errorf("%d went upstream", upstream)
	}
}

// TestLeaseFollowsOn: a node that is told to follow one that has nothing asks again and goes
// upstream itself.
func TestLeaseFollowsOn(t *testing.T) {
	nodes := leaseMesh(t, 2)
	path := nixtest.NewPath("wanted", 3<<20)
	info := path.Info(t, shareKey)
	a, b := nodes[0].lease(t, info), nodes[1].lease(t, info)
	if from, _ := a.Next(t.Context()); from != nil {
		t.Fatal("the first one is told to follow")
	}
	from, turn := b.Next(t.Context())
	if from == nil {
		t.Fatal("the second one goes upstream")
	}
	if _, err := from.NAR(turn, info, nix.Raw, 0); !errors.Is(err, errNobody) {
		t.Errorf("from a node that has nothing: %v", err)
	}
	if from, _ := b.Next(t.Context()); from != nil {
		t.Error("it is to follow again")
	}
	if _, err := from.NAR(turn, info, nix.Form{Compression: nix.XZ, File: nix.FileHash{1}}, 0); !errors.As(err, new(*OtherFormError)) {
		t.Errorf("asked for another form: %v", err)
	}
}

// TestLeasePrivate: nobody is asked about what no share key signed, nor by a node without leases.
func TestLeasePrivate(t *testing.T) {
	path := nixtest.NewPath("private", 1000)
	home := nixtest.NewKey("home-1")
	n := start(t, newHolder(t), func(c *Config) { c.Leases, c.Keys = true, nixtest.Keys(t, shareKey, home) })
	if n.Lease(t.Context(), path.Info(t, home), nix.Raw, 1000) != nil {
		t.Error("a lease for a private path")
	}
	plain := start(t, newHolder(t), nil)
	if plain.Lease(t.Context(), path.Info(t, shareKey), nix.Raw, 1000) != nil {
		t.Error("a lease of a node that has none")
	}
}

// TestLeaseless: a node that does not speak of leases is asked once and not ranked again.
func TestLeaseless(t *testing.T) {
	old := start(t, newHolder(t), nil)
	n := join(t, newHolder(t), withLeases, old)
	wait(t, "both know each other", func() bool { return n.table.members() == 1 && old.table.members() == 1 })
	for i := range 40 {
		info := nixtest.NewPath("wanted", 1000+i).Info(t, shareKey)
		if from, _ := n.lease(t, info).Next(t.Context()); from != nil {
			t.Error("told to follow")
		}
		if n.table.get(old.self).leaseless.Load() {
			break
		}
	}
	n.live.Store(nil)
	if live := (coordinators{n.Node}).Live(); len(live) != 0 {
		t.Errorf("%d nodes are ranked", len(live))
	}
}

// TestLeaseGarbage: what is no message is refused, and does no harm.
func TestLeaseGarbage(t *testing.T) {
	nodes := leaseMesh(t, 2)
	asker := coordinators{nodes[1].Node}
	if _, err := asker.Ask(t.Context(), nodeID(nodes[0].self), "", lease.Request{Verb: 9, Size: 1}); err == nil {
		t.Error("answered")
	}
	if _, err := asker.Ask(t.Context(), "no node", "", lease.Request{Verb: lease.Ask, Size: 1}); err == nil {
		t.Error("answered by nobody")
	}
	a, err := asker.Ask(t.Context(), nodeID(nodes[0].self), "", lease.Request{Verb: lease.Ask, Size: 1})
	if err != nil || a.Kind != lease.Fetch {
		t.Errorf("afterwards: %+v, %v", a, err)
	}
}

// TestNeighbours: nodes that are not connected are ranked and reached, if a neighbour knows
// them; those that are not there only for a short time.
func TestNeighbours(t *testing.T) {
	a := start(t, newHolder(t), withLeases)
	b := start(t, newHolder(t), withLeases)
	addr, id, err := parseAddr(b.Addrs()[0])
	if err != nil {
		t.Fatal(err)
	}
	n := join(t, newHolder(t), func(c *Config) { c.Leases, c.MaxPeers = true, 1 }, a)
	wait(t, "a is known", func() bool { return n.table.members() == 1 })
	r := n.table.get(a.self)
	r.knows.Store(&[]neighbour{{id, id.String(), addr.String()}, {n.self, n.self.String(), addr.String()}})
	n.live.Store(nil)
	c := coordinators{n.Node}
	if live := c.Live(); len(live) != 2 {
		t.Fatalf("%d nodes are ranked", len(live))
	}
	answer, err := c.Ask(t.Context(), nodeID(b.self), "", lease.Request{Verb: lease.Ask, Size: 1, Hops: lease.MaxHops})
	if err != nil || answer.Kind != lease.Fetch {
		t.Errorf("%+v, %v", answer, err)
	}
	gone := start(t, newHolder(t), nil)
	goneAddr := gone.Addrs()[0]
	gone.stop()
	addr, id, err = parseAddr(goneAddr)
	if err != nil {
		t.Fatal(err)
	}
	r.knows.Store(&[]neighbour{{id, id.String(), addr.String()}})
	if _, err := c.Ask(t.Context(), nodeID(id), "", lease.Request{Verb: lease.Ask, Size: 1}); err == nil {
		t.Error("answered by who is gone")
	}
	n.live.Store(nil)
	for _, node := range c.Live() {
		if node == nodeID(id) {
			t.Error("who is gone is ranked")
		}
	}
}

// TestDrain: a node that is about to leave ends what it gives, begins nothing and is not named
// any more.
func TestDrain(t *testing.T) {
	path := nixtest.NewPath("wanted", 3<<20)
	info := path.Info(t, shareKey)
	h := newHolder(t, path)
	release := make(chan struct{})
	h.body = func(b []byte, off int64) io.ReadCloser {
		return io.NopCloser(io.MultiReader(bytes.NewReader(b[off:len(b)-1]), &blocking{r: bytes.NewReader(nil), done: release}, bytes.NewReader(b[len(b)-1:])))
	}
	a := start(t, h, withLeases)
	b := join(t, newHolder(t), withLeases, a)
	wait(t, "the inventory", func() bool { return b.Positive(path.Hash()) })
	got := make(chan error, 1)
	go func() {
		nar, err := fetched(t, b, info, nix.Raw, 0)
		if err == nil && !bytes.Equal(nar, path.NAR) {
			err = errors.New("other bytes")
		}
		got <- err
	}()
	wait(t, "an upload", func() bool { return len(a.Uploads()) == 1 })
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		a.Drain(t.Context())
	}()
	wait(t, "b is told", func() bool { return !b.Positive(path.Hash()) })
	if _, err := (coordinators{b.Node}).Ask(t.Context(), nodeID(a.self), "", lease.Request{Verb: lease.Ask, Size: 1}); err == nil {
		t.Error("it answers as coordinator")
	}
	f := b.newFetch(info, nix.Raw, 0)
	f.named = append(f.named, a.self)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := f.claim(ctx); err == nil {
		t.Error("it begins an upload")
	}
	select {
	case <-drained:
		t.Error("it did not wait for the upload")
	default:
	}
	close(release)
	if err := <-got; err != nil {
		t.Errorf("the upload: %v", err)
	}
	<-drained
	if n := a.uploads.Active(); n != 0 {
		t.Errorf("%d uploads go on", n)
	}
}

// TestVouched: who has given right bytes once is vouched for, until it lies.
func TestVouched(t *testing.T) {
	first, second := nixtest.NewPath("first", 2000), nixtest.NewPath("second", 2000)
	a := start(t, newHolder(t, first, second), nil)
	b := join(t, nil, nil, a)
	wait(t, "the inventory", func() bool { return b.Positive(first.Hash()) })
	for i, p := range []nixtest.Path{first, second} {
		info := p.Info(t, shareKey)
		if b.Vouched(info, nix.Raw) {
			t.Error("vouched for before anybody gave anything")
		}
		if _, err := fetched(t, b, info, nix.Raw, 0); err != nil {
			t.Fatal(err)
		}
		if got := b.Vouched(info, nix.Raw); got != (i == 1) {
			t.Errorf("NAR %d: vouched %t", i, got)
		}
		b.Proven(info, nix.Raw)
	}
	b.Convict(second.Info(t, shareKey), nix.Raw, &verify.InvalidError{Reason: verify.ReasonHash, Err: errors.New("test")})
	if b.Vouched(first.Info(t, shareKey), nix.Raw) {
		t.Error("a liar is vouched for")
	}
}

// TestGuests: who is connected beyond the number of peers stays while he is needed.
func TestGuests(t *testing.T) {
	n := start(t, newHolder(t), func(c *Config) { c.MaxPeers = 1 })
	var guests []*remote
	for range 5 {
		g := join(t, newHolder(t), nil, n)
		wait(t, "the guest", func() bool { return n.table.get(g.self) != nil && n.table.get(g.self).told.Load() })
		guests = append(guests, n.table.get(g.self))
	}
	ago := func(d time.Duration) int64 { return time.Now().Add(-d).UnixNano() }
	member, busy, idle, late, fresh := guests[0], guests[1], guests[2], guests[3], guests[4]
	for _, g := range guests {
		g.member.Store(g == member)
		g.used.Store(ago(2 * guestTime))
	}
	defer busy.use()()
	late.used.Store(ago(2 * houseTick)) // nobody needed it for long, and there are too many
	fresh.use()()
	n.sendHome(*n.host.Load(), guests)
	wait(t, "two to go", func() bool { return n.table.get(idle.id) != idle && n.table.get(late.id) != late })
	for name, g := range map[string]*remote{"member": member, "busy": busy, "fresh": fresh} {
		if n.table.get(g.id) != g {
			t.Errorf("%s was sent home", name)
		}
	}
}

// TestWays: many who want the same node wait for one connection, and whoever is named, only so many
// are made at a time.
func TestWays(t *testing.T) {
	var w ways
	first, fresh := w.take("a")
	if second, again := w.take("a"); !fresh || again || second != first || !w.young("a") {
		t.Error("two ways to the same node")
	}
	for i := range 2 * maxWays {
		w.take(peer.ID(fmt.Sprint(i)))
	}
	if u, _ := w.take("b"); u != nil || len(w.under) != maxWays {
		t.Errorf("%d ways at a time", len(w.under))
	}
	w.end("a", first, errNoHost)
	if <-first.done; first.err == nil || !w.isShut(peer.ID("a").String()) || w.young("a") {
		t.Error("a dead end is not remembered")
	}
}
