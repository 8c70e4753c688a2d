package lease

import (
	"slices"
	"testing"
	"time"
)

// trip is a Session with a clock.
type trip struct {
	t *testing.T
	*Session
	now   time.Time
	order []NodeID // rank of all, without the session's own node
}

func newTrip(t *testing.T) *trip {
	x := &trip{t: t, now: time.Unix(1000, 0)}
	want := Want{Nar: narOf(7), Form: xzForm, Size: big}
	self := NodeID("self")
	x.order = Rank(want.Nar, nodes(6))
	for !Outranks(want.Nar, x.order[4], self) {
		self += "."
	}
	x.Session = NewSession(self, want, nodes(6), x.now)
	return x
}

func (x *trip) pass(d time.Duration) { x.now = x.now.Add(d) }

func (x *trip) asks(node NodeID) Request {
	x.t.Helper()
	s := x.Next(x.now)
	if s.Kind != DoAsk || s.Node != node {
		x.t.Fatalf("%+v, want a question to %q", s, node)
	}
	return s.Request
}

func (x *trip) fetches(direct bool) {
	x.t.Helper()
	if s := x.Next(x.now); s.Kind != DoFetch || s.Direct != direct {
		x.t.Fatalf("%+v, want to fetch", s)
	}
}

func (x *trip) follows(nodes ...NodeID) {
	x.t.Helper()
	s := x.Next(x.now)
	var got []NodeID
	for _, o := range s.Sources {
		got = append(got, o.Node)
	}
	if s.Kind != DoFollow || !slices.Equal(got, nodes) {
		x.t.Fatalf("%+v, want to follow %q", s, nodes)
	}
}

func follow(nodes ...NodeID) Answer {
	a := Answer{Kind: Follow}
	for _, n := range nodes {
		a.Sources = append(a.Sources, Source{Node: n, Form: xzForm, Size: big, Bytes: 1000})
	}
	return a
}

func TestNobodyAnswers(t *testing.T) {
	x := newTrip(t)
	r := x.asks(x.order[0])
	if r.Verb != Ask || r.Form != xzForm || r.Size != big || r.Hops != 0 || r.Tried != nil {
		t.Errorf("%+v", r)
	}
	x.pass(AnswerTime - 1)
	x.asks(x.order[0])
	x.pass(1)
	if r = x.asks(x.order[1]); !slices.Equal(r.Tried, x.order[:1]) {
		t.Errorf("%+v", r)
	}
	x.Answered(x.order[0], Answer{Kind: Fetch}, x.now) // too late
	x.asks(x.order[1])
	if _, to := x.Report(Progress, nodes(6), x.now); to != nil {
		t.Errorf("reports while it asks to %q", to)
	}
	x.pass(AnswerTime)
	x.fetches(true)
	r, to := x.Report(Progress, nodes(6), x.now)
	if r.Verb != Progress || r.From != "" || !slices.Equal(to, x.order[:2]) {
		t.Errorf("%+v to %q", r, to)
	}
}

func TestRefusedAtOnce(t *testing.T) {
	x := newTrip(t)
	x.Unanswered(x.order[3], x.now) // whom nobody asked
	x.asks(x.order[0])
	x.Unanswered(x.order[0], x.now)
	x.asks(x.order[1])
	x.Answered(x.order[1], Answer{Kind: Fetch, Term: Term}, x.now)
	x.fetches(false)
	if _, to := x.Report(Progress, x.order[2:], x.now); !slices.Equal(to, []NodeID{x.order[2], x.order[3], x.order[1]}) {
		t.Errorf("reports to %q", to)
	}
}

func TestAloneInTheWorld(t *testing.T) {
	now := time.Unix(1, 0)
	s := NewSession("self", Want{Nar: narOf(1), Size: 10, Alone: true}, nil, now)
	if step := s.Next(now); step.Kind != DoAsk || step.Node != "self" || !step.Request.Alone {
		t.Errorf("%+v", step)
	}
	if _, to := s.Report(Progress, nil, now); to != nil {
		t.Errorf("reports to %q", to)
	}
}

func TestSentOn(t *testing.T) {
	for name, c := range map[string]struct {
		node NodeID
		ok   bool
	}{"higher": {"", true}, "lower": {"lower", false}, "this node": {"self", false}, "the same": {"same", false}} {
		x := newTrip(t)
		x.order = x.order[1:] // the first is not known to this one
		x.Session = NewSession(x.self, x.want, x.order, x.now)
		x.asks(x.order[0])
		to := Rank(x.want.Nar, nodes(6))[0]
		switch c.node {
		case "lower":
			to = x.order[1]
		case "self":
			to = x.self
		case "same":
			to = x.order[0]
		}
		x.Answered(x.order[0], Answer{Kind: Elsewhere, Node: to, Addr: "there"}, x.now)
		if !c.ok {
			x.asks(x.order[1])
			continue
		}
		if r := x.asks(to); r.Hops != 1 || x.Next(x.now).Addr != "there" {
			t.Errorf("%s: %+v", name, r)
		}
		// It is dead: who sent us on decides.
		x.pass(AnswerTime)
		if r := x.asks(x.order[0]); r.Hops != 1 || !slices.Equal(r.Tried, []NodeID{to}) {
			t.Errorf("%s: %+v", name, r)
		}
		x.Answered(x.order[0], follow("s"), x.now)
		x.follows("s")
	}
}

