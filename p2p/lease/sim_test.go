package lease

import (
	"container/heap"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/p2p/machine"
)

// A site of nodes in virtual time: every one with a Table and a Session for each NAR that it
// wants, messages that are late, lost or doubled, nodes that die, come back or cannot reach
// each other, and bytes that move over an uplink that all share and a network card each.

type world struct {
	t    *testing.T
	seed uint64
	rng  *rand.Rand
	now  time.Time
	q    events
	seq  int

	nodes   []*host
	byID    map[NodeID]*host
	sizes   map[nix.NarHash]int64
	latency time.Duration
	tail    int64 // bytes that a node holds back
	tick    time.Duration
	uplink  float64 // bytes/s, for all together
	card    float64 // bytes/s in each direction
	jobs    int     // NARs that a node fetches at a time
	lag     func() time.Duration
	loss    float64
	double  float64
	late    float64 // messages that take up to two seconds
	held    bool    // what a known node has is seen without a lease, as in its inventory

	upstream   map[nix.NarHash]int64
	fetchers   map[nix.NarHash]map[NodeID]bool
	lost       int64           // bytes that only somebody who died had
	most       time.Duration   // that a node may be without a byte
	waits      []time.Duration // from the begin of a job to its end
	wanted     int64           // bytes of all NARs for which somebody began to ask
	messages   int
	overs      int // time budgets that were used up
	yields     int
	neverYield bool
	fetched    map[nix.NarHash]time.Time // when somebody fetched it last, or had all
	gap        time.Duration             // the longest time that nobody did, for somebody
	decided    time.Duration             // the longest time to a decision
	idle       time.Duration             // the longest time without a byte
}

type host struct {
	w       *world
	id      NodeID
	machine machine.ID
	pace    source.Pace // of its own NARs from upstream
	up      bool
	life    int // how often it was started
	group   int // who can reach whom
	coord   *Coordinator
	base    []*host // whom it knows when all are up
	known   map[NodeID]bool
	live    []NodeID
	queue   []nix.NarHash
	jobs    []*job
	all     map[nix.NarHash]*job
	ended   time.Time

	in, out float64 // of this tick: transfers that share its card
}

type job struct {
	h       *host
	nar     nix.NarHash
	size    int64
	bytes   int64
	s       *Session
	asked   Step      // that was sent
	round   time.Time // when it began to ask; zero: it does not
	steps   int       // answers heard; a change of plan
	src     *host     // attached to
	bad     map[NodeID]bool
	wait    time.Time // a source that does not answer is waited for
	last    time.Time // when a byte came or following began
	moved   time.Time // when a byte came
	said    time.Time // last report
	uploads int
	follows bool
	stop    int64 // a fetcher dies at this byte
	started int64 // bytes that others could read at the begin of the tick
	before  int64 // bytes at the begin of the tick
	clock   clock
	born    time.Time
	told    bool // that it fetches
}

func newWorld(t *testing.T, seed uint64, n int) *world {
	w := &world{
		t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 7)), now: time.Unix(1000, 0), byID: map[NodeID]*host{},
		sizes: map[nix.NarHash]int64{}, tick: 50 * time.Millisecond, most: most, tail: 64 << 10, latency: 20 * time.Millisecond, uplink: 25e6, card: 125e6, jobs: 16,
		upstream: map[nix.NarHash]int64{}, fetchers: map[nix.NarHash]map[NodeID]bool{},
		fetched: map[nix.NarHash]time.Time{},
	}
	w.lag = func() time.Duration { return time.Second + w.upTo(2*time.Second) }
	for i := range n {
		h := &host{w: w, id: NodeID(fmt.Sprintf("node-%02d-of-%d", i, seed)), known: map[NodeID]bool{}}
		h.machine = machine.Of(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}))
		w.nodes = append(w.nodes, h)
		w.byID[h.id] = h
	}
	for _, h := range w.nodes {
		h.boot()
	}
	for _, h := range w.nodes {
		h.know(w.nodes)
	}
	return w
}

// fatalf ends the test with the seed that shows it again.
func (w *world) fatalf(format string, args ...any) {
	w.t.Helper()
	w.t.Fatalf("seed %d, second %.2f: %s", w.seed, w.now.Sub(time.Unix(1000, 0)).Seconds(), fmt.Sprintf(format, args...))
}

func (w *world) upTo(d time.Duration) time.Duration { return time.Duration(w.rng.Int64N(int64(d))) }

