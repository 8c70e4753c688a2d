package lease

import (
	"container/heap"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
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

// step moves bytes for one tick.
func (w *world) step() {
	var fetches, flows []*job
	off := w.rng.IntN(len(w.nodes))
	for i := range w.nodes {
		h := w.nodes[(i+off)%len(w.nodes)]
		h.in, h.out = 0, 0
		if !h.up {
			continue
		}
		for len(h.jobs) < w.jobs && len(h.queue) > 0 {
			h.start(h.queue[0])
			h.queue = h.queue[1:]
		}
		for _, j := range h.jobs {
			j.started, j.before = j.readable(), j.bytes
		}
	}
	for i := range w.nodes {
		h := w.nodes[(i+off)%len(w.nodes)]
		if !h.up {
			continue
		}
		for _, j := range slices.Clone(h.jobs) {
			s := j.plan()
			if s.Kind != FetchStep && j.late() {
				s = j.plan()
			}
			switch {
			case s.Kind == FetchStep:
				fetches = append(fetches, j)
				h.in++
			case s.Kind == FollowStep && j.attach(s):
				if from := j.src.all[j.nar]; from != nil && from.started > j.bytes {
					flows = append(flows, j)
					h.in++
					j.src.out++
				}
			}
		}
	}
	w.pour(fetches, flows)
	w.measure(fetches)
	w.served(fetches)
	for _, h := range w.nodes {
		for _, j := range slices.Clone(h.jobs) {
			j.tell()
		}
	}
}

// late counts the time of a turn and reports whether the time budget is used up: then the node
// fetches from upstream, for good.
func (j *job) late() bool {
	j.clock.waited += j.h.w.tick
	if !j.clock.over(j.h.pace) {
		return false
	}
	j.h.w.overs++
	j.detach()
	j.s.FetchAnyway()
	return true
}

// measure updates the pace of those that fetch: what one NAR of theirs comes at.
func (w *world) measure(fetches []*job) {
	sum, n := map[*host]float64{}, map[*host]float64{}
	for _, j := range fetches {
		sum[j.h] += float64(j.bytes-j.before) / w.tick.Seconds()
		n[j.h]++
	}
	for h := range sum {
		rate := sum[h] / n[h]
		if h.pace.Rate == 0 {
			h.pace = source.Pace{Latency: w.latency, Rate: rate}
			continue
		}
		part := min(w.tick.Seconds()/paceTime, 1)
		h.pace.Rate += part * (rate - h.pace.Rate)
	}
}

// readable is how much of a NAR others can have from a node: all but the tail until all is there.
func (j *job) readable() int64 {
	if j.bytes == j.size {
		return j.size
	}
	return max(j.bytes-j.h.w.tail, 0)
}

// served sees to it that somebody fetches each NAR that somebody who lives still wants.
func (w *world) served(fetches []*job) {
	for _, j := range fetches {
		w.fetched[j.nar] = w.now
	}
	for _, h := range w.nodes {
		for _, j := range h.jobs {
			gap := w.now.Sub(later(j.born, w.fetched[j.nar]))
			if gap > roundTime && slices.ContainsFunc(w.nodes, func(o *host) bool {
				have := o.all[j.nar]
				return have != nil && have.bytes == have.size && w.reach(h, o)
			}) {
				w.fetched[j.nar], gap = w.now, 0
			}
			if gap > roundTime {
				w.gap = max(w.gap, gap)
			}
			if gap > w.most {
				w.fatalf("nobody has fetched %s for %v, and %s waits", j.nar, gap, h.id)
			}
		}
	}
}

// most is how long at most somebody stays without a byte, whatever happens: it is told to
// follow for as long as its Patience lasts, finds that out at the next stall, and asks around.
// paceTime is over how many seconds the pace is averaged.
const paceTime = 1.0

const most = patience + StallTime + roundTime + 2*time.Second

// pour shares the uplink and the cards out.
func (w *world) pour(fetches, flows []*job) {
	dt := w.tick.Seconds()
	for _, j := range flows {
		rate := min(w.card/j.src.out, w.card/j.h.in)
		j.add(j.src.id, min(int64(rate*dt), j.src.all[j.nar].started-j.bytes))
	}
	budget := int64(w.uplink * dt)
	fetches = slices.Clone(fetches)
	room := map[*job]int64{}
	for _, j := range fetches {
		w.fetchers[j.nar][j.h.id] = true
		room[j] = int64(w.card / j.h.in * dt)
	}
	for budget > 0 && len(fetches) > 0 {
		share := max(budget/int64(len(fetches)), 1)
		fetches = slices.DeleteFunc(fetches, func(j *job) bool {
			n := min(share, room[j], j.size-j.bytes, budget)
			j.add("", n)
			room[j] -= n
			budget -= n
			w.upstream[j.nar] += n
			return n < share
		})
	}
}

func (j *job) add(from NodeID, n int64) {
	if n == 0 {
		return
	}
	j.bytes += n
	if from != "" {
		j.clock.received += n
	}
	j.last, j.moved = j.h.w.now, j.h.w.now
	j.s.Received(from, nix.Raw, j.readable(), j.bytes)
}

func (h *host) start(nar nix.NarHash) {
	w := h.w
	if w.held && slices.ContainsFunc(h.live, func(id NodeID) bool {
		j := w.byID[id].all[nar]
		return j != nil && j.bytes == j.size && w.now.Sub(j.moved) > 2*time.Second
	}) {
		size := w.sizes[nar]
		h.all[nar] = &job{h: h, nar: nar, size: size, bytes: size, started: size}
		return
	}
	j := &job{h: h, nar: nar, size: w.sizes[nar], last: w.now, moved: w.now, said: w.now, round: w.now, born: w.now}
	j.s = NewSession(h.id, Want{Nar: nar, Forms: []source.Sized{{Size: j.size}}}, h.live, nil, w.now)
	j.clock = clock{size: j.size, stagger: w.upTo(maxStagger)}
	w.wanted += j.size
	h.jobs = append(h.jobs, j)
	h.all[nar] = j
}

// plan returns the step of a job, and sends its question once.
func (j *job) plan() Step {
	w, h := j.h.w, j.h
	for {
		s := j.s.Next(w.now)
		if s.Kind != AskStep {
			if !j.round.IsZero() {
				w.decided = max(w.decided, w.now.Sub(j.round))
				if w.now.Sub(j.round) > roundTime+2*w.tick {
					w.fatalf("%s asked around for %v", h.id, w.now.Sub(j.round))
				}
				j.round = time.Time{}
				j.begin(s)
			}
			if s.Kind == FetchStep && j.follows {
				w.yields++
				j.begin(s)
			}
			if s.Kind == FollowStep && !j.follows {
				w.yields++
				j.begin(s)
			}
			return s
		}
		if j.round.IsZero() {
			j.round = w.now
			j.detach()
		}
		if s.Node == j.asked.Node && s.Until.Equal(j.asked.Until) && s.Request.Hops == j.asked.Request.Hops {
			return s
		}
		j.asked = s
		w.send(h, w.byID[s.Node], s.Request,
			func(a Answer) { j.hear(s.Node, a) },
			func() {
				if j.s.Unanswered(s.Node, w.now); h.all[j.nar] == j {
					j.plan()
				}
			})
	}
}

// hear takes an answer, and goes on at once.
func (j *job) hear(from NodeID, a Answer) {
	if !j.h.up || j.h.all[j.nar] != j || j.bytes == j.size {
		return
	}
	asking := j.s.Next(j.h.w.now).Kind == AskStep
	j.s.Answered(from, a, j.h.w.now)
	if asking {
		j.plan()
	}
}

func (j *job) begin(s Step) {
	j.detach()
	j.told = false
	j.follows, j.bad, j.last, j.wait = s.Kind == FollowStep, map[NodeID]bool{}, j.h.w.now, time.Time{}
}

func (j *job) again(ask func()) {
	j.detach()
	ask()
	j.round = j.h.w.now
	j.plan()
}

// attach finds a source that gives bytes now.
func (j *job) attach(s Step) bool {
	w := j.h.w
	if w.now.Before(j.wait) {
		return false
	}
	if j.src != nil && (!w.reach(j.h, j.src) || j.src.all[j.nar] == nil) {
		j.lose(j.src.id)
		j.detach()
	}
	if w.now.Sub(j.last) > StallTime {
		var id NodeID
		if j.src != nil {
			id = j.src.id
		}
		j.again(func() { j.s.Stalled(id, j.h.live, w.now) })
		return false
	}
	if j.src != nil {
		return true
	}
	busy := false
	for _, o := range s.Sources {
		h := w.byID[o.Node]
		if j.bad[o.Node] {
			continue
		}
		switch have := h.all[j.nar]; {
		case !w.reach(j.h, h):
			j.lose(o.Node)
			if w.rng.IntN(2) == 0 {
				j.wait = w.now.Add(300 * time.Millisecond) // silence, not a refusal
				return false
			}
		case have == nil:
			j.lose(o.Node)
		case j.size >= smallNAR && have.uploads >= perSource:
			busy = true
		default:
			have.uploads++
			j.src = h
			return true
		}
	}
	if !busy {
		j.again(func() { j.s.Again(j.h.live, w.now) })
	}
	return false
}

func (j *job) lose(id NodeID) {
	j.bad[id] = true
	j.s.Failed(id)
}

func (j *job) detach() {
	if j.src == nil {
		return
	}
	if o := j.src.all[j.nar]; o != nil {
		o.uploads--
	}
	j.src = nil
}

// tell reports, and ends what is whole.
func (j *job) tell() {
	w, h := j.h.w, j.h
	whole := j.bytes == j.size
	if !whole {
		idle := w.now.Sub(j.moved)
		w.idle = max(w.idle, idle)
		if idle > w.most {
			w.fatalf("%s got no byte for %v, at %d of %d: %+v", h.id, idle, j.bytes, j.size, j.s.Next(w.now))
		}
		if !j.round.IsZero() || w.now.Sub(j.said) < ReportEvery && (j.told || j.follows) {
			return
		}
	}
	j.said, j.told = w.now, true
	r, to := j.s.Report(Progress, h.live)
	for _, id := range to {
		w.send(h, w.byID[id], r, func(a Answer) { j.hear(id, a) }, func() {})
	}
	if whole {
		w.waits = append(w.waits, w.now.Sub(j.born))
		j.started = j.size
		j.detach()
		h.jobs = slices.DeleteFunc(h.jobs, func(o *job) bool { return o == j })
		if len(h.jobs)+len(h.queue) == 0 {
			h.ended = w.now
		}
	}
	if j.stop > 0 && j.bytes >= j.stop && j.s.Next(w.now).Kind == FetchStep {
		h.die()
		w.notice()
	}
}

// ready tells that everybody who lives has all that it wants.
func (w *world) ready() bool {
	for _, h := range w.nodes {
		if h.up && len(h.jobs)+len(h.queue) > 0 {
			return false
		}
	}
	return true
}

// all adds up the bytes that came from upstream, and of the NARs themselves.
func (w *world) egress() (upstream, unique int64, ratio float64) {
	for nar, size := range w.sizes {
		upstream += w.upstream[nar]
		unique += size
	}
	return upstream, unique, float64(upstream) / float64(unique)
}

// emptied tells that no table keeps anything when all is over.
func (w *world) emptied() {
	w.now = w.now.Add(time.Minute)
	for _, h := range w.nodes {
		h.coord.Expire(w.now)
		if nars, members := h.coord.Len(); nars != 0 || members != 0 {
			w.fatalf("table of %s keeps %d NARs, %d members", h.id, nars, members)
		}
	}
}
