package leasing

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/p2p/lease"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// town is nodes that reach each other by calls.
type town struct {
	mu    sync.Mutex
	nodes map[lease.NodeID]*citizen
}

// citizen is one of them.
type citizen struct {
	town   *town
	id     lease.NodeID
	table  *lease.Table
	leases *Leases

	// Under town.mu.
	cut    bool          // hears and says nothing
	takes  time.Duration // to answer
	silent bool          // nothing shows that it works
	asked  int
}

func newTown(n int) (*town, []*citizen) {
	t := &town{nodes: map[lease.NodeID]*citizen{}}
	var list []*citizen
	for i := range n {
		id := lease.NodeID(fmt.Sprintf("node-%d", i))
		c := &citizen{town: t, id: id, table: lease.NewTable(id)}
		c.leases = New(c)
		t.nodes[id] = c
		list = append(list, c)
	}
	return t, list
}

func (t *town) set(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f()
}

func (c *citizen) Self() lease.NodeID { return c.id }

func (c *citizen) Live() (ids []lease.NodeID) {
	c.town.mu.Lock()
	defer c.town.mu.Unlock()
	for id, o := range c.town.nodes {
		if o != c && !c.cut {
			ids = append(ids, id)
		}
	}
	return ids
}

func (c *citizen) Lively(node lease.NodeID) bool {
	c.town.mu.Lock()
	defer c.town.mu.Unlock()
	return !c.town.nodes[node].silent
}

func (c *citizen) Ask(ctx context.Context, node lease.NodeID, _ string, r lease.Request) (lease.Answer, error) {
	c.town.mu.Lock()
	o := c.town.nodes[node]
	gone, takes := (o.cut || c.cut) && o != c, o.takes
	o.asked++
	c.town.mu.Unlock()
	if o == c {
		takes = 0
	}
	if gone {
		takes = time.Hour
	}
	select {
	case <-time.After(takes):
		return o.table.Handle(c.id, r, o.Live(), time.Now()), nil
	case <-ctx.Done():
		return lease.Answer{}, ctx.Err()
	}
}

const big = 100 << 20

var nar = nix.NarHash{7}

func (c *citizen) begin(t *testing.T) *Lease {
	l := c.leases.Begin(t.Context(), lease.Want{Nar: nar, Size: big})
	t.Cleanup(func() { l.End(context.Background(), true) })
	return l
}

// byRank returns the citizens, the coordinator of nar first.
func byRank(all []*citizen) (list []*citizen) {
	var ids []lease.NodeID
	for _, c := range all {
		ids = append(ids, c.id)
	}
	for _, id := range lease.Rank(nar, ids) {
		list = append(list, all[0].town.nodes[id])
	}
	return list
}

func inTown(t *testing.T, n int, f func(t *testing.T, town *town, ranked []*citizen)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		town, all := newTown(n)
		t.Cleanup(func() {
			for _, c := range all {
				c.leases.Close()
			}
		})
		f(t, town, byRank(all))
	})
}

// TestOneGoes: of all who want the same one goes upstream, and the others are told of it.
func TestOneGoes(t *testing.T) {
	inTown(t, 8, func(t *testing.T, _ *town, all []*citizen) {
		upstream := 0
		for _, c := range all {
			l := c.begin(t)
			_, sources := l.Next(t.Context(), Outcome{})
			if len(sources) == 0 {
				upstream++
			}
			defer l.End(t.Context(), true)
		}
		if upstream != 1 {
			t.Errorf("%d went upstream", upstream)
		}
	})
}

// TestFetcherGivesUp: when the one who fetches gives up, a follower goes on.
func TestFetcherGivesUp(t *testing.T) {
	inTown(t, 3, func(t *testing.T, _ *town, all []*citizen) {
		fetcher, follower := all[1].begin(t), all[2].begin(t)
		if _, s := fetcher.Next(t.Context(), Outcome{}); len(s) != 0 {
			t.Fatalf("the first one follows %v", s)
		}
		_, s := follower.Next(t.Context(), Outcome{})
		if len(s) != 1 || s[0].Node != all[1].id {
			t.Fatalf("the second one is told %v", s)
		}
		fetcher.End(t.Context(), false)
		synctest.Wait()
		if _, s := follower.Next(t.Context(), Outcome{Failed: []lease.NodeID{all[1].id}}); len(s) != 0 {
			t.Errorf("nobody is left, and it follows %v", s)
		}
		follower.End(t.Context(), true)
	})
}

// TestUpstreamFails: whose upstream fails does not keep the others from trying theirs.
func TestUpstreamFails(t *testing.T) {
	inTown(t, 3, func(t *testing.T, _ *town, all []*citizen) {
		a, b := all[1].begin(t), all[2].begin(t)
		a.Next(t.Context(), Outcome{})
		b.Next(t.Context(), Outcome{})
		if _, s := a.Next(t.Context(), Outcome{}); len(s) != 0 {
			t.Fatalf("who failed is told %v while nobody else fetches", s)
		}
		a.End(t.Context(), false)
		synctest.Wait()
		if _, s := b.Next(t.Context(), Outcome{Failed: []lease.NodeID{all[1].id}}); len(s) != 0 {
			t.Errorf("the other one is told %v", s)
		}
		c := all[1].begin(t)
		if _, s := c.Next(t.Context(), Outcome{}); len(s) != 1 || s[0].Node != all[2].id {
			t.Errorf("who failed follows %v", s)
		}
	})
}