func (w *world) nar(size int64) nix.NarHash {
	var nar nix.NarHash
	for i := 0; i < len(nar); i += 8 {
		binary.LittleEndian.PutUint64(nar[i:], w.rng.Uint64())
	}
	w.sizes[nar] = size
	w.fetchers[nar] = map[NodeID]bool{}
	return nar
}

func (h *host) know(hosts []*host) {
	h.base = nil
	for _, o := range hosts {
		if o != h {
			h.base = append(h.base, o)
		}
	}
	h.see(h.base...)
}

// see updates what h knows of others at once.
func (h *host) see(others ...*host) {
	for _, o := range others {
		up := o.up && o.group == h.group
		if h.known[o.id] && !up && h.coord != nil {
			h.coord.Lost(o.id)
		}
		h.known[o.id] = up
	}
	h.live = nil
	for _, o := range h.base {
		if h.known[o.id] {
			h.live = append(h.live, o.id)
		}
	}
}

// notice lets everybody see everybody after a while, each in its time.
func (w *world) notice() {
	for _, h := range w.nodes {
		for _, o := range h.base {
			w.after(w.lag(), func() {
				if h.up {
					h.see(o)
				}
			})
		}
	}
}

func (h *host) boot() {
	h.up, h.life = true, h.life+1
	h.coord, h.jobs, h.all = NewCoordinator(h.id), nil, map[nix.NarHash]*job{}
	h.coord.neverYield = h.w.neverYield
}

func (h *host) die() {
	for _, j := range h.jobs {
		j.detach()
	}
	h.up, h.jobs, h.all, h.queue = false, nil, map[nix.NarHash]*job{}, nil
}

func (w *world) reach(a, b *host) bool { return a.up && b.up && a.group == b.group }

type event struct {
	at  time.Time
	seq int
	do  func()
}

type events []event

func (q events) Len() int { return len(q) }
func (q events) Less(i, j int) bool {
	return q[i].at.Before(q[j].at) || q[i].at.Equal(q[j].at) && q[i].seq < q[j].seq
}
func (q events) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *events) Push(x any)   { *q = append(*q, x.(event)) }
func (q *events) Pop() any {
	old := *q
	e := old[len(old)-1]
	*q = old[:len(old)-1]
	return e
}

func (w *world) after(d time.Duration, do func()) {
	w.seq++
	heap.Push(&w.q, event{w.now.Add(d), w.seq, do})
}

// run lets time pass until done says so, or for at most d.
func (w *world) run(d time.Duration, done func() bool) bool {
	for end := w.now.Add(d); w.now.Before(end); {
		next := w.now.Add(w.tick)
		for len(w.q) > 0 && !w.q[0].at.After(next) {
			e := heap.Pop(&w.q).(event)
			w.now = e.at
			e.do()
		}
		w.now = next
		w.step()
		if done() {
			return true
		}
	}
	return false
}

// send carries a request to another node, or itself, and the answer back.
func (w *world) send(from, to *host, r Request, answered func(Answer), refused func()) {
	w.messages++
	got, err := DecodeRequest(r.Append(nil))
	if err != nil || !reflect.DeepEqual(got, r) {
		w.fatalf("%+v is carried as %+v, %v", r, got, err)
	}
	if from == to {
		answered(w.handle(to, from, got))
		return
	}
	life := from.life
	trip := func() time.Duration {
		if w.rng.Float64() < w.late {
			return w.upTo(2 * time.Second)
		}
		return 100*time.Microsecond + w.upTo(time.Millisecond)
	}
	once := func() {
		w.after(trip(), func() {
			switch {
			case w.rng.Float64() < w.loss:
			case !w.reach(from, to):
				if from.group == to.group && w.rng.IntN(2) == 0 {
					refused() // the machine is there, the daemon is not
				}
			default:
				a := w.handle(to, from, got)
				w.after(trip(), func() {
					if w.reach(from, to) && from.life == life && w.rng.Float64() >= w.loss {
						answered(a)
					}
				})
			}
		})
	}
	once()
	if w.rng.Float64() < w.double {
		once()
	}
}

func (w *world) handle(at, from *host, r Request) Answer {
	a := at.coord.Handle(from.id, from.machine, r, at.live, w.now)
	got, err := DecodeAnswer(a.Append(nil))
	if a.Kind == Fetch {
		got.Term = a.Term // in milliseconds on the way
	}
	if err != nil || !reflect.DeepEqual(got, a) {
		w.fatalf("%+v is carried as %+v, %v", a, got, err)
	}
	nars, members := at.coord.Len()
	if nars > members || members > maxMembers {
		w.fatalf("table of %s has %d NARs, %d members", at.id, nars, members)
	}
	return a
}
