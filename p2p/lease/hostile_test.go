package lease

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
)

// victim is a node among coordinators and sources that all work against it, and that it trusts.
type victim struct {
	rng     *rand.Rand
	now     time.Time
	s       *Session
	clock   clock
	pace    source.Pace // of its upstream
	known   source.Pace // what it knows of that
	size    int64
	got     int64
	opened  time.Time // upstream; zero: it is not open
	asked   Step
	answers []answer

	follows []Source  // of the turn that goes on
	rate    float64   // at which they give
	ends    time.Time // when they stop
	fails   bool      // then
	last    time.Time // when a byte came, or the turn began
	part    float64   // of a byte
}

type answer struct {
	at   time.Time
	from NodeID
	a    Answer
}

const victimTick = 10 * time.Millisecond

func (v *victim) upTo(d time.Duration) time.Duration { return time.Duration(v.rng.Int64N(int64(d))) }

// nonsense is what a hostile coordinator says.
func (v *victim) nonsense() Answer {
	all := nodes(40)
	switch v.rng.IntN(6) {
	case 0:
		return Answer{Kind: Noted}
	case 1:
		return Answer{Kind: Fetch, Term: Term}
	case 2:
		return Answer{Kind: Redirect, Node: all[v.rng.IntN(40)]}
	}
	a := Answer{Kind: Follow}
	for range 1 + v.rng.IntN(MaxSources) {
		s := Source{Node: all[v.rng.IntN(40)], Size: v.size}
		switch v.rng.IntN(5) {
		case 0:
			s.Bytes = s.Size
		case 1:
			s.Form, s.Size = zstdForm, 1+v.rng.Int64N(maxSize)
		case 2:
			s.Size = 1 + v.rng.Int64N(maxSize)
		default:
			s.Bytes = v.rng.Int64N(s.Size)
		}
		s.Got = s.Bytes
		a.Sources = append(a.Sources, s)
	}
	return a
}

// step lets a tick pass.
func (v *victim) step() {
	v.now = v.now.Add(victimTick)
	for len(v.answers) > 0 && !v.answers[0].at.After(v.now) {
		v.s.Answered(v.answers[0].from, v.answers[0].a, v.now)
		v.answers = v.answers[1:]
	}
	s := v.s.Next(v.now)
	if s.Kind != FetchStep {
		v.opened = time.Time{}
		if v.clock.waited += victimTick; v.clock.over(v.known) {
			v.s.FetchAnyway()
			s = v.s.Next(v.now)
		}
	}
	switch s.Kind {
	case AskStep:
		v.follows = nil
		if s.Node != v.asked.Node || !s.Until.Equal(v.asked.Until) {
			v.asked = s
			v.answers = append(v.answers, answer{v.now.Add(v.upTo(time.Second)), s.Node, v.nonsense()})
		}
	case FollowStep:
		v.follow(s)
	case FetchStep:
		v.follows = nil
		if v.opened.IsZero() {
			v.opened = v.now
		}
		if v.now.Sub(v.opened) >= v.pace.Latency {
			v.receive("", v.pace.Rate)
		}
		if v.rng.IntN(100) == 0 { // an answer to a report
			v.s.Answered(nodes(40)[v.rng.IntN(40)], v.nonsense(), v.now)
		}
	}
}

// follow takes what the sources give, who are as slow as they like.
func (v *victim) follow(s Step) {
	if v.follows == nil {
		v.follows, v.last = s.Sources, v.now
		v.rate = []float64{0, 1, 100, v.pace.Rate / 3, v.pace.Rate * 0.9, v.pace.Rate, 3 * v.pace.Rate}[v.rng.IntN(7)]
		v.ends, v.fails = v.now.Add(v.upTo(30*time.Second)), v.rng.IntN(2) == 0
	}
	from := v.follows[0].Node
	switch over := v.now.After(v.ends); {
	case over && v.fails:
		v.follows = nil
		v.s.Failed(from)
		v.s.Again(nodes(40), v.now)
	case !over && v.receive(from, v.rate):
		v.last = v.now
	case v.now.Sub(v.last) > StallTime:
		v.follows = nil
		v.s.Stalled(from, nodes(40), v.now)
	}
}

func (v *victim) receive(from NodeID, rate float64) bool {
	v.part += rate * victimTick.Seconds()
	n := min(int64(v.part), v.size-v.got)
	v.part -= math.Floor(v.part)
	v.got += n
	if from != "" {
		v.clock.received += n
	}
	v.s.Received(from, nix.Raw, v.got, v.got)
	return n > 0
}

// TestTimeBudget: whatever coordinators and sources do, a NAR that upstream delivers in T is here
// in T + 3 s + T/2. While a node does not know what its upstream gives, it takes that for
// unknownFloor.
func TestTimeBudget(t *testing.T) {
	for seed := range uint64(400) {
		rng := rand.New(rand.NewPCG(seed, 3))
		v := &victim{rng: rng, now: time.Unix(1000, 0), size: 1 + int64(math.Exp(rng.Float64()*19))}
		v.pace = source.Pace{Latency: v.upTo(400 * time.Millisecond), Rate: math.Exp(11 + rng.Float64()*8)}
		v.known = v.pace
		if seed%4 == 0 {
			v.known = source.Pace{}
			v.pace.Rate = min(v.pace.Rate, unknownFloor)
		}
		v.clock = clock{size: v.size, stagger: v.upTo(maxStagger)}
		var answered func(NodeID) bool
		if seed%2 == 0 {
			answered = func(NodeID) bool { return true }
		}
		begin := v.now
		v.s = NewSession("self", Want{Nar: narOf(seed), Forms: []source.Sized{{Size: v.size}}}, nodes(40), answered, v.now)
		for v.got < v.size && v.now.Sub(begin) < 24*time.Hour {
			v.step()
		}
		took, best := v.now.Sub(begin), v.pace.Time(v.size)
		if took > best+3*time.Second+best/2 {
			t.Errorf("seed %d: %s took %v, upstream alone %v", seed, fmt.Sprint(v.size), took, best)
		}
	}
}
