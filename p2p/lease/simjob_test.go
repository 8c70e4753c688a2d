package lease

import (
	"slices"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
)

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
	if w.most >= time.Hour {
		return // nothing is too long, and looking costs much in a large site
	}
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