// TestSentRound: however coordinators send a node about, it decides in time, and asks what they
// accept.
func TestSentRound(t *testing.T) {
	for name, answers := range map[string]func(x *trip, node NodeID) bool{
		"all":       func(*trip, NodeID) bool { return true },
		"the known": func(x *trip, node NodeID) bool { return node == x.order[4] },
		"nobody":    func(*trip, NodeID) bool { return false },
	} {
		x := newTrip(t)
		x.Session = NewSession(x.self, x.want, x.order[4:], x.now)
		begin := x.now
		for x.Next(x.now).Kind == DoAsk && x.now.Sub(begin) < time.Minute {
			step := x.Next(x.now)
			if _, err := DecodeRequest(step.Request.Append(nil)); err != nil {
				t.Fatalf("%s: %+v: %v", name, step.Request, err)
			}
			x.now = step.Until.Add(-1)
			if answers(x, step.Node) {
				i := max(slices.Index(x.order, step.Node)-1, 0)
				for i > 0 && slices.Contains(step.Request.Tried, x.order[i]) {
					i--
				}
				x.Answered(step.Node, Answer{Kind: Elsewhere, Node: x.order[i]}, x.now)
			} else {
				x.pass(1)
			}
		}
		x.fetches(true)
		if took := x.now.Sub(begin); took > roundTime {
			t.Errorf("%s: decided after %v", name, took)
		}
	}
}

func TestFollowing(t *testing.T) {
	x := newTrip(t)
	x.Answered(x.order[0], follow(x.self), x.now) // nonsense
	x.asks(x.order[1])
	x.Answered(x.order[1], follow("p", x.self, "q"), x.now)
	x.follows("p", "q")
	x.Moved("p", xzForm, big, 500, 500, x.now)
	x.pass(time.Minute)
	if r, to := x.Report(Progress, nodes(6), x.now); r.From != "p" || r.Bytes != 500 || !slices.Equal(to, x.order[:2]) {
		t.Errorf("%+v to %q", r, to)
	}
	x.Moved("q", xzForm, big, 900, 900, x.now)
	x.pass(StallTime)
	x.Stalled("q", nodes(6), x.now) // which was to have 1000
	if r := x.asks(x.order[0]); r.Bytes != 900 || !slices.Equal(r.Failed, []NodeID{"q"}) {
		t.Errorf("%+v", r)
	}
	x.Answered(x.order[0], follow("p", "q"), x.now)
	x.follows("p")
	x.Moved("p", xzForm, big, 1000, 1000, x.now)
	x.Stalled("p", nodes(6), x.now) // which had no more
	if r := x.asks(x.order[0]); len(r.Failed) != 1 {
		t.Errorf("%+v", r)
	}
	x.pass(failedFor)
	x.Again(nodes(6), x.now)
	if r := x.asks(x.order[0]); r.Failed != nil {
		t.Errorf("%+v", r)
	}
}

// TestPatience: a coordinator that names nothing but dead or idle sources is not believed for
// ever.
func TestPatience(t *testing.T) {
	x := newTrip(t)
	for i := range maxMisses {
		x.asks(x.order[0])
		dead := NodeID("dead" + string(rune('0'+i)))
		x.Answered(x.order[0], follow(dead), x.now)
		x.follows(dead)
		x.Failed(dead, x.now)
		x.Again(nodes(6), x.now)
	}
	x.fetches(true)

	x = newTrip(t)
	begin := x.now
	for x.Next(x.now).Kind == DoAsk && x.now.Sub(begin) < time.Minute {
		a := follow("idle")
		a.Sources[0].Bytes = 0
		x.Answered(x.order[0], a, x.now)
		x.follows("idle")
		x.pass(StallTime)
		x.Stalled("idle", nodes(6), x.now)
	}
	x.fetches(true)
	if took := x.now.Sub(begin); took < Patience || took > Patience+StallTime {
		t.Errorf("waited %v", took)
	}
}

func TestGivesWay(t *testing.T) {
	x := newTrip(t)
	x.Answered(x.order[0], Answer{Kind: Fetch, Term: Term}, x.now)
	x.Moved("", xzForm, big, 1000, 1000, x.now)
	x.Answered(x.order[0], Answer{Kind: Fetch, Term: Term}, x.now)
	x.Answered(x.order[0], Answer{Kind: Noted}, x.now)
	x.fetches(false)
	var below NodeID = "below"
	for Outranks(x.want.Nar, below, x.self) {
		below += "."
	}
	for name, a := range map[string]Answer{
		"a lower one that is as far":  follow(below),
		"a higher one that is behind": {Kind: Follow, Sources: []Source{{Node: x.order[0], Form: xzForm, Size: big, Bytes: 999}}},
		"another file":                {Kind: Follow, Sources: []Source{{Node: x.order[0], Size: big, Bytes: 1000}}},
	} {
		x.Answered(x.order[0], a, x.now)
		if s := x.Next(x.now); s.Kind != DoFetch {
			t.Errorf("gives way to %s", name)
		}
	}
	x.Answered(x.order[0], follow(x.order[2]), x.now)
	x.follows(x.order[2])
	x.Failed(x.order[2], x.now)
	x.Again(nodes(6), x.now)
	if r := x.asks(x.order[0]); r.Bytes != 1000 {
		t.Errorf("%+v", r)
	}
}

// TestFailedBounds: the list of those who failed is bounded and has the last ones.
func TestFailedBounds(t *testing.T) {
	x := newTrip(t)
	all := nodes(20)
	for _, n := range append(all, all[19], all[12]) {
		x.Failed(n, x.now)
	}
	x.Again(nil, x.now)
	failed := x.Next(x.now).Request.Failed
	if len(failed) != maxNamed || !slices.Contains(failed, all[19]) || failed[maxNamed-1] != all[12] {
		t.Errorf("%q", failed)
	}
}
