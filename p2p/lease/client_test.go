package lease

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
	"github.com/nixp2p/nixp2p/internal/source"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// town is nodes that reach each other by calls.
type town struct {
	mu    sync.Mutex
	nodes map[NodeID]*citizen
}

// citizen is one of them.
type citizen struct {
	town   *town
	id     NodeID
	coord  *Coordinator
	client *Client

	// Under town.mu.
	cut   bool          // hears and says nothing
	takes time.Duration // to answer
	says  *Answer       // instead of what the coordinator says
	asked int
}

func newTown(n int) (*town, []*citizen) {
	t := &town{nodes: map[NodeID]*citizen{}}
	var list []*citizen
	for i := range n {
		id := NodeID(fmt.Sprintf("node-%d", i))
		c := &citizen{town: t, id: id, coord: NewCoordinator(id)}
		c.client = NewClient(c, time.Now)
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

func (c *citizen) Self() NodeID { return c.id }

func (c *citizen) Live() (ids []NodeID) {
	c.town.mu.Lock()
	defer c.town.mu.Unlock()
	for id, o := range c.town.nodes {
		if o != c && !c.cut {
			ids = append(ids, id)
		}
	}
	return ids
}

// Lively is part of Asker: nothing is known of the others.
func (c *citizen) Lively(NodeID) bool { return false }

func (c *citizen) Ask(ctx context.Context, node NodeID, _ string, r Request) (Answer, error) {
	c.town.mu.Lock()
	o := c.town.nodes[node]
	gone, takes, says := (o.cut || c.cut) && o != c, o.takes, o.says
	o.asked++
	c.town.mu.Unlock()
	if o == c {
		takes = 0
	}
	if gone {
		takes = time.Hour
	}
	answer := time.NewTimer(takes)
	defer answer.Stop()
	select {
	case <-answer.C:
		if says != nil {
			return *says, nil
		}
		return o.coord.Handle(c.id, on(c.id), r, o.Live(), time.Now()), nil
	case <-ctx.Done():
		return Answer{}, ctx.Err()
	}
}

var theNAR = nix.NarHash{7}

func (c *citizen) begin(t *testing.T) *Lease {
	l := c.client.Begin(Want{Nar: theNAR, Forms: []source.Sized{{Size: big}}})
	t.Cleanup(func() { l.End(t.Context(), true) })
	return l
}

func (l *Lease) mustNext(t *testing.T, o Outcome) Decision {
	t.Helper()
	d, err := l.Next(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func inTown(t *testing.T, n int, f func(t *testing.T, town *town, ranked []*citizen)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		town, all := newTown(n)
		t.Cleanup(func() {
			for _, c := range all {
				c.client.Close()
			}
		})
		var ids []NodeID
		for _, c := range all {
			ids = append(ids, c.id)
		}
		var ranked []*citizen
		for _, id := range Rank(theNAR, ids) {
			ranked = append(ranked, town.nodes[id])
		}
		f(t, town, ranked)
	})
}

// TestOneFetches: of all that want the same one goes upstream, and the others are told of it.
func TestOneFetches(t *testing.T) {
	inTown(t, 8, func(t *testing.T, _ *town, all []*citizen) {
		upstream := 0
		for _, c := range all {
			if c.begin(t).mustNext(t, Outcome{}).Fetch() {
				upstream++
			}
		}
		if upstream != 1 {
			t.Errorf("%d went upstream", upstream)
		}
	})
}

// TestFetcherGivesUp: when the one that fetches gives up, a follower goes on.
func TestFetcherGivesUp(t *testing.T) {
	inTown(t, 3, func(t *testing.T, _ *town, all []*citizen) {
		fetcher, follower := all[1].begin(t), all[2].begin(t)
		if d := fetcher.mustNext(t, Outcome{}); !d.Fetch() {
			t.Fatalf("the first one follows %v", d.Sources)
		}
		if d := follower.mustNext(t, Outcome{}); len(d.Sources) != 1 || d.Sources[0].Node != all[1].id {
			t.Fatalf("the second one is told %v", d.Sources)
		}
		fetcher.End(t.Context(), false)
		synctest.Wait()
		if d := follower.mustNext(t, Outcome{Failed: []NodeID{all[1].id}}); !d.Fetch() {
			t.Errorf("nobody is left, and it follows %v", d.Sources)
		}
	})
}

// TestLastWord: what End says arrives, also when the client is closed at once.
func TestLastWord(t *testing.T) {
	for _, whole := range []bool{true, false} {
		inTown(t, 3, func(t *testing.T, _ *town, all []*citizen) {
			l := all[1].begin(t)
			l.mustNext(t, Outcome{})
			l.End(t.Context(), whole)
			all[1].client.Close()
			if m := all[0].coord.entries[theNAR].member(all[1].id); whole != (m != nil && m.whole()) {
				t.Errorf("whole %t: the coordinator knows %+v", whole, m)
			}
		})
	}
}

// TestUpstreamFails: a node whose upstream fails does not keep the others from trying theirs.
func TestUpstreamFails(t *testing.T) {
	inTown(t, 3, func(t *testing.T, _ *town, all []*citizen) {
		a, b := all[1].begin(t), all[2].begin(t)
		a.mustNext(t, Outcome{})
		b.mustNext(t, Outcome{})
		if d := a.mustNext(t, Outcome{}); !d.Fetch() {
			t.Fatalf("it is told %v while nobody else fetches", d.Sources)
		}
		a.End(t.Context(), false)
		synctest.Wait()
		if d := b.mustNext(t, Outcome{Failed: []NodeID{all[1].id}}); !d.Fetch() {
			t.Errorf("the other one is told %v", d.Sources)
		}
		c := all[1].begin(t)
		if d := c.mustNext(t, Outcome{}); len(d.Sources) != 1 || d.Sources[0].Node != all[2].id {
			t.Errorf("the one that failed follows %v", d.Sources)
		}
	})
}

// TestSilentCoordinators: one that does not answer is left after AnswerTime, and later not asked
// at all; one that answered before gets more time, once.
func TestSilentCoordinators(t *testing.T) {
	for _, c := range []struct {
		name   string
		known  bool // they answered before
		change func(all []*citizen)
		took   [2]time.Duration // for two NARs in turn
		first  bool             // the first in rank decides on the first one
	}{
		{"all well", false, func([]*citizen) {}, [2]time.Duration{}, true},
		{"first is gone", false, func(a []*citizen) { a[0].cut = true }, [2]time.Duration{AnswerTime, 0}, false},
		{"two are gone", false, func(a []*citizen) { a[0].cut, a[1].cut = true, true }, [2]time.Duration{2 * AnswerTime, 0}, false},
		{"first is gone now", true, func(a []*citizen) { a[0].cut = true }, [2]time.Duration{knownTime, AnswerTime}, false},
		{"unknown and slow", false, func(a []*citizen) { a[0].takes = 600 * time.Millisecond }, [2]time.Duration{AnswerTime, 600 * time.Millisecond}, false},
		{"known and slow", true, func(a []*citizen) { a[0].takes = 600 * time.Millisecond }, [2]time.Duration{600 * time.Millisecond, 600 * time.Millisecond}, true},
		{"known and too slow", true, func(a []*citizen) { a[0].takes = time.Hour }, [2]time.Duration{knownTime, AnswerTime}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			inTown(t, 4, func(t *testing.T, town *town, all []*citizen) {
				if c.known {
					l := all[3].begin(t)
					l.mustNext(t, Outcome{})
					l.End(t.Context(), false)
					synctest.Wait()
				}
				town.set(func() { c.change(all) })
				for i, want := range c.took {
					start := time.Now()
					l := all[3].begin(t)
					if d := l.mustNext(t, Outcome{}); !d.Fetch() {
						t.Errorf("told %v", d.Sources)
					}
					if took := time.Since(start); took != want {
						t.Errorf("NAR %d: told after %v, want %v", i, took, want)
					}
					if n, _ := all[0].coord.Len(); i == 0 && (n == 1) != c.first {
						t.Errorf("the first in rank knows of %d", n)
					}
					l.End(t.Context(), false)
					time.Sleep(10 * time.Second) // in the bubble: late answers are here
				}
			})
		})
	}
}

// TestYielding: two that could not hear of each other fetch the same; when they can, the one
// that is behind follows the other, and the other goes on.
func TestYielding(t *testing.T) {
	inTown(t, 2, func(t *testing.T, town *town, all []*citizen) {
		town.set(func() { all[0].cut = true })
		a, b := all[0].begin(t), all[1].begin(t)
		da, db := a.mustNext(t, Outcome{}), b.mustNext(t, Outcome{})
		if !da.Fetch() || !db.Fetch() {
			t.Fatalf("told %v and %v", da.Sources, db.Sources)
		}
		town.set(func() { all[0].cut = false })
		a.Progress(5<<20, 6<<20)
		b.Progress(40<<20, 41<<20)
		time.Sleep(70 * time.Second) // until b asks a again
		select {
		case <-da.Over:
		default:
			t.Error("the one behind goes on")
		}
		select {
		case <-db.Over:
			t.Error("the one ahead yields")
		default:
		}
		if d := a.mustNext(t, Outcome{}); len(d.Sources) != 1 || d.Sources[0].Node != all[1].id || !d.Yielded {
			t.Errorf("the one behind is told %+v", d)
		}
	})
}

// TestNotSentBack: a node whose time budget was used up is not told to follow again.
func TestNotSentBack(t *testing.T) {
	inTown(t, 3, func(t *testing.T, town *town, all []*citizen) {
		a, b := all[1].begin(t), all[2].begin(t)
		a.mustNext(t, Outcome{})
		d := b.mustNext(t, Outcome{})
		if d.Fetch() {
			t.Fatal("the second one is told to fetch")
		}
		b.FetchAnyway()
		a.Progress(40<<20, 41<<20)
		time.Sleep(4 * ReportEvery)
		select {
		case <-d.Over:
			t.Error("it is sent back")
		default:
		}
		synctest.Wait()
		if m := all[0].coord.entries[theNAR].member(all[2].id); m == nil || m.source != "" && m.source != all[1].id {
			t.Errorf("the coordinator knows %+v", m)
		}
		if d = b.mustNext(t, Outcome{}); !d.Fetch() {
			t.Errorf("it is told %v", d.Sources)
		}
		if d = b.mustNext(t, Outcome{}); d.Fetch() {
			t.Error("its upstream fails, and it does not follow the other one")
		}
	})
}

// TestEnds: a Next whose context ends returns, and after Close nobody is told anything.
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
		if _, err := l.Next(ctx, Outcome{}); err == nil || time.Since(start) != 10*time.Millisecond {
			t.Errorf("ended after %v: %v", time.Since(start), err)
		}
		l.End(t.Context(), false)
		all[2].client.Close()
		before := all[0].asked
		l = all[2].begin(t)
		if d := l.mustNext(t, Outcome{}); !d.Fetch() {
			t.Error("it is told to follow")
		}
		l.End(t.Context(), true)
		time.Sleep(time.Minute)
		if all[0].asked != before {
			t.Error("somebody was told after Close")
		}
	})
}