// TestSilentCoordinators: who does not answer is left after lease.AnswerTime, who shows that it
// works gets more time, and nobody blocks.
func TestSilentCoordinators(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(all []*citizen)
		least  time.Duration
		most   time.Duration
		first  bool // the first in rank decides
	}{
		{"all well", func([]*citizen) {}, 0, 0, true},
		{"first is gone", func(a []*citizen) { a[0].cut, a[0].silent = true, true }, lease.AnswerTime, lease.AnswerTime, false},
		{"two are gone", func(a []*citizen) {
			a[0].cut, a[0].silent, a[1].cut, a[1].silent = true, true, true, true
		}, 2 * lease.AnswerTime, 2 * lease.AnswerTime, false},
		{"busy, but there", func(a []*citizen) { a[0].takes = time.Second }, time.Second, time.Second, true},
		{"never answers", func(a []*citizen) { a[0].takes = time.Hour }, lateTime, lateTime, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			inTown(t, 4, func(t *testing.T, town *town, all []*citizen) {
				town.set(func() { c.change(all) })
				start := time.Now()
				l := all[3].begin(t)
				_, s := l.Next(t.Context(), Outcome{})
				took := time.Since(start)
				if len(s) != 0 || took < c.least || took > c.most {
					t.Errorf("told %v after %v", s, took)
				}
				if n, _ := all[0].table.Len(); (n == 1) != c.first {
					t.Errorf("the first in rank knows of %d", n)
				}
				l.End(t.Context(), true)
			})
		})
	}
}

// TestYields: two who could not hear of each other fetch the same; when they can, the one that
// is behind follows the other, and the other goes on.
func TestYields(t *testing.T) {
	inTown(t, 2, func(t *testing.T, town *town, all []*citizen) {
		town.set(func() { all[0].cut, all[0].silent, all[1].silent = true, true, true })
		a, b := all[0].begin(t), all[1].begin(t)
		aTurn, sa := a.Next(t.Context(), Outcome{})
		bTurn, sb := b.Next(t.Context(), Outcome{})
		if len(sa)+len(sb) != 0 {
			t.Fatalf("told %v and %v", sa, sb)
		}
		town.set(func() { all[0].cut, all[0].silent, all[1].silent = false, false, false })
		a.Moved(5<<20, 6<<20)
		b.Moved(40<<20, 41<<20)
		<-time.After(3 * lease.ReportEvery)
		if aTurn.Err() == nil || bTurn.Err() != nil {
			t.Errorf("the one behind: %v, the one ahead: %v", aTurn.Err(), bTurn.Err())
		}
		if _, s := a.Next(t.Context(), Outcome{}); len(s) != 1 || s[0].Node != all[1].id {
			t.Errorf("the one behind is told %v", s)
		}
		a.End(t.Context(), true)
		b.End(t.Context(), true)
	})
}

// TestSlowLine: a fetcher whose bytes are all held back keeps its lease, and its follower waits.
func TestSlowLine(t *testing.T) {
	inTown(t, 3, func(t *testing.T, _ *town, all []*citizen) {
		a, b := all[1].begin(t), all[2].begin(t)
		a.Next(t.Context(), Outcome{})
		for i := range 20 { // 40 s
			_, s := b.Next(t.Context(), Outcome{Stalled: all[1].id})
			if len(s) != 1 {
				t.Fatalf("after %d s it is told %v", 2*i, s)
			}
			a.Moved(0, int64(i+1)*10<<10)
			<-time.After(lease.StallTime)
		}
		<-time.After(lease.Forbearance)
		if _, s := b.Next(t.Context(), Outcome{Stalled: all[1].id}); len(s) != 0 {
			t.Errorf("it is told %v for ever", s)
		}
		a.End(t.Context(), true)
		b.End(t.Context(), true)
	})
}

// TestSlowLineOfMany: who follows somebody that follows is told that bytes come, too, when more
// nodes follow than are named.
func TestSlowLineOfMany(t *testing.T) {
	inTown(t, 16, func(t *testing.T, _ *town, all []*citizen) {
		var leases []*Lease
		for _, c := range all {
			leases = append(leases, c.begin(t))
		}
		last := map[int]lease.NodeID{}
		for i, l := range leases {
			if _, s := l.Next(t.Context(), Outcome{}); len(s) > 0 {
				last[i] = s[0].Node
			}
		}
		for round := range 5 { // 40 s
			leases[0].Moved(0, int64(round+1)*10<<10)
			<-time.After(4 * lease.StallTime)
			for i, l := range leases[1:] {
				_, s := l.Next(t.Context(), Outcome{Stalled: last[i+1]})
				if len(s) == 0 {
					t.Fatalf("round %d: node %d goes upstream", round, i+1)
				}
				last[i+1] = s[0].Node
			}
		}
	})
}

// TestEnds: a lease that ends while it asks does not wait, and one after Close asks nobody in
// the background.
func TestEnds(t *testing.T) {
	inTown(t, 3, func(t *testing.T, town *town, all []*citizen) {
		town.set(func() {
			for _, c := range all {
				c.takes = time.Hour
			}
		})
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(10*time.Millisecond, func() { cancel(errors.New("the client left")) })
		start := time.Now()
		l := all[2].begin(t)
		turn, _ := l.Next(ctx, Outcome{})
		if took := time.Since(start); took != 10*time.Millisecond || turn.Err() == nil {
			t.Errorf("ended after %v", took)
		}
		l.End(ctx, false)
		all[2].leases.Close()
		before := all[0].asked
		l = all[2].begin(t)
		l.End(ctx, true)
		<-time.After(time.Minute)
		if all[0].asked != before {
			t.Error("somebody was told after Close")
		}
	})
}
